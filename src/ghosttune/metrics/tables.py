"""WikiSQL's tables in SQLite: each in memory, read only, with a limit on time and rows."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.errors import DataError
from ghosttune.foreign import lines_of, read_json

if TYPE_CHECKING:
    from ghosttune.metrics.sql import Query

SECONDS = 2.0
ROWS = 10_000
"""Longest time and longest result of one query; beyond either it has failed."""

Result = tuple[list[Any], str]
"""(what came back in its order, why nothing came back); one of the two is empty."""


class Tables:
    """Tables by their id."""

    def __init__(self, known: Mapping[str, Mapping[str, Any]], source: str):
        self._known = known
        self._source = source
        self._open: dict[str, Table] = {}

    @classmethod
    def read(cls, path: Path | None) -> Tables:
        """From a file `*.tables.jsonl` (or .gz), or all of a folder; DataError when there is none."""
        if path is None:
            raise DataError("sql_execution needs the tables: give evaluate.tables a file or folder of *.tables.jsonl")
        return cls(_read(path), str(path))

    def of(self, metadata: Mapping[str, Any]) -> Table:
        """The table a row asks about; DataError when the row names none, or one that is not there."""
        name = metadata.get("table_id")
        if not isinstance(name, str) or name not in self._known:
            what = "a row has no table_id" if name is None else f"table {name} is not in {self._source}"
            raise DataError(f"sql_execution: {what}; give evaluate.tables the tables of these rows")
        if name not in self._open:
            self._open[name] = Table(self._known[name])
        return self._open[name]


class Table:
    """One table that can be asked."""

    def __init__(self, fields: Mapping[str, Any]):
        self.name = str(fields["id"])
        self.types = list(fields["types"])
        self.columns = {
            " ".join(str(name).lower().split()): at for at, name in reversed([*enumerate(fields["header"])])
        }
        self._database = _database(fields)

    def result(self, query: Query | None) -> Result:
        """What the query gives on this table, as WikiSQL's engine would run it."""
        if query is None:
            return [], "not parsed"
        if any(name not in self.columns for name in self._named(query)):
            return [], "unknown column"
        chosen = f"col{self.columns[query.column]}"
        conditions = [(self.columns[column], operator, value) for column, operator, value in query.conditions]
        values = [self._typed(at, value) for at, _, value in conditions]
        if None in values:
            return [], "not a number"
        where = " AND ".join(f"col{at} {operator} ?" for at, operator, _ in conditions)
        selected = f"{query.aggregate}({chosen})" if query.aggregate else chosen
        return self._asked(f"SELECT {selected} FROM t" + (f" WHERE {where}" if where else ""), values)

    def require_answerable(self, expected: Sequence[Result], references: Sequence[str]) -> None:
        """DataError when none of the references runs: the rows and the tables do not belong together."""
        if all(fault for _, fault in expected):
            raise DataError(
                f"sql_execution: the reference {references[0]!r} fails on table {self.name} ({expected[0][1]}); "
                "give evaluate.tables the tables of these rows"
            )

    def _named(self, query: Query) -> list[str]:
        return [query.column, *(column for column, _, _ in query.conditions)]

    def _typed(self, at: int, value: str) -> Any:
        """The value as its column holds it: a number, or text in lower case; None when there is no number in it."""
        return _number(value) if self.types[at] == "real" else value.lower()

    def _asked(self, statement: str, values: Sequence[Any]) -> Result:
        end = time.monotonic() + SECONDS
        self._database.set_progress_handler(lambda: time.monotonic() > end, 10_000)
        try:
            rows = self._database.execute(statement, values).fetchmany(ROWS + 1)
        except sqlite3.Error as error:
            return [], "too slow" if "interrupted" in str(error) else f"SQLite: {error}"
        finally:
            self._database.set_progress_handler(None, 0)
        return ([], "too many rows") if len(rows) > ROWS else ([value for (value,) in rows], "")


def _places(header: Sequence[Any]) -> dict[str, int]:
    """Name in lower case -> column; the second of two equal names is called `name 2`."""
    places: dict[str, int] = {}
    for at, title in enumerate(header):
        name = " ".join(str(title).lower().split())
        same = sum(" ".join(str(other).lower().split()) == name for other in header[:at])
        places.setdefault(f"{name} {same + 1}" if same else name, at)
    return places


def _database(fields: Mapping[str, Any]) -> sqlite3.Connection:
    """The rows in memory: numbers where the column is real, text in lower case; closed to every further write."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    types = list(fields["types"])
    columns = ", ".join(f"col{at} {'REAL' if kind == 'real' else 'TEXT'}" for at, kind in enumerate(types))
    database.execute(f"CREATE TABLE t ({columns})")
    rows = [[_cell(kind, value) for kind, value in zip(types, row, strict=True)] for row in fields["rows"]]
    database.executemany(f"INSERT INTO t VALUES ({', '.join('?' * len(types))})", rows)
    database.execute("PRAGMA query_only = ON")
    return database


def _cell(kind: str, value: Any) -> Any:
    if kind == "real" and isinstance(value, str):
        number = _number(value)
        return value.lower() if number is None else number
    return value.lower() if isinstance(value, str) else value


def _number(value: str) -> float | None:
    """The number a text is, thousands separated or not, else the first one in it."""
    try:
        return float(value.replace(",", ""))
    except ValueError:
        found = re.search(r"[-+]?\d*\.\d+|[-+]?\d+", value)
        return float(found[0]) if found else None


@cache
def _read(path: Path) -> dict[str, Mapping[str, Any]]:
    files = sorted(path.glob("*.tables.jsonl*")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"evaluate.tables: {path} holds no *.tables.jsonl (or .gz)")
    known: dict[str, Mapping[str, Any]] = {}
    for file in files:
        for number, line in enumerate(lines_of(file), start=1):
            known.update([_table(line, f"{file.name}:{number}")])
    return known


def _table(line: str, place: str) -> tuple[str, Mapping[str, Any]]:
    try:
        fields = read_json(line)
        complete = all(len(row) == len(fields["header"]) == len(fields["types"]) for row in fields["rows"])
        name = fields["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place}: is no table of WikiSQL (id, header, types, rows): {error!r}") from error
    if not complete:
        raise DataError(f"{place}: a row of table {name} has not as many cells as the header")
    return name, fields
