"""Families that use weights outside their modules, flatten tokens, route them, or compute something once for all rows:
right numbers against one float64 backward per example, with as many positions as examples and with others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from ghostgrad import GradientEngine, Kept, UnsupportedLayer
from ghostgrad.testing import compare
from ghosttune.proving.families import VOCABULARY, randomized, token_losses

COMMON = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": VOCABULARY, "num_attention_heads": 2}
GROUPED = {"num_hidden_layers": 1, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32}
MOE = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}


def causal(name: str, **settings: Any) -> Callable[[], nn.Module]:
    """Makes a model of the family, small and random."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(pad_token_id=0, **settings)
        config._experts_implementation = "eager"  # the fused one has no float64
        kind = "ForMaskedLM" if name in ("MPNet", "DebertaV2") else "ForCausalLM"
        return getattr(transformers, f"{name}{kind}")(config)

    return make


MAKE = {
    "lfm2": causal(
        "Lfm2", **COMMON, num_hidden_layers=2, num_key_value_heads=1, layer_types=["conv", "full_attention"]
    ),
    "mamba": causal("Mamba", hidden_size=8, state_size=4, num_hidden_layers=1, vocab_size=VOCABULARY, time_step_rank=2),
    "mpnet": causal("MPNet", **COMMON, num_hidden_layers=1, max_position_embeddings=32),
    "opt": causal("OPT", hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=VOCABULARY),
    "deberta-v2": causal(
        "DebertaV2",
        **COMMON,
        num_hidden_layers=1,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_buckets=4,
        max_relative_positions=8,
        position_biased_input=False,
        share_att_key=True,
    ),
    "qwen2-moe": causal("Qwen2Moe", **COMMON, **GROUPED, **MOE, shared_expert_intermediate_size=8),
    "gpt-oss": causal("GptOss", **COMMON, **GROUPED, num_local_experts=4, num_experts_per_tok=2),
}


def losses_of(model: nn.Module, examples: int, length: int) -> Tensor:
    ids = torch.randint(1, VOCABULARY, (examples, length), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1:, length - 2 :] = 0
    logits = model(input_ids=ids, attention_mask=mask).logits
    return token_losses(logits[:, :-1], ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)).sum(1)


@pytest.mark.parametrize("examples,length", [(3, 5), (4, 4)])
@pytest.mark.parametrize("family", MAKE)
def test_all_weights(family: str, examples: int, length: int) -> None:
    model = randomized(MAKE[family]())
    compare(model, lambda model: losses_of(model, examples, length), unsupported="exact")


@pytest.mark.parametrize("family,names", [("mpnet", "relative_attention_bias"), ("opt", "fc")])
def test_rules_find_them(family: str, names: str) -> None:
    """Eight rows of eight positions, for which MPNet's table was wrong a hundred times over."""
    model = randomized(MAKE[family]())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(names in name)
    compare(model, lambda model: losses_of(model, 8, 8))


@pytest.mark.parametrize("family", ["opt", "deberta-v2", "qwen2-moe", "lfm2"])
def test_lora_on_every_linear_layer(family: str) -> None:
    model = peft.get_peft_model(MAKE[family](), peft.LoraConfig(r=2, target_modules="all-linear"))
    unsupported = "exact" if family == "deberta-v2" else "raise"
    compare(randomized(model), lambda model: losses_of(model, 3, 5), unsupported=unsupported)


@pytest.mark.parametrize("probing", [False, True], ids=["observe", "probe"])
@pytest.mark.parametrize("family,name", [("lfm2", r"conv\.conv\.weight"), ("mamba", r"conv1d\.weight")])
def test_zeros_are_never_given(family: str, name: str, probing: bool) -> None:
    model = randomized(MAKE[family]())
    engine = GradientEngine(model, select=["*.mixer.conv1d.*", "*.dt_proj.*"] if family == "mamba" else ["*conv*"])
    with pytest.raises(UnsupportedLayer, match=name):
        if probing:
            with engine.probe(Kept()) as backward:
                backward(losses_of(model, 3, 5).sum())
        else:
            with engine.observe(Kept()):
                losses_of(model, 3, 5).sum().backward()


@pytest.mark.parametrize("target", ["gate_up_proj", "down_proj"])
def test_lora_on_fused_experts(target: str) -> None:
    settings = {"r": 2, "target_modules": ["q_proj"], "target_parameters": [f"mlp.experts.{target}"]}
    model = peft.get_peft_model(MAKE["qwen2-moe"](), peft.LoraConfig(**settings))
    compare(randomized(model), lambda model: losses_of(model, 3, 5), unsupported="exact")


def test_norms_of_heads_in_packed_rows() -> None:
    """Gemma 3 norms [rows, heads, positions, d], where an index says whose each position is."""
    config = transformers.Gemma3TextConfig(**COMMON, **GROUPED, attn_implementation="eager")
    model = randomized(transformers.Gemma3ForCausalLM(config))
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(5))
    document = torch.tensor([[0] * 4 + [1] * 5, [2] * 6 + [3] * 3])
    place = torch.tensor([[*range(4), *range(5)], [*range(6), *range(3)]])
    allowed = (document.unsqueeze(2) == document.unsqueeze(1)).tril().unsqueeze(1)
    mask = torch.zeros(2, 1, 9, 9, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    masks = {"full_attention": mask, "sliding_attention": mask}

    def packed(model: nn.Module) -> Tensor:
        logits = model(input_ids=ids, position_ids=place, attention_mask=masks).logits[:, :-1]
        target = document[:, 1:] == document[:, :-1]
        each = token_losses(logits, ids[:, 1:].masked_fill(~target, -100))
        return each.new_zeros(4).index_add(0, document[:, 1:].reshape(-1), each.reshape(-1))

    # Gemma's norms cast their weight to float32, so that autograd's own gradient of it is no better than that.
    compare(model, packed, examples=document, rtol=1e-6)
