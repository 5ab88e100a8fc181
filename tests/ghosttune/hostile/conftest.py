"""A finished run of a few steps, and copies of it to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ghosttune
from ghosttune.proving.specimens import short_run, write_rows


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_model) -> Path:
    """A finished run of three steps, with tables, on the tiny model."""
    folder = tmp_path_factory.mktemp("finished")
    rows = write_rows(folder / "rows.jsonl")
    ghosttune.train(short_run(tiny_model, rows, train__max_steps=3, measure__norms__every=1), folder / "run")
    return folder / "run"


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of it, as it would come from somebody else."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"
