"""A Llama with random weights, small enough for any test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def small_llama(vocabulary: int, **shape: Any) -> LlamaForCausalLM:
    """Two layers of width 16; `shape` replaces or adds entries of LlamaConfig. Weights follow torch's generator."""
    from transformers import LlamaConfig, LlamaForCausalLM

    usual = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **(usual | shape)))
