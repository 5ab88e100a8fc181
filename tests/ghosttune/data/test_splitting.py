"""Splits and samples: by group and by id, a pure function of the seed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttune.data.records import Record, Records, Turn
from ghosttune.data.splitting import draw, sample, shared_groups, split_off, split_off_rows
from ghosttune.errors import DataError


def rows(groups: list[int]) -> Records:
    turns = (Turn("user", "q"), Turn("assistant", "a"))
    return Records.of(Record(f"id-{place}", turns, f"group-{group}") for place, group in enumerate(groups))


def ids(records: Iterable[Record]) -> list[str]:
    return [record.example_id for record in records]


def all_ids(*parts: Any) -> list[Any]:
    """Of each part that is rows; numbers as they are."""
    return [part if isinstance(part, int) else ids(part) for part in parts]


GROUPS = st.lists(st.integers(0, 20), min_size=2, max_size=60).filter(lambda groups: len(set(groups)) > 1)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(GROUPS, st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_a_split_loses_nothing_and_never_cuts_a_group(groups: list[int], fraction: float, seed: int) -> None:
    records = rows(groups)
    rest, drawn = split_off(records, fraction, seed, "dev")
    assert rest and drawn
    assert sorted(ids(rest) + ids(drawn)) == sorted(ids(records))
    assert not {record.group for record in rest} & {record.group for record in drawn}
    assert ids(rest) == [name for name in ids(records) if name in set(ids(rest))], "the order of the file stays"
    assert all_ids(*split_off(records, fraction, seed, "dev")) == all_ids(rest, drawn)
    assert shared_groups(rest, drawn) == []
    shuffled = records.where(np.random.default_rng(seed).permutation(len(records)))
    if len(set(groups)) > 2:
        assert set(ids(split_off(shuffled, fraction, seed, "dev")[1])) == set(ids(drawn)), (
            "whatever the order of the file"
        )


@pytest.mark.parametrize("count", range(2, 51))
@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.1, 0.2, 0.5, 0.9, 0.99])
def test_the_fraction_is_met_as_nearly_as_it_can_be(count: int, fraction: float) -> None:
    rest, drawn = split_off(rows(list(range(count))), fraction, 42, "dev")
    assert len(drawn) == min(count - 1, max(1, round(fraction * count)))
    assert len(rest) == count - len(drawn)


def test_a_large_group_does_not_swallow_the_training_rows() -> None:
    groups = [0] * 80 + list(range(1, 21))
    for seed in range(50):
        assert len(split_off(rows(groups), 0.1, seed, "dev")[1]) == 10


def test_only_large_groups_give_the_smallest() -> None:
    for seed in range(20):
        _, drawn = split_off(rows([0] * 50 + [1] * 40), 0.05, seed, "dev")
        assert {record.group for record in drawn} == {"group-1"}


def test_seed_and_purpose_draw_differently() -> None:
    records = rows(list(range(200)))
    first = ids(split_off(records, 0.1, 1, "dev")[1])
    assert ids(split_off(records, 0.1, 2, "dev")[1]) != first
    assert ids(split_off(records, 0.1, 1, "guide")[1]) != first


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"all 5 rows have the same prompt.*data\.dev\.path"):
        split_off(rows([7] * 5), 0.2, 0, "dev")
    with pytest.raises(DataError, match="there is only one row"):
        split_off(rows([7]), 0.2, 0, "dev")
    message = r"all 5 rows have the same prompt.*data\.guide\.split.*measure\.ledger: null"
    with pytest.raises(DataError, match=message):
        split_off(rows([7] * 5), 0.2, 0, "guide")
    with pytest.raises(DataError, match=message):
        split_off_rows(rows([7] * 5), 2, 0, "guide")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(GROUPS, st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_as_many_rows_are_drawn_as_asked_or_the_most_is_named(groups: list[int], count: int, seed: int) -> None:
    records = rows(groups)
    try:
        rest, drawn, neither = split_off_rows(records, count, seed, "guide")
    except DataError as error:
        most = int(str(error).rsplit(" ", 1)[1])
        assert 1 <= most < count and len(split_off_rows(records, most, seed, "guide")[1]) == most
        return
    assert rest and len(drawn) == count
    assert len(rest) + len(drawn) + neither == len(records)
    assert not {record.group for record in rest} & {record.group for record in drawn}
    assert all_ids(*split_off_rows(records, count, seed, "guide")) == all_ids(rest, drawn, neither)


def test_a_sample_is_drawn_by_id() -> None:
    records = rows(list(range(100)))
    drawn = sample(records, 10, 3)
    assert len(drawn) == 10 and ids(drawn) == sorted(ids(drawn), key=lambda name: int(name[3:]))
    assert set(ids(sample(records.where(np.arange(100)[::-1]), 10, 3))) == set(ids(drawn))
    assert ids(drawn) != ids(records[:10]), "not the first rows"
    assert set(ids(sample(records, 20, 3))) > set(ids(drawn)), "a larger sample holds the smaller one"
    assert all(ids(sample(records, limit, 3)) == ids(records) for limit in (None, 100, 1000))
    assert ids(sample(records, 10, 4)) != ids(drawn)


def test_draws_are_the_same_in_every_process() -> None:
    code = "from ghosttune.data.splitting import draw; print(draw(42, 'dev', 'Café 🎉'))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout
        for seed in ("0", "1")
    }
    assert said == {f"{draw(42, 'dev', 'Café 🎉')}\n"}


def test_draws_are_spread_evenly() -> None:
    drawn = [draw(0, "x", str(number)) for number in range(2000)]
    assert all(0 <= number < 1 for number in drawn)
    assert abs(sum(drawn) / 2000 - 0.5) < 0.03


def test_shared_groups_are_named_on_the_right() -> None:
    assert shared_groups(rows([1, 2]), rows([3, 2, 2])) == ["id-1", "id-2"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(GROUPS, st.floats(0.01, 0.99), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_splits_are_those_of_their_description(groups: list[int], fraction: float, count: int, seed: int) -> None:
    """Whole groups in the order of their draws: as long as each brings the rows nearer, or until there are enough."""
    records = rows(groups)
    sizes = Counter(record.group for record in records)
    order = sorted(sizes, key=lambda group: draw(seed, "dev", group))
    wanted, near, held = max(1, round(fraction * len(groups))), set[str](), 0
    for group in order:
        if abs(held + sizes[group] - wanted) < abs(held - wanted) and len(near) < len(order) - 1:
            near.add(group)
            held += sizes[group]
    near = near or {min(order, key=lambda group: sizes[group])}
    assert ids(split_off(records, fraction, seed, "dev")[1]) == [r.example_id for r in records if r.group in near]

    enough, held = set[str](), 0
    for group in order[:-1]:
        if held < count:
            enough.add(group)
            held += sizes[group]
    if held >= count:
        rest, drawn, neither = split_off_rows(records, count, seed, "dev")
        chosen = sorted((r for r in records if r.group in enough), key=lambda r: draw(seed, "sample", r.example_id))
        assert set(ids(drawn)) == {record.example_id for record in chosen[:count]} and neither == held - count
        assert ids(rest) == [record.example_id for record in records if record.group not in enough]
