"""Model families as llama.cpp computes them: what GGUF says of their shape, and which tensors it holds otherwise.

Each was tried with llama.cpp: logits and greedy tokens of benchmarks/export.md. What a configuration says beside what
was tried is refused by name, for llama.cpp would compute without it and say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ghosttune.errors import ModelError, listed
from ghosttune.exporting.vocabulary import OTHER_WAY

if TYPE_CHECKING:
    import torch

Change = Callable[[str, "torch.Tensor", Any], "torch.Tensor"]
"""A tensor as GGUF holds it, of its name, itself and the model's configuration."""


@dataclass(frozen=True)
class Family:
    """How one `model_type` of Transformers becomes one architecture of llama.cpp."""

    architecture: str
    """As the `gguf` package names it."""
    accepts: Mapping[str, tuple[Any, ...]]
    """Entry of the configuration -> values that llama.cpp computes by; an entry that is missing is fine."""
    change: Change = lambda name, tensor, config: tensor
    reorder: Change = lambda name, tensor, config: tensor
    """The same for the order of outputs alone: a weight, a bias and LoRA's B have it."""
    ropes: tuple[str, ...] = ("default",)
    """Kinds of rotary positions."""
    more: Callable[[Any, Any], None] = lambda writer, config: None
    """Writes what this family alone has."""


def _half_by_half(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Queries and keys with the pairs of a rotation side by side: Transformers holds their halves apart."""
    kind = next((k for k in ("q_proj", "k_proj") if f".{k}." in name), None)
    if kind is None:
        return tensor
    heads = config.num_attention_heads if kind == "q_proj" else config.num_key_value_heads
    split = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return split.swapaxes(1, 2).reshape(tensor.shape)


def _norms_from_one(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Gemma's norms multiply by 1 + weight; llama.cpp's by the weight."""
    return tensor + 1 if name.endswith("norm.weight") else tensor


def _outputs_first(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """GPT-2's Conv1D holds its weight the other way round."""
    return tensor.T if tensor.ndim == 2 and (".c_" in name) else tensor


def _heads_of_own_width(writer: Any, config: Any) -> None:
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)


def _gemma_2(writer: Any, config: Any) -> None:
    _heads_of_own_width(writer, config)
    _require(config, {"query_pre_attn_scalar": (config.head_dim,)})
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)
    _require(config, {"layer_types": (_alternating(config.num_hidden_layers, 2),)})


def _gemma_3(writer: Any, config: Any) -> None:
    _heads_of_own_width(writer, config)
    _require(config, {"query_pre_attn_scalar": (config.head_dim,)})
    _require(config, {"layer_types": (_alternating(config.num_hidden_layers, 6),)})
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])


def _alternating(layers: int, every: int) -> list[str]:
    """The layers whose every so-manieth sees all positions: what llama.cpp takes for granted."""
    return ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)]


def _phi_3(writer: Any, config: Any) -> None:
    original = getattr(config, "original_max_position_embeddings", config.max_position_embeddings)
    writer.add_rope_scaling_orig_ctx_len(original)


def _gpt_2(writer: Any, config: Any) -> None:
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


GATED = {"hidden_act": ("silu",), "mlp_bias": (False,)}
GEMMA = {"hidden_activation": ("gelu_pytorch_tanh",), "tie_word_embeddings": (True,), "attention_bias": (False,)}

FAMILIES: dict[str, Family] = {
    "llama": Family("llama", GATED, reorder=_half_by_half, ropes=("default", "linear", "llama3")),
    "mistral": Family("llama", GATED, reorder=_half_by_half),
    "qwen2": Family("qwen2", GATED | {"use_sliding_window": (False,)}),
    "qwen3": Family(
        "qwen3", GATED | {"use_sliding_window": (False,), "attention_bias": (False,)}, more=_heads_of_own_width
    ),
    "gemma": Family(
        "gemma", GEMMA | {"use_bidirectional_attention": (None, False)}, _norms_from_one, more=_heads_of_own_width
    ),
    "gemma2": Family("gemma2", GEMMA | {"use_bidirectional_attention": (None, False)}, _norms_from_one, more=_gemma_2),
    "gemma3_text": Family(
        "gemma3",
        GEMMA
        | {
            "use_bidirectional_attention": (None, False),
            "attn_logit_softcapping": (None,),
            "final_logit_softcapping": (None,),
        },
        _norms_from_one,
        ropes=("default", "linear"),
        more=_gemma_3,
    ),
    "phi3": Family("phi3", {"hidden_act": ("silu",), "partial_rotary_factor": (1.0,)}, more=_phi_3),
    "gpt2": Family(
        "gpt2",
        {
            "activation_function": ("gelu_new",),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        _outputs_first,
        ropes=(),
        more=_gpt_2,
    ),
}


def family_of(config: Any) -> Family:
    """How a model of this configuration is written; ModelError for one that was never tried with llama.cpp."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"a model of the type {config.model_type} was not tried with llama.cpp; tried are {listed(FAMILIES)}. "
            f"{OTHER_WAY.capitalize()}"
        )
    _require(config, family.accepts)
    return family


def _require(config: Any, accepted: Mapping[str, tuple[Any, ...]]) -> None:
    missing = object()
    faults = [
        f"{name} is {getattr(config, name)!r}, not {listed(map(repr, values))}"
        for name, values in accepted.items()
        if getattr(config, name, missing) not in (missing, *values)
    ]
    if faults:
        raise ModelError(
            f"this {config.model_type} is not as those tried with llama.cpp: {'; '.join(faults)}; {OTHER_WAY}"
        )


def write_shape(writer: Any, family: Family, config: Any) -> None:
    """The numbers that llama.cpp builds the model from, into a GGUFWriter."""
    heads = config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(_positions(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_vocab_size(config.vocab_size)
    if family.ropes:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(getattr(config, "head_dim", None) or config.hidden_size // heads)
        _write_rope(writer, family, config)
    family.more(writer, config)


def _positions(config: Any) -> int:
    """Positions of which each sees all before it: Mistral's window is none of llama.cpp's architecture `llama`."""
    window = config.sliding_window if config.model_type in ("mistral", "phi3") else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def _rope(config: Any) -> dict[str, Any]:
    """Rotary positions of the layers that see everything."""
    return config.rope_parameters.get("full_attention", config.rope_parameters)


def _write_rope(writer: Any, family: Family, config: Any) -> None:
    rope = _rope(config)
    if rope["rope_type"] not in family.ropes:
        raise ModelError(
            f"rotary positions of the kind {rope['rope_type']} were not tried with llama.cpp in a {config.model_type} "
            f"({listed(family.ropes)} were); {OTHER_WAY}"
        )
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def further_tensors(config: Any) -> dict[str, torch.Tensor]:
    """Tensors that GGUF has and the model computes: by how much Llama 3 slows each rotation.

    As `_compute_llama3_parameters` of Transformers.
    """
    import torch

    rope = _rope(config) if getattr(config, "rope_parameters", None) else {}
    if rope.get("rope_type") != "llama3":
        return {}
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies = rope["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    waves = 2 * math.pi / frequencies
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    trained = rope["original_max_position_embeddings"]
    smooth = ((trained / waves - low) / (high - low)).clamp(0, 1)
    return {"rope_freqs.weight": 1 / ((1 - smooth) / factor + smooth)}
