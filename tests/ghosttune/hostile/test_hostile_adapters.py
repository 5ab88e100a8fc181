"""Adapters that do not fit, are pickled or hold patterns that never end are refused by name, without network."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from spoiling import changed_json

import ghosttune
from ghosttune.errors import ModelError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.proving.specimens import short_run, write_rows

CONFIGURATION, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EVIL = "(a+)+b|" + "(.*a){25}"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to reach the hub fails the test, whatever becomes of its error."""

    def reached(*_, **__):
        asked.append(1)
        raise OSError("no network here")

    asked: list[int] = []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", reached)
    yield
    assert not asked


def refused(run: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        Pipeline.from_run(run)
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert "weights_only" not in said


def changed_weights(folder: Path, change) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def test_renamed_tensors_are_named(copied):
    changed_weights(
        copied / "adapter", lambda found: {name.replace("q_proj", "x_proj"): t for name, t in found.items()}
    )
    refused(copied, "does not fit", "missing: base_model", "q_proj", "not the adapter's: base_model", "x_proj")


def test_a_tensor_that_is_missing_or_left_over_is_named(copied):
    changed_weights(copied / "adapter", lambda found: dict(list(found.items())[1:]) | {"extra": torch.zeros(1)})
    refused(copied, "missing: base_model", "not the adapter's: extra")


def test_a_tensor_of_another_shape_is_named_with_both(copied):
    changed_weights(
        copied / "adapter",
        lambda found: {name: t[:1] if "lora_A" in name else t for name, t in found.items()},
    )
    refused(copied, "of another shape: base_model", "lora_A.weight is [1, 16] and should be [8, 16]")


@pytest.mark.parametrize("other", ["IA3", "LOHA", "VERA", "PROMPT_TUNING", "ADALORA"])
def test_another_method_than_the_weights_are_of(copied, other):
    changed_json(copied / "adapter" / CONFIGURATION, peft_type=other)
    refused(copied, "adapter")


def test_weights_that_are_missing_are_not_asked_of_the_hub(copied):
    (copied / "adapter" / WEIGHTS).unlink()
    refused(copied, "holds no weights: there is no adapter_model.safetensors")


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_pickled_weights_are_never_read(copied, name, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    (copied / "adapter" / WEIGHTS).unlink()
    (copied / "adapter" / name).write_bytes(pickle.dumps(Evil()))
    refused(copied, name, "always refused")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ([1], "holds a list"),
        ("text", "holds a str"),
        ({"peft_type": "NOTHING"}, "NOTHING"),
        ({"peft_type": ["LORA"]}, "peft_type ['LORA']"),
        ({"target_modules": EVIL}, "must be a list of names"),
        ({"target_modules": [EVIL]}, "must be a list of names"),
        ({"target_modules": {"a": 1}}, "must be a list of names"),
        ({"exclude_modules": EVIL}, "sets exclude_modules"),
        ({"layers_to_transform": [0], "layers_pattern": [EVIL]}, "layers_pattern"),
        ({"rank_pattern": {EVIL: 4}}, "keys must be names"),
        ({"alpha_pattern": [EVIL]}, "keys must be names"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "sets megatron_config"),
        ({"r": "eight"}, "adapter"),
        ({"r": -1}, "adapter"),
        ({"lora_alpha": [1]}, "adapter"),
        ({"r": 10**12}, "adapter"),
        ({"task_type": 5}, "adapter"),
    ],
)
def test_a_configuration_of_wrong_types_or_with_patterns(copied, change, words):
    path = copied / "adapter" / CONFIGURATION
    if isinstance(change, dict):
        changed_json(path, **change)
    else:
        path.write_text(json.dumps(change))
    refused(copied, words)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "nul\0"])
def test_a_configuration_that_is_no_json(copied, text):
    (copied / "adapter" / CONFIGURATION).write_text(text)
    refused(copied, CONFIGURATION)


def test_weights_that_are_cut_short(copied):
    data = (copied / "adapter" / WEIGHTS).read_bytes()
    (copied / "adapter" / WEIGHTS).write_bytes(data[:-8])
    refused(copied, "cannot be loaded")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, tiny_model):
    """A run that tuned the model's own parameters: it keeps a model folder in the adapter's place."""
    folder = tmp_path_factory.mktemp("tuned")
    rows = write_rows(folder / "rows.jsonl")
    ghosttune.train(short_run(tiny_model, rows, train__max_steps=3, method__type="full"), folder / "run")
    return folder / "run"


@pytest.fixture
def copy(tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "run")
    return tmp_path / "run"


def test_a_model_tuned_as_a_whole_opens(copy):
    assert Pipeline.from_run(copy).generate(["hello"], max_new_tokens=1)


def test_its_tensors_that_are_missing_or_unknown_are_named(copy):
    path = copy / "adapter" / "model.safetensors"
    tensors = load_file(path)
    first = sorted(name for name in tensors if "q_proj" in name)[0]
    save_file({name.replace("q_proj", "x_proj"): t for name, t in tensors.items()}, path, {"format": "pt"})
    refused(copy, first)


def test_its_other_architecture_is_refused(copy):
    changed_json(copy / "adapter" / "config.json", num_hidden_layers=1)
    refused(copy, "adapter")


def test_its_pickled_weights(copy):
    (copy / "adapter" / "model.safetensors").rename(copy / "adapter" / "pytorch_model.bin")
    refused(copy, "pytorch_model.bin", "always refused")


def test_its_shards_outside_the_folder(copy):
    (copy / "adapter" / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "../../secret.safetensors"}}
    (copy / "adapter" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(copy, "names files outside its folder: ../../secret.safetensors")
