"""Which row comes when: a pure function of seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np

from ghosttune.config.sections import TrainSettings
from ghosttune.training.processes import processes

POOL = 32
"""Steps whose rows are sorted by length together: larger pads less and shuffles less."""


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
        drawn = [self._of_source(name, seed, epoch) for name in self.positions]
        return np.concatenate(drawn)

    def _of_source(self, name: str, seed: int, epoch: int) -> np.ndarray:
        rows, count = self.positions[name], self.counts[name]
        if not count:
            return rows[:0]
        first, begin = divmod(epoch * count, len(rows))
        last = (epoch * count + count - 1) // len(rows)
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
        random = np.random.default_rng([self.seed, self.epoch])
        shuffled = places[random.permutation(len(self))]
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
        return iter(np.concatenate(steps).tolist())


def _pool_steps(steps: int) -> int:
    """Steps per pool: few rows need small pools, or the same rows would meet in every epoch."""
    return max(1, min(POOL, steps // 4))


def rows_of_steps(order: RowOrder, batch_size: int, processes: int, steps: int) -> Iterator[list[int]]:
    """The row positions that each of the first `steps` updates consumes, in all processes together."""
    epoch = 0
    while steps > 0:
        order.set_epoch(epoch)
        taken = MicroBatches(order, batch_size, 0, processes).steps()[:steps]
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

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps():
            count = self._count(len(step)) * self.processes
            parts = np.array_split(step, count) if count else []
            yield from (part.tolist() for part in parts[self.process :: self.processes])

    def steps(self) -> list[list[int]]:
        """The row positions of each step of the epoch, in all processes together."""
        rows, size = list(self.order), self.order.rows_per_step
        cuts = [rows[start : start + size] for start in range(0, len(rows), size)]
        kept = [cut[: self._count(len(cut)) * self.processes * self.batch_size] for cut in cuts]
        repeats = self.order.repeats
        return [step for step in kept if step for _ in range(repeats if len(step) == size else 1)]

    def _count(self, rows: int) -> int:
        """Micro-batches of each process in a step of so many rows."""
        most = -(-rows // (self.batch_size * self.processes))
        return min(most, rows // self.processes)
