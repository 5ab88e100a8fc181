"""The dev rows predicted by the untouched base and by the adapter, at the end of a run whose task is not to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ghosttune.data.records import Record
from ghosttune.data.splitting import sample
from ghosttune.metrics.judging import CONSTANT, constant, for_constant, judged, scores_of
from ghosttune.metrics.scoring import Corpus, Score
from ghosttune.run.directory import RunDir
from ghosttune.training.watching import Listener
from ghosttune.workflows.evaluate import BASE, Evaluation, write_evaluation
from ghosttune.workflows.prepare import Prepared


def predict_dev_rows(run: RunDir, prepared: Prepared, model: Any, listen: Listener) -> None:
    """Writes predictions/dev.jsonl and evaluation.json: what each row is said to be, and how good that is."""
    task, encoder, settings = prepared.task, prepared.encoder, prepared.config.evaluate
    records = sample(prepared.dev_records, settings.limit, prepared.config.train.seed)
    if not records:
        return
    said = {"adapter": task.predict(model, encoder, records)}
    with model.disable_adapter():
        said[BASE] = task.predict(model, encoder, records)
    names = task.metrics() if settings.metrics == "auto" else settings.metrics
    corpora = {name: _corpus(task, predictions, records) for name, predictions in said.items()}
    scores = {name: scores_of(corpus, names) for name, corpus in corpora.items()}
    best = constant(corpora["adapter"])
    result: Evaluation = judged(scores | {CONSTANT: scores_of(best, for_constant(names))}, names)
    result["constant_answer"] = best.items[0].output
    result |= {"questions": len(records), "left_out": len(prepared.dev_records) - len(records)}
    rows = _rows(corpora, scores, said, records)
    write_evaluation(run, "dev", result, rows)
    listen({"event": "answers", "evaluation": result, "rows": rows})


def _corpus(task: Any, predictions: Sequence[Any], records: Sequence[Record]) -> Corpus:
    items = [task.item(prediction, record) for prediction, record in zip(predictions, records, strict=True)]
    return Corpus(items, tuple(getattr(task, "labels", None) or ()))


def _rows(
    corpora: Mapping[str, Corpus],
    scores: Mapping[str, Mapping[str, Score]],
    said: Mapping[str, Sequence[Any]],
    records: Sequence[Record],
) -> list[dict[str, Any]]:
    """A row per record: the adapter's prediction under plain names, the base's under its own."""
    rows = []
    for at, record in enumerate(records):
        references = list(corpora["adapter"].items[at].references)
        row: dict[str, Any] = {"example_id": record.example_id, "prompt": _shown(record), "references": references}
        for name, predictions in said.items():
            scored = {metric: score.rows[at] for metric, score in scores[name].items() if score.rows is not None}
            own = {"output": predictions[at].output, "scores": scored, **predictions[at].details}
            row |= own if name == "adapter" else {f"{name}_{key}": value for key, value in own.items()}
        rows.append(row)
    return rows


def _shown(record: Record) -> str:
    """What the model was given."""
    if record.turns:
        return record.prompt[-1].content
    given: list[Any] = [value for name, value in record.columns.items() if name not in ("label", "tags", "answers")]
    return "\n".join(" ".join(value) if isinstance(value, list) else value for value in given)
