"""Tiny models of four families, made in code, with every parameter away from 0 and 1 so that nothing is hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 37


def randomized(model: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model with seeded random parameters, in `dtype`, in eval mode."""
    model = model.to(dtype).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random, dtype=torch.float64).to(dtype) * 0.2)
    return model


def gpt2(**changes: object) -> nn.Module:
    settings = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": VOCABULARY, "n_positions": 32, **changes}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings))


def llama(**changes: object) -> nn.Module:
    settings = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        **changes,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))


def bert(**changes: object) -> nn.Module:
    settings = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32,
        "num_labels": 3,
        **changes,
    }
    return transformers.BertForSequenceClassification(transformers.BertConfig(**settings))


def t5(**changes: object) -> nn.Module:
    settings = {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 2,
        "vocab_size": VOCABULARY,
        "decoder_start_token_id": 0,
        **changes,
    }
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**settings))


TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "bert": ["query", "value", "dense"],
    "t5": ["q", "v", "wi", "wo"],
}
MAKE = {"gpt2": gpt2, "llama": llama, "bert": bert, "t5": t5}


@dataclass(frozen=True)
class Batch:
    """Rows of unequal length: ids and mask [B, T], labels [B, T] (-100 where not trained on), classes [B]."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    classes: Tensor


def rows(examples: int, longest: int = 9, side: str = "right", seed: int = 0) -> Batch:
    """Lengths from 2 to `longest`, padded on `side`, a prompt of one token masked in the labels."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (examples, longest), generator=random)
    lengths = torch.linspace(longest, 2, examples).long()
    place = torch.arange(longest).expand(examples, -1)
    mask = place < lengths[:, None] if side == "right" else place >= longest - lengths[:, None]
    first = mask.long().argmax(1)
    labels = ids.masked_fill(~mask | (place == first[:, None]), -100)
    return Batch(ids.masked_fill(~mask, 0), mask.long(), labels, torch.arange(examples) % 3)


def contributions(model: nn.Module, family: str, batch: Batch) -> Tensor:
    """[B] each row's contribution to the mean loss over all trained tokens (or rows)."""
    if family == "bert":
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        return nn.functional.cross_entropy(logits, batch.classes, reduction="none") / len(batch.ids)
    if family == "t5":
        output = model(input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels)
        logits, labels = output.logits, batch.labels
    else:
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
        labels = batch.labels[:, 1:]
    return token_losses(logits, labels).sum(1) / (labels != -100).sum()


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """[B, T] cross entropies, 0 where the label is -100."""
    return nn.functional.cross_entropy(logits.mT, labels, reduction="none", ignore_index=-100)
