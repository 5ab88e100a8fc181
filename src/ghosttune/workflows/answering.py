"""The dev rows answered by the untouched base and by the adapter, at the end of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from ghosttune.data.splitting import sample
from ghosttune.inference.pipeline import Pipeline
from ghosttune.metrics.intervals import mean_ratio
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
    pipeline = Pipeline(model, prepared.encoder, settings.max_new_tokens)
    answers = pipeline.generate([record.prompt for record in records])
    base = pipeline.generate([record.prompt for record in records], adapter=False)
    rows = [
        {
            "example_id": record.example_id,
            "prompt": record.prompt[-1].content,
            "output": answer.text,
            "reference": record.reference,
            "base_output": untouched.text,
            "exact_match": answer.text == _normal(record.reference),
            "stopped": answer.stopped,
            "tokens": answer.tokens,
        }
        for record, answer, untouched in zip(records, answers, base, strict=True)
    ]
    write_jsonl(run.predictions("dev"), rows)
    scores = {
        "adapter": {
            "exact_match": _share([bool(row["exact_match"]) for row in rows]),
            "stopped": _share([bool(row["stopped"]) for row in rows]),
        },
        "base": {
            "exact_match": _share(
                [answer.text == _normal(record.reference) for answer, record in zip(base, records, strict=True)]
            ),
            "stopped": _share([answer.stopped for answer in base]),
        },
    }
    write_json(run.evaluation, {"dev": scores, "left_out": len(asked) - len(records)})
    listen({"event": "answers", "scores": scores, "rows": rows})


def _normal(text: str | None) -> str:
    return (text or "").strip()


def _share(hits: list[bool]) -> dict[str, float]:
    return mean_ratio(np.array(hits, float), np.ones(len(hits))).as_dict()
