"""The rows of a run, searched, sorted and filtered in memory: read once, each answer in a fraction of a second."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute

from ghosttune.data.content import content
from ghosttune.data.records import Record, Records
from ghosttune.errors import InputError, listed
from ghosttune.judging.evaluate import splits_of
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import read_table, table_columns
from ghosttune.stages.runs import open_run
from ghosttune.studio.folder import Folder
from ghosttune.studio.measured import MEASURED, measured_file, read_measured
from ghosttune.training.exports import totals_of

WORD = re.compile(r'"([^"]+)"|([^\s"]+)')
"""Of a search: words in quotes, or a word."""

Stamp = tuple[str, int]
"""A file and when it was last written."""

pc: Any = pyarrow.compute
"""Its functions are made when it is imported, so that no checker of types knows them."""

VALUES = {"value": "float64", "credit": "float64", "standing": "float64", "steps_seen": "int64", "tokens": "int64"}
"""Columns of tables/values that rows are sorted and filtered by."""

NUMBERS = VALUES | MEASURED
"""With those that are there once somebody has asked for them."""

SORTED_BY = ("place", *NUMBERS)

MOST = 200
"""Rows of one page."""

SHOWN = 400
"""Characters of a question, and of an answer, that a row's line in the table has."""


@dataclass(frozen=True)
class Asked:
    """Which rows, in which order, and which page of them."""

    text: str = ""
    """Each of its words, or "words in quotes", stands in the row, its id or its columns; capitals do not matter."""
    sort: str = "place"
    descending: bool = False
    low: float | None = None
    """Bounds of the column that is sorted by."""
    high: float | None = None
    source: str = ""
    """A source of a mixture."""
    only: frozenset[str] | None = None
    """Ids among which to look."""
    offset: int = 0
    limit: int = 50

    def __post_init__(self) -> None:
        if self.sort not in SORTED_BY:
            raise InputError(f"rows are not sorted by {self.sort!r}; by {listed(SORTED_BY)}")
        if not (self.offset >= 0 and 0 < self.limit <= MOST):
            raise InputError(f"a page has 1 to {MOST} rows from place 0 on, asked are {self.limit} from {self.offset}")


class RowIndex:
    """All training rows of a run with what the run says of each.

    Args:
        records: the rows.
        values: id -> columns of tables/values; empty for a run without a ledger.
    """

    def __init__(self, records: Records, values: Mapping[str, Mapping[str, Any]]):
        self.records = records
        columns: dict[str, list[str]] = {name: [] for name in ("example_id", "text", "source")}
        for record in records:
            columns["example_id"].append(record.example_id)
            columns["text"].append(_searched(record))
            columns["source"].append(str(record.metadata.get("source", "")))
        self.table = pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()})
        self.places = {name: place for place, name in enumerate(columns["example_id"])}
        self.sources = sorted(set(columns["source"]) - {""})
        self.take(values)

    def take(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """What is said of each row from now on, in place of what was."""
        table = self.table.select(["example_id", "text", "source"])
        found = [values.get(name, {}) for name in self.places]
        for name, kind in NUMBERS.items():
            table = table.append_column(name, pa.array([own.get(name) for own in found], pa.type_for_alias(kind)))
        self.table = table

    @property
    def known(self) -> list[str]:
        """The numbers that some row has."""
        return [name for name in NUMBERS if self.table[name].null_count < len(self.table)]

    @classmethod
    def of_run(cls, run: RunDir) -> RowIndex:
        """Reads the rows as the run did, without tokens; InputError where its data are not what they were."""
        _, drawn = splits_of(run, open_run(run.path).config)
        return cls(drawn.train, {})

    def page(self, asked: Asked) -> dict[str, Any]:
        """{total, rows}: how many rows there are of what was asked, and one page of them."""
        places = self._places(asked)
        page = places[asked.offset : asked.offset + asked.limit]
        return {
            "total": len(places),
            "all": len(self.records),
            "sources": self.sources,
            "known": self.known,
            "rows": [self.line(place) for place in page.to_pylist()],
        }

    def _places(self, asked: Asked) -> Any:
        """The places of all rows that were asked for, in order."""
        known, wanted = self.table, []
        for quoted, word in WORD.findall(asked.text.lower()):
            wanted.append(pc.match_substring(known["text"], quoted or word))
        if asked.source:
            wanted.append(pc.equal(known["source"], asked.source))
        if asked.only is not None:
            wanted.append(pc.is_in(known["example_id"], value_set=pa.array(asked.only, "string")))
        if asked.sort != "place" and asked.low is not None:
            wanted.append(pc.greater_equal(known[asked.sort], asked.low))
        if asked.sort != "place" and asked.high is not None:
            wanted.append(pc.less_equal(known[asked.sort], asked.high))
        places = pa.array(range(len(known)))
        if wanted:
            mask = pc.fill_null(reduce(pc.and_, wanted), False)
            places = places.filter(mask.combine_chunks())
        if asked.sort != "place":
            column = self.table[asked.sort].take(places)
            order = "descending" if asked.descending else "ascending"
            return places.take(pc.array_sort_indices(column.combine_chunks(), order=order))
        return places[::-1] if asked.descending else places

    def ids(self, asked: Asked) -> list[str]:
        """All rows that are asked for, whatever the page."""
        return [self.records[place].example_id for place in self._places(asked).to_pylist()]

    def line(self, place: int) -> dict[str, Any]:
        """A row of the table: its numbers, and the beginning of what it says."""
        record = self.records[place]
        numbers = {name: self.table[name][place].as_py() for name in NUMBERS}
        asked, says = _asked_and_said(record)
        return {
            "example_id": record.example_id,
            "asked": asked[:SHOWN],
            "says": says[:SHOWN],
            "beside": record.metadata,
            **numbers,
        }

    def row(self, example_id: str) -> dict[str, Any]:
        """All of one row; InputError for an id that no training row has."""
        return {**self.line(self.place(example_id)), "content": content(self.record(example_id))}

    def record(self, example_id: str) -> Record:
        return self.records[self.place(example_id)]

    def place(self, example_id: str) -> int:
        if example_id not in self.places:
            raise InputError(f"no training row of the run is called {example_id!r}")
        return self.places[example_id]


def _asked_and_said(record: Record) -> tuple[str, str]:
    """What stands before the last turn, and the last turn; all of a row without turns is said."""
    if record.turns:
        *before, last = (turn.words for turn in record.turns)
        return "\n".join(before), last
    return "", json.dumps(record.columns, ensure_ascii=False, default=str) if record.columns else "(a block of tokens)"


def _searched(record: Record) -> str:
    beside = json.dumps(record.metadata, ensure_ascii=False, default=str) if record.metadata else ""
    return "\n".join((record.example_id, *_asked_and_said(record), beside)).lower()


def values_of(run: RunDir) -> dict[str, dict[str, Any]]:
    """id -> what the run says of the row: tables/values, or while it goes on what its ledger adds up to so far."""
    if known := table_columns(run, "values"):
        names = ["example_id", *(name for name in VALUES if name in known)]
        return {row["example_id"]: row for row in read_table(run, "values", names).to_pylist()}
    if not table_columns(run, "ledger"):
        return {}
    names = ("value", "credit", "standing", "steps_seen")
    return {name: dict(zip(names, found, strict=True)) for name, found in totals_of(run).items()}


class Indexes:
    """The rows of the runs that were last looked at: read once, what is said of them as often as that changes."""

    kept = 2

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._known: OrderedDict[tuple[str, int], tuple[RowIndex, list[Stamp]]] = OrderedDict()
        self._reading = threading.Lock()

    def of(self, run: RunDir) -> RowIndex:
        """InputError where the run's data are not what they were."""
        key = str(run.path), run.config.stat().st_mtime_ns
        with self._reading:
            index, before = self._known.get(key) or (RowIndex.of_run(run), [])
            stamps = self._stamps(run)
            if stamps != before:
                said = values_of(run)
                for what in MEASURED:
                    for name, number in read_measured(self.folder, run, what).items():
                        said.setdefault(name, {})[what] = number
                index.take(said)
            self._known[key] = index, stamps
            self._known.move_to_end(key)
            while len(self._known) > self.kept:
                self._known.popitem(last=False)
            return index

    def _stamps(self, run: RunDir) -> list[Stamp]:
        """Of all files that say something of rows."""
        parts = [path for name in ("values", "ledger") for path in sorted(run.table(name).glob("part-*"))]
        files = [*parts, *(measured_file(self.folder, run, what) for what in MEASURED)]
        return [(str(path), path.stat().st_mtime_ns) for path in files if path.is_file()]
