"""Checks of short runs, each as a person starts it: rows in a file, settings by dotted path."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from doctor_cases import usable

from ghosttune.config.loading import read_config
from ghosttune.config.schema import RunConfig
from ghosttune.errors import Problem
from ghosttune.workflows.check import Report, check

SETTINGS = {
    "model.name": "builtin:tiny",
    "model.device": "cpu",
    "data.max_length": 64,
    "train.max_steps": 20,
    "train.warmup_steps": 2,
    "train.per_device_train_batch_size": 4,
    "measure.norms": None,
    "measure.ledger": None,
}
"""A run about which there is nothing to complain, on the rows of `usable`."""


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """One line for each row; text stands as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def read(tmp_path) -> Callable[..., tuple[RunConfig, list[Problem]]]:
    """(configuration, problems) of a run on these rows, else `usable` ones; `...` leaves a setting out."""

    def make(rows: Sequence[Any] | None = None, **settings: Any) -> tuple[RunConfig, list[Problem]]:
        path = write_rows(tmp_path / "rows.jsonl", usable() if rows is None else rows)
        chosen = SETTINGS | {"data.train.path": str(path)}
        chosen |= {name.replace("__", "."): value for name, value in settings.items()}
        overrides = [f"{name}={json.dumps(value)}" for name, value in chosen.items() if value is not ...]
        return read_config(overrides=overrides)

    return make


@pytest.fixture
def checked(read) -> Callable[..., Report]:
    """The report on such a run."""

    def run(rows: Sequence[Any] | None = None, **settings: Any) -> Report:
        return check(*read(rows, **settings))

    return run
