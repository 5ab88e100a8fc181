"""Two short runs: one that measured everything, on rows that try to break the page, and one that measured nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hostile_rows import write_rows

from ghosttune import report, train
from ghosttune.config.loading import load_config
from ghosttune.reports.reading import RunNumbers
from ghosttune.run.directory import RunDir, write_json

OVERRIDES = {
    "model.device": "cpu",
    "train.max_steps": 12,
    "train.per_device_train_batch_size": 4,
    "train.learning_rate": 0.01,
    "train.warmup_steps": 2,
    "data.truncated_share": 1.0,
    "evaluate.limit": 2,
    "evaluate.max_new_tokens": 4,
}
UNMEASURED = {
    "measure.norms.every": None,
    "measure.norms.effective": None,
    "measure.ledger.guide_every": None,
    "evaluate.limit": 0,
}


def trained(folder: Path, model: Path, **changes: Any) -> Path:
    """A finished run in folder/run."""
    overrides = {"model.name": str(model), "data.train.path": str(write_rows(folder / "rows.jsonl"))}
    overrides |= OVERRIDES | changes
    config = load_config(overrides=[f"{path}={json.dumps(value)}" for path, value in overrides.items()])
    return train(config, folder / "run").path


EFFECT = {"change": {"value": 0.01, "low": -0.02, "high": 0.04, "n": 6}, "verdict": "not distinguishable"}
VALIDATION = {
    "ceiling": None,
    "scores": {
        "value": {
            "rank": {"value": 0.7, "low": 0.1, "high": 0.9, "n": 8},
            "slope": {"value": 0.9, "low": 0.5, "high": 1.3, "n": 8},
        },
        "standing": {"rank": {"value": 0.6, "low": 0.0, "high": 0.9, "n": 8}, "slope": None},
    },
    "halves": {f"half-{k:03}": {"predicted": 0.1 * k, "measured": [0.1 * k, 0.1 * k + 0.02]} for k in range(8)},
    "dropped": {"share": 0.1, "lowest": EFFECT, "highest": EFFECT, "random": EFFECT},
}
"""As `ghosttune validate` writes it, of which the figure takes this much."""


@pytest.fixture(scope="package")
def full_run(tmp_path_factory, tiny_model) -> Path:
    """Three phases, every norm, a ledger, and its report."""
    folder = tmp_path_factory.mktemp("full")
    measured = {"measure.norms.effective": 2, "measure.ledger.guide_every": 2, "data.guide.rows": 6}
    measured |= {"data.online_selection.by": "value", "data.online_selection.candidates": 2}
    path = trained(folder, tiny_model, phases="both@0-4 > mlp@4-8 > attention@8-", **measured)
    write_json(RunDir(path).validation_result, VALIDATION)
    report(path)
    return path


@pytest.fixture(scope="package")
def bare_run(tmp_path_factory, tiny_model) -> Path:
    """No phases, no norms, no ledger, no answers; and its report."""
    path = trained(tmp_path_factory.mktemp("bare"), tiny_model, **UNMEASURED)
    report(path)
    return path


@pytest.fixture(scope="package")
def full(full_run) -> RunNumbers:
    return RunNumbers(RunDir(full_run))
