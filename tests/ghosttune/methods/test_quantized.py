"""Bases of 8 and 4 bits: they train, in the memory they should take, and the adapter fits the untouched base."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from method_cases import CASES, Case
from safetensors.torch import load_file

from ghosttune import train
from ghosttune.config.facts import ModelKind
from ghosttune.errors import ModelError
from ghosttune.models import quantizing
from ghosttune.models.loading import add_adapter, load_adapter, load_model

bitsandbytes = pytest.importorskip("bitsandbytes")
get_4bit_type = bitsandbytes.functional.get_4bit_type
# bitsandbytes 0.50 compiles its 8-bit kernels for the CPU with a tool that torch 2.13 is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")

BITS = ("int8", "nf4")
QUANTIZED = {name: CASES[name] for name in ("eva", "adalora", "vera", "oft", "ia3", "prompt_tuning", "prefix_tuning")}


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


@pytest.fixture
def wide_config(method_config, method_world):
    """Configurations on the model whose widths are multiples of 64."""
    return functools.partial(method_config, model__name=str(method_world / "wide"))


def rounded_to_nf4(weight: torch.Tensor) -> torch.Tensor:
    """Each number as the nearest of 16 quantiles of the normal distribution, times the largest of its 64."""
    code = get_4bit_type("nf4", device="cpu", blocksize=64)
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks[..., None] / largest.clamp_min(1e-30)[..., None] - code).abs().argmin(-1)
    return (code[nearest] * largest).view_as(weight)


@pytest.mark.parametrize("bits", BITS)
def test_a_quantized_base_takes_the_memory_it_should(wide_config, bits):
    plain = load_model(wide_config(CASES["lora"]).model, 0)
    quantized = load_model(wide_config(CASES["lora"], model__quantization=bits).model, 0)
    expected = predicted_bytes(plain, bits)
    assert quantizing.weight_bytes(quantized) == pytest.approx(expected, rel=0.001)
    adapted = add_adapter(quantized, wide_config(CASES["lora"]).method, 0)
    own = 4 * sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert quantizing.weight_bytes(adapted) == pytest.approx(expected + own, rel=0.001)
    assert expected < 0.55 * quantizing.weight_bytes(plain)


@pytest.mark.parametrize("bits", BITS)
def test_its_numbers_are_the_nearest_that_so_few_bits_can_say(wide_config, bits):
    """Also after a forward pass, and the layer works on when they have been read."""
    plain = load_model(wide_config(CASES["lora"]).model, 0)
    quantized = load_model(wide_config(CASES["lora"], model__quantization=bits).model, 0).eval()
    ids = torch.tensor([[5, 9, 300]])
    before = quantized(input_ids=ids).logits
    for name, layer in plain.model.layers.named_modules():
        if isinstance(layer, torch.nn.Linear):
            kept, given = quantizing.plain_weight(quantized.model.layers.get_submodule(name)), layer.weight
            if bits == "int8":  # half a step of 1/127 of the row's largest, by way of float16
                step = given.abs().amax(1, keepdim=True) / 127
                assert ((kept - given).abs() <= 0.501 * step + 2**-11 * given.abs() + 2**-25).all()
            else:  # the scales of the blocks have 8 bits themselves
                assert (kept - rounded_to_nf4(given)).norm() < 0.005 * given.norm()
    assert torch.equal(quantized(input_ids=ids).logits, before)


def is_read_rightly(width: int) -> bool:
    """Whether bitsandbytes gives a weight of so many inputs back as the numbers nearest to it, on this processor."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(64, width, generator=torch.Generator().manual_seed(1))
    read = dequantize_4bit(*quantize_4bit(weight, blocksize=64, quant_type="nf4"))
    return bool((read - rounded_to_nf4(weight)).norm() < 0.005 * weight.norm())


REFUSED = "layers with 160 inputs are read other than they were written"


def test_four_bits_are_refused_where_they_are_read_wrongly(method_config):
    """bitsandbytes 0.50 on processors with AVX-512; its other code, that of CUDA too, is right at every width."""
    with contextlib.nullcontext() if is_read_rightly(160) else pytest.raises(ModelError, match=REFUSED):
        load_model(method_config(CASES["lora"], model__quantization="nf4").model, 0)


def test_a_misreading_is_seen_on_any_processor(method_config, monkeypatch):
    """Scales of other blocks, which is what that code takes for rows that do not end with a block."""
    right = bitsandbytes.functional.dequantize_4bit

    def row_by_row(kept, state):
        old = state.absmax
        if state.shape[1] % 64:
            state.absmax = old.roll(1)  # the scale of another block
        try:
            return right(kept, state)
        finally:
            state.absmax = old

    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", row_by_row)
    with pytest.raises(ModelError, match=REFUSED):
        load_model(method_config(CASES["lora"], model__quantization="nf4").model, 0)


@pytest.mark.parametrize("bits", BITS)
def test_an_adapter_learns_on_it_and_fits_the_unquantized_base(wide_config, method_world, tmp_path, bits):
    config = wide_config(
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
    plain = load_adapter(load_model(wide_config(CASES["lora"]).model, 0), run.folder.adapter).eval()
    small = run.pipeline().model
    with torch.no_grad():
        tuned = plain(input_ids=ids).logits - small(input_ids=ids).logits
        with plain.disable_adapter(), small.disable_adapter():
            untouched = plain(input_ids=ids).logits
            apart = untouched - small(input_ids=ids).logits
        moved = plain(input_ids=ids).logits - untouched
    assert tuned.norm() < 3 * apart.norm() < moved.norm()  # the same rounding, at other activations


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("case", QUANTIZED.values(), ids=QUANTIZED)
def test_methods_train_on_it(wide_config, tmp_path, case, bits):
    learns(wide_config(case, model__quantization=bits, train__max_steps=6, train__eval_steps=6), tmp_path)


def test_dora_trains_on_four_bits(wide_config, tmp_path):
    case = Case("lora", {"r": 4, "use_dora": True}, 0.02)
    learns(wide_config(case, model__quantization="nf4", train__max_steps=6, train__eval_steps=6), tmp_path)


def learns(config, folder) -> None:
    run = train(config, folder / "run")
    losses = [event["loss"] for event in run.events if event["event"] == "log"]
    assert losses[-1] < losses[0]
    assert run.pipeline().model is not None


@pytest.mark.parametrize(("bits", "bound"), [("nf4", 0.02), ("int8", 0.1)])
def test_the_account_closes_on_it(wide_config, method_world, tmp_path, bits, bound):
    """As on any base in four bits. In eight, the CPU rounds activations too, in evaluation only: that is the rest."""
    config = wide_config(
        CASES["lora"],
        model__quantization=bits,
        data__train__path=str(method_world / "more.jsonl"),
        data__guide__rows=2,
        measure__ledger={"guide_every": 1},
        train__max_steps=6,
        train__eval_steps=6,
        train__learning_rate=0.001,
    )
    account = train(config, tmp_path / "run").record["ledger"]
    assert account["guide_loss_path"] > 0.05
    assert abs(account["modules_residual"]) <= bound * account["guide_loss_path"]


@pytest.mark.parametrize("bits", BITS)
def test_a_new_head_is_not_quantized(wide_config, bits):
    kind = ModelKind("AutoModelForTokenClassification", "TOKEN_CLS", {"num_labels": 3, "pad_token_id": 0})
    config = wide_config(CASES["lora"], model__quantization=bits)
    base = load_model(config.model, 0, kind)
    assert type(base.score) is torch.nn.Linear and base.score.weight.dtype == torch.float32
    assert type(base.model.layers[0].mlp.down_proj) is not torch.nn.Linear
    trained = [n for n, p in add_adapter(base, config.method, 0, kind).named_parameters() if p.requires_grad]
    assert [name for name in trained if "score" in name]


def test_without_bitsandbytes_it_says_what_to_install(method_config, monkeypatch):
    monkeypatch.setattr(quantizing, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'ghosttune\[quant\]'"):
        load_model(method_config(CASES["lora"], model__quantization="nf4").model, 0)
