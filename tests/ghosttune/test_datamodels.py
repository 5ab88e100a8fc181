"""The linear datamodelling score of benchmarks/datamodels.py, against scipy and on data whose answer is known."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

ROWS, QUERIES, SUBSETS = 60, 12, 80


@pytest.fixture(scope="module")
def datamodels() -> Any:
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    yield importlib.import_module("datamodels")
    patch.undo()


@pytest.fixture(scope="module")
def truth() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, subsets, and the losses that follow from them exactly."""
    random = np.random.default_rng(0)
    scores = random.standard_normal((QUERIES, ROWS))
    subsets = np.zeros((SUBSETS, ROWS), dtype=bool)
    for own in subsets:
        own[random.choice(ROWS, ROWS // 2, replace=False)] = True
    return scores, subsets, 3 - subsets @ scores.T


def test_the_true_datamodel_has_one_and_its_negative_minus_one(datamodels, truth):
    scores, subsets, losses = truth
    np.testing.assert_allclose(datamodels.correlations(scores, subsets, losses), 1)
    np.testing.assert_allclose(datamodels.correlations(-scores, subsets, losses), -1)


def test_it_is_spearmans_correlation_with_ties(datamodels, truth):
    scores, subsets, losses = truth
    rough = np.round(scores)  # sums of whole numbers tie often
    found = datamodels.correlations(rough, subsets, losses)
    for query, own in enumerate(found):
        predicted = rough[query] @ subsets.T
        assert len(set(predicted)) < SUBSETS / 2
        assert own == pytest.approx(spearmanr(predicted, -losses[:, query])[0], abs=1e-12)


def test_what_says_the_same_of_every_subset_has_none(datamodels, truth):
    _, subsets, losses = truth
    assert not datamodels.correlations(np.ones((QUERIES, ROWS)), subsets, losses).any()


def test_random_scores_have_none_and_the_interval_says_so(datamodels, truth):
    scores, subsets, losses = truth
    arms = {"random": np.random.default_rng(1).standard_normal(scores.shape), "true": scores}
    found = datamodels.resampled(arms, subsets, losses, resamples=200)
    random, true = (datamodels.interval(found[name], QUERIES) for name in ("random", "true"))
    assert abs(random.value) < 0.1 and random.low < 0 < random.high
    assert random.value == pytest.approx(datamodels.correlations(arms["random"], subsets, losses).mean())
    assert (true.low, true.high) == pytest.approx((1, 1))
    assert datamodels.interval(found["true"] - found["random"], QUERIES).low > 0.5


def test_the_ceiling_is_what_the_true_datamodel_reaches(datamodels, truth):
    """With as much noise as signal in each of two seeds: sqrt(2/3) of Pearson's correlation, a little less of ranks."""
    scores, subsets, losses = truth
    noise = np.random.default_rng(2).standard_normal((SUBSETS, 2, QUERIES)) * losses.std(0)
    measured = losses[:, None] + noise
    reached = datamodels.correlations(scores, subsets, measured.mean(1)).mean()
    assert datamodels.ceiling(measured).mean() == pytest.approx(reached, abs=0.06)
    assert reached == pytest.approx((2 / 3) ** 0.5, abs=0.06)
