"""Runs of every task on small models, each trained once for all tests of a module."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from task_cases import CASES
from task_models import model_folder

from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig


@pytest.fixture(scope="session")
def families(tmp_path_factory) -> Callable[[str], Path]:
    """Family -> folder of its model."""
    folder = tmp_path_factory.mktemp("families")
    return functools.cache(lambda family: model_folder(family, folder / family))


@pytest.fixture(scope="session")
def task_config(families, tmp_path_factory) -> Callable[..., RunConfig]:
    """(case, family, rows, settings by dotted path) -> configuration of a short run on that many rows."""

    def make(case: str, family: str, rows: int, **changes: Any) -> RunConfig:
        path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in CASES[case].rows(rows)))
        settings = {
            "task.type": CASES[case].task,
            "model.name": str(families(family)),
            "model.device": "cpu",
            "data.train.path": str(path),
            "data.max_length": 32,
            "train.per_device_train_batch_size": 4,
            "train.warmup_steps": 0,
            "measure.norms.every": None,
            "measure.norms.effective": None,
            "measure.ledger.guide_every": None,
            **{f"task.{name}": value for name, value in CASES[case].settings.items()},
            **{path.replace("__", "."): value for path, value in changes.items()},
        }
        return load_config(overrides=[f"{path}={json.dumps(value)}" for path, value in settings.items()])

    return make
