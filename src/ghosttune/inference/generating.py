"""Answers to many prompts: like lengths together, only new tokens decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ghosttune.data.images import images_in
from ghosttune.inference.decoding import decode, text_of
from ghosttune.inference.padding import counts_padding
from ghosttune.inference.sampling import GREEDY, Sampling, chooser
from ghosttune.models.prompting import prompt_length

if TYPE_CHECKING:
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
    model: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    stop_token_ids: list[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
) -> list[Answer]:
    """The answer to each prompt (token ids), in order; the same whether asked alone or in a batch.

    Drawn ones too: prompt n of the list draws with `sampling.seed + n`. Equal prompts have one greedy answer, which is
    computed once.
    """
    different = {_key(prompt): prompt for prompt in prompts}
    asked = list(different.values()) if sampling.is_greedy else list(prompts)
    written = write(model, asked, stop_token_ids, max_new_tokens, sampling)
    answers = [answer_of(tokenizer, ids, stop_token_ids) for ids in written]
    if not sampling.is_greedy:
        return answers
    answer_to = dict(zip(different, answers, strict=True))
    return [answer_to[_key(prompt)] for prompt in prompts]


def _key(prompt: Sequence[int]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Equal for equal prompts, which show the same images."""
    return tuple(prompt), images_in(prompt)


def write(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    stop_token_ids: list[int],
    max_new_tokens: int,
    sampling: Sampling,
) -> list[list[int]]:
    """The new token ids behind each prompt, in order, the stop token included; drawn as `generate` says."""
    written: dict[int, list[int]] = {}
    for positions in _together(model, prompts):
        rows = [prompts[position] for position in positions]
        new = decode(model, rows, stop_token_ids, max_new_tokens, chooser(sampling, positions))
        written.update(zip(positions, new, strict=True))
    return [written[position] for position in range(len(prompts))]


def try_out(model: PreTrainedModel, prompts: Sequence[list[int]], stop_token_ids: list[int]) -> None:
    """Writes two tokens behind each prompt, no stop tokens, and keeps none of them.

    The second token is the first that needs what the model kept of those before it: code that reads rows well may fail
    there, and then raises what it pleases.
    """
    import torch

    stops = torch.tensor(stop_token_ids, device=model.device)

    def go_on(logits: Any, rows: list[int]) -> Any:
        return logits.index_fill(1, stops, float("-inf")).argmax(dim=-1)

    for positions in _together(model, prompts):
        decode(model, [prompts[position] for position in positions], stop_token_ids, 2, go_on)


def _together(model: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Positions of the prompts that are answered in one batch."""
    learned = prompt_length(model) > 0  # padding would stand between a learned prompt and the row
    if not learned and len(prompts) > 1 and counts_padding(model):
        return [[position] for position in range(len(prompts))]
    return batches(prompts, learned)


def batches(prompts: Sequence[list[int]], one_length: bool = False) -> list[list[int]]:
    """Positions of the prompts that are answered together, the longest first; only equal lengths where asked for."""
    found: list[list[int]] = []
    for position in sorted(range(len(prompts)), key=lambda position: -len(prompts[position])):
        width = len(prompts[found[-1][0]]) if found else 0
        differs = one_length and len(prompts[position]) != width
        if not found or differs or (len(found[-1]) + 1) * width > BATCH_TOKENS:
            found.append([])
        found[-1].append(position)
    return found


def answer_of(tokenizer: Any, ids: list[int], stop_token_ids: list[int]) -> Answer:
    """The new tokens as an answer."""
    stopped = bool(ids) and ids[-1] in stop_token_ids
    return Answer(text_of(tokenizer, ids[:-1] if stopped else ids).strip(), len(ids), stopped)
