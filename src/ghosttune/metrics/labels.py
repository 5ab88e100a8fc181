"""Labels, generated or by their likelihood: accuracy, precision, recall, F1, confusion matrix, AUC; and numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ghosttune.metrics.ranking import auroc_of_counts
from ghosttune.metrics.scoring import Corpus, Item, Metric, Score, of_hits, of_sums, ratio
from ghosttune.registry import METRICS

UNPARSED = "(unparsed)"
_NEGATIONS = {"not", "no", "non", "never", "isn't", "neither", "nor"}


def named_label(text: str, labels: Sequence[str]) -> str | None:
    """The one label a text names, in whole words and not behind a negation; None when it names none or several."""
    said = f" {_plain(text)} "
    found: set[str] = set()
    for label in sorted(labels, key=lambda label: -len(label)):
        pattern = rf"(?<!\w){re.escape(_plain(label))}(?!\w)"
        for match in re.finditer(pattern, said):
            before = said[: match.start()].split()
            if not before or before[-1] not in _NEGATIONS:
                found.add(label)
        said = re.sub(pattern, lambda match: " " * len(match[0]), said)
    return found.pop() if len(found) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").split())


def _generated(item: Item, labels: Sequence[str]) -> str:
    return named_label(item.output, labels) or UNPARSED


def _likeliest(item: Item, labels: Sequence[str]) -> str:
    return min(labels, key=lambda label: item.label_nats[label])


Reader = Callable[[Item, Sequence[str]], str]


def _said(corpus: Corpus, read: Reader) -> list[str]:
    return [read(item, corpus.labels) for item in corpus.items]


def _truth(corpus: Corpus) -> list[str]:
    return [item.references[0] for item in corpus.items]


def _accuracy(corpus: Corpus, read: Reader) -> Score:
    from sklearn.metrics import classification_report

    said, truth = _said(corpus, read), _truth(corpus)
    names = [*corpus.labels, UNPARSED] if UNPARSED in said else list(corpus.labels)
    never: Any = 0.0  # precision of a label that is never said
    report: Any = classification_report(truth, said, labels=names, output_dict=True, zero_division=never)
    kept = {name: {key: float(value) for key, value in report[name].items()} for name in names if name != UNPARSED}
    seen = Counter(zip(truth, said, strict=True))
    matrix = [[seen[right, answer] for answer in names] for right in names]
    right = [answer in item.references for answer, item in zip(said, corpus.items, strict=True)]
    return of_hits(
        right, unparsed=said.count(UNPARSED), labels=kept, confusion={"labels": names, "rows_are_truth": matrix}
    )


def _average(kind: str, weighted: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Precision, recall or F1 from [R, 3 k] sums (right, said, true per label), averaged over labels that occur."""

    def value(sums: np.ndarray) -> np.ndarray:
        right, said, true = np.split(sums.astype(float), 3, axis=1)
        whole = {"precision": said, "recall": true, "f1": (said + true) / 2}[kind]
        occurs = (said + true) > 0
        weights = true if weighted else occurs.astype(float)
        return ratio((ratio(right, whole) * weights).sum(1), weights.sum(1))

    return value


def _averaged(corpus: Corpus, read: Reader, kind: str, weighted: bool) -> Score:
    said, truth = _said(corpus, read), _truth(corpus)
    names = np.array(corpus.labels)
    said_is, true_is = np.array(said)[:, None] == names, np.array(truth)[:, None] == names
    return of_sums(np.concatenate([said_is & true_is, said_is, true_is], 1).astype(int), _average(kind, weighted))


def _registered(prefix: str, needs: str, read: Reader, how: str) -> None:
    def accuracy(corpus: Corpus) -> Score:
        return _accuracy(corpus, read)

    accuracy.__doc__ = f"Share of rows whose label, {how}, is right; confusion matrix and report per label beside it."
    METRICS.register(f"{prefix}accuracy", Metric("share of questions", "scikit-learn", needs))(accuracy)
    for average in ("macro", "weighted"):
        for kind in ("precision", "recall", "f1"):

            def averaged(corpus: Corpus, kind: str = kind, weighted: bool = average == "weighted") -> Score:
                return _averaged(corpus, read, kind, weighted)

            averaged.__doc__ = f"{kind.title()} per label, {average} mean over labels, each {how}."
            METRICS.register(f"{prefix}{average}_{kind}", Metric("0 to 1", "scikit-learn", needs))(averaged)


_registered("", "labels", _generated, "as the answer names it")
_registered("likelihood_", "label likelihoods", _likeliest, "the likeliest of all")


@METRICS.register("unparsed", Metric("share of questions", "own", "labels", lower_is_better=True))
def unparsed(corpus: Corpus) -> Score:
    """Answers that name no label, or several."""
    return of_hits([_generated(item, corpus.labels) == UNPARSED for item in corpus.items])


@METRICS.register("auc", Metric("0 to 1", "scikit-learn", "label likelihoods"))
def auc(corpus: Corpus) -> Score:
    """Area under the ROC curve of the second of two labels by its likelihood; no value with other than two labels."""
    if len(corpus.labels) != 2:
        return Score(lambda counts: np.full(len(counts), np.nan), len(corpus.items))
    first, second = corpus.labels
    margins = np.array([item.label_nats[first] - item.label_nats[second] for item in corpus.items])
    truth = np.array([label == second for label in _truth(corpus)])
    return Score(auroc_of_counts(margins, truth), len(margins), details={"positive": second})
