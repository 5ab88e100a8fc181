"""A score over rows that were answered more than once, such as under several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ghosttune.metrics.scoring import Score


def pooled(score: Score, names: Sequence[str]) -> Score:
    """The same score where the row of a name counts as one, however often it was answered.

    Answers of one row under several seeds are not independent: whole rows are drawn again, each with all its answers.
    Without repeated names it is the score as it was; with them a share is no longer one that McNemar's test is for.
    """
    place = {name: at for at, name in enumerate(dict.fromkeys(names))}
    if len(place) == score.n:
        return score
    owner = np.array([place[name] for name in names])
    weights = None if score.weights is None else np.bincount(owner, score.weights)
    return replace(
        score,
        of_counts=lambda counts: score.of_counts(counts[:, owner]),
        n=len(place),
        rows=None,
        hits=None,
        weights=weights,
    )
