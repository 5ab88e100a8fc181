"""Models that cannot be used as asked are refused with a way out; nothing is drawn at random in silence."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from ghosttune import train
from ghosttune.config.sections.model import ModelSettings
from ghosttune.errors import ConfigError, ModelError, RunError
from ghosttune.models.loading import add_adapter, load_model, load_tokenizer
from ghosttune.models.modules import matched_modules, module_facts, trainable_counts


@pytest.fixture
def copy(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def refused(name: object) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(ModelSettings(name=str(name)), seed=0)
    return str(caught.value)


def test_missing_weights_are_not_drawn_at_random(copy):
    tensors = load_file(str(copy / "model.safetensors"))
    del tensors["model.layers.0.mlp.down_proj.weight"]
    save_file(tensors, str(copy / "model.safetensors"), metadata={"format": "pt"})
    assert "lack 1 tensors of the model: model.layers.0.mlp.down_proj.weight" in refused(copy)


def test_damaged_pickled_and_misshapen_weights(copy, capfd):
    tensors = load_file(str(copy / "model.safetensors"))
    name = "model.layers.0.mlp.down_proj.weight"
    save_file(tensors | {name: tensors[name][:, :-1].contiguous()}, str(copy / "model.safetensors"))
    assert re.search(rf"{re.escape(name)} is \(\d+, \d+\) and should be \(", refused(copy))
    assert capfd.readouterr().err == "", "what Transformers would print about it says less"
    (copy / "model.safetensors").write_bytes(b"not a tensor file")
    assert "cannot be loaded" in refused(copy)
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    assert "no safetensors weights" in refused(copy)


def test_a_model_that_sees_what_it_is_to_predict(tmp_path):
    shape = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertForMaskedLM(shape).save_pretrained(tmp_path / "bert")
    assert "reads in both directions" in refused(tmp_path / "bert")


def test_names_that_are_no_model(tmp_path):
    (tmp_path / "file.yaml").write_text("x")
    assert "is not a folder" in refused(tmp_path / "file.yaml")
    assert "holds no model" in refused(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in refused(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    assert "is a run" in refused(tmp_path)
    assert "neither a folder nor a hub id" in refused("a b/c d")
    assert "known: builtin:tiny" in refused("builtin:huge")
    assert "not on this machine, and the hub cannot be reached" in refused("nobody/has-this-model")


def test_a_folder_without_tokenizer(copy):
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer of .* cannot be loaded: there is no tokenizer\.json"):
        load_tokenizer(ModelSettings(name=str(copy)))


def test_a_damaged_adapter_is_refused(make_config, tmp_path):
    run = train(make_config(), tmp_path / "run")
    weights = run.folder.adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="adapter cannot be loaded"):
        run.pipeline()
    shutil.rmtree(run.folder.adapter)
    with pytest.raises(RunError, match="has no adapter/; restore it, or train again"):
        run.pipeline()


def test_target_groups_of_the_built_in_model():
    facts = module_facts(load_model(ModelSettings(), seed=0))
    last = {group: sorted({name.rpartition(".")[2] for name in matched_modules(facts, group)}) for group in GROUPS}
    assert last == GROUPS
    assert len(matched_modules(facts, "all_linear")) == 7 * len({fact.layer for fact in facts} - {None})
    assert matched_modules(facts, ["*.layers.0.*.q_proj"]) == ["model.layers.0.self_attn.q_proj"]
    with pytest.raises(ConfigError, match="'q_prj' matches no linear layer; did you mean q_proj"):
        matched_modules(facts, ["v_proj", "q_prj"])


GROUPS = {
    "attention_qv": ["q_proj", "v_proj"],
    "attention": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "mlp": ["down_proj", "gate_proj", "up_proj"],
    "all_linear": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
}


def test_trainable_parameters_are_those_of_the_formula(make_config):
    config = make_config(method__r=3)
    model = load_model(config.model, 0)
    facts = module_facts(model)
    sizes = {name: sum(model.get_submodule(name).weight.shape) for name in matched_modules(facts, "all_linear")}
    adapted = add_adapter(model, config.method, 0)
    counts = trainable_counts(adapted, facts)
    assert sum(counts.values()) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert counts["attention"] == 3 * sum(size for name, size in sizes.items() if "attn" in name)
    assert counts["mlp"] == 3 * sum(size for name, size in sizes.items() if "mlp" in name)


@pytest.mark.parametrize(
    "targets, expected",
    [(["q_proj", "v_proj"], 563_200), ("attention", 1_126_400), ("mlp", 2_027_520), ("all_linear", 3_153_920)],
)
def test_parameter_counts_of_tinyllama(targets, expected):
    """Rank 4 on the shape of TinyLlama 1.1B; the counts are those of the reference study, recounted by hand."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32000,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(shape)
    names = matched_modules(module_facts(model), targets)
    assert sum(4 * sum(model.get_submodule(name).weight.shape) for name in names) == expected


def test_a_gpt2_layout_is_adapted(shared):
    settings = ModelSettings(name=str(shared / "models" / "gpt-nano-sort"))
    model = load_model(settings, 0)
    names = {name.rpartition(".")[2] for name in matched_modules(module_facts(model), "all_linear")}
    assert names == {"c_attn", "c_proj", "c_fc"}
    groups = {fact.name.split(".", 3)[-1]: fact.group for fact in module_facts(model) if fact.layer == 0}
    assert groups == {"attn.c_attn": "attention", "attn.c_proj": "attention", "mlp.c_fc": "mlp", "mlp.c_proj": "mlp"}
