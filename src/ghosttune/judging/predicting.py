"""Predictions judged, of tasks that do not write behind a prompt: labels, tags, numbers, spans, rewritten texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ghosttune.data.records import Record
from ghosttune.metrics.judging import CONSTANT, constant, for_constant, judged, scores_of
from ghosttune.metrics.scoring import Corpus, Score
from ghosttune.tasks.protocol import Prediction


def judged_predictions(
    task: Any, said: Mapping[str, Sequence[Prediction]], records: Sequence[Record], metrics: Sequence[str] | str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(numbers, one line per record) of what each system said of the records; `auto` metrics are the task's own."""
    names = task.metrics() if metrics == "auto" else list(metrics)
    labels = tuple(getattr(task, "labels", None) or ())
    corpora = {
        system: Corpus([task.item(one, record) for one, record in zip(predictions, records, strict=True)], labels)
        for system, predictions in said.items()
    }
    scores = {system: scores_of(corpus, names) for system, corpus in corpora.items()}
    first = next(iter(corpora.values()))
    beside: dict[str, Any] = {"questions": len(records)}
    if comparable := for_constant(names):
        best = constant(first)
        scores[CONSTANT] = scores_of(best, comparable)
        beside["constant_answer"] = best.items[0].output
    result = judged(scores, names) | beside
    scores.pop(CONSTANT, None)
    return result, [_line(at, record, first, said, scores) for at, record in enumerate(records)]


def _line(
    at: int,
    record: Record,
    corpus: Corpus,
    said: Mapping[str, Sequence[Prediction]],
    scores: Mapping[str, Mapping[str, Score]],
) -> dict[str, Any]:
    """The first system's prediction under plain names, each other's under its own."""
    references = list(corpus.items[at].references)
    line: dict[str, Any] = {"example_id": record.example_id, "prompt": given_of(record), "references": references}
    for place, (system, predictions) in enumerate(said.items()):
        scored = {name: score.rows[at] for name, score in scores[system].items() if score.rows is not None}
        own = {"output": predictions[at].output, "scores": scored, **predictions[at].details}
        line |= {f"{system}_{key}": value for key, value in own.items()} if place else own
    return line


def given_of(record: Record) -> str:
    """What the model was given."""
    if record.turns:
        return record.prompt[-1].words
    given: list[Any] = [value for name, value in record.columns.items() if name not in ("label", "tags", "answers")]
    return "\n".join(" ".join(value) if isinstance(value, list) else value for value in given)
