"""Rows of a file, each with its place for messages: JSONL, JSON, CSV, TSV, Parquet and plain text, gzip or not."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ghosttune.errors import DataError

READABLE = ("jsonl", "json", "csv", "tsv", "parquet", "txt")
SHOWN_FAULTS = 10

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


def read_file(path: Path) -> list[Placed]:
    """Every row of the file with its place; DataError lists all lines that cannot be read (the first ten in full)."""
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"{path}: unknown kind of file; readable are {', '.join(READABLE)} (each also as .gz)")
    faults: list[str] = []
    rows = list(_READERS[kind](path, faults))
    if faults:
        raise DataError(listed_faults(f"{len(faults)} of the lines of {path} cannot be read", faults))
    if not rows:
        raise DataError(f"{path} holds no rows")
    return rows


def listed_faults(title: str, faults: list[str]) -> str:
    """A title and the first faults below it; the rest is counted."""
    more = [f"… and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
    return "\n  ".join([f"{title}:", *faults[:SHOWN_FAULTS], *more])


def fingerprint(path: Path) -> str:
    """sha256 of the bytes as stored."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _lines(path: Path) -> Iterator[str]:
    """Lines without their ends; DataError with the line number where the file is not UTF-8."""
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, start=1):
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 after line {number} ({error.reason}); convert it to UTF-8") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _opened(path: Path) -> io.TextIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")  # type: ignore[return-value]
    return open(path, encoding="utf-8-sig", newline="")


def _read_jsonl(path: Path, faults: list[str]) -> Iterator[Placed]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            faults.append(f"{place}: not valid JSON: {error.msg} at column {error.colno}")
            continue
        if isinstance(fields, dict):
            yield place, fields
        else:
            faults.append(f"{place}: must be an object with columns, is a {type(fields).__name__}")


def _read_json(path: Path, faults: list[str]) -> Iterator[Placed]:
    try:
        rows = json.loads("\n".join(_lines(path)))
    except json.JSONDecodeError as error:
        faults.append(f"{path.name}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}")
        return
    if not isinstance(rows, list):
        faults.append(f"{path.name}: must hold a list of objects, holds a {type(rows).__name__}")
        return
    for position, fields in enumerate(rows):
        place = f"{path.name}[{position}]"
        if isinstance(fields, dict):
            yield place, fields
        else:
            faults.append(f"{place}: must be an object with columns, is a {type(fields).__name__}")


def _read_table(path: Path, faults: list[str], delimiter: str) -> Iterator[Placed]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader((line + "\n" for line in _lines(path)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) != len(header):
            faults.append(f"{path.name}:1: column names repeat: {', '.join(header)}")
            return
        for cells in reader:
            place = f"{path.name}:{reader.line_num}"
            if not cells:
                continue
            if len(cells) == len(header):
                yield place, dict(zip(header, cells, strict=True))
            else:
                faults.append(f"{place}: {len(cells)} cells where the header has {len(header)}")
    except csv.Error as error:
        faults.append(f"{path.name}:{reader.line_num}: {error}")


def _read_csv(path: Path, faults: list[str]) -> Iterator[Placed]:
    return _read_table(path, faults, ",")


def _read_tsv(path: Path, faults: list[str]) -> Iterator[Placed]:
    return _read_table(path, faults, "\t")


def _read_parquet(path: Path, faults: list[str]) -> Iterator[Placed]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
    except (arrow.ArrowInvalid, OSError) as error:
        faults.append(f"{path.name}: not a Parquet file: {str(error).splitlines()[0]}")
        return
    for position, fields in enumerate(table.to_pylist()):
        yield f"{path.name}[{position}]", fields


def _read_text(path: Path, faults: list[str]) -> Iterator[Placed]:
    for number, line in enumerate(_lines(path), start=1):
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
