"""Intervals against closed forms and simulation, and verdicts that refuse to rank what cannot be ranked."""

from __future__ import annotations

import numpy as np
import pytest

from ghosttune.metrics.intervals import FEWEST_ROWS, Interval, mean_ratio, share, verdict


def test_bootstrap_interval_equals_the_normal_one_for_many_rows():
    values = np.random.default_rng(0).normal(2.0, 3.0, 4000)
    found = mean_ratio(values, np.ones(4000))
    half = 1.96 * values.std() / np.sqrt(4000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


def test_weights_are_resampled_with_their_rows():
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
    ],
)
def test_verdict(low, high, n, expected):
    assert verdict(Interval((low + high) / 2, low, high, n)) == expected


def test_nothing_to_find_is_rarely_ranked():
    random = np.random.default_rng(2)
    ranked = [verdict(mean_ratio(random.normal(0, 1, 40), np.ones(40))) != "not distinguishable" for _ in range(300)]
    assert np.mean(ranked) < 0.12, "a bootstrap over 40 rows errs a little more often than 5 %"
