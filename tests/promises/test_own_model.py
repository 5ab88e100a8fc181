"""`ghosttune prove --model`: configurations made small, and the proofs on what comes of them."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from ghosttune.config.facts import CAUSAL_LM
from ghosttune.config.schema import section_class
from ghosttune.errors import InputError, ModelError
from ghosttune.models.loading import add_adapter, load_adapter, save_adapter
from ghosttune.models.modules import targets_in
from ghosttune.proving import own, rowwise
from ghosttune.proving.proofs import prove
from ghosttune.proving.shrinking import HEADS, LARGEST, LAYERS, SPARE, WIDTH, shrunken, shrunken_model
from ghosttune.training.probing import kept, probe

BIG = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_000,
    "rms_norm_eps": 3e-6,
    "attention_bias": True,
}


def moe_config() -> transformers.PreTrainedConfig:
    """Qwen3-MoE's configuration with a dense first layer and experts in all others."""
    return transformers.Qwen3MoeConfig(num_hidden_layers=6, mlp_only_layers=[0], num_experts=64, vocab_size=50_000)


def test_sizes_are_made_small_and_nothing_else():
    small = shrunken(transformers.LlamaConfig(**BIG), 300, {"pad_token_id": 7})
    assert (small.hidden_size, small.num_hidden_layers, small.num_attention_heads) == (WIDTH, LAYERS, HEADS)
    assert small.num_key_value_heads == HEADS // 2 and small.vocab_size == 300 + SPARE and small.pad_token_id == 7
    assert small.rms_norm_eps == 3e-6 and small.attention_bias and small.hidden_act == "silu"
    model = shrunken_model(small, transformers.AutoModelForCausalLM)
    assert sum(p.numel() for p in model.parameters()) < LARGEST / 10


def test_every_kind_of_layer_stays():
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    small = shrunken(transformers.Gemma3TextConfig(num_hidden_layers=12, layer_types=kinds * 2), 300)
    assert small.layer_types == ["sliding_attention", "full_attention"] and small.num_hidden_layers == 2
    sparse = shrunken(moe_config(), 300)
    assert sparse.mlp_only_layers == [0] and sparse.num_hidden_layers == 2 and sparse.num_experts == HEADS
    one = shrunken(transformers.LlamaConfig(**BIG | {"num_key_value_heads": 1}), 300)
    each = shrunken(transformers.LlamaConfig(**BIG | {"num_key_value_heads": 32}), 300)
    assert (one.num_key_value_heads, each.num_key_value_heads) == (1, HEADS)


def test_what_cannot_be_made_small_is_refused_by_name():
    large = shrunken(moe_config(), 100_000)
    with pytest.raises(ModelError, match=r"qwen3_moe has [\d,]+ parameters in its smallest form, 6,401,024 of them in"):
        shrunken_model(large, transformers.AutoModelForCausalLM)
    with pytest.raises(ModelError, match="Transformers has no vit model that writes, rewrites or classifies text"):
        own.task_for(transformers.ViTConfig())


@pytest.mark.filterwarnings("ignore")
def test_lora_goes_to_the_modules_it_is_told_and_comes_back_there(tmp_path):
    """PEFT would take the dense layer's `gate_proj` for the experts of Transformers 4, and adapt those instead."""
    count = own.write_small_model(moe_config(), "causal_lm", transformers.AutoModelForCausalLM, tmp_path / "model")
    model = own.OwnModel(tmp_path / "model", "causal_lm", "lora", count)
    base = own.load_model(own.ModelSettings(name=str(model.folder)), 0, CAUSAL_LM)
    asked = targets_in(base, "all_linear").linear
    assert any(name.endswith("layers.0.mlp.gate_proj") for name in asked)
    tuned = add_adapter(base, section_class("method", "lora")(r=2), 0)
    trained = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert trained == {f"base_model.model.{name}.lora_{one}.default.weight" for name in asked for one in "AB"}
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    batch = rowwise.batch_of("causal_lm", 300)
    wanted = rowwise.task_of("causal_lm").example_loss(tuned.eval(), batch)
    save_adapter(tuned, tmp_path / "adapter")
    again = load_adapter(own.load_model(own.ModelSettings(name=str(model.folder)), 0, CAUSAL_LM), tmp_path / "adapter")
    torch.testing.assert_close(rowwise.task_of("causal_lm").example_loss(again.eval(), batch), wanted)


def test_the_proofs_hold_for_a_model_of_ones_own(tmp_path):
    transformers.Qwen3Config(**BIG).save_pretrained(tmp_path / "mine")  # no weights: nothing but the shape is read
    proved = prove(model=str(tmp_path / "mine"), folder=tmp_path / "work")
    assert [one.number for one in proved] == [1, 2, 3, 5] and all(one.passed for one in proved), proved
    assert "causal_lm, lora" in proved[0].claim


def test_a_number_that_is_off_fails(tmp_path, monkeypatch):
    class Halved(rowwise.Dots):
        def begin(self, parameters):
            super().begin(parameters)
            self.directions = [{name: one / 2 for name, one in each.items()} for each in self.directions]

    monkeypatch.setattr(rowwise, "Dots", Halved)
    (proved,) = prove([2], model="builtin:tiny", folder=tmp_path)
    verdicts = {finding.what: finding.passed for finding in proved.findings}
    assert verdicts["products with a direction"] is False and not proved.passed


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--model", "no/such folder"], "neither a folder nor a hub id"),
        (["--model", "builtin:tiny", "--method", "lore"], "no method is called 'lore'; did you mean lora"),
        (["--method", "lora"], "--method says how the model of --model is tuned"),
        (["--model", "builtin:tiny", "--quick"], "--quick goes without --model"),
        (["4", "--model", "builtin:tiny"], "no proof has the number 4; there are 1, 2, 3, 5"),
    ],
)
def test_wrong_input_is_told_as_such(asked, said):
    from ghosttune.cli.main import app

    with pytest.raises(InputError, match=said):
        app(["prove", *asked], standalone_mode=False)


def test_a_method_that_the_model_does_not_take_is_refused_before_anything_is_tried():
    with pytest.raises(InputError, match="bitfit has nothing to train"):
        prove(model="builtin:tiny", method="bitfit")


def test_exit_code_and_json(capsys):
    from ghosttune.cli.main import app

    with pytest.raises(SystemExit) as end:
        app(["prove", "5", "--model", "builtin:tiny", "--method", "ia3", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert end.value.code == 0 and said["passed"] and said["proofs"][0]["number"] == 5


def test_layers_are_computed_again_as_they_were(tmp_path):
    """T5's layers differ with checkpointing on: a probe's backward pass has to come before it is off again."""
    loader = transformers.AutoModelForSeq2SeqLM
    count = own.write_small_model(transformers.T5Config(dropout_rate=0.0), "seq2seq_lm", loader, tmp_path / "model")
    model = own.OwnModel(tmp_path / "model", "seq2seq_lm", "lora", count).adapted(torch.float32)
    task, batch = rowwise.task_of("seq2seq_lm"), rowwise.batch_of("seq2seq_lm", 300)
    again, once = (probe(task, model, {}, batch, checkpointing=wanted) for wanted in (True, False))
    assert again.losses == pytest.approx(once.losses, rel=1e-5)
    assert kept(task, model, batch, checkpointing=True).whole < kept(task, model, batch, checkpointing=False).whole
