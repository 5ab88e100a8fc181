"""Rotary positions in config.json: what earlier readers look for, and what Transformers reads unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from ghosttune.models.rotations import repeat_rotations

LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}
BOTH = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": LINEAR}
SECTIONS = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 7e5}

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (
        lambda: transformers.LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        {"rope_theta": 5e5, "rope_scaling": None},
    ),
    "scaled": (
        lambda: transformers.LlamaConfig(rope_parameters=LINEAR),
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "part of each head": (
        lambda: transformers.GlmConfig(
            rope_parameters={"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.25}
        ),
        {"rope_theta": 2e4, "partial_rotary_factor": 0.25, "rope_scaling": None},
    ),
    "two kinds of layers": (
        lambda: transformers.Gemma3TextConfig(rope_parameters=BOTH),
        {
            "rope_theta": 5e5,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
}
SEEING: dict[str, tuple[Any, dict[str, Any]]] = {
    "llava": (
        lambda: transformers.LlavaConfig(text_config={"model_type": "llama", "rope_parameters": LINEAR}),
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "qwen": (
        lambda: transformers.Qwen2_5_VLConfig(text_config={"rope_parameters": SECTIONS}),
        {"rope_theta": 7e5, "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    ),
}


def repeated(config: Any, folder: Path) -> tuple[dict[str, Any], Any]:
    """(what config.json says then, what Transformers reads from it)."""
    config.save_pretrained(folder)
    repeat_rotations(folder / "config.json")
    return json.loads((folder / "config.json").read_text()), transformers.AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize("case", CASES)
def test_earlier_names_say_the_same(case, tmp_path):
    make, expected = CASES[case]
    written, read = repeated(make(), tmp_path)
    assert {name: written.get(name) for name in expected} == expected
    assert read.rope_parameters == make().rope_parameters


@pytest.mark.parametrize("case", SEEING)
def test_in_the_part_that_writes_too(case, tmp_path):
    make, expected = SEEING[case]
    written, read = repeated(make(), tmp_path)
    assert {name: written["text_config"].get(name) for name in expected} == expected
    assert read.text_config.rope_parameters == make().text_config.rope_parameters


def test_models_that_never_had_them_are_left_as_they_are(tmp_path):
    make = transformers.Gemma4TextConfig
    make().save_pretrained(tmp_path / "before")
    written, read = repeated(make(), tmp_path / "after")
    assert read.rope_parameters == make().rope_parameters
    assert "rope_scaling" not in written or written["rope_scaling"] is None
    (tmp_path / "own.json").write_text('{"model_type": "of-its-own", "rope_parameters": {"rope_theta": 1.0}}')
    repeat_rotations(tmp_path / "own.json")
    assert json.loads((tmp_path / "own.json").read_text()).keys() == {"model_type", "rope_parameters"}
