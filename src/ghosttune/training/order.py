"""Which row comes when: a pure function of seed and epoch, and of the shares of sources where a run learns them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from zlib import crc32

import numpy as np

from ghosttune.config.sections.train import TrainSettings
from ghosttune.data.selecting import shares_of
from ghosttune.data.splitting import draw
from ghosttune.training.processes import processes

POOL = 32
"""Steps whose rows are sorted by length together: larger pads less and shuffles less."""

WHOLE = 10_000
"""Parts that learnt shares are rounded to, so that the last bits of a sum decide no draw."""


@dataclass(frozen=True)
class Draws:
    """Which rows an epoch has where it takes other shares of several sources than their rows are.

    The rows of a source come in passes: every pass is all of them, shuffled, and an epoch goes on where the one before
    it stopped. So a row is never more than one time ahead of another of its source.
    """

    positions: Mapping[str, np.ndarray]
    """The rows of each source."""
    counts: Mapping[str, int]
    """How many of them an epoch has."""

    def __len__(self) -> int:
        return sum(self.counts.values())

    def of_epoch(self, seed: int, epoch: int) -> np.ndarray:
        """The row positions of an epoch, source by source; nothing else than the arguments decides."""
        drawn = [self.taken(name, seed, epoch * self.counts[name], self.counts[name]) for name in self.positions]
        return np.concatenate(drawn)

    def taken(self, name: str, seed: int, start: int, count: int) -> np.ndarray:
        """`count` row positions of a source, behind the first `start` of its passes."""
        rows = self.positions[name]
        if not count:
            return rows[:0]
        first, begin = divmod(start, len(rows))
        last = (start + count - 1) // len(rows)
        passes = [np.random.default_rng([seed, crc32(name.encode()), at]) for at in range(first, last + 1)]
        return np.concatenate([rows[random.permutation(len(rows))] for random in passes])[begin : begin + count]


class RowOrder:
    """Row positions of one epoch, step after step.

    Rows are shuffled, sorted by length within pools of steps, cut into steps, and the steps shuffled. Grouping is by
    whole steps (all ranks and micro-batches), so that it does not change with their number. A last step that is not
    full comes last. Not `grouped`, a step is a pool of its own: only its micro-batches hold rows of like length.
    An epoch is every row once, or what `draws` says. With `scores`, its rows come by them instead, the smallest first,
    equal ones as they stand. Full steps are made `repeats` times in a row, of the same rows.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        rows_per_step: int,
        seed: int,
        grouped: bool = False,
        draws: Draws | None = None,
        scores: Sequence[float] | None = None,
        repeats: int = 1,
    ):
        self.repeats = repeats
        self.scores = None if scores is None else np.asarray(scores)
        self.lengths = np.asarray(lengths)
        self.draws = draws
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.pool_steps = _pool_steps(len(self) // rows_per_step) if grouped else 1
        self.epoch = 0

    @classmethod
    def of_run(
        cls,
        rows: Sequence[Any],
        train: TrainSettings,
        draws: Draws | None = None,
        scores: Sequence[float] | None = None,
        offered: int = 1,
        repeats: int = 1,
    ) -> RowOrder:
        """The order in which all processes of a run read these rows; `offered` for each that trains."""
        lengths, size = [len(row) for row in rows], train.rows_per_step * offered * processes()
        return cls(lengths, size, train.seed, train.group_by_length, draws, scores, repeats)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) if self.draws is None else len(self.draws)

    def __iter__(self) -> Iterator[int]:
        places = np.arange(len(self)) if self.draws is None else self.draws.of_epoch(self.seed, self.epoch)
        if self.scores is not None:
            return iter(places[np.argsort(self.scores[places], kind="stable")].tolist())
        return iter(self._in_steps(places, self.epoch))

    def _in_steps(self, places: np.ndarray, number: int) -> list[int]:
        """The rows of an epoch, or of another part of a run that is shuffled as a whole, by its number."""
        random = np.random.default_rng([self.seed, number])
        shuffled = places[random.permutation(len(places))]
        size = self.rows_per_step * self.pool_steps
        full: list[np.ndarray] = []
        rest: list[np.ndarray] = []
        for start in range(0, len(shuffled), size):
            pool = shuffled[start : start + size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            for cut in range(0, len(pool), self.rows_per_step):
                step = pool[cut : cut + self.rows_per_step]
                (full if len(step) == self.rows_per_step else rest).append(step)
        steps = [full[position] for position in random.permutation(len(full))] + rest
        return np.concatenate(steps).tolist()


class LearntOrder(RowOrder):
    """Row positions of a mixture whose shares are learnt while it trains.

    A window of `every` steps has rows of each source by the shares that hold when its first row is asked for, the last
    of `shares`. How many it has is its share, rounded up or down by one draw for all sources, so that it is the share
    on average (systematic sampling: Madow & Madow 1944, Annals of Mathematical Statistics 15). Which they are depends
    on the seed and the shares so far alone. Every step is full: an epoch is as many as all rows would fill.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int, grouped: bool, draws: Draws, every: int):
        self.learnt_draws, self.every = draws, every
        super().__init__(lengths, rows_per_step, seed, grouped, draws)
        self.pool_steps = _pool_steps(every) if grouped else 1
        self.sources = list(draws.positions)
        self.shares = [list(shares_of(draws.counts, WHOLE).values())]
        """Of each window that has begun: the share of each source, in parts of WHOLE."""

    def __len__(self) -> int:
        return -(-len(self.learnt_draws) // self.rows_per_step) * self.rows_per_step

    def __iter__(self) -> Iterator[int]:
        size, steps = self.rows_per_step, len(self) // self.rows_per_step
        rows: list[int] = []
        for step in range(self.epoch * steps, (self.epoch + 1) * steps):
            window, within = divmod(step, self.every)
            if not rows or not within:
                rows = self._of_window(window)
            yield from rows[within * size : (within + 1) * size]

    def _of_window(self, window: int) -> list[int]:
        counts = self.counts(window + 1)
        starts = counts[:window].sum(0)
        drawn = [
            self.learnt_draws.taken(name, self.seed, int(start), int(count))
            for name, start, count in zip(self.sources, starts, counts[window], strict=True)
        ]
        return self._in_steps(np.concatenate(drawn), window)

    def counts(self, windows: int) -> np.ndarray:
        """[windows, sources] how many rows of each source the first windows have."""
        known = len(self.shares) - 1
        ends = np.cumsum([self.shares[min(window, known)] for window in range(windows)], axis=1)
        offsets = [[draw(self.seed, "window", str(window))] for window in range(windows)]
        upto = np.floor(ends * self.every * self.rows_per_step / WHOLE + offsets).astype(np.int64)
        return np.diff(upto, axis=1, prepend=0)


def _pool_steps(steps: int) -> int:
    """Steps per pool: few rows need small pools, or the same rows would meet in every epoch."""
    return max(1, min(POOL, steps // 4))


def rows_of_steps(order: RowOrder, batch_size: int, processes: int, steps: int) -> Iterator[list[int]]:
    """The row positions that each of the first `steps` updates consumes, in all processes together."""
    epoch = 0
    while steps > 0:
        order.set_epoch(epoch)
        taken = list(islice(MicroBatches(order, batch_size, 0, processes).steps(), steps))
        yield from taken
        steps, epoch = steps - len(taken), epoch + 1


class MicroBatches:
    """The micro-batches of one process: its slices of each step, cut so that every process has as many.

    A last step of an epoch with too few rows to give each process one leaves out those that remain (fewer than
    `processes`); with one process nothing is ever left out.
    """

    def __init__(self, order: RowOrder, batch_size: int, process: int = 0, processes: int = 1):
        self.order, self.batch_size = order, batch_size
        self.process, self.processes = process, processes

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        rows, size = len(self.order), self.order.rows_per_step
        return rows // size * self.order.repeats * self._count(size) + self._count(rows % size)

    @property
    def left_out(self) -> int:
        """How many rows of each epoch no process trains."""
        rest = len(self.order) % self.order.rows_per_step
        return rest - min(rest, self._count(rest) * self.processes * self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps():
            count = self._count(len(step)) * self.processes
            parts = np.array_split(step, count) if count else []
            yield from (part.tolist() for part in parts[self.process :: self.processes])

    def steps(self) -> Iterator[list[int]]:
        """The row positions of each step of the epoch, in all processes together; none is asked for before its turn."""
        rows = iter(self.order)
        while cut := list(islice(rows, self.order.rows_per_step)):
            if kept := cut[: self._count(len(cut)) * self.processes * self.batch_size]:
                yield from [kept] * (self.order.repeats if len(kept) == self.order.rows_per_step else 1)

    def _count(self, rows: int) -> int:
        """Micro-batches of each process in a step of so many rows."""
        most = -(-rows // (self.batch_size * self.processes))
        return min(most, rows // self.processes)
