"""How far predicted changes of a loss agree with those that training again shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghosttune.metrics.intervals import CHANCE, Interval, quantile_of_t
from ghosttune.metrics.ranking import spearman


@dataclass(frozen=True)
class Agreement:
    """Over subsets of the rows: predicted and measured drop of a loss."""

    rank: Interval
    """Spearman's correlation: the linear datamodelling score (Park et al. 2023, arXiv 2303.14186) for one query."""
    slope: Interval | None
    """Measured over predicted, by least squares; None for predictions that are not in units of the loss."""

    def as_dict(self) -> dict[str, Any]:
        return {"rank": self.rank.as_dict(), "slope": None if self.slope is None else self.slope.as_dict()}


def agreement(predicted: np.ndarray, measured: np.ndarray, in_nats: bool) -> Agreement:
    """Of [M] predicted with [M] measured drops, M subsets."""
    return Agreement(spearman(predicted, measured), _slope(predicted, measured) if in_nats else None)


def _slope(predicted: np.ndarray, measured: np.ndarray) -> Interval | None:
    """Least squares with the 95 % interval of a regression line; None where predictions do not differ."""
    n, left, right = len(predicted), predicted - predicted.mean(), measured - measured.mean()
    spread = float(left @ left)
    if n < 3 or not spread:
        return None
    slope = float(left @ right) / spread
    rest = right - slope * left
    half = quantile_of_t(1 - CHANCE / 2, n - 2) * math.sqrt(float(rest @ rest) / (n - 2) / spread)
    return Interval(slope, slope - half, slope + half, n)


def ceiling(measured: np.ndarray) -> float | None:
    """The rank correlation that no prediction can be expected to pass; None with fewer than two seeds.

    [M, S] drops of M subsets under S seeds. The correlation between two halves of the seeds is, by Spearman and Brown's
    formula, turned into that of the mean over all seeds with itself measured anew; its root is the ceiling.
    """
    seeds = measured.shape[1]
    if seeds < 2:
        return None
    half = seeds // 2
    one = max(0.0, spearman(measured[:, :half].mean(1), measured[:, half : 2 * half].mean(1)).value)
    share = seeds / half
    return math.sqrt(share * one / (1 + (share - 1) * one))
