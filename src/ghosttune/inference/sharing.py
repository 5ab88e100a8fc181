"""What all prompts of a batch begin with, computed once: instructions are often half of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

SHORTEST = 16
"""Shared tokens from which a forward of their own pays."""


def shared_start(prompts: Sequence[list[int]]) -> int:
    """How many tokens could be computed once; 0 where it would not pay. Every prompt keeps a token of its own."""
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*(prompt[:-1] for prompt in prompts), strict=False))
    length = sum(1 for _ in same)
    return length if len(prompts) > 1 and length >= SHORTEST else 0


def empty_cache(model: Any) -> Any | None:
    """A cache that can begin with what prompts share; None for models and adapters that cannot continue from one.

    The rows' padding stands between the shared start and what is their own. That is right where attention reaches over
    masked positions as if they were not there, and wrong for windows and recurrent states, which count them; adapters
    that learn a prompt put it before the first token themselves.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if getattr(model, "peft_config", None) and model.active_peft_config.is_prompt_learning:
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    return cache if all(type(layer) is DynamicLayer for layer in cache.layers) else None


def fill(cache: Any, model: Any, start: list[int], rows: int) -> None:
    """Puts the keys and values of `start` into the cache, once per row."""
    import torch

    model(input_ids=torch.tensor([start], device=model.device), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(rows)
