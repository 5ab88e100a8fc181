"""A small random model with the built-in tokenizer, rows to learn, and a configuration that fits them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

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


@pytest.fixture
def mixed(make_config, rows_file, tmp_path):
    """Configurations of runs on thirty rows, drawn less often, and six of another kind, drawn more often."""
    few = tmp_path / "few.jsonl"
    rows = [{"prompt": f"Spell {n}", "completion": "a b c " * (1 + n % 2), "kind": n % 2} for n in range(8)]
    few.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {"many": {"path": str(rows_file), "weight": 1.0}, "few": {"path": str(few), "weight": 2.0}}

    def config(**changes: Any) -> Any:
        changes = {"data__dev__fraction": 0.2, "train__max_steps": 12} | changes
        return make_config(**{"data__train__path": None, "data__train__sources": sources} | changes)

    return config
