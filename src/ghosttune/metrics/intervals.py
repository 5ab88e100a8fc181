"""How sure a number is: 95 % intervals over rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 2000
FEWEST_ROWS = 6
"""Fewer rows cannot tell anything at 95 %: even if all of them agree, chance does that in 2 of 2**n cases."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval, from `n` rows."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def mean_ratio(totals: np.ndarray, weights: np.ndarray, seed: int = 0) -> Interval:
    """Sum of `totals` over sum of `weights`, such as a loss per target, with its bootstrap interval over rows."""
    random = np.random.default_rng(seed)
    picks = random.integers(0, len(totals), (RESAMPLES, len(totals)))
    resampled = totals[picks].sum(1) / weights[picks].sum(1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(totals.sum() / weights.sum()), float(low), float(high), len(totals))


def share(hits: Sequence[bool]) -> Interval:
    """The share of rows that are true, with Wilson's interval (1927), which stays honest at 0 % and 100 %."""
    n, z = len(hits), 1.959964
    value = sum(hits) / n
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(value, max(0.0, centre - half), min(1.0, centre + half), n)


def verdict(change: Interval) -> str:
    """`better`, `worse` or `not distinguishable` for the change of a loss."""
    if change.n < FEWEST_ROWS or change.low <= 0 <= change.high:
        return "not distinguishable"
    return "better" if change.high < 0 else "worse"


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test (1947): the chance of such an uneven split of the rows on which they differ.

    [N] bool each, whether a row is right.
    """
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    n, fewer = only_ours + only_theirs, min(only_ours, only_theirs)
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    return min(1.0, 2 * tail)
