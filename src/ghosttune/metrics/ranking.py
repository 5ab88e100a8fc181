"""How well a score separates two kinds of rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ghosttune.metrics.intervals import FEWEST_ROWS, Interval

Z = 1.959964


def auroc(scores: np.ndarray, flagged: np.ndarray) -> Interval:
    """The chance that a flagged row has the lower score of the two, when compared with one that is not flagged.

    0.5 is no separation, 1.0 puts every flagged row at the bottom; ties count half. 95 % interval by Newcombe's score
    method (2006, method 5) with the variance that ties leave: it holds 0.5 exactly where the Mann-Whitney test cannot
    tell the kinds apart, and keeps a width where they are parted perfectly. [N] scores, [N] bool; raises ValueError
    when one kind has no rows.
    """
    low, high = np.sort(scores[flagged]), np.sort(scores[~flagged])
    if not len(low) or not len(high):
        raise ValueError("one of the two kinds has no rows")
    value = _auroc(low, high)
    tied = _untied_share(scores)

    def inside(other: float) -> bool:
        return abs(value - other) <= Z * math.sqrt(tied * _variance(other, len(low), len(high)))

    return Interval(value, _edge(inside, value, 0.0), _edge(inside, value, 1.0), len(scores))


def auroc_of_counts(scores: np.ndarray, higher: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """[R, N] how often each row counts -> [R] the chance that a row of `higher` has the larger score of the two.

    [N] scores, [N] bool. Ties count half; NaN where one of the two kinds has no rows. Costs a sort, then R * N.
    Source: Mann and Whitney 1947, weighted; equals scikit-learn's roc_auc_score with sample_weight.
    """
    order = np.argsort(scores, kind="stable")
    levels = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # where the next larger score begins

    def value(counts: np.ndarray) -> np.ndarray:
        ordered = counts[:, order].astype(float)
        winners, losers = (np.add.reduceat(ordered * kind[order], levels, axis=1) for kind in (higher, ~higher))
        pairs = winners.sum(1) * losers.sum(1)
        won = (winners * (np.cumsum(losers, 1) - losers / 2)).sum(1)
        return np.divide(won, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)

    return value


def spearman(left: np.ndarray, right: np.ndarray) -> Interval:
    """Rank correlation of two columns (Spearman 1904), with Fisher's 95 % interval; [N] each.

    The error is Bonett and Wright's (2000), √((1 + r²/2) / (N − 3)); fewer than four rows say nothing. 0 where one of
    the two says the same of every row.
    """
    value, n = _spearman(left, right), len(left)
    if n < 4:
        return Interval(value, -1.0, 1.0, n)
    if abs(value) > 1 - 1e-12:
        return Interval(value, value, value, n)
    half = Z * math.sqrt((1 + value**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(value) + sign * half) for sign in (-1, 1))
    return Interval(value, low, high, n)


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


def _variance(value: float, flagged: int, others: int) -> float:
    """Of an AUROC, without ties; at 0.5 it is the Mann-Whitney test's."""
    typical = (flagged + others) / 2 - 1
    spread = 1 + typical * (1 - value) / (2 - value) + typical * value / (1 + value)
    return value * (1 - value) * spread / (flagged * others)


def _untied_share(scores: np.ndarray) -> float:
    """What ties leave of the variance of ranks; 1 without ties."""
    counts = np.unique(scores, return_counts=True)[1].astype(float)
    n = float(len(scores))
    return 1 - float((counts**3 - counts).sum()) / (n**3 - n)


def _edge(inside: Callable[[float], bool], value: float, end: float) -> float:
    """Where the interval around `value` ends on the way to `end`, by halving."""
    near, far = value, end
    for _ in range(60):
        middle = (near + far) / 2
        near, far = (middle, far) if inside(middle) else (near, middle)
    return near
