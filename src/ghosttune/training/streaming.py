"""The rows of a stream by the place at which they train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ghosttune.data.encoding import Encoded, RowFeatures
from ghosttune.data.records import Records
from ghosttune.data.streaming import Cursor, Windows
from ghosttune.training.order import RowOrder


@dataclass(frozen=True)
class _Held:
    """A window that is in use."""

    start: int
    """Place of its first row."""
    cursor: Cursor
    after: Cursor
    """Where the next window begins."""
    records: Records
    encoded: Encoded
    order: np.ndarray
    """[rows] which of its features stands at each of its places."""
    cut: frozenset[str]

    @property
    def end(self) -> int:
        return self.start + len(self.order)


class StreamedRows(Sequence[RowFeatures]):
    """The rows of a run in the order in which they train: the row at place p is the p-th that is read for a step.

    Rows are had of the places that two steps have, up to the furthest one that was asked for. Every process reads
    every window, as every process has all rows of a source that is read whole; each is asked for its own.

    Args:
        windows: of the stream.
        encode: makes features of the records of a window.
        require_apart: raises DataError where records ask what rows that judge ask.
        rows_per_step: of all processes; rows of a step that stand in one window come by length, so that micro-batches
            are padded less.
        steps: of the run.
    """

    def __init__(
        self,
        windows: Windows,
        encode: Callable[[Records], Encoded],
        require_apart: Callable[[Records], None],
        rows_per_step: int,
        steps: int,
    ):
        self.windows, self.encode, self.require_apart = windows, encode, require_apart
        self.rows_per_step, self.steps = rows_per_step, steps
        self.held: list[_Held] = []
        self.next = 0, Cursor()
        """(place, cursor) of the window that is read next."""

    def __len__(self) -> int:
        return self.rows_per_step * self.steps

    def __getitem__(self, place: Any) -> Any:
        held, within = self._at(place)
        return replace(held.encoded.features[within], index=place)

    def record(self, place: int) -> tuple[Mapping[str, Any], bool]:
        """(the columns that nobody needed of the row at this place, whether its context was cut)."""
        held, within = self._at(place)
        record = held.records[within]
        return record.metadata, record.example_id in held.cut

    def state_at(self, place: int) -> dict[str, int]:
        """Where the window of this place begins, as JSON; the window need not have been read."""
        start, cursor = next(((held.start, held.cursor) for held in self.held if place < held.end), self.next)
        return {"place": start, **asdict(cursor)}

    def seek(self, state: Mapping[str, int]) -> None:
        """Goes on at a window that `state_at` named."""
        own = dict(state)
        self.held, self.next = [], (own.pop("place"), Cursor(**own))

    def _at(self, place: int) -> tuple[_Held, int]:
        while place >= self.next[0]:
            self._read()
        held = next(held for held in self.held if held.start <= place < held.end)
        return held, int(held.order[place - held.start])

    def _read(self) -> None:
        start, cursor = self.next
        records, after = self.windows.window(cursor)
        self.require_apart(records)
        encoded = self.encode(records)
        order = self._by_length(start, np.array([len(row) for row in encoded.features]))
        read = _Held(start, cursor, after, records, encoded, order, frozenset(encoded.cut_rows))
        self.held = [held for held in self.held if held.end > start - 2 * self.rows_per_step] + [read]
        self.next = read.end, after

    def _by_length(self, start: int, lengths: np.ndarray) -> np.ndarray:
        """Places of rows, those of one step by length, as `RowOrder` has them."""
        steps = (start + np.arange(len(lengths))) // self.rows_per_step
        return np.lexsort((lengths, steps))


class StreamOrder(RowOrder):
    """Every place of the run, one after the other: all of it is one epoch."""

    def __init__(self, rows: StreamedRows):
        super().__init__([], rows.rows_per_step, 0)
        self.places = len(rows)

    def __len__(self) -> int:
        return self.places

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.places))
