"""Arms of a comparison train the same number of parameters, as nearly as whole ranks allow."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghosttune.errors import ConfigError
from ghosttune.methods.budget import ranks_for

TINYLLAMA = {
    f"{layer}.{name}": size
    for layer in range(22)
    for name, size in {
        "q_proj": 4096,
        "k_proj": 2304,
        "v_proj": 2304,
        "o_proj": 4096,
        "gate_proj": 7680,
        "up_proj": 7680,
        "down_proj": 7680,
    }.items()
}
ARMS = {
    "attention_qv": ("q_proj", "v_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "all_linear": ("_proj",),
}


def parameters_of(ranks: dict[str, int], sizes: dict[str, int]) -> int:
    return sum(rank * sizes[name] for name, rank in ranks.items())


def arm(name: str) -> dict[str, int]:
    return {module: size for module, size in TINYLLAMA.items() if module.endswith(ARMS[name])}


@pytest.mark.parametrize("budget", [1_000_000, 2_500_000, 10_000_000])
def test_the_arms_of_tinyllama_are_within_one_per_cent(budget):
    for name in ARMS:
        sizes = arm(name)
        ranks = ranks_for(sizes, budget)
        assert abs(parameters_of(ranks, sizes) - budget) <= 0.01 * budget, name
        assert max(ranks.values()) - min(ranks.values()) <= 1


def test_those_with_one_rank_more_are_spread_over_the_layers():
    sizes = arm("mlp")
    ranks = ranks_for(sizes, 22 * 3 * 7680 + 22 * 7680)
    raised = [int(name.split(".")[0]) for name, rank in ranks.items() if rank == 2]
    assert len(raised) == 22 and max(raised) >= 20 and min(raised) <= 1


def test_a_budget_below_one_rank_each_is_refused_with_the_least():
    with pytest.raises(ConfigError, match=r"one rank for each of the 66 target modules takes 506,880"):
        ranks_for(arm("mlp"), 500_000)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=7), st.integers(0, 200))
def test_no_other_choice_of_one_more_rank_comes_nearer(numbers, extra):
    sizes = {str(place): number for place, number in enumerate(numbers)}
    budget = sum(numbers) + extra
    found = abs(parameters_of(ranks_for(sizes, budget), sizes) - budget)
    least = budget // sum(numbers)
    every = itertools.product((0, 1), repeat=len(numbers))
    best = min(abs(sum((least + one) * n for one, n in zip(more, numbers, strict=True)) - budget) for more in every)
    assert found == best
