"""How sure a number is: 95 % intervals over rows, and what may be said of a change.

Changes are judged by a t interval around the value (docs/numerics.md has the error rates, from simulation): a
percentile bootstrap is too narrow below about 50 rows and calls one null difference in seven real at six. `doubt` is
the two-sided p that belongs to the same interval, so that neither can say what the other does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

FEWEST_ROWS = 6
"""Fewer rows cannot tell anything at 95 %: even if all of them agree, chance does that in 2 of 2**n cases."""

CHANCE = 0.05
"""p below which a difference is not put down to chance."""

NEGLIGIBLE = 0.001
"""Changes under this share of the value that changed are not worth naming, however sure they are."""

LOST_FREEDOM = 1.5
"""Degrees of freedom less than rows: one for the mean; the half for few rows whose values take few levels or are
bounded, of which the plain t calls 6 to 7 % of null differences real at six to eight rows."""


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
    """The difference of two systems on the same rows, and its standard error."""

    value: float
    error: float
    freedom: float
    n: int

    @property
    def interval(self) -> Interval:
        """95 %, by Student's t."""
        half = quantile_of_t(1 - CHANCE / 2, self.freedom) * self.error if self.error else 0.0
        return Interval(self.value, self.value - half, self.value + half, self.n)

    @property
    def doubt(self) -> float:
        """Two-sided p: below CHANCE exactly where the interval leaves out 0."""
        from scipy.special import stdtr

        if not self.error:
            return float(self.value == 0)
        return float(2 * stdtr(self.freedom, -abs(self.value) / self.error))


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
    """Sum of `totals` over sum of `weights`, such as a loss per target; its error by leaving out each row in turn.

    The jackknife's error (Tukey 1958) is that of the mean where weights are equal, and sees what one long row does
    where they are not. One row has no error: its interval is the value, and no verdict is made of it.
    """
    n, value = len(totals), float(totals.sum() / weights.sum())
    if n < 2:
        return Change(value, 0.0, freedom(n), n)
    without = (totals.sum() - totals) / (weights.sum() - weights)
    error = math.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    rounding = 1e-12 * abs(value)
    return Change(value, error if error > rounding else 0.0, freedom(n, weights), n)


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
