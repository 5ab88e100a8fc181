"""Rows of a file, each with its place for messages: JSONL, JSON, CSV, TSV, Parquet and plain text, gzip or not."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ghosttune.data.stored import Stored
from ghosttune.errors import DataError, TooFewRows, listed_faults
from ghosttune.foreign import UNREADABLE, lines_of, open_file, opened, read_json

READABLE = ("jsonl", "json", "csv", "tsv", "parquet", "txt")
Fields = dict[str, Any]
Placed = tuple[str, Fields]
"""(place such as `train.jsonl:17`, the row's fields)."""


def kind_of(path: Path) -> str | None:
    """The readable kind a file name ends in, below an optional `.gz`; None when it is not one."""
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == "gz":
        suffixes.pop()
    last = {"ndjson": "jsonl", "text": "txt"}.get(suffixes[-1], suffixes[-1]) if suffixes else None
    return last if last in READABLE else None


def read_file(path: Path, without: Collection[str] = ()) -> Sequence[Placed]:
    """Every row of the file with its place, on disk; DataError lists all lines that cannot be read.

    The first ten are named in full. Lines at the places in `without` need not be rows.
    """
    rows, faults = rows_and_faults(path)
    error = unusable(f"{path} cannot be read, {len(faults)} of its lines or rows are wrong", faults)
    if error.rows.keys() - without:
        raise error
    if not rows:
        raise TooFewRows(f"{path} holds no rows")
    return rows


def rows_and_faults(path: Path) -> tuple[Sequence[Placed], list[str]]:
    """Every row of the file with its place, and what is wrong with lines that are none; DataError for unknown files."""
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"{path}: unknown kind of file; readable are {', '.join(READABLE)} (each also as .gz)")
    faults: list[str] = []
    return Stored(_READERS[kind](path, faults)), faults


def each_row(path: Path) -> Iterator[Placed]:
    """Every row of the file with its place, read as they are asked for; DataError at the first that cannot be read."""
    kind, faults = kind_of(path), list[str]()
    assert kind is not None  # else it would not have been chosen
    rows = _READERS[kind](path, faults)
    for placed in rows:
        if faults:
            break
        yield placed
    if faults:
        raise unusable(f"{path} cannot be read further", faults)


def read_unquoted(path: Path, columns: tuple[str, ...]) -> Sequence[Placed]:
    """Rows of a .tsv file in which quotes mean nothing, as GLUE's are; other kinds as `read_file` reads them.

    A first line with the cell `label` names the columns; otherwise they are the given ones. DataError as `read_file`.
    """
    if kind_of(path) != "tsv":
        return read_file(path)
    lines = ((f"{path.name}:{number}", line.split("\t")) for number, line in enumerate(lines_of(path), start=1) if line)
    faults: list[str] = []
    rows = Stored(_unquoted_rows(lines, columns, faults))
    if faults:
        raise DataError(listed_faults(f"{path} cannot be read, {len(faults)} of its lines are wrong", faults))
    if not rows:
        raise DataError(f"{path} holds no rows")
    return rows


def _unquoted_rows(
    lines: Iterable[tuple[str, list[str]]], columns: tuple[str, ...], faults: list[str]
) -> Iterator[Placed]:
    for place, cells in lines:
        if place.endswith(":1") and "label" in cells:
            columns = tuple(cells)
        elif len(cells) == len(columns):
            yield place, dict(zip(columns, cells, strict=True))
        else:
            faults.append(f"{place}: {len(cells)} cells, not {len(columns)} ({', '.join(columns)})")


def read_text(path: Path) -> str:
    """The whole text of a file, line ends as \\n; DataError when it is empty or not UTF-8."""
    text = "\n".join(lines_of(path))
    if not text.strip():
        raise DataError(f"{path} is empty")
    return text


def read_document(path: Path) -> Any:
    """What a .json file holds, whatever it is; DataError with the line where it is not valid JSON."""
    faults: list[str] = []
    for document in _json_documents(path, faults):
        return document
    raise DataError(faults[0] if faults else f"{path} is empty")


def unusable(title: str, faults: Sequence[str], remedy: str = "") -> DataError:
    """The error of faults that are written `place: reason`: the first ones in full, and the rows of all of them."""
    parts = (re.split(r"(?<=\d|\]): ", fault, maxsplit=1) for fault in faults)
    return DataError(listed_faults(title, faults) + remedy, {part[0]: part[-1] for part in parts})


def shown(value: Any) -> str:
    """A value of a row as it could stand in a JSON file, short enough for a message; text in single quotes."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def kind_of_value(value: Any) -> str:
    """What JSON calls a value."""
    kinds = [
        (bool, str(value).lower()),
        (int | float, "a number"),
        (str, "text"),
        (list, "a list"),
        (dict, "an object"),
    ]
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def fingerprint(path: Path) -> str:
    """sha256 of the bytes as stored."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def changed_files(recorded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The files that are not what was recorded; one that lies elsewhere with the same bytes is the same file.

    So a run can be moved with its data, and the shipped rows are those of any installation that ships the same.
    """
    moved = set(recorded.values())
    return [
        name for name, digest in now.items() if (recorded[name] != digest if name in recorded else digest not in moved)
    ]


def _read_jsonl(path: Path, faults: list[str]) -> Iterator[Placed]:
    for number, line in enumerate(lines_of(path), start=1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            fields = read_json(line)
        except ValueError as error:
            faults.append(f"{place}: not valid JSON: {_json_fault(error)}")
            continue
        yield from _object(place, fields, faults)


def _read_json(path: Path, faults: list[str]) -> Iterator[Placed]:
    for rows in _json_documents(path, faults):
        if not isinstance(rows, list):
            faults.append(f"{path.name}: must hold a list of objects, holds {kind_of_value(rows)}")
            return
        for position, fields in enumerate(rows):
            yield from _object(f"{path.name}[{position}]", fields, faults)


def _json_documents(path: Path, faults: list[str]) -> Iterator[Any]:
    """What the file holds: one document, or none when it is empty or not JSON."""
    text = "\n".join(lines_of(path))
    if not text.strip():
        return
    try:
        document = read_json(text)
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        hint = "; one object per line? then name the file .jsonl" if str(error).startswith("Extra data") else ""
        faults.append(f"{path.name}{line}: not valid JSON: {_json_fault(error)}{hint}")
        return
    yield document


def _json_fault(error: ValueError) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _object(place: str, fields: Any, faults: list[str]) -> Iterator[Placed]:
    """The row, if it is one whose text can be written as UTF-8."""
    if not isinstance(fields, dict):
        faults.append(f"{place}: must be an object with columns, is {kind_of_value(fields)}")
    elif _has_half_character(fields):
        faults.append(f"{place}: holds half a character (a lone \\ud800 to \\udfff); write the whole pair")
    else:
        yield place, fields


def _has_half_character(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _read_table(path: Path, faults: list[str], delimiter: str) -> Iterator[Placed]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader((line + "\n" for line in lines_of(path)), delimiter=delimiter, strict=True)
    header: list[str] = []
    for place, cells in _table_rows(reader, path, faults):
        if not header:
            header = [cell.strip() for cell in cells]
            if fault := _header_fault(header, delimiter):
                faults.append(f"{place}: {fault}")
                return
        elif len(cells) == len(header):
            yield place, dict(zip(header, cells, strict=True))
        else:
            faults.append(f"{place}: {len(cells)} cells where the header has {len(header)}")


def _table_rows(reader: Any, path: Path, faults: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The rows that are not empty, each placed at its first line; quoted cells may span several."""
    while True:
        place = f"{path.name}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            faults.append(f'{place}: {error} (a quote inside a quoted cell is written "")')
            continue
        if cells is None:
            return
        if cells:
            yield place, cells


def _header_fault(header: list[str], delimiter: str) -> str:
    """What is wrong with the column names; empty when nothing is."""
    if len(set(header)) != len(header):
        return f"column names repeat: {', '.join(header)}"
    other = next((mark for mark in ",;\t" if mark != delimiter and mark in header[0]), None)
    if len(header) == 1 and other is not None:
        return f"the one column is called {header[0]!r}: separate cells with {delimiter!r}, not {other!r}"
    return ""


def _read_csv(path: Path, faults: list[str]) -> Iterator[Placed]:
    return _read_table(path, faults, ",")


def _read_tsv(path: Path, faults: list[str]) -> Iterator[Placed]:
    return _read_table(path, faults, "\t")


def _read_parquet(path: Path, faults: list[str]) -> Iterator[Placed]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    position = 0
    try:
        with opened(path) as file:
            read = parquet.ParquetFile(io.BytesIO(file.read()) if path.suffix.lower() == ".gz" else file)
            names = read.schema_arrow.names
            if len(set(names)) < len(names):
                faults.append(f"{path.name}: column names repeat: {', '.join(names)}")
                return
            for batch in read.iter_batches():
                columns = {name: _values(name, batch.column(name)) for name in names}
                for cells in zip(*columns.values(), strict=True):
                    yield f"{path.name}[{position}]", dict(zip(names, cells, strict=True))
                    position += 1
    except (arrow.ArrowException, *UNREADABLE) as error:
        reason, *_ = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()
        faults.append(f"{path.name}: not a Parquet file: {reason}")
    except _Unreadable as error:
        faults.append(f"{path.name}[{position}]: {error}")


def without_nan(value: Any) -> Any:
    """A value of a table with null for NaN, which stands there for what is not known; ValueError for infinite ones."""
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise ValueError(f"{value} is no number that JSON has")
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return {name: without_nan(each) for name, each in value.items()} if isinstance(value, dict) else value


class _Unreadable(Exception):
    """A column holds what Python has no value for."""


def _values(name: str, column: Any) -> list[Any]:
    try:
        return [without_nan(value) for value in column.to_pylist()]
    except (
        ValueError,
        OverflowError,
    ) as error:  # text that is not UTF-8, dates beyond the year 9999
        raise _Unreadable(f"the column {name} cannot be read, in this row or a later one: {error}") from error


def _read_text(path: Path, faults: list[str]) -> Iterator[Placed]:
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            yield f"{path.name}:{number}", {"text": line}


_READERS = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "txt": _read_text,
}
