"""The dev rows predicted by the untouched base and by the adapter, at the end of a run."""

from __future__ import annotations

from typing import Any

from ghosttune.data.records import Record
from ghosttune.data.splitting import sample
from ghosttune.run.directory import RunDir, write_json, write_jsonl
from ghosttune.training.watching import Listener
from ghosttune.workflows.prepare import Prepared


def predict_dev_rows(run: RunDir, prepared: Prepared, model: Any, listen: Listener) -> None:
    """Writes predictions/dev.jsonl and evaluation.json: what each is said to be, and the task's scores."""
    task, encoder = prepared.task, prepared.encoder
    records = sample(prepared.dev_records, prepared.config.evaluate.limit, prepared.config.train.seed)
    if not records:
        return
    tuned = task.predict(model, encoder, records)
    with model.disable_adapter():
        base = task.predict(model, encoder, records)
    rows = [
        {
            "example_id": record.example_id,
            "prompt": _shown(record),
            "output": prediction.output,
            "reference": task.reference(record),
            "base_output": untouched.output,
            "exact_match": task.is_right(prediction, record),
            **prediction.details,
        }
        for record, prediction, untouched in zip(records, tuned, base, strict=True)
    ]
    write_jsonl(run.predictions("dev"), rows)
    scores = {
        who: {name: score.as_dict() for name, score in task.scores(predictions, records).items()}
        for who, predictions in (("adapter", tuned), ("base", base))
    }
    write_json(run.evaluation, {"dev": scores, "left_out": len(prepared.dev_records) - len(records)})
    listen({"event": "answers", "scores": scores, "rows": rows})


def _shown(record: Record) -> str:
    """What the model was given."""
    if record.turns:
        return record.prompt[-1].content
    given: list[Any] = [value for name, value in record.columns.items() if name not in ("label", "tags", "answers")]
    return "\n".join(" ".join(value) if isinstance(value, list) else value for value in given)
