"""What a fine-tuning run does to the engine: checkpointing, packing, prompt tables, several adapters, other bases."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from ghostgrad import Dots, GradientEngine, Norms, UnsupportedLayer
from ghostgrad.testing import compare
from ghosttune.proving.families import (
    MAKE,
    TARGETS,
    VOCABULARY,
    contributions,
    gpt2,
    llama,
    randomized,
    rows,
    token_losses,
)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", list(MAKE))
def test_activation_checkpointing(family: str, method: str) -> None:
    model = MAKE[family]()
    if method == "lora":
        config = peft.LoraConfig(r=3, target_modules=TARGETS[family], fan_in_fan_out=family == "gpt2")
        model = peft.get_peft_model(model, config)
    model = randomized(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    base = model.get_base_model() if method == "lora" else model
    base.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    batch = rows(4)
    compare(model, lambda model: contributions(model, family, batch))


@pytest.mark.parametrize("kind", ["prompt", "prefix", "p-tuning", "p-tuning LSTM"])
@pytest.mark.parametrize("examples", [1, 4])
def test_prompt_and_prefix_tables(kind: str, examples: int) -> None:
    common = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    config = {
        "prompt": lambda: peft.PromptTuningConfig(**common),
        "prefix": lambda: peft.PrefixTuningConfig(**common),
        "p-tuning": lambda: peft.PromptEncoderConfig(encoder_hidden_size=8, **common),
        "p-tuning LSTM": lambda: peft.PromptEncoderConfig(
            encoder_hidden_size=8, encoder_reparameterization_type="LSTM", **common
        ),
    }[kind]()
    model, batch = randomized(peft.get_peft_model(llama(), config)), rows(examples)
    extra = 0 if kind == "prefix" else 3

    def losses(model: nn.Module) -> Tensor:
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, extra:][:, :-1]
        return token_losses(logits, batch.labels[:, 1:]).sum(1)

    compare(model, losses)


def test_packed_rows_with_position_ids_equal_documents_apart() -> None:
    """Two documents in one row, kept apart by position numbers, as Transformers packs."""
    torch.manual_seed(0)
    model = randomized(llama(attn_implementation="eager"))
    ids = torch.randint(3, VOCABULARY, (1, 11))
    document = torch.tensor([[0] * 5 + [1] * 6])
    place = torch.tensor([[*range(5), *range(6)]])
    allowed = (document.unsqueeze(2) == document.unsqueeze(1)).tril()
    mask = torch.zeros(1, 1, 11, 11, dtype=torch.float64).masked_fill(~allowed.unsqueeze(1), float("-inf"))

    def packed(model: nn.Module) -> Tensor:
        logits = model(input_ids=ids, position_ids=place, attention_mask=mask).logits[:, :-1]
        target = document[:, 1:] == document[:, :-1]
        each = token_losses(logits, ids[:, 1:].masked_fill(~target, -100))
        return each.new_zeros(2).index_add(0, document[0, 1:], each[0])

    reference = compare(model, packed, examples=document)
    for example, part in enumerate((slice(0, 5), slice(5, 11))):
        logits = model(input_ids=ids[:, part]).logits[:, :-1]
        alone = token_losses(logits, ids[:, part][:, 1:]).sum()
        grads = torch.autograd.grad(alone, [p for _, p in model.named_parameters()])
        for (name, _), grad in zip(model.named_parameters(), grads, strict=True):
            # The family's norms run in float32 inside a float64 model: another order of sums there.
            torch.testing.assert_close(reference[name][example], grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{"r": 1}, {"r": 8, "use_rslora": True}, {"r": 2, "modules_to_save": ["lm_head"]}])
def test_kinds_of_lora(settings: dict[str, object]) -> None:
    model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=TARGETS["llama"], **settings))
    batch = rows(4)
    compare(randomized(model), lambda model: contributions(model, "llama", batch))


def test_two_active_adapters() -> None:
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=TARGETS["llama"]))
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["q_proj", "down_proj"]))
    model.base_model.set_adapter(["default", "second"])
    batch = rows(3)
    compare(randomized(model), lambda model: contributions(model, "llama", batch))


def test_dora_with_dropout_in_training() -> None:
    """With dropout on, the magnitude's layer computes the base product itself, from the dropped input."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, lora_dropout=0.4)
    model, batch = randomized(peft.get_peft_model(llama(), config)).train(), rows(3)

    def losses(model: nn.Module) -> Tensor:
        torch.manual_seed(5)
        return contributions(model, "llama", batch)

    compare(model, losses)


def test_dora_with_a_training_base_bias_is_refused() -> None:
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], use_dora=True, bias="lora_only", fan_in_fan_out=True)
    model, batch = randomized(peft.get_peft_model(gpt2(), config)), rows(2)
    engine = GradientEngine(model, verify=False)
    with pytest.raises(UnsupportedLayer, match="freeze the bias"), engine.observe(Norms()):
        contributions(model, "gpt2", batch).sum().backward()


class EightBitLinear(nn.Linear):
    """A base whose weight is integers with a scale per row, as quantised layers hold it."""

    def __init__(self, source: nn.Linear):
        super().__init__(source.in_features, source.out_features, bias=source.bias is not None)
        scale = source.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((source.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, values: Tensor) -> Tensor:
        weight = self.weight.to(values.dtype) * self.scale.to(values.dtype)
        return nn.functional.linear(values, weight, self.bias)


def test_adapters_over_a_quantised_base() -> None:
    model = randomized(peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=TARGETS["llama"])))
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.Linear):
            module.base_layer = EightBitLinear(module.base_layer)
    batch = rows(4)
    compare(model, lambda model: contributions(model, "llama", batch))


@pytest.mark.parametrize("bits", [4, 8])
def test_adapters_over_bitsandbytes(bits: int) -> None:
    """In float32, against one float32 backward per example: 1e-3 (A16)."""
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model, wide = llama(hidden_size=64, intermediate_size=64).eval(), torch.float32
    for layer in model.model.layers:
        for part, name in ((layer.self_attn, "q_proj"), (layer.mlp, "up_proj")):
            source = getattr(part, name)
            shape = (source.in_features, source.out_features)
            if bits == 4:
                base = bnb.nn.Linear4bit(*shape, bias=False, compute_dtype=wide)
                base.weight = bnb.nn.Params4bit(source.weight.data, requires_grad=False)
            else:
                base = bnb.nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False)
                base.weight = bnb.nn.Int8Params(source.weight.data, requires_grad=False)
            setattr(part, name, base.to("cpu"))
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj", "o_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    batch = rows(4)
    compare(model, lambda model: contributions(model, "llama", batch), rtol=1e-3)


@pytest.mark.parametrize("name", ["Qwen2", "Qwen3", "Gemma", "Gemma2", "Mistral", "Phi3", "Olmo2"])
def test_norms_of_other_families(name: str) -> None:
    """Each family's RMSNorm in its own way of casting, w or 1 + w, all weights trained."""
    config = getattr(transformers, f"{name}Config")(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=VOCABULARY,
        pad_token_id=0,
    )
    model, batch = randomized(getattr(transformers, f"{name}ForCausalLM")(config)), rows(4)
    # Gemma's norms cast their weight to float32, so that autograd's own gradient of it is no better than that.
    rtol = 1e-6 if "Gemma" in name else 1e-10
    compare(model, lambda model: contributions(model, "llama", batch), rtol=rtol)


def test_mixture_of_experts_is_refused_by_name() -> None:
    config = transformers.Qwen3MoeConfig(
        hidden_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts=4,
        num_experts_per_tok=2,
        vocab_size=VOCABULARY,
    )
    with pytest.raises(UnsupportedLayer, match=r"mlp\.experts"):
        GradientEngine(transformers.Qwen3MoeForCausalLM(config))


def test_a_trainer_step_with_the_engine_is_bit_identical() -> None:
    def weights(observed: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = peft.get_peft_model(
            llama(), peft.LoraConfig(r=2, target_modules=TARGETS["llama"], lora_dropout=0.1)
        ).train()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer, engine = torch.optim.AdamW(trained.values(), lr=1e-2), GradientEngine(model)
        for step in range(4):
            batch = rows(4, seed=step)
            observers = (Norms(), Dots({name: torch.ones_like(p) for name, p in trained.items()})) if observed else ()
            with engine.observe(*observers):
                model(input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return {name: value.clone() for name, value in model.state_dict().items()}

    plain, seen = weights(False), weights(True)
    assert plain.keys() == seen.keys() and all(torch.equal(value, seen[name]) for name, value in plain.items())
