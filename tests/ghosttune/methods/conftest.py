"""Four rows, and two layers of the built-in model, also with biases; configurations of short runs on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from method_cases import Case

from ghosttune.config.loading import load_config


@pytest.fixture(scope="session")
def method_world(tmp_path_factory) -> Path:
    """rows.jsonl (four rows), more.jsonl, dev.jsonl; `plain`, half the built-in model, and `biased`, with biases."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from ghosttune.models.builtin import builtin_model_folder

    folder, source = tmp_path_factory.mktemp("methods"), builtin_model_folder("builtin:tiny")
    for name, words in (
        ("rows", ["red", "green", "blue", "pink"]),
        ("more", ["red", "green", "blue", "pink", "black", "grey"]),
        ("dev", ["white", "orange"]),
    ):
        rows = [{"prompt": f"Say {word}", "completion": word} for word in words]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = LlamaForCausalLM.from_pretrained(source).state_dict()
    for name, biased in (("plain", False), ("biased", True)):
        config = LlamaConfig.from_pretrained(source, num_hidden_layers=2)
        config.attention_bias = config.mlp_bias = biased
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for own, parameter in model.named_parameters():
                parameter.copy_(whole[own]) if own in whole else parameter.zero_()
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder / name)
    return folder


@pytest.fixture
def method_config(method_world):
    """The configuration of a case; keyword paths use `__` for the dot."""

    def make(case: Case, **changes: Any):
        overrides = {
            "model.name": str(method_world / ("biased" if case.biased else "plain")),
            "model.device": "cpu",
            "method.type": case.method,
            **{f"method.{name}": value for name, value in case.settings.items()},
            "data.train.path": str(method_world / "rows.jsonl"),
            "data.dev.path": str(method_world / "dev.jsonl"),
            "train.max_steps": case.steps,
            "train.per_device_train_batch_size": 4,
            "train.learning_rate": case.learning_rate,
            "train.warmup_steps": 1,
            "train.eval_steps": case.steps,
            "measure.norms": None,
            "measure.ledger": None,
            "evaluate.limit": 0,
        }
        overrides |= {path.replace("__", "."): value for path, value in changes.items()}
        return load_config(overrides=[f"{path}={json.dumps(value)}" for path, value in overrides.items()])

    return make
