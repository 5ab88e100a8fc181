"""One tiny model per family, built from its configuration with weights from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers

VOCABULARY = 64
IMAGE_TOKEN = VOCABULARY - 1
COMMON = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
GPT = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}


DECODERS = ("causal_lm", "sequence_classification", "token_classification", "question_answering")
ENCODERS = DECODERS[1:]
REWRITERS = ("seq2seq_lm", *ENCODERS)


@dataclass(frozen=True)
class Family:
    """How a family's tiny model is made, and for which tasks Transformers may have a model of it."""

    kind: str
    """Name of the family's classes in Transformers."""
    settings: dict[str, Any]
    suffix: str = "ForCausalLM"
    """Of the class that its published weights are saved from."""
    tasks: tuple[str, ...] = DECODERS

    def model(self) -> Any:
        """The published model, made small, with weights from a seed."""
        torch.manual_seed(0)
        config = getattr(transformers, f"{self.kind}Config")(**self.settings)
        model = getattr(transformers, f"{self.kind}{self.suffix}")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:  # what the families start with is too small to learn from in a few updates
                    parameter.normal_(std=0.2)
        return model


FAMILIES: dict[str, Family] = {
    "Llama": Family("Llama", GROUPED),
    "Qwen2, Qwen2.5": Family("Qwen2", GROUPED),
    "Qwen3": Family("Qwen3", {**GROUPED, "head_dim": 4}),
    "Mistral": Family("Mistral", GROUPED),
    "Mixtral": Family("Mixtral", {**GROUPED, "num_local_experts": 2}),
    "Gemma": Family("Gemma", {**GROUPED, "head_dim": 4}),
    "Phi": Family("Phi", COMMON),
    "Falcon": Family("Falcon", {k: v for k, v in COMMON.items() if k != "intermediate_size"}),
    "GPT-2": Family("GPT2", {**GPT, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}, "LMHeadModel"),
    "GPT-Neo": Family(
        "GPTNeo",
        {**GPT, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64}
        | {"attention_types": [[["global", "local"], 1]]},
    ),
    "GPT-J": Family("GPTJ", {**GPT, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}),
    "OPT": Family("OPT", {**COMMON, "ffn_dim": 32, "word_embed_proj_dim": 16}),
    "BERT": Family("Bert", COMMON, "ForPreTraining", ENCODERS),
    "RoBERTa": Family("Roberta", COMMON, "ForMaskedLM", ENCODERS),
    "DistilBERT": Family(
        "DistilBert",
        {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": VOCABULARY},
        "ForMaskedLM",
        ENCODERS,
    ),
    "T5": Family(
        "T5",
        {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY}
        | {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2},
        "ForConditionalGeneration",
        REWRITERS,
    ),
    "BART": Family(
        "Bart",
        {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": VOCABULARY}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
        | {"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        | {"decoder_start_token_id": 2, "forced_eos_token_id": 2},
        "ForConditionalGeneration",
        REWRITERS,
    ),
    "LLaVA": Family(
        "Llava",
        {
            "text_config": {**GROUPED, "model_type": "llama"},
            "vision_config": {**COMMON, "model_type": "clip_vision_model", "image_size": 8, "patch_size": 4},
            "image_token_index": IMAGE_TOKEN,
        },
        "ForConditionalGeneration",
    ),
}
