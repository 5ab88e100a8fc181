"""Intervals against closed forms and simulation, and verdicts that refuse to rank what cannot be ranked."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from ghosttune.metrics.intervals import (
    CHANCE,
    FEWEST_ROWS,
    Interval,
    change_of_ratio,
    family_wise,
    freedom,
    mean_ratio,
    share,
    verdict,
)
from ghosttune.metrics.ranking import auroc, spearman


def test_interval_equals_the_normal_one_for_many_rows():
    values = np.random.default_rng(0).normal(2.0, 3.0, 4000)
    found = mean_ratio(values, np.ones(4000))
    half = 1.96 * values.std() / np.sqrt(4000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


def test_rows_of_one_loss_per_target_leave_no_doubt():
    totals, weights = np.array([2.0, 40.0, 6.0]), np.array([1.0, 20.0, 3.0])
    found = mean_ratio(totals, weights)
    assert (found.low, found.value, found.high) == (2.0, 2.0, 2.0), "every row has the same loss per target"


def test_share_is_wilsons_interval():
    found = share([True] * 9 + [False])  # Wilson 1927; values from the closed form, also statsmodels' method="wilson"
    assert (found.low, found.high) == (pytest.approx(0.59585, abs=1e-5), pytest.approx(0.98212, abs=1e-5))
    assert share([True] * 60).low == pytest.approx(0.93983, abs=1e-5) and share([True] * 60).high == 1.0
    assert share([False]).low == 0.0 and share([False]).high == pytest.approx(0.79345, abs=1e-5)


def test_share_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = [
        found.low <= 0.9 <= found.high for found in (share((random.random(60) < 0.9).tolist()) for _ in range(2000))
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    "low, high, n, expected",
    [
        (-0.3, -0.1, 50, "better"),
        (0.1, 0.3, 50, "worse"),
        (-0.1, 0.1, 50, "not distinguishable"),
        (-0.1, 0.0, 50, "not distinguishable"),
        (-0.3, -0.1, FEWEST_ROWS - 1, "not distinguishable"),
        (-0.3, -0.1, FEWEST_ROWS, "better"),
        (-0.0003, -0.0001, 500, "negligible"),
        (0.0001, 0.0003, 500, "negligible"),
    ],
)
def test_verdict(low, high, n, expected):
    assert verdict(Interval((low + high) / 2, low, high, n), of=2.0) == expected


def test_six_answers_that_all_differ_by_next_to_nothing_are_called_so():
    change = mean_ratio(np.full(6, 0.0001), np.ones(6))
    assert (change.low, change.high) == (pytest.approx(0.0001), pytest.approx(0.0001))
    assert verdict(change, of=0.5) == "negligible"
    assert verdict(change, of=0.05) == "worse"


def test_equal_weights_give_students_interval():
    rows = np.random.default_rng(3).normal(1.0, 2.0, 11)
    found = change_of_ratio(rows, np.ones(11))
    error = rows.std(ddof=1) / np.sqrt(11)
    low, high = stats.t.interval(1 - CHANCE, 11 - 1.75, rows.mean(), error)
    assert (found.interval.low, found.interval.high) == (pytest.approx(low), pytest.approx(high))
    assert found.doubt == pytest.approx(2 * stats.t.sf(abs(rows.mean()) / error, 11 - 1.75))


@pytest.mark.parametrize("rows", [6, 7, 9, 14, 201])
@pytest.mark.parametrize("seed", range(20))
def test_doubt_and_interval_say_the_same(seed, rows):
    random = np.random.default_rng(seed)
    weights = np.maximum(1, np.round(20 * random.lognormal(0, 0.7, rows)))
    found = change_of_ratio(random.normal(1.5 / np.sqrt(rows), 1, rows) * weights, weights)
    assert (found.doubt < CHANCE) == (found.interval.low > 0 or found.interval.high < 0)
    assert found.interval.low <= found.interval.value <= found.interval.high


@pytest.mark.parametrize("seed", range(5))
def test_signs_are_turned_one_pattern_after_the_other(seed):
    """What is doubted is so by the sum itself under every pattern of signs; 128 of them: 6.4 are 5 %."""
    random = np.random.default_rng(seed)
    weights = np.array([1.0, 3, 9, 27, 81, 2, 5, 40])
    totals = random.normal(0.4, 1, 8) * weights

    def as_far(theta: float) -> int:
        rest = totals - theta * weights
        sums = [abs(np.dot(signs, rest)) for signs in itertools.product((-1, 1), repeat=8)]
        return int(np.sum(np.array(sums) >= abs(rest.sum()) * (1 - 1e-12))) // 2

    found = change_of_ratio(totals, weights)
    for end in (found.interval.low, found.interval.high):
        assert as_far(end) == 1 + 6, "itself and six others: beyond the sixth, before the seventh"
    assert abs(found.doubt * 128 - as_far(0.0)) < 1


def test_rows_that_all_have_the_same_ratio_leave_no_doubt_by_signs():
    weights = np.array([1.0, 20, 3, 7, 5, 11, 2, 9])
    found = change_of_ratio(0.1 * weights, weights)
    assert found.interval.low == pytest.approx(0.1) and found.interval.high == pytest.approx(0.1)
    assert found.doubt == 1 / 128, "no pattern of signs does as well, but all and none"
    nothing = change_of_ratio(0 * weights, weights)
    assert (nothing.interval.low, nothing.interval.high, nothing.doubt) == (0, 0, 1)


def test_one_long_row_tells_less_than_many():
    assert freedom(10) == freedom(10, np.ones(10)) == 8.25
    assert freedom(10, np.array([1000.0, *[1.0] * 9])) == pytest.approx(1.5, abs=0.1)
    assert freedom(1) == 1.0


def test_several_questions_are_judged_as_a_family():
    adjusted = family_wise({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})  # by hand, after Holm 1979
    assert adjusted == {"a": pytest.approx(0.03), "b": 0.06, "c": 0.06, "d": 0.02}
    assert family_wise({"a": 0.04}) == {"a": 0.04} and family_wise({}) == {}
    random = np.random.default_rng(4)
    named = [
        min(family_wise({str(k): float(p) for k, p in enumerate(random.random(8))}).values()) < CHANCE
        for _ in range(2000)
    ]
    assert np.mean(named) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("flagged, others", [(6, 6), (6, 200), (20, 50)])
def test_auroc_holds_a_half_exactly_where_mann_whitney_sees_nothing(flagged, others, tied):
    random = np.random.default_rng(5)
    for shift in np.linspace(0, 2, 30):
        scores = random.normal(size=flagged + others)
        scores[:flagged] -= shift
        scores = np.round(scores) if tied else scores
        p = stats.mannwhitneyu(scores[:flagged], scores[flagged:], method="asymptotic", use_continuity=False).pvalue
        found = auroc(scores, np.arange(flagged + others) < flagged)
        assert (found.low > 0.5 or found.high < 0.5) == (p < 0.05)
        assert 0 <= found.low <= found.value <= found.high <= 1


def test_auroc_covers_the_truth_and_is_not_certain_of_a_perfect_split():
    flagged = np.arange(48) < 8
    random, covered = np.random.default_rng(6), []
    for _ in range(1000):
        scores = random.normal(size=48)
        scores[flagged] -= 1.1902  # the shift at which the truth is 0.8
        found = auroc(scores, flagged)
        covered.append(found.low <= 0.8 <= found.high)
    assert np.mean(covered) == pytest.approx(0.955, abs=0.02)
    perfect = auroc(np.arange(48.0), flagged)
    assert perfect.high == 1.0 and 0.7 < perfect.low < 0.95


def test_rank_correlation_covers_the_truth():
    random, covered = np.random.default_rng(7), []
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's of a normal pair with correlation 0.6 (Pearson 1907)
    for _ in range(1500):
        left = random.normal(size=15)
        found = spearman(left, 0.6 * left + 0.8 * random.normal(size=15))
        covered.append(found.low <= truth <= found.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)
    assert spearman(np.arange(3.0), np.arange(3.0)) == Interval(1.0, -1.0, 1.0, 3)
