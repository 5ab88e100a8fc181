"""A tiny model of each family that is written as GGUF, with the built-in tokenizer."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from ghosttune.models.builtin import builtin_model_folder

WIDTH, VOCABULARY, LAYERS = 64, 1536, 2

GATED = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = GATED | {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
GEMMA_3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
}

CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**GATED, attention_bias=True),
    "llama3": lambda: transformers.LlamaConfig(**GATED, rope_parameters=LLAMA_3),
    "mistral": lambda: transformers.MistralConfig(**GATED, sliding_window=64),
    "qwen2": lambda: transformers.Qwen2Config(**GATED, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**GATED, head_dim=32),
    "gemma": lambda: transformers.GemmaConfig(**GATED, head_dim=32),
    "gemma2": lambda: transformers.Gemma2Config(**GEMMA),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GEMMA | {"num_hidden_layers": 7}, rope_parameters=GEMMA_3_ROPE),
    "phi3": lambda: transformers.Phi3Config(**GATED, original_max_position_embeddings=128, sliding_window=None),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
    ),
}


def small_model(family: str) -> Any:
    """The family's model in float32, every parameter drawn, so that no norm or bias is what it is by default."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(builtin_model_folder("builtin:tiny"))
