"""A run on rows that are as odd as rows may be, trained on the command line, and what it printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from odd_rows import odd_row
from typer.testing import CliRunner

from ghosttune.cli.main import app


@pytest.fixture(scope="package")
def said() -> Callable[..., str]:
    """What a command prints to both streams, whatever its exit code."""

    def run(*arguments: object, ok: bool = True) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=ok is False)
        assert (result.exit_code == 0) is ok, result.output
        return result.output

    return run


@pytest.fixture(scope="package")
def odd_settings(tiny_model, tmp_path_factory) -> list[str]:
    """`--set` options of a short run on thirty odd rows with everything measured."""
    rows = tmp_path_factory.mktemp("odd") / "rows.jsonl"
    rows.write_text("".join(json.dumps(odd_row(number)) + "\n" for number in range(30)), encoding="utf-8")
    settings = {
        "model.name": str(tiny_model),
        "model.device": "cpu",
        "data.train.path": str(rows),
        "data.max_length": 512,
        "data.guide.rows": 6,
        "train.max_steps": 4,
        "train.per_device_train_batch_size": 8,
        "train.learning_rate": 0.01,
        "train.warmup_steps": 0,
        "measure.ledger.guide_every": 2,
        "evaluate.limit": 2,
        "evaluate.max_new_tokens": 4,
    }
    return [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]


@pytest.fixture(scope="package")
def odd(said, odd_settings, tmp_path_factory) -> tuple[Path, str]:
    """(the finished run, what `train` printed)."""
    folder = tmp_path_factory.mktemp("odd-run") / "run"
    return folder, said("train", *odd_settings, "--verbose", "--out", folder)
