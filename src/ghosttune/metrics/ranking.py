"""How well a score separates two kinds of rows."""

from __future__ import annotations

import numpy as np

from ghosttune.metrics.intervals import FEWEST_ROWS, RESAMPLES, Interval


def auroc(scores: np.ndarray, flagged: np.ndarray, seed: int = 0) -> Interval:
    """The chance that a flagged row has the lower score of the two, when compared with one that is not flagged.

    0.5 is no separation, 1.0 puts every flagged row at the bottom; ties count half. 95 % bootstrap interval over the
    rows of either kind. [N] scores, [N] bool; raises ValueError when one kind has no rows.
    """
    low, high = np.sort(scores[flagged]), np.sort(scores[~flagged])
    if not len(low) or not len(high):
        raise ValueError("one of the two kinds has no rows")
    random = np.random.default_rng(seed)
    found = [_auroc(low, high)]
    for _ in range(RESAMPLES):
        found.append(_auroc(random.choice(low, len(low)), np.sort(random.choice(high, len(high)))))
    bounds = np.quantile(found[1:], [0.025, 0.975])
    return Interval(found[0], float(bounds[0]), float(bounds[1]), len(scores))


def spearman(left: np.ndarray, right: np.ndarray, seed: int = 0) -> Interval:
    """Rank correlation of two columns (Spearman 1904) with its 95 % bootstrap interval over the rows; [N] each.

    0 where one of the two says the same of every row.
    """
    random = np.random.default_rng(seed)
    picks = random.integers(0, len(left), (RESAMPLES, len(left)))
    found = [_spearman(left[pick], right[pick]) for pick in picks]
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(_spearman(left, right), float(low), float(high), len(left))


def _spearman(left: np.ndarray, right: np.ndarray) -> float:
    ranks = [_ranks(column) for column in (left, right)]
    centred = [rank - rank.mean() for rank in ranks]
    scale = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float(centred[0] @ centred[1] / scale) if scale else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ties share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def separation(found: Interval, fewest: int) -> str:
    """`at the bottom`, `at the top` or `not distinguishable`, `fewest` being the rows of the rarer kind."""
    if fewest < FEWEST_ROWS or found.low <= 0.5 <= found.high:
        return "not distinguishable"
    return "at the bottom" if found.low > 0.5 else "at the top"


def _auroc(low: np.ndarray, high_sorted: np.ndarray) -> float:
    above = len(high_sorted) - np.searchsorted(high_sorted, low, side="right")
    ties = np.searchsorted(high_sorted, low, side="right") - np.searchsorted(high_sorted, low, side="left")
    return float((above + 0.5 * ties).sum() / (len(low) * len(high_sorted)))
