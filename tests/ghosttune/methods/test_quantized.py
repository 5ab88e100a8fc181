"""Bases of 8 and 4 bits: they train, in the memory they should take, and the adapter fits the untouched base."""

from __future__ import annotations

import pytest
import torch
from method_cases import CASES
from safetensors.torch import load_file

from ghosttune import train
from ghosttune.errors import ModelError
from ghosttune.models import quantizing
from ghosttune.models.loading import load_adapter, load_model

pytest.importorskip("bitsandbytes")
# bitsandbytes 0.50 compiles its 8-bit kernels for the CPU with a tool that torch 2.13 is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")

BITS = ("int8", "nf4")
QUANTIZED = {name: CASES[name] for name in ("lora", "adalora", "vera", "oft", "ia3", "prompt_tuning", "prefix_tuning")}


def predicted_bytes(model, bits: str) -> int:
    """Of the unquantized model's shapes: 1 byte and a float32 scale per output, or half a byte and one byte of scale
    per 64 weights, whose own scales are a float32 per 256, two tables of 16 and 256 values; all else in float32."""
    total = 0
    head = model.get_output_embeddings()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, torch.nn.Linear) and module is not head and parameter.dim() == 2:
                count, blocks = parameter.numel(), -(-parameter.numel() // 64)
                total += (
                    count + 4 * len(parameter)
                    if bits == "int8"
                    else count // 2 + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256)
                )
            else:
                total += 4 * parameter.numel()
    return total - 4 * head.weight.numel() * (head.weight is model.get_input_embeddings().weight)


@pytest.mark.parametrize("bits", BITS)
def test_a_quantized_base_takes_the_memory_it_should(method_config, bits):
    plain = load_model(method_config(CASES["lora"]).model, 0)
    quantized = load_model(method_config(CASES["lora"], model__quantization=bits).model, 0)
    expected = predicted_bytes(plain, bits)
    assert quantizing.weight_bytes(quantized) == pytest.approx(expected, rel=0.02)
    assert expected < 0.55 * quantizing.weight_bytes(plain)
    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"):
        kept, given = (quantizing.plain_weight(model.get_submodule(name)).float() for model in (quantized, plain))
        assert float((kept - given).norm() / given.norm()) < (0.02 if bits == "int8" else 0.12)


@pytest.mark.parametrize("bits", BITS)
def test_an_adapter_learns_on_it_and_fits_the_unquantized_base(method_config, method_world, tmp_path, bits):
    config = method_config(
        CASES["lora"],
        model__quantization=bits,
        data__train__path=str(method_world / "more.jsonl"),
        data__guide__rows=2,
        measure__ledger={"guide_every": 4},
        measure__norms={"every": 4, "effective": 4},
    )
    run = train(config, tmp_path / "run")
    losses = [event["loss"] for event in run.events if event["event"] == "log"]
    assert losses[-1] < 0.1 * losses[0]
    tensors = load_file(str(run.folder.adapter / "adapter_model.safetensors"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    ids = torch.tensor([[5, 9, 300, 17, 40]])
    plain = load_adapter(load_model(method_config(CASES["lora"]).model, 0), run.folder.adapter).eval()
    with torch.no_grad():
        tuned, expected = plain(input_ids=ids).logits, run.pipeline().model(input_ids=ids).logits
        with plain.disable_adapter():
            untouched = plain(input_ids=ids).logits
    assert (tuned - expected).norm() < 0.3 * (tuned - untouched).norm()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("case", QUANTIZED.values(), ids=QUANTIZED)
def test_methods_train_on_it(method_config, tmp_path, case, bits):
    config = method_config(case, model__quantization=bits, train__max_steps=6, train__eval_steps=6)
    run = train(config, tmp_path / "run")
    losses = [event["loss"] for event in run.events if event["event"] == "log"]
    assert losses[-1] < losses[0]
    assert run.pipeline().model is not None


def test_without_bitsandbytes_it_says_what_to_install(method_config, monkeypatch):
    monkeypatch.setattr(quantizing, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'ghosttune\[quant\]'"):
        load_model(method_config(CASES["lora"], model__quantization="nf4").model, 0)
