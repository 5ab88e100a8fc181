"""How sure a number is: 95 % intervals over rows, and what may be said of a change.

Means are judged by a t interval, ratios whose rows count unequally by turning signs (docs/numerics.md has the error
rates, from simulation): a percentile bootstrap is too narrow below about 50 rows and calls one null difference in seven
real at six. `doubt` is the two-sided p that belongs to the same interval: neither can say what the other does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

FEWEST_ROWS = 6
"""Fewer rows cannot tell anything at 95 %: even if all of them agree, chance does that in 2 of 2**n cases."""

CHANCE = 0.05
"""p below which a difference is not put down to chance."""

NEGLIGIBLE = 0.001
"""Changes under this share of the value that changed are not worth naming, however sure they are."""

LOST_FREEDOM = 1.75
"""Degrees of freedom less than rows: one for the mean; the rest for few rows whose values take few levels or are
bounded, of which the plain t calls 6 to 7 % of null differences real at six to eight rows."""

PATTERNS = 4096
"""Patterns of signs that are looked at; the ends of an interval are sure to about 2 % of its width."""

SIGNED_ROWS = range(6, 201)
"""Numbers of rows whose ratios are judged by signs: of fewer nothing is said, and beyond 200 t says the same."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval, from `n` rows."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Change:
    """The difference of two systems on the same rows, and how sure it is."""

    interval: Interval
    """95 %."""
    doubt: float
    """Two-sided p: below CHANCE exactly where the interval leaves out 0."""


def by_t(value: float, error: float, freedom: float, n: int) -> Change:
    """A change whose standard error is known, by Student's t."""
    from scipy.special import stdtr

    half = quantile_of_t(1 - CHANCE / 2, freedom) * error if error else 0.0
    doubt = 2 * stdtr(freedom, -abs(value) / error) if error else value == 0
    return Change(Interval(value, value - half, value + half, n), float(doubt))


def by_signs(totals: np.ndarray, weights: np.ndarray) -> Change:
    """A sum over a sum of positive weights, by turning the signs of rows: right for any weights and noise.

    Where nothing differs, whose total is whose was decided by a coin, and so all patterns of signs are alike. That a
    value theta is the true one is doubted as often as the sum of `totals - theta * weights` is larger than nearly all
    that other signs give it; which is when theta lies outside of what the rows of either sign have as their ratio, for
    nearly all patterns (Hartigan 1969, subsample values as typical values). All patterns up to PATTERNS, else so many
    drawn with a fixed seed; between two numbers of patterns the ends are interpolated (as Hettmansperger and Sheather
    do for the median, 1986). Costs PATTERNS times the rows.
    """
    n, value = len(totals), float(totals.sum() / weights.sum())
    turned = _patterns(n)
    part, share = turned @ totals, turned @ weights
    ends = np.stack([part / share, (totals.sum() - part) / (weights.sum() - share)])
    ends[np.abs(ends) <= 1e-12 * np.abs(totals).sum() / weights.sum()] = 0.0  # sums that are rounding alone
    low, high = np.sort(np.sort(ends, axis=0), axis=1)
    low, high = np.minimum(low, value), np.maximum(high, value)[::-1]
    of_all = len(turned) + 1
    least, most = (_at(side, CHANCE * of_all) for side in (low, high))
    rank = _rank(low, 0.0) if value > 0 else _rank(-high, 0.0) if value < 0 else of_all
    return Change(Interval(value, least, most, n), rank / of_all)


def _at(ends: np.ndarray, rank: float) -> float:
    """The end that belongs to a `rank` from 1; between two, by the root: ends thin out outwards, chance does not."""
    below = min(int(rank), len(ends) - 1)
    part = math.sqrt(rank - below)
    return float(ends[below - 1] * (1 - part) + ends[below] * part)


def _rank(ends: np.ndarray, end: float) -> float:
    """What `_at` takes to `end`; `ends` do not fall."""
    place = float(np.interp(end, ends, np.arange(1, len(ends) + 1)))
    return int(place) + (place - int(place)) ** 2


@lru_cache(maxsize=1)
def _patterns(n: int) -> np.ndarray:
    """[P, n] of 0 and 1: which rows have the other sign; each split of the rows once, without the one into all."""
    if 2 ** (n - 1) <= PATTERNS:
        return (np.arange(1, 2 ** (n - 1))[:, None] >> np.arange(n)) & 1
    drawn = np.random.default_rng(0).integers(0, 2, (PATTERNS - 1, n))
    return drawn[(drawn.sum(1) > 0) & (drawn.sum(1) < n)]


def freedom(n: int, weights: np.ndarray | None = None) -> float:
    """Degrees of freedom of the standard error of a value over `n` rows, at least one.

    Rows that count unequally tell less of each other than their number says: three quarters of the way to the number
    of equal rows that would know as much (Kish 1965), which keeps the error rate where noise grows with the length.
    """
    equal = n if weights is None else weights.sum() ** 2 / (weights**2).sum()
    return max(1.0, float(n + 3 * equal) / 4 - LOST_FREEDOM)


def quantile_of_t(share: float, freedom: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def change_of_ratio(totals: np.ndarray, weights: np.ndarray) -> Change:
    """Sum of `totals` over sum of `weights`, such as a loss per target.

    Where weights are unequal, by the signs of 6 to 200 rows. Else by t, with the error from leaving out each row in
    turn (the jackknife, Tukey 1958), which is that of the mean where weights are equal. One row has no error: its
    interval is the value, and no verdict is made of it.
    """
    n, value = len(totals), float(totals.sum() / weights.sum())
    if n < 2:
        return by_t(value, 0.0, freedom(n), n)
    if n in SIGNED_ROWS and 0 < weights.min() < weights.max():
        return by_signs(totals, weights)
    without = (totals.sum() - totals) / (weights.sum() - weights)
    error = math.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    rounding = 1e-12 * abs(value)
    return by_t(value, error if error > rounding else 0.0, freedom(n, weights), n)


def mean_ratio(totals: np.ndarray, weights: np.ndarray) -> Interval:
    """The interval of `change_of_ratio`."""
    return change_of_ratio(totals, weights).interval


def share(hits: Sequence[bool]) -> Interval:
    """The share of rows that are true, with Wilson's interval (1927), which stays honest at 0 % and 100 %."""
    n, z = len(hits), 1.959964
    value = sum(hits) / n
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(value, max(0.0, centre - half), min(1.0, centre + half), n)


def verdict(change: Interval, of: float) -> str:
    """`better`, `worse`, `negligible` or `not distinguishable` for the change of a loss that was `of` before."""
    if change.n < FEWEST_ROWS or change.low <= 0 <= change.high:
        return "not distinguishable"
    return named(change.value, of)


def named(change: float, of: float) -> str:
    """What to call the change of a loss that is no chance."""
    if abs(change) < NEGLIGIBLE * abs(of):
        return "negligible"
    return "better" if change < 0 else "worse"


def family_wise(doubts: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p (1979) for each of several questions asked of the same rows.

    Where nothing differs, the chance that any of them falls below CHANCE is at most CHANCE.
    """
    adjusted, floor = {}, 0.0
    for rank, name in enumerate(sorted(doubts, key=lambda name: doubts[name])):
        floor = max(floor, min(1.0, (len(doubts) - rank) * doubts[name]))
        adjusted[name] = floor
    return {name: adjusted[name] for name in doubts}


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test (1947): the chance of such an uneven split of the rows on which they differ.

    [N] bool each, whether a row is right.
    """
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    n, fewer = only_ours + only_theirs, min(only_ours, only_theirs)
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    return min(1.0, 2 * tail)
