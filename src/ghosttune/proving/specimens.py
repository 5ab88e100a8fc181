"""Runs that take seconds: a small random model with the built-in tokenizer, rows to learn, and a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def small_llama(vocabulary: int, **shape: Any) -> LlamaForCausalLM:
    """Two layers of width 16; `shape` replaces or adds entries of LlamaConfig. Weights follow torch's generator."""
    from transformers import LlamaConfig, LlamaForCausalLM

    usual: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **(usual | shape)))


def write_model(folder: Path) -> Path:
    """A model folder of a two-layer Llama, width 16, random weights, with the built-in tokenizer."""
    import torch
    from transformers import AutoTokenizer

    from ghosttune.models.builtin import builtin_model_folder

    tokenizer = AutoTokenizer.from_pretrained(builtin_model_folder("builtin:tiny"))
    torch.manual_seed(0)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = small_llama(len(tokenizer), intermediate_size=32, max_position_embeddings=256, **special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path) -> Path:
    """Thirty prompts and completions of unequal length."""
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


def short_run(model: Path, rows: Path, **changes: Any) -> RunConfig:
    """A run of six updates without instruments; keyword paths use `__` for the dot."""
    overrides = {
        "model.name": str(model),
        "model.device": "cpu",
        "data.train.path": str(rows),
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
