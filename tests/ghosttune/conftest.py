"""A small random model with the built-in tokenizer, rows to learn, and a configuration that fits them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from ghosttune.proving.specimens import short_run, write_model, write_rows


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a two-layer Llama, width 16, random weights."""
    return write_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
def rows_file(tmp_path) -> Path:
    """Thirty prompts and completions of unequal length."""
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def make_config(tiny_model, rows_file):
    """Configurations of short runs on the tiny model; keyword paths use `__` for the dot."""
    return partial(short_run, tiny_model, rows_file)
