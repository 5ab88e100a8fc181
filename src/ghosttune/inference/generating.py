"""Greedy answers in batches: left padding, like lengths together, only new tokens decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ghosttune.models.loading import prompt_length, without_upstream_warnings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BATCH_TOKENS = 8192
"""Prompt tokens per batch, padding included: bounds memory whatever the lengths are."""


@dataclass(frozen=True)
class Answer:
    """What the model wrote after a prompt."""

    text: str
    tokens: int
    """New tokens, the stop token included."""
    stopped: bool
    """Whether it ended by itself, at a stop token, within `max_new_tokens`."""


def generate(
    model: PreTrainedModel, tokenizer: Any, prompts: Sequence[list[int]], stop_token_ids: list[int], max_new_tokens: int
) -> list[Answer]:
    """The greedy answer to each prompt (token ids), in order; the same whether asked alone or in a batch."""
    answers: dict[int, Answer] = {}
    one_length = prompt_length(model) > 0  # padding would stand between a learned prompt and the row
    for positions in _batches(prompts, one_length):
        rows = _generate_batch(model, [prompts[position] for position in positions], stop_token_ids, max_new_tokens)
        for position, row in zip(positions, rows, strict=True):
            answers[position] = _answer(tokenizer, row, stop_token_ids)
    return [answers[position] for position in range(len(prompts))]


def _batches(prompts: Sequence[list[int]], one_length: bool) -> list[list[int]]:
    batches: list[list[int]] = []
    for position in sorted(range(len(prompts)), key=lambda position: -len(prompts[position])):
        width = len(prompts[batches[-1][0]]) if batches else 0
        differs = one_length and len(prompts[position]) != width
        if not batches or differs or (len(batches[-1]) + 1) * width > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(position)
    return batches


def _generate_batch(
    model: Any, prompts: list[list[int]], stop_token_ids: list[int], max_new_tokens: int
) -> list[list[int]]:
    import torch
    from transformers import GenerationConfig

    width = max(len(prompt) for prompt in prompts)
    padding = stop_token_ids[0]  # masked on the left, cut off on the right: any token serves
    ids = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=padding, eos_token_id=stop_token_ids
    )
    was_training = model.training
    model.eval()
    with torch.no_grad(), without_upstream_warnings():
        output: torch.Tensor = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)
    model.train(was_training)
    return output[:, width:].tolist()


def _answer(tokenizer: Any, row: list[int], stop_token_ids: list[int]) -> Answer:
    end = next((place for place, token in enumerate(row) if token in stop_token_ids), None)
    text = tokenizer.decode(row[:end], skip_special_tokens=True)
    return Answer(text.strip(), len(row) if end is None else end + 1, end is not None)
