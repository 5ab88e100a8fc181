"""Whether one system is better than another on the same questions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ghosttune.metrics.intervals import (
    CHANCE,
    FEWEST_ROWS,
    Interval,
    by_t,
    family_wise,
    freedom,
    mcnemar,
    named,
)
from ghosttune.metrics.scoring import Score


@dataclass(frozen=True)
class Comparison:
    """The change from one system to another, how sure it is, and what may be said of it."""

    change: Interval
    test: str
    p: float
    called: str
    """What the change is where it is no chance."""
    p_adjusted: float | None = None
    """For the metrics that were tested beside it; `p` where it is the only one."""

    @property
    def verdict(self) -> str:
        p = self.p if self.p_adjusted is None else self.p_adjusted
        return "not distinguishable" if p >= CHANCE or self.change.n < FEWEST_ROWS else self.called

    def as_dict(self) -> dict[str, Any]:
        adjusted = {} if self.p_adjusted is None else {"p_adjusted": self.p_adjusted}
        return {
            "change": self.change.as_dict(),
            "test": self.test,
            "p": self.p,
            **adjusted,
            "verdict": self.verdict,
        }


def compared(ours: Score, theirs: Score, lower_is_better: bool = False) -> Comparison | None:
    """McNemar's test for shares, a paired t test for all else; None where either has no value.

    The standard error is that of the difference over the same resamplings of the rows, times √(n / (n−1)), since a
    resampling of n rows varies as if there were n − 1 (Efron & Tibshirani 1993, section 5.3).
    """
    differences = ours.resampled - theirs.resampled
    value = ours.value - theirs.value
    if not np.isfinite(value) or not np.isfinite(differences).all():
        return None
    n = ours.n
    error = float(differences.std(ddof=1)) * math.sqrt(n / max(1, n - 1))
    size = max(abs(ours.value), abs(theirs.value))
    change = by_t(value, error if error > 1e-12 * size else 0.0, freedom(n, ours.weights), n)
    called = named(value if lower_is_better else -value, size)
    if ours.hits is None or theirs.hits is None:
        return Comparison(change.interval, "paired t", change.doubt, called)
    return Comparison(change.interval, "McNemar", mcnemar(ours.hits, theirs.hits), called)


def together(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """The same comparisons of two systems, by metric, each judged as one of so many."""
    adjusted = family_wise({name: comparison.p for name, comparison in comparisons.items()})
    return {name: replace(comparison, p_adjusted=adjusted[name]) for name, comparison in comparisons.items()}
