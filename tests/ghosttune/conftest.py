"""A small random model with the built-in tokenizer, rows to learn, and a configuration that fits them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_llama import small_llama

from ghosttune.config.loading import load_config


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a two-layer Llama, width 16, random weights."""
    import torch
    from transformers import AutoTokenizer

    from ghosttune.models.builtin import builtin_model_folder

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = AutoTokenizer.from_pretrained(builtin_model_folder("builtin:tiny"))
    torch.manual_seed(0)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = small_llama(len(tokenizer), intermediate_size=32, max_position_embeddings=256, **special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def rows_file(tmp_path) -> Path:
    """Thirty prompts and completions of unequal length."""
    path = tmp_path / "rows.jsonl"
    words = ["red", "green", "blue", "golden", "silver", "pink", "white"]
    rows = [
        {
            "prompt": f"Say {words[n % 7]} {'please ' * (n % 5)}number {n}",
            "completion": f"{words[n % 7]} " * (1 + n % 3) + str(n),
        }
        for n in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make_config(tiny_model, rows_file):
    """Configurations of short runs on the tiny model; keyword paths use `__` for the dot."""

    def make(**changes: Any):
        overrides = {
            "model.name": str(tiny_model),
            "model.device": "cpu",
            "data.train.path": str(rows_file),
            "train.max_steps": 6,
            "train.per_device_train_batch_size": 4,
            "train.learning_rate": 0.01,
            "train.warmup_steps": 2,
            "measure.norms.every": None,
            "measure.norms.effective": None,
            "measure.ledger.guide_every": None,
            "evaluate.limit": 2,
            "evaluate.max_new_tokens": 4,
        }
        overrides |= {path.replace("__", "."): value for path, value in changes.items()}
        return load_config(overrides=[f"{path}={json.dumps(value)}" for path, value in overrides.items()])

    return make
