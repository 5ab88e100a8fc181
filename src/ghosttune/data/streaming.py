"""Rows that are read while a run goes on: shards of files or of a hub dataset, in shuffled windows.

A pass reads every shard once, and a window is the next `shuffle_buffer` rows of it, shuffled. Windows never reach over
the end of a pass, so that no row comes again before all others have come. Where a window begins is a few numbers, the
`Cursor`, from which it can be made anew: what a checkpoint keeps, in place of the rows of a buffer.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

from ghosttune.config.sections.data import RowsSettings, SourceSettings
from ghosttune.data.files import Placed, each_row, kind_of
from ghosttune.data.hub import HubStream, is_hub_id
from ghosttune.data.records import TURN_FORMATS, Records, detect_format, records_of, rename_columns
from ghosttune.data.sources import BUILTIN_ROWS, Source, builtin_rows, refuse_repeated, row_id, with_split
from ghosttune.errors import DataError, TooFewRows, listed
from ghosttune.foreign import open_file

FIRST_BYTES = 1 << 20
"""Of a shard that its fingerprint is made from, with its size: reading all of it would be reading the data."""


@dataclass(frozen=True)
class Cursor:
    """Where a window begins."""

    passes: int = 0
    window: int = 0
    """Windows of the pass before it."""
    shard: int = 0
    """Place in the pass's order of shards."""
    offset: int = 0
    """Rows of that shard before it."""
    position: int = 0
    """Rows of the pass before it."""


@dataclass(frozen=True)
class Unread:
    """A row as a shard has it."""

    dataset: str
    position: int
    """What its id says, where it has none of its own."""
    placed: Placed


class Shards(Protocol):
    """Parts of a source that can be read one without the other."""

    @property
    def split(self) -> str | None:
        """That of all rows, and part of their ids."""
        ...

    def order(self, number: int) -> Sequence[int]:
        """The shards as a pass reads them."""
        ...

    def rows(self, shard: int, offset: int, position: int) -> Iterator[Unread]:
        """The rows of a shard behind the first `offset`; `position` rows of the pass stand before them."""
        ...


@dataclass(frozen=True)
class FileShards:
    """Files, in an order that each pass draws; the rows of each are named as those of the file alone are."""

    paths: Sequence[Path]
    seed: int
    split: str | None = None

    def order(self, number: int) -> Sequence[int]:
        return _drawn(len(self.paths), self.seed, "shards", number)

    def rows(self, shard: int, offset: int, position: int) -> Iterator[Unread]:
        path = self.paths[shard]
        for place, placed in enumerate(islice(each_row(path), offset, None), offset):
            yield Unread(_stem(path), place, placed)


@dataclass(frozen=True)
class HubShards:
    """Those of the split train of a hub dataset, in their order: ids count through all of them."""

    stream: HubStream
    split: str | None = "train"

    def order(self, number: int) -> Sequence[int]:
        return range(self.stream.shards)

    def rows(self, shard: int, offset: int, position: int) -> Iterator[Unread]:
        for place, placed in enumerate(self.stream.rows(shard, offset, position), position):
            yield Unread(self.stream.dataset, place, placed)


class Windows:
    """The windows of a stream; each can be made again from where it begins.

    Asked for one after the other, windows read every shard once; asked for any other, one reads its first shard from
    the start of that, and none before it.
    """

    def __init__(self, shards: Shards, settings: RowsSettings, formats: Sequence[str], seed: int, size: int):
        self.shards, self.settings, self.formats, self.seed, self.size = shards, settings, formats, seed, size
        self.row_format: str | None = None if settings.format == "auto" else settings.format
        self._open: tuple[Cursor, Iterator[tuple[Unread, Cursor]]] | None = None
        """What was read up to there."""
        self._ahead: list[tuple[Unread, Cursor]] = []
        """The row behind it, which tells whether the pass is over."""

    def window(self, start: Cursor) -> tuple[Records, Cursor]:
        """The records of the window that begins there, shuffled, and where the next one begins.

        DataError when a row of it cannot be used, or when a whole pass has no rows.
        """
        if self._open is None or self._open[0] != start:
            self._open, self._ahead = (start, self._rows(start)), []
        rows = self._open[1]
        taken = [*self._ahead, *islice(rows, self.size - len(self._ahead))]
        if not taken:
            raise TooFewRows("the stream holds no rows")
        self._ahead = list(islice(rows, 1))
        after = replace(taken[-1][1], window=start.window + 1) if self._ahead else Cursor(start.passes + 1)
        self._open = after, rows if self._ahead else self._rows(after)
        records = self._records([unread for unread, _ in taken])
        return records.where(_drawn(len(records), self.seed, f"window {start.window}", start.passes)), after

    def _rows(self, start: Cursor) -> Iterator[tuple[Unread, Cursor]]:
        """The rows from there to the end of the pass, each with where the next one stands."""
        position, offset = start.position, start.offset
        for place, shard in islice(enumerate(self.shards.order(start.passes)), start.shard, None):
            for unread in self.shards.rows(shard, offset, position):
                offset, position = offset + 1, position + 1
                yield unread, Cursor(start.passes, start.window, place, offset, position)
            offset = 0

    def _records(self, read: Sequence[Unread]) -> Records:
        used = with_split(
            rename_columns([unread.placed for unread in read], self.settings.columns or {}), self.shards.split
        )
        ids = [
            row_id(fields, unread.placed[1], unread.dataset, self.shards.split, unread.position)
            for unread, (_, fields) in zip(read, used, strict=True)
        ]
        refuse_repeated(ids, used)
        self.row_format = self.row_format or detect_format(used, self.formats)
        records = records_of(used, self.row_format, ids)
        others = [record.place for record in records if record.split not in (None, "train")]
        if others:
            raise DataError(
                f"a stream trains on all of its rows, and {len(others)} name another split: {listed(others, 5)}; keep "
                "these in a file of their own, such as data.dev.path"
            )
        return records


def open_stream(settings: SourceSettings, seed: int, formats: Sequence[str] = TURN_FORMATS) -> Source:
    """A source whose records are the first window of the stream; DataError as `open_source` raises it."""
    if settings.name is not None and is_hub_id(settings.name):
        stream = HubStream.of(settings.name)
        shards: Shards = HubShards(stream)
        fingerprints = {f"{settings.name}, {stream.shards} shards": stream.fingerprint}
    else:
        paths = shard_files(settings.path or "")
        shards, fingerprints = FileShards(paths, seed), {f"{settings.path}, {len(paths)} shards": _fingerprint(paths)}
    windows = Windows(shards, settings, formats, seed, settings.shuffle_buffer)
    records, _ = windows.window(Cursor())
    return Source(records, windows.row_format or "", fingerprints, stream=windows)


def shard_files(pattern: str) -> list[Path]:
    """The files of a pattern such as `shards/*.jsonl.gz`, by name; DataError where they cannot be read as a stream."""
    if pattern == BUILTIN_ROWS:
        return [builtin_rows()]
    if Path(pattern).is_dir():
        raise DataError(f"{pattern} is a folder; say which of its files are streamed, such as {pattern}/*.jsonl")
    found = [Path(pattern)] if Path(pattern).exists() else sorted(map(Path, glob.glob(pattern, recursive=True)))
    if not found:
        raise DataError(f"{pattern} matches no file")
    if wrong := [path.name for path in found if kind_of(path) in (None, "json")]:
        raise DataError(
            f"{pattern} matches {listed(wrong, 5)}, which cannot be read row by row: streamed are .jsonl, .csv, .tsv, "
            ".parquet and .txt (each also as .gz)"
        )
    names = [_stem(path) for path in found]
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"{pattern} matches several files called {listed(again, 5)}, and ids begin with that name; give the files "
            "different ones"
        )
    return found


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _fingerprint(paths: Sequence[Path]) -> str:
    """sha256 of every shard's name, size and first bytes."""
    digest = hashlib.sha256()
    for path in paths:
        with open_file(path) as file:
            first = hashlib.sha256(file.read(FIRST_BYTES)).hexdigest()
        digest.update(f"{path.name}\x1f{path.stat().st_size}\x1f{first}\n".encode())
    return digest.hexdigest()


def _drawn(count: int, seed: int, purpose: str, number: int) -> Any:
    """[count] a permutation that depends on nothing but the arguments."""
    import numpy as np

    return np.random.default_rng([seed, crc32(purpose.encode()), number]).permutation(count)
