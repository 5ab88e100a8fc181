"""Answers that are numbers: errors, explained variance. An answer without a number has no error; it is counted."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np

from ghosttune.errors import DataError
from ghosttune.metrics.scoring import Corpus, Metric, Score, of_hits, of_sums
from ghosttune.registry import METRICS

Value = Callable[[np.ndarray], np.ndarray]


def number(text: str) -> float | None:
    """The number that a text is; None when it is something else, or not finite."""
    try:
        value = float(text.strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> float | None:
    """The last number that is written in a text, thousands separated or not; None where there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


@METRICS.register("number_match", Metric("share of questions", "own; the last number, as GSM8K's answers are read"))
def number_match(corpus: Corpus) -> Score:
    """The last number in the answer is the last one in a reference; an answer without one is wrong, and counted."""
    hits: list[bool] = []
    without = 0
    for item in corpus.items:
        right = {last_number(reference) for reference in item.references} - {None}
        if not right:
            raise DataError(f"the reference {item.references[0]!r:.80} holds no number, which number_match needs")
        said = last_number(item.output)
        without += said is None
        hits.append(said in right)
    return of_hits(hits, without_a_number=without)


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
