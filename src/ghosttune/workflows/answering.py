"""The dev rows answered by the untouched base and by the adapter, at the end of a run."""

from __future__ import annotations

from typing import Any, cast

from ghosttune.data.encoding import Encoder
from ghosttune.data.records import Record
from ghosttune.data.splitting import sample
from ghosttune.inference.generating import Answer
from ghosttune.inference.pipeline import Pipeline
from ghosttune.metrics.intervals import share
from ghosttune.run.directory import RunDir, write_json, write_jsonl
from ghosttune.training.watching import Listener
from ghosttune.workflows.prepare import Prepared


def answer_dev_rows(run: RunDir, prepared: Prepared, model: Any, listen: Listener) -> None:
    """Writes predictions/dev.jsonl and evaluation.json: exact match and share of answers that end by themselves."""
    settings = prepared.config.evaluate
    asked = [record for record in prepared.dev_records if record.reference is not None]
    records = sample(asked, settings.limit, prepared.config.train.seed)
    if not records:
        return
    pipeline = Pipeline(model, cast(Encoder, prepared.encoder), settings.max_new_tokens)
    answers = pipeline.generate([record.prompt for record in records])
    base = pipeline.generate([record.prompt for record in records], adapter=False)
    rows = [
        {
            "example_id": record.example_id,
            "prompt": record.prompt[-1].content,
            "output": answer.text,
            "reference": record.reference,
            "base_output": untouched.text,
            "exact_match": _is_exact(answer, record),
            "stopped": answer.stopped,
            "tokens": answer.tokens,
        }
        for record, answer, untouched in zip(records, answers, base, strict=True)
    ]
    write_jsonl(run.predictions("dev"), rows)
    scores = {"adapter": _scores(answers, records), "base": _scores(base, records)}
    write_json(run.evaluation, {"dev": scores, "left_out": len(asked) - len(records)})
    listen({"event": "answers", "scores": scores, "rows": rows})


def _scores(answers: list[Answer], records: list[Record]) -> dict[str, Any]:
    """Shares of answers that equal the reference, and that end by themselves, with intervals."""
    exact = [_is_exact(answer, record) for answer, record in zip(answers, records, strict=True)]
    stopped = [answer.stopped for answer in answers]
    return {"exact_match": share(exact).as_dict(), "stopped": share(stopped).as_dict()}


def _is_exact(answer: Answer, record: Record) -> bool:
    return answer.text == (record.reference or "").strip()
