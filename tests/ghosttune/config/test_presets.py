"""The presets and profiles that ship: complete, free of conflicts, and explained in their first lines."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from ghosttune.config.loading import load_config, shipped
from ghosttune.config.resolve import Facts, resolve_sources, resolve_steps
from ghosttune.errors import ConfigError

CHOICES = {"model.dtype": "float32", "model.init": "random", "task.loss": "kto", "data.mixture.by": "guide"}
PRESETS, PROFILES = shipped("preset"), shipped("profile")
OWN = {"data": {"train": {"path": "builtin:rows"}}}


def test_the_promised_ones_are_there():
    assert {"qwen2-1.5b-chat", "tinyllama-module-study", "gpt2-pile-values"} <= set(PRESETS)
    assert {"classification", "generation", "qa", "prefix_tuning", "prompt_tuning"} <= set(PRESETS)
    assert {"preference", "grpo", "tools", "mixture"} <= set(PRESETS)
    arms = ("attention", "mlp", "attn-mlp-both", "both-mlp-attn", "both-mlp-both", "early-late")
    assert {f"{data}_{arm}" for data in ("e2e", "samsum") for arm in arms} <= set(PRESETS)
    assert {"cpu@1", "gpu-24gb@1", "quick@1", "standard@1", "intensive@1"} <= set(PROFILES)
    assert all(re.fullmatch(r"[^@]+@[1-9][0-9]*", name) for name in PROFILES), "a profile has a version"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_complete_and_can_run(name):
    config = load_config(preset=name, strict=True)
    config = resolve_sources(config, Facts(1, ("train", "dev", "test"), has_chat_template=True))
    config = resolve_steps(config, 40_000)
    assert config.train.warmup_steps < (config.train.max_steps or 0)
    assert load_config(config.model_dump()) == config


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_goes_with_a_file_and_changes_something(name):
    config = load_config(OWN, profile=name)
    assert config != load_config(OWN) and f"profile {name}" in config.origins.values()


@pytest.mark.parametrize("file", [*PRESETS.values(), *PROFILES.values()], ids=lambda file: file.stem)
def test_a_shipped_file_opens_with_what_it_is(file):
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and first.endswith((".", ":")) and len(first) > 40


@pytest.mark.parametrize("file", [*PRESETS.values(), *PROFILES.values()], ids=lambda file: file.stem)
def test_a_shipped_file_names_no_machine(file):
    assert not re.search(r"(?<![\w.:])(/|~|[A-Z]:\\)\w", file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_how_to_run_it_and_what_to_change(name):
    header = PRESETS[name].read_text(encoding="utf-8").split("\nmodel:")[0]
    assert f"ghosttune train --preset {name}" in header and "The key to change is" in header
    for key in re.findall(r"--set (\S+)=", header):
        value = CHOICES.get(key, "elsewhere")
        load_config(preset=name, overrides=[f"{key}={value}"])


def test_the_two_e2e_presets_differ_in_the_modules_alone():
    attention, mlp = (load_config(preset=name).model_dump() for name in ("e2e_attention", "e2e_mlp"))
    assert attention["method"].pop("target_modules") == "attention_qv"
    assert mlp["method"].pop("target_modules") == "mlp"
    assert attention == mlp
    assert (mlp["method"]["lora_alpha"], mlp["method"]["lora_dropout"], mlp["train"]["weight_decay"]) == (32, 0.1, 0.01)


def test_the_e2e_rows_fit_the_length_of_their_presets():
    """With GPT-2's vocabulary, of 50,000 entries; 128 tokens, which the preset's model study used, would cut rows."""
    shared = Path(os.environ.get("GHOSTTUNE_SHARED", Path(__file__).parents[4] / "shared"))
    if not (shared / "data" / "e2e").is_dir():
        pytest.skip("the folder of real data (../shared, or GHOSTTUNE_SHARED) is not here")
    import csv

    from tokenizers import ByteLevelBPETokenizer

    from ghosttune.data.known.e2e import E2E

    vocabulary = shared / "models" / "tokenizers" / "gpt2"
    tokenizer = ByteLevelBPETokenizer.from_file(str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt"))
    with gzip.open(shared / "data" / "e2e" / "devset.csv.gz", "rt", encoding="utf-8") as file:
        texts = [E2E.prompt.format(mr=row["mr"]) + row["ref"] for row in csv.DictReader(file)]
    longest = max(len(encoding.ids) + 1 for encoding in tokenizer.encode_batch(texts))
    assert longest > 128
    assert 1.5 * longest <= load_config(preset="e2e_mlp").data.max_length, "room for a smaller vocabulary"


def test_the_reference_chat_recipe_cannot_have_its_warmup_flaw():
    """It warmed up for 100 updates in a run of 3; here any file fits, and asking for that run is refused."""
    config = load_config(preset="qwen2-1.5b-chat")
    assert (config.method.r, config.method.lora_alpha, config.method.lora_dropout) == (64, 16, 0.05)  # type: ignore[attr-defined]
    assert config.method.target_modules == ["q_proj", "v_proj"]  # type: ignore[attr-defined]
    assert resolve_steps(config, 3).train.max_steps == 3
    flawed = load_config(preset="qwen2-1.5b-chat", overrides=["train.warmup_steps=100"])
    with pytest.raises(ConfigError, match="the run's 3 steps"):
        resolve_steps(flawed, 3)


def test_profiles_are_weaker_than_presets_and_files():
    config = load_config(json.loads(json.dumps(OWN | {"model": {"dtype": "bfloat16"}})), profile="cpu@1")
    assert (config.model.dtype, config.model.device) == ("bfloat16", "cpu")
    assert load_config(preset="e2e_mlp", profile="cpu@1").train.per_device_train_batch_size == 8
