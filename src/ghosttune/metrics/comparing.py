"""Whether one system is better than another on the same questions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ghosttune.metrics.intervals import FEWEST_ROWS, Interval, mcnemar, verdict
from ghosttune.metrics.scoring import Score

CHANCE = 0.05
"""p below which a difference is not put down to chance."""


@dataclass(frozen=True)
class Comparison:
    """The change from one system to another, and what may be said of it."""

    change: Interval
    test: str
    verdict: str
    p: float | None = None

    def as_dict(self) -> dict[str, Any]:
        p = {} if self.p is None else {"p": self.p}
        return {"change": self.change.as_dict(), "test": self.test, **p, "verdict": self.verdict}


def compared(ours: Score, theirs: Score, lower_is_better: bool = False) -> Comparison | None:
    """McNemar's test for shares, the paired bootstrap for all else; None where either has no value."""
    differences = ours.resampled - theirs.resampled
    if not np.isfinite([ours.value, theirs.value]).all() or not np.isfinite(differences).all():
        return None
    low, high = np.quantile(differences, [0.025, 0.975])
    change = Interval(ours.value - theirs.value, float(low), float(high), ours.n)
    if ours.hits is None or theirs.hits is None:
        return Comparison(change, "paired bootstrap", verdict(change if lower_is_better else _mirrored(change)))
    p = mcnemar(ours.hits, theirs.hits)
    if p >= CHANCE or change.n < FEWEST_ROWS:
        return Comparison(change, "McNemar", "not distinguishable", p)
    return Comparison(change, "McNemar", "worse" if (change.value > 0) == lower_is_better else "better", p)


def _mirrored(change: Interval) -> Interval:
    """The same change of a number that is better when it is lower."""
    return replace(change, value=-change.value, low=-change.high, high=-change.low)
