"""The linear datamodelling score (Park et al. 2023, arXiv 2303.14186) and its interval.

A score per row predicts that a model trained on a subset has the lower loss of a query, the higher the sum of the
subset's scores. The LDS is the rank correlation of this sum with minus the loss over subsets, averaged over queries.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata

from ghosttune.metrics.intervals import Interval


def correlations(scores: np.ndarray, subsets: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """[Q] Spearman correlation over subsets of each query's predicted and measured losses, 0 where one is constant.

    [Q, N] scores, higher for rows that lower the loss; [M, N] bool, the rows of each subset; [M, Q] losses.
    """
    return _rank_correlations(scores @ subsets.T.astype(scores.dtype), -losses.T)


def resampled(
    scores: Mapping[str, np.ndarray], subsets: np.ndarray, losses: np.ndarray, resamples: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """[1 + resamples] LDS of each kind of scores: as measured, then with queries and subsets drawn with replacement.

    All kinds see the same draws, so that their differences are paired.
    """
    random = np.random.default_rng(seed)
    predicted = np.stack([own @ subsets.T.astype(own.dtype) for own in scores.values()])
    measured = -losses.T
    found = [_rank_correlations(predicted, measured).mean(1)]
    for _ in range(resamples):
        queries = random.integers(0, len(measured), len(measured))
        picked = random.integers(0, len(subsets), len(subsets))
        ours, theirs = predicted[:, queries][:, :, picked], measured[queries][:, picked]
        found.append(_rank_correlations(ours, theirs).mean(1))
    return dict(zip(scores, np.array(found).T, strict=True))


def interval(values: np.ndarray, n: int) -> Interval:
    """The first of `values` with the 95 % interval of the others."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Interval(float(values[0]), float(low), float(high), n)


def ceiling(losses: np.ndarray) -> np.ndarray:
    """[Q] the highest correlation that any score can be expected to reach: what the seeds leave of it.

    [M, S, Q] losses of S seeds, an even number. The correlation of the two halves' means, by Spearman and Brown's
    formula that of the mean over all seeds with itself measured anew, and the root of that: with its expectation.
    """
    half = losses.shape[1] // 2
    one = _rank_correlations(losses[:, :half].mean(1).T, losses[:, half:].mean(1).T).clip(0)
    return np.sqrt(2 * one / (1 + one))


def _rank_correlations(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """[...] Spearman's correlation over the last axis; ties share the mean of their ranks."""
    ranks = [rankdata(column, axis=-1) for column in (left, right)]
    ours, theirs = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
    scale = np.sqrt((ours**2).sum(-1) * (theirs**2).sum(-1))
    return np.divide((ours * theirs).sum(-1), scale, out=np.zeros(scale.shape), where=scale > 0)
