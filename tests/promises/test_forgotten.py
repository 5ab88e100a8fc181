"""The whole of `forget`, with retraining: rows end where a model that never saw them is, and the others stay."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from forgetting import facts, written  # the planted facts whose five seeds benchmarks/forgetting.md shows

from ghosttune.config.loading import load_config
from ghosttune.reports.page import figures_of
from ghosttune.reports.reading import RunNumbers
from ghosttune.stages.runs import open_run
from ghosttune.workflows.forget import forget
from ghosttune.workflows.report import report
from ghosttune.workflows.train import train

SEED, STEPS = 4, 120


@pytest.mark.slow(seconds=40)
def test_rows_are_forgotten_and_the_others_kept(tmp_path: Path) -> None:
    """Beside the retrained model, and beside the run that it starts from; the report says the same.

    The last of the five seeds of benchmarks/forgetting.md; on one of them retained rows did get worse by 0.05.
    """
    rows, ids, paraphrases = facts(SEED)
    settings = {
        "model.name": "builtin:tiny",
        "model.device": "cpu",
        "method.r": 16,
        "data.train.path": str(written(tmp_path / "rows.jsonl", rows)),
        "train.seed": SEED,
        "train.max_steps": STEPS,
        "train.per_device_train_batch_size": 16,
        "train.learning_rate": 5e-3,
        "train.eval_steps": STEPS,
        "measure.norms": None,
        "measure.ledger": None,
        "evaluate.limit": 0,
    }
    train(load_config(overrides=[f"{name}={json.dumps(value)}" for name, value in settings.items()]), tmp_path / "run")
    (tmp_path / "gone.txt").write_text("".join(f"{own}\n" for own in ids))
    told = written(tmp_path / "told.jsonl", paraphrases)
    found = forget(tmp_path / "run", tmp_path / "gone.txt", tmp_path / "out", retrain=True, paraphrases=told)
    loss = found["rows"]["forgotten"]["loss"]
    assert found["rows"]["forgotten"]["from_before"]["verdict"] == "worse", "something was forgotten"
    assert loss["retrained"]["low"] <= loss["after"]["value"] <= loss["retrained"]["high"]
    assert found["rows"]["retained"]["from_retrained"]["verdict"] in ("not distinguishable", "negligible", "better")
    assert found["rows"]["retained"]["from_before"]["verdict"] in ("not distinguishable", "negligible")
    assert found["verdict"]["forgotten"] == "as if never seen"

    page = report(tmp_path / "out").read_text()
    figure = figures_of(RunNumbers(open_run(tmp_path / "out").folder))["forgetting"]
    assert [(row[0], row[1]) for row in figure.rows[:3]] == [("rows to forget", who) for who in loss]
    assert [row[2] for row in figure.rows[:3]] == [one["value"] for one in loss.values()]
    assert "flatters the adapter" not in page, "the newest adapter is the run's"
    assert "Rows to forget: as if never seen." in page and page.count("<td>other training rows</td>") == 2
