"""How likely a model holds given answers and texts, in nats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ghosttune.data.encoding import Collator, Encoder, Features
from ghosttune.data.records import Record, Turn
from ghosttune.tasks.causal import CausalTask

Collate = Callable[[Sequence[Any]], dict[str, Any]]

ROWS = 32
"""Rows of one forward pass; the numbers do not depend on it."""


@contextmanager
def answering(model: Any, adapter: bool = True) -> Iterator[None]:
    """Without dropout and gradients inside, and, where `adapter` is false, as the untouched base."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if adapter:
                yield
            else:
                with model.disable_adapter():
                    yield
    finally:
        model.train(was_training)


def answer_nats(
    model: Any, encoder: Encoder, pairs: Sequence[tuple[Sequence[Turn], str]], adapter: bool = True
) -> list[tuple[float, int]]:
    """(negative log-likelihood, number of tokens) of each answer behind its prompt, stop token included, in order.

    Prompts too long lose their oldest context; DataError when an answer alone is too long.
    """
    records = [Record(str(at), (*prompt, Turn("assistant", answer)), "") for at, (prompt, answer) in enumerate(pairs)]
    asking = encoder.trained_on("completion")
    features: Any = asking.encode(records).features
    found = nats(model, features, adapter, asking.collator())
    return list(zip(found.tolist(), [row.targets for row in features], strict=True))


def text_blocks(encoder: Encoder, texts: Sequence[str], most_tokens: int) -> list[Features]:
    """The first `most_tokens` tokens of the texts in blocks of at most `max_length`, each text begun anew."""
    blocks: list[Features] = []
    left = most_tokens
    for text in texts:
        ids = np.array(encoder.template.tokenizer(text, verbose=False).input_ids[: max(0, left)], np.int32)
        left -= len(ids)
        for start in range(0, len(ids), encoder.max_length):
            block = ids[start : start + encoder.max_length]
            if len(block) > 1:  # nothing predicts a first token
                blocks.append(Features(len(blocks), str(len(blocks)), block, np.arange(len(block)) > 0))
    return blocks


def nats(model: Any, features: Sequence[Features], adapter: bool = True, collate: Collate | None = None) -> np.ndarray:
    """[N] summed nats of each row's trained tokens; rows of text alone need no collator of their own."""
    task, collate = CausalTask(), collate or Collator(0)
    found = np.zeros(len(features))
    order = sorted(range(len(features)), key=lambda at: len(features[at]))
    with answering(model, adapter):
        for start in range(0, len(order), ROWS):
            places = order[start : start + ROWS]
            batch = collate([features[at] for at in places])
            losses = task.example_loss(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
            found[places] = losses.double().cpu().numpy()
    return found
