"""The small model of the proofs, under the name that tests know it by, and the same with an adapter."""

from __future__ import annotations

from typing import Any

import torch

from ghosttune.proving.specimens import small_llama

__all__ = ["small_adapted_llama", "small_llama"]


def small_adapted_llama(vocabulary: int) -> Any:
    """A model of two layers in float64 with LoRA, its B away from 0."""
    import peft

    torch.manual_seed(0)
    base = small_llama(vocabulary, num_hidden_layers=2, hidden_size=16, intermediate_size=24).double()
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64) * 0.2
    return model
