"""A store read once from first to last, by as many threads as torch may use, in memory that does not grow with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from ghostgrad.store import GradientStore

BLOCK_NUMBERS = 1 << 18
"""Numbers in a block: half a MiB in half precision, 1 MiB as the float32 it is multiplied in."""

PART_ROWS = 1 << 12
"""Rows that one thread reads before their result is taken; the parts are the same for any number of threads."""

Found = TypeVar("Found")


def parts(store: GradientStore, work: Callable[[Iterator[Tensor]], Found]) -> Iterator[tuple[int, Found]]:
    """(index of its first row, what `work` makes of it) of every part of the store, in order.

    `work` is given PART_ROWS rows in float32, in blocks that fit the cache, each valid until the next and free to be
    written to. One thread of torch multiplies a block: several that share one of this size mostly wait for each other.
    At most one result more than there are threads is held.
    """

    def of_part(first: int) -> Found:
        return work(_blocks(store, first))

    with _threads() as (pool, count):
        waiting: deque[tuple[int, Future[Found]]] = deque()
        for first in range(0, len(store), PART_ROWS):
            waiting.append((first, pool.submit(of_part, first)))
            if len(waiting) > count:
                yield _taken(waiting)
        while waiting:
            yield _taken(waiting)


def _taken(waiting: deque[tuple[int, Future[Found]]]) -> tuple[int, Found]:
    first, found = waiting.popleft()
    return first, found.result()


def _blocks(store: GradientStore, first: int) -> Iterator[Tensor]:
    count = max(1, min(BLOCK_NUMBERS // store.size, PART_ROWS))
    wide = torch.empty(count, store.size)
    for _, block in store.blocks(count, first, first + PART_ROWS):
        yield wide[: len(block)].copy_(block)


@contextmanager
def _threads() -> Generator[tuple[ThreadPoolExecutor, int]]:
    """(threads with one thread of torch each, how many)."""
    count = torch.get_num_threads()
    try:
        # Each thread sets its own number, and that of threads that start later, which is therefore put back.
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool, count
    finally:
        torch.set_num_threads(count)
