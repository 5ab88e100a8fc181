"""Four rows, and two layers of the built-in model, also wider and with biases; configurations of short runs on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from method_cases import Case

from ghosttune.config.loading import load_config


@pytest.fixture(scope="session")
def method_world(tmp_path_factory) -> Path:
    """rows.jsonl (four rows), more.jsonl, dev.jsonl; `plain`, half the built-in model.

    `biased` is the same with biases, and `wide` with next to nothing up to a width that is a multiple of 64.
    """
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
    narrow, wide = 160, 192
    shape = {
        "hidden_size": wide,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "rms_norm_eps": 1e-6 * narrow / wide,
    }
    for name, changes in (("plain", {}), ("biased", {"attention_bias": True, "mlp_bias": True}), ("wide", shape)):
        config = LlamaConfig.from_pretrained(source, num_hidden_layers=2, **changes)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for own, parameter in model.named_parameters():
                parameter.zero_()
                if own in whole:
                    parameter.normal_(std=1e-3)
                    parameter[tuple(map(slice, whole[own].shape))] = whole[own]
                if "norm" in own:  # what is next to nothing lowers the mean square
                    parameter.mul_((narrow / config.hidden_size) ** 0.5)
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
