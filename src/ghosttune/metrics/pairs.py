"""Pairs of answers: which of the two is worth more to a model, by how much, and whether for being longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ghosttune.errors import DataError
from ghosttune.metrics.ranking import auroc_of_counts
from ghosttune.metrics.scoring import Corpus, Metric, Score, of_hits, of_mean, of_sums
from ghosttune.registry import METRICS


def _column(corpus: Corpus, name: str) -> np.ndarray:
    """[N] what is known of each pair; DataError for rows that are none."""
    values = [item.metadata.get(name) for item in corpus.items]
    if not all(isinstance(value, int | float) for value in values):
        raise DataError(f"rows have no {name}: this metric is for pairs of answers (task.type: preference or reward)")
    return np.array(values, float)


def _margins(corpus: Corpus) -> np.ndarray:
    return _column(corpus, "chosen_reward") - _column(corpus, "rejected_reward")


@METRICS.register("reward_accuracy", Metric("share of pairs", "TRL, ties counted half", "pairs"))
def reward_accuracy(corpus: Corpus) -> Score:
    """Pairs whose chosen answer has the higher reward; equal rewards count half, as those of the untouched base."""
    margins = _margins(corpus)
    if margins.all():
        return of_hits((margins > 0).tolist())
    return of_mean(((np.sign(margins) + 1) / 2).tolist(), ties=int((margins == 0).sum()))


@METRICS.register("reward_margin", Metric("in rewards", "TRL", "pairs"))
def reward_margin(corpus: Corpus) -> Score:
    """Reward of the chosen answer less that of the rejected one, mean over pairs."""
    return of_mean(_margins(corpus).tolist())


@METRICS.register("length_bias", Metric("-1 to 1, 0 is none", "own", "pairs"))
def length_bias(corpus: Corpus) -> Score:
    """Pearson's correlation of the reward margin with how many tokens longer the chosen answer is."""
    margins, longer = _margins(corpus), _column(corpus, "chosen_tokens") - _column(corpus, "rejected_tokens")
    columns = [np.ones(len(margins)), margins, longer, margins**2, longer**2, margins * longer]
    return of_sums(np.stack(columns, 1), _correlation)


def _correlation(sums: np.ndarray) -> np.ndarray:
    """[R, 6] sums -> [R]; 0 where one of the two is the same in all pairs."""
    mean = sums[:, 1:] / sums[:, :1]
    x, y, xx, yy, xy = mean.T
    variances = np.maximum(xx - x**2, 0) * np.maximum(yy - y**2, 0)
    scale = np.maximum(xx * yy, np.finfo(float).tiny)
    known = variances > 1e-18 * scale
    return np.where(known, (xy - x * y) / np.sqrt(np.where(known, variances, 1)), 0.0).clip(-1, 1)


@METRICS.register("reward_auc", Metric("0 to 1", "own", "pairs"))
def reward_auc(corpus: Corpus) -> Score:
    """The chance that a wanted answer has a higher reward than one that is not, of any two rows; ties count half."""
    rewards = [_known(corpus, f"{side}_reward") for side in ("chosen", "rejected")]
    wanted, others = (np.flatnonzero(~np.isnan(values)) for values in rewards)
    if not len(wanted) or not len(others):
        raise DataError("reward_auc needs answers that are wanted and others; these rows have one kind only")
    places = np.concatenate([wanted, others])
    of_counts = auroc_of_counts(
        np.concatenate([rewards[0][wanted], rewards[1][others]]), np.arange(len(places)) < len(wanted)
    )
    return Score(lambda counts: of_counts(counts[:, places]), len(corpus.items))


def _known(corpus: Corpus, name: str) -> np.ndarray:
    """[N] what is known of each row, NaN where it is not."""
    return np.array([item.metadata.get(name, np.nan) for item in corpus.items], float)


def _of_side(name: str, side: str, meaning: str, **options: Any) -> None:
    def metric(corpus: Corpus) -> Score:
        values = _known(corpus, f"{side}_reward")
        sums = np.stack([np.nan_to_num(values), ~np.isnan(values)], 1)
        return of_sums(
            sums, lambda each: np.divide(each[:, 0], each[:, 1], out=np.full(len(each), np.nan), where=each[:, 1] > 0)
        )

    metric.__doc__ = meaning
    METRICS.register(name, Metric("in rewards", "TRL", "pairs", **options))(metric)


_of_side("wanted_reward", "chosen", "Reward of wanted answers, mean over those.")
_of_side("unwanted_reward", "rejected", "Reward of answers that are not wanted, mean over those.", lower_is_better=True)


def _mean(name: str, meaning: str, scale: str, **options: Any) -> None:
    metric: Callable[[Corpus], Score] = lambda corpus: of_mean(_column(corpus, name).tolist())  # noqa: E731
    metric.__doc__ = meaning
    METRICS.register(name, Metric(scale, "own", "pairs", **options))(metric)


_mean("chosen_logp", "Log-probability of the chosen answer, mean over pairs.", "nats, 0 and below")
_mean(
    "rejected_logp",
    "Log-probability of the rejected answer, mean over pairs.",
    "nats, 0 and below",
    lower_is_better=True,
)
_mean(
    "kl_to_base",
    "Kullback-Leibler divergence from the untouched base, mean over the tokens of a pair's answers, then over pairs.",
    "nats per token, 0 and up",
    lower_is_better=True,
)
