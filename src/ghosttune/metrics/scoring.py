"""What a metric is: a number of a corpus, with the same 2,000 resamplings of its rows for whoever is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ghosttune.metrics.intervals import CHANCE, Interval, freedom, quantile_of_t, share

RESAMPLES = 2000

BLOCK = 100
"""Resamplings that are drawn, and computed with, at once: bounds memory."""


@dataclass(frozen=True)
class Item:
    """One question, what is right, and what was answered."""

    output: str
    references: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    stopped: bool = True
    """Whether the answer ended by itself."""
    nats: float = 0.0
    """Negative log-likelihood of the first reference, where a metric needs it."""
    targets: int = 0
    """Its tokens, the stop token included."""
    label_nats: Mapping[str, float] = field(default_factory=dict)
    """Label -> its negative log-likelihood as the answer, where a metric needs it."""


@dataclass(frozen=True)
class Corpus:
    """All that a metric may look at."""

    items: Sequence[Item]
    labels: tuple[str, ...] = ()
    """Every answer that is possible, for metrics of labels."""
    synonyms: Path | None = None
    tables: Path | None = None

    @property
    def outputs(self) -> list[str]:
        return [item.output for item in self.items]


@dataclass(frozen=True)
class Metric:
    """How a metric is described: what `ghosttune show metrics` prints, and what has to be known to compute it."""

    scale: str
    """What its values mean, such as `0 to 1`."""
    source: str
    """The implementation it is, or is tested against."""
    needs: str = "answers"
    """`answers`, `labels` (answers, and which are possible), `endings`, `likelihood` of the reference,
    `label likelihoods`, or `pairs` of answers."""
    lower_is_better: bool = False


@dataclass(frozen=True)
class Score:
    """A metric's value on a corpus."""

    of_counts: Callable[[np.ndarray], np.ndarray]
    """[R, N] how often each row counts -> [R] values; NaN where there is none."""
    n: int
    rows: Sequence[float | None] | None = None
    """The value of each row by itself, where a row has one."""
    hits: np.ndarray | None = None
    """[N] bool when the value is the share of rows that are right."""
    weights: np.ndarray | None = None
    """[N] what each row counts for, where rows count unequally."""
    details: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def value(self) -> float:
        return float(self.of_counts(np.ones((1, self.n)))[0])

    @cached_property
    def resampled(self) -> np.ndarray:
        """[RESAMPLES] values; equal positions of two scores with the same n are of the same rows."""
        counts = _counts(self.n)
        blocks = (counts[start : start + BLOCK].astype(float) for start in range(0, RESAMPLES, BLOCK))
        return np.concatenate([self.of_counts(block) for block in blocks])

    @cached_property
    def interval(self) -> Interval:
        """95 %: Wilson's for a share, else the bootstrap's over rows, as wide as t is for so many (Hesterberg 2015)."""
        if self.hits is not None:
            return share(self.hits.tolist())
        tail = _tail(self.n, freedom(self.n, self.weights))
        low, high = np.quantile(self.resampled, [tail, 1 - tail])
        return Interval(self.value, float(low), float(high), self.n)


def _tail(n: int, freedom: float) -> float:
    """Share of the resamplings beyond each end of a 95 % interval: less than a fortieth, for they vary too little."""
    from scipy.special import ndtr

    return float(ndtr(-quantile_of_t(1 - CHANCE / 2, freedom) * np.sqrt(n / max(1, n - 1))))


@lru_cache(maxsize=1)
def _counts(n: int) -> np.ndarray:
    """[RESAMPLES, n] how often each of n rows is drawn, the same for the same n; over 255 times never happens."""
    random = np.random.default_rng(0)
    starts = n * np.arange(BLOCK)[:, None]  # tells the rows of one resampling from those of the next
    blocks = [
        np.bincount((random.integers(0, n, (BLOCK, n)) + starts).ravel(), minlength=BLOCK * n).astype(np.uint8)
        for _ in range(0, RESAMPLES, BLOCK)
    ]
    return np.concatenate(blocks).reshape(RESAMPLES, n)


def of_sums(
    sums: np.ndarray,
    value: Callable[[np.ndarray], np.ndarray],
    rows: Sequence[float | None] | None = None,
    weights: np.ndarray | None = None,
    **details: Any,
) -> Score:
    """The score whose value is a function ([R, k] -> [R]) of sums over rows of [N, k] numbers."""
    return Score(lambda counts: value(counts @ sums), len(sums), rows, weights=weights, details=details)


def of_mean(rows: Sequence[float], **details: Any) -> Score:
    """The mean over rows."""
    values = np.asarray(rows, float)
    return Score(lambda counts: counts @ values / counts.sum(1), len(values), values.tolist(), details=details)


def of_hits(hits: Sequence[bool], **details: Any) -> Score:
    """The share of rows that are right."""
    values = np.asarray(hits, bool)
    rows = values.astype(float)
    return Score(lambda counts: counts @ rows / counts.sum(1), len(values), rows.tolist(), hits=values, details=details)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where there is nothing to divide by."""
    return np.divide(part, whole, out=np.zeros_like(np.asarray(part, float)), where=np.asarray(whole) != 0)
