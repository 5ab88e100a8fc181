"""Model folders whose files hold something else than they should: refused in our own words, never with a traceback."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from spoiling import changed_json

from ghosttune.config.sections.model import ModelSettings
from ghosttune.errors import InputError, ModelError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.models.loading import load_tokenizer
from ghosttune.models.modules import matched_modules

FILES = ["config.json", "tokenizer.json", "tokenizer_config.json"]
CHANGES = {
    "config.json": [
        {"model_type": 5},
        {"model_type": ["llama"]},
        {"hidden_size": "sixteen"},
        {"hidden_size": -1},
        {"num_hidden_layers": "two"},
        {"vocab_size": None},
        {"rope_parameters": [1]},
        {"architectures": 5},
        {"auto_map": 5},
        {"quantization_config": [1]},
        {"torch_dtype": 5, "dtype": 5},
    ],
    "tokenizer_config.json": [
        {"tokenizer_class": 5},
        {"eos_token": 5},
        {"eos_token": ["a"]},
        {"added_tokens_decoder": [1]},
        {"chat_template": 5},
        {"chat_template": [1]},
        {"chat_template": {"a": 1}},
    ],
    "tokenizer.json": [
        {"model": 5},
        {"added_tokens": 5},
        {"model": {"type": "None"}},
        {"pre_tokenizer": {"type": "?"}},
    ],
}
BACKTRACKS = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
GIVE_UP = {
    "a pattern that backtracks": {"pre_tokenizer": BACKTRACKS},
    "rules that are no rules": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "empty text that is replaced": {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "aa"}},
    "pieces of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "an unknown token that is missing": {"model": {"type": "WordLevel", "unk_token": "?", "vocab": {"</s>": 0}}},
    "more cut off than there is": {"decoder": {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}},
}
"""What the tokenizers library panics at, or gives up on with a bare Exception."""


@pytest.fixture
def model(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def opened_or_refused(folder):
    """What is harmless may be ignored; anything else is an InputError of one short message."""
    try:
        Pipeline.open(folder).generate(["hello"], max_new_tokens=1)
    except InputError as error:
        assert 20 < len(str(error)) < 2000
        return str(error)
    return ""


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '"text"', "[" * 100_000])
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_no_object(model, file, text):
    (model / file).write_text(text)
    assert opened_or_refused(model)


@pytest.mark.parametrize("file", FILES)
def test_entries_of_wrong_types(model, file):
    text = (model / file).read_text()
    for change in CHANGES[file]:
        changed_json(model / file, **change)
        opened_or_refused(model)
        (model / file).write_text(text)


@pytest.mark.parametrize("change", GIVE_UP.values(), ids=GIVE_UP)
def test_what_the_tokenizers_library_gives_up_on(model, change):
    changed_json(model / "tokenizer.json", **change)
    with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be used: .*mend that file"):
        tokenizer = load_tokenizer(ModelSettings(name=str(model)))
        tokenizer.decode(tokenizer("a" * 40 + "b").input_ids)


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_of_a_stranger_is_refused_in_no_time(model, where, slowness):
    for old in model.glob("chat_template*"):
        old.unlink()
    evil = "{{ 'a' * 10**10 }}"
    if where.endswith("json"):
        changed_json(model / where, chat_template=evil)
    else:
        (model / where).write_text(evil)
    start = time.thread_time()
    with pytest.raises(ModelError, match="makes more text than it may"):
        Pipeline.open(model)
    assert time.thread_time() - start < 20 * slowness


def test_patterns_of_layers_do_not_backtrack(slowness):
    """`method.target_modules` and `--layers` are shell patterns."""
    from ghosttune.config.facts import ModuleFacts
    from ghosttune.errors import ConfigError

    facts = [ModuleFacts("a" * 100 + ".x", 0, "mlp", "x")]
    start = time.thread_time()
    with pytest.raises(ConfigError, match="matches no linear layer"):
        matched_modules(facts, ["*a" * 50 + "b"])
    assert time.thread_time() - start < 1 * slowness


def test_weights_of_wrong_types(model):
    (model / "model.safetensors").write_bytes(b"\x00" * 100)
    assert "cannot be loaded" in opened_or_refused(model)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../x.safetensors"}}))
    assert opened_or_refused(model)
