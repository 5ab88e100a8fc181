"""Which row comes when: a pure function of seed and epoch, rows of like length together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

POOL = 32
"""Steps whose rows are sorted by length together: larger pads less and shuffles less."""


class RowOrder(Sampler[int]):
    """Row positions of one epoch, step after step.

    Rows are shuffled, sorted by length within pools of steps, cut into steps, and the steps shuffled. Grouping is by
    whole steps (all ranks and micro-batches), so that it does not change with their number. A last step that is not
    full comes last. Not `grouped`, a step is a pool of its own: only its micro-batches hold rows of like length.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int, grouped: bool = True):
        self.lengths = np.asarray(lengths)
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.pool_steps = _pool_steps(len(lengths) // rows_per_step) if grouped else 1
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        shuffled = random.permutation(len(self.lengths))
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


class MicroBatches(Sampler[list[int]]):
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
        return rows // size * self._count(size) + self._count(rows % size)

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
        return [step for step in kept if step]

    def _count(self, rows: int) -> int:
        """Micro-batches of each process in a step of so many rows."""
        most = -(-rows // (self.batch_size * self.processes))
        return min(most, rows // self.processes)
