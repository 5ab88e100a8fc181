"""Row order: a permutation that is a pure function of seed and epoch, steps of like lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttune.training.order import POOL, MicroBatches, RowOrder

LENGTHS = np.random.default_rng(0).integers(10, 200, 1003).tolist()


def order(lengths: list[int], rows_per_step: int, seed: int = 1, epoch: int = 0) -> list[int]:
    rows = RowOrder(lengths, rows_per_step, seed, grouped=True)
    rows.set_epoch(epoch)
    assert len(rows) == len(lengths)
    return list(rows)


def padding_share(lengths: list[int], rows: list[int], batch: int) -> float:
    batches = [[lengths[row] for row in rows[start : start + batch]] for start in range(0, len(rows), batch)]
    slots = sum(max(batch) * len(batch) for batch in batches)
    return 1 - sum(lengths) / slots


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=300), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_every_row_comes_exactly_once(lengths: list[int], rows_per_step: int, seed: int) -> None:
    assert sorted(order(lengths, rows_per_step, seed)) == list(range(len(lengths)))


def test_seed_and_epoch_decide_and_nothing_else() -> None:
    rows = RowOrder(LENGTHS, 8, 1, grouped=True)
    first = list(rows)
    assert list(rows) == first, "asking twice changes nothing"
    rows.set_epoch(3)
    third = list(rows)
    assert third == order(LENGTHS, 8, 1, 3), "however one comes to the epoch"
    assert third != first and order(LENGTHS, 8, 2) != first


def test_steps_hold_rows_of_like_length_and_a_short_one_comes_last() -> None:
    rows = order(LENGTHS, 16)
    spreads = [np.ptp([LENGTHS[row] for row in rows[start : start + 16]]) for start in range(0, 992, 16)]
    assert np.median(spreads) < 20 < np.ptp(LENGTHS) / 4
    assert len(rows) % 16 == 11
    full = {frozenset(rows[start : start + 16]) for start in range(0, 992, 16)}
    assert len(full) == 62


def test_ungrouped_steps_are_those_of_the_shuffle_with_like_rows_in_each_micro_batch() -> None:
    rows = RowOrder(LENGTHS, 16, 1, grouped=False)
    taken = list(rows)
    assert sorted(taken) == list(range(len(LENGTHS)))
    shuffled = np.random.default_rng([1, 0]).permutation(len(LENGTHS))
    drawn = {frozenset(shuffled[start : start + 16].tolist()) for start in range(0, 992, 16)}
    assert {frozenset(taken[start : start + 16]) for start in range(0, 992, 16)} == drawn
    for start in range(0, 992, 16):
        lengths = [LENGTHS[row] for row in taken[start : start + 16]]
        assert lengths == sorted(lengths)


def test_grouped_a_rare_kind_has_steps_of_its_own_and_ungrouped_it_is_spread() -> None:
    """60 rows of length 70 among 540 of 20 to 60: how many steps of an epoch hold at least one."""
    lengths = [70] * 60 + np.random.default_rng(0).integers(20, 60, 540).tolist()

    def steps_with_them(grouped: bool) -> int:
        rows = list(RowOrder(lengths, 8, 1, grouped))
        return sum(any(row < 60 for row in rows[start : start + 8]) for start in range(0, 600, 8))

    assert steps_with_them(True) < 16 and steps_with_them(False) > 36


@pytest.mark.parametrize(("ranks", "micro"), [(1, 16), (1, 4), (2, 8), (2, 2), (4, 4)])
def test_a_step_holds_the_same_rows_however_it_is_split(ranks: int, micro: int) -> None:
    """Micro-batches and ranks, sharded as Accelerate does it, take slices of the same steps."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    sampler = RowOrder(LENGTHS, 16, 1, grouped=True)
    shards: list[Any] = [
        list(BatchSamplerShard(BatchSampler(sampler, micro, drop_last=False), ranks, rank, even_batches=False))
        for rank in range(ranks)
    ]
    accumulated = 16 // micro // ranks
    rows = order(LENGTHS, 16)
    for step in range(len(LENGTHS) // 16):
        held = [
            row for shard in shards for batch in shard[step * accumulated : (step + 1) * accumulated] for row in batch
        ]
        assert set(held) == set(rows[step * 16 : (step + 1) * 16])


def test_micro_batches_hold_neighbours_in_length() -> None:
    rows = order(LENGTHS, 16)
    spreads = [np.ptp([LENGTHS[row] for row in rows[start : start + 4]]) for start in range(0, 992, 4)]
    assert np.median(spreads) <= 2


def test_lengths_do_not_come_in_order() -> None:
    rows = order(LENGTHS, 8)
    means = [np.mean([LENGTHS[row] for row in rows[start : start + 8]]) for start in range(0, 1000, 8)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@pytest.mark.parametrize(("count", "rows_per_step"), [(1, 8), (3, 8), (8, 8), (9, 8), (50, 1), (50, 50)])
def test_few_rows(count: int, rows_per_step: int) -> None:
    assert sorted(order(LENGTHS[:count], rows_per_step)) == list(range(count))


def test_few_rows_do_not_meet_in_every_epoch() -> None:
    steps = {frozenset(order(LENGTHS[:48], 8, epoch=epoch)[:8]) for epoch in range(12)}
    assert len(steps) == 12


def test_it_pads_far_less_than_a_random_order() -> None:
    random = np.random.default_rng(1).permutation(len(LENGTHS)).tolist()
    assert padding_share(LENGTHS, order(LENGTHS, 8), 8) < 0.2 * padding_share(LENGTHS, random, 8)
    assert len(LENGTHS) > POOL * 8, "several pools"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 120), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4))
def test_processes_share_the_steps(count: int, batch: int, accumulation: int, processes: int) -> None:
    """Equal numbers of micro-batches, none empty or too large; every row once but for fewer than `processes`."""
    rows_per_step = batch * accumulation * processes
    shards = []
    for process in range(processes):
        batches = MicroBatches(RowOrder(LENGTHS[:count], rows_per_step, 1, grouped=True), batch, process, processes)
        batches.set_epoch(2)
        shards.append(list(batches))
        assert len(batches) == len(shards[-1])
        assert all(1 <= len(part) <= batch for part in shards[-1])
    assert len({len(shard) for shard in shards}) == 1
    consumed = [row for shard in shards for part in shard for row in part]
    assert len(consumed) == len(set(consumed)) > count - max(processes * batch, 1)
    assert count - len(consumed) == batches.left_out < processes
    if processes == 1:
        assert consumed == order(LENGTHS[:count], rows_per_step, 1, 2)
    steps = order(LENGTHS[:count], rows_per_step, 1, 2)
    for step in range(count // rows_per_step):
        parts = slice(step * accumulation, (step + 1) * accumulation)
        held = {row for shard in shards for part in shard[parts] for row in part}
        assert held == set(steps[step * rows_per_step : (step + 1) * rows_per_step])
