"""How likely the model holds the references."""

from __future__ import annotations

import numpy as np

from ghosttune.metrics.scoring import Corpus, Metric, Score, of_sums
from ghosttune.registry import METRICS


@METRICS.register("perplexity", Metric("1 and up", "exp of the loss", "likelihood", lower_is_better=True))
def perplexity(corpus: Corpus) -> Score:
    """The exponential of the mean loss per target token of the first references, stop token included."""
    sums = np.array([(item.nats, item.targets) for item in corpus.items])
    rows = np.exp(sums[:, 0] / sums[:, 1]).tolist()
    return of_sums(sums, lambda totals: np.exp(totals[:, 0] / totals[:, 1]), rows, sums[:, 1])
