"""Systems that answered the same questions, scored and compared with each other and with the constant answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ghosttune.errors import DataError
from ghosttune.metrics.comparing import compared, together
from ghosttune.metrics.scoring import Corpus, Metric, Score
from ghosttune.own_code import is_own_code
from ghosttune.registry import METRICS

CONSTANT = "constant"
"""Name of the system that always gives the most frequent reference."""

MOST_LABELS = 50


def needs(names: Sequence[str]) -> set[str]:
    """What has to be known of every answer to compute these metrics; InputError names an unknown one."""
    return {_described(name).needs for name in names}


def labels_of(references: Sequence[Sequence[str]], names: Sequence[str]) -> tuple[str, ...]:
    """Every answer that is possible, for metrics that ask; DataError where there are too many to be labels."""
    described = {name: _described(name) for name in names if not is_own_code(name)}
    asking = [name for name, metric in described.items() if metric.needs in ("labels", "label likelihoods")]
    if not asking:
        return ()
    labels = sorted({reference for given in references for reference in given})
    if len(labels) > MOST_LABELS:
        raise DataError(
            f"{asking[0]} is for rows of at most {MOST_LABELS} different answers, and these have {len(labels)}; "
            "take it out of evaluate.metrics"
        )
    return tuple(labels)


def constant(corpus: Corpus) -> Corpus:
    """The same questions, each answered with the reference that most of them have."""
    answer = Counter(reference for item in corpus.items for reference in set(item.references)).most_common(1)[0][0]
    nats = {label: float(label != answer) for label in corpus.labels}
    return replace(corpus, items=[replace(item, output=answer, label_nats=nats) for item in corpus.items])


def scores_of(corpus: Corpus, names: Sequence[str]) -> dict[str, Score]:
    """Metric -> its score, in the order of the names."""
    return {name: METRICS[name].build(corpus) for name in names}


def judged(systems: Mapping[str, Mapping[str, Score]], names: Sequence[str]) -> dict[str, Any]:
    """Every system's numbers with their intervals, and the first system compared with each of the others."""
    first, *others = systems
    return {
        **{system: {name: _interval(score) for name, score in scores.items()} for system, scores in systems.items()},
        "comparison": {other: _comparison(systems[first], systems[other]) for other in others},
        "details": {
            system: {name: _plain(score.details) for name, score in scores.items() if score.details}
            for system, scores in systems.items()
        },
        "metrics": {name: {"scale": _described(name).scale, "source": _described(name).source} for name in names},
    }


def for_constant(names: Sequence[str]) -> list[str]:
    """The metrics that say something of an answer that is always the same."""
    return [name for name in names if _described(name).needs not in ("endings", "likelihood", "pairs")]


def _comparison(ours: Mapping[str, Score], theirs: Mapping[str, Score]) -> dict[str, Any]:
    found = {
        name: compared(score, theirs[name], _described(name).lower_is_better)
        for name, score in ours.items()
        if name in theirs
    }
    tested = together({name: comparison for name, comparison in found.items() if comparison is not None})
    return {name: comparison.as_dict() for name, comparison in tested.items()}


def _described(name: str) -> Metric:
    return METRICS[name].settings


def _interval(score: Score) -> dict[str, Any]:
    """The value with its interval; null where there is none, such as the AUC of one class."""
    return _plain(score.interval.as_dict())


def _plain(value: Any) -> Any:
    """As JSON holds it: no NaN and no infinity."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
