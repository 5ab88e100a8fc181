"""Answers inside a text: SQuAD's exact match and F1, and F1 of entities in tag sequences."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable

import numpy as np

from ghosttune.errors import DataError
from ghosttune.metrics.scoring import Corpus, Item, Metric, Score, of_hits, of_mean, of_sums, ratio
from ghosttune.registry import METRICS


def normalised(text: str) -> str:
    """As SQuAD's script has it: lower case, no punctuation, no articles, single blanks."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _overlap(said: str, right: str) -> float:
    words, gold = normalised(said).split(), normalised(right).split()
    if not words or not gold:
        return float(words == gold)
    shared = sum((Counter(words) & Counter(gold)).values())
    return 2 * shared / (len(words) + len(gold))


@METRICS.register("squad_em", Metric("share of questions", "SQuAD evaluate-v1.1"))
def squad_em(corpus: Corpus) -> Score:
    """The answer is one of the references, without case, punctuation and articles."""
    return of_hits(
        [normalised(item.output) in {normalised(right) for right in item.references} for item in corpus.items]
    )


@METRICS.register("squad_f1", Metric("0 to 1", "SQuAD evaluate-v1.1"))
def squad_f1(corpus: Corpus) -> Score:
    """F1 of shared words with the nearest reference, mean over questions."""
    return of_mean([max(_overlap(item.output, right) for right in item.references) for item in corpus.items])


def _tags(text: str) -> list[str]:
    return text.split()


@METRICS.register("tag_accuracy", Metric("share of words", "own"))
def tag_accuracy(corpus: Corpus) -> Score:
    """Share of words with the right tag; words without one are wrong."""
    pairs = [(_tags(item.output), _tags(item.references[0])) for item in corpus.items]
    sums = np.array(
        [[sum(said == tag for said, tag in zip(ours, true, strict=False)), len(true)] for ours, true in pairs]
    )
    return of_sums(sums, lambda sums: ratio(sums[:, 0], sums[:, 1]), weights=sums[:, 1].astype(float))


def _entities(item: Item) -> tuple[int, int, int]:
    """(right, said, true) entities; tags beyond the reference's length do not count, missing ones are outside."""
    from seqeval.metrics.sequence_labeling import get_entities

    true = _tags(item.references[0])
    said = [tag if re.fullmatch(r"O|[BIES]-\S+", tag) else "O" for tag in _tags(item.output)[: len(true)]]
    said += ["O"] * (len(true) - len(said))
    if unknown := [tag for tag in true if not re.fullmatch(r"O|[BIES]-\S+", tag)]:
        raise DataError(f"the reference tag {unknown[0]!r} is no IOB tag such as O, B-PER or I-PER")
    ours, theirs = set(get_entities(said)), set(get_entities(true))
    return len(ours & theirs), len(ours), len(theirs)


def _registered(name: str, meaning: str, value: Callable[[np.ndarray], np.ndarray]) -> None:
    def metric(corpus: Corpus) -> Score:
        return of_sums(np.array([_entities(item) for item in corpus.items]), value)

    metric.__doc__ = meaning
    METRICS.register(name, Metric("0 to 1", "seqeval"))(metric)


_registered("entity_precision", "Share of named entities that are right.", lambda sums: ratio(sums[:, 0], sums[:, 1]))
_registered("entity_recall", "Share of true entities that are named.", lambda sums: ratio(sums[:, 0], sums[:, 2]))
_registered(
    "entity_f1",
    "F1 of entities in sequences of tags, one tag per word, blanks between them.",
    lambda sums: ratio(2 * sums[:, 0], sums[:, 1] + sums[:, 2]),
)
