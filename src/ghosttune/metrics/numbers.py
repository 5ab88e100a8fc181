"""Answers that are numbers: errors, explained variance. An answer without a number has no error; it is counted."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ghosttune.errors import DataError
from ghosttune.metrics.scoring import Corpus, Metric, Score, of_sums
from ghosttune.registry import METRICS

Value = Callable[[np.ndarray], np.ndarray]


def number(text: str) -> float | None:
    """The number that a text is; None when it is something else, or not finite."""
    try:
        value = float(text.strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _sums(corpus: Corpus) -> tuple[np.ndarray, int]:
    """([N, 6]: 1, error², |error|, |error / truth|, truth, truth²; zeros where the answer is no number; how many)."""
    rows = []
    for item in corpus.items:
        true, said = number(item.references[0]), number(item.output)
        if true is None:
            raise DataError(f"the reference {item.references[0]!r} is no number; leave out the metrics of numbers")
        if said is None:
            rows.append([0.0] * 6)
        else:
            error = said - true
            rows.append([1, error**2, abs(error), abs(error / true) if true else math.nan, true, true**2])
    return np.array(rows, float), sum(not row[0] for row in rows)


def _registered(name: str, meaning: str, scale: str, value: Value, lower_is_better: bool = True) -> None:
    def metric(corpus: Corpus) -> Score:
        sums, without = _sums(corpus)
        return of_sums(sums, value, without_a_number=without)

    metric.__doc__ = meaning
    METRICS.register(name, Metric(scale, "scikit-learn", lower_is_better=lower_is_better))(metric)


def _mean(column: int) -> Value:
    return lambda sums: _or_nan(sums[:, column], sums[:, 0])


def _or_nan(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _explained(sums: np.ndarray) -> np.ndarray:
    variance = sums[:, 5] - _or_nan(sums[:, 4] ** 2, sums[:, 0])
    return 1 - _or_nan(sums[:, 1], variance)


_registered("mse", "Mean squared error.", "0 and up", _mean(1))
_registered("rmse", "Root of the mean squared error.", "0 and up", lambda sums: np.sqrt(_mean(1)(sums)))
_registered("mae", "Mean absolute error.", "0 and up", _mean(2))
_registered("mape", "Mean absolute error as a share of the truth; no value where a truth is 0.", "0 and up", _mean(3))
_registered("r2", "Share of the variance that is explained.", "1 and below", _explained, lower_is_better=False)
