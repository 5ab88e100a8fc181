"""How sure a number is: bootstrap intervals over rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A value with the central 95 % of its bootstrap distribution."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def mean_ratio(totals: np.ndarray, weights: np.ndarray, seed: int = 0) -> Interval:
    """Sum of `totals` over sum of `weights`, rows resampled together: a loss per target, or with weights 1 a mean."""
    random = np.random.default_rng(seed)
    picks = random.integers(0, len(totals), (RESAMPLES, len(totals)))
    resampled = totals[picks].sum(1) / weights[picks].sum(1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(totals.sum() / weights.sum()), float(low), float(high), len(totals))


def verdict(change: Interval) -> str:
    """`better`, `worse` or `not distinguishable` for a change of a loss."""
    if change.high < 0:
        return "better"
    return "worse" if change.low > 0 else "not distinguishable"
