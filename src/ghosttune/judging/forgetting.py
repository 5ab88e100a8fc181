"""What tuning cost elsewhere: the loss on general text, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ghosttune.data.encoding import Features
from ghosttune.data.files import read_file
from ghosttune.errors import DataError, InputError
from ghosttune.inference.likelihood import nats, text_blocks
from ghosttune.judging.answering import System
from ghosttune.metrics.intervals import mean_ratio, verdict

TOKENS = 16_384
"""Tokens of general text that are read: enough for a standard error of about 0.02 nats."""


def forgetting(systems: Sequence[System], path: Path) -> dict[str, Any]:
    """Loss per token of each system on the first tokens of a file of text, and the change against the second system.

    The interval is over blocks of `data.max_length` tokens. DataError when the file has no text.
    """
    first = systems[0]
    rows = [fields.get("text") for _, fields in read_file(path)]
    texts = [text for text in rows if isinstance(text, str)]
    if len(texts) < len(rows):
        raise DataError(f"evaluate.general_text: {path} has rows without text; give a .txt file, or rows with `text`")
    blocks, *others = [text_blocks(system.pipeline.encoder, texts, TOKENS) for system in systems]
    if not blocks:
        raise DataError(f"evaluate.general_text: {path} holds no text")
    if any(_ids(other) != _ids(blocks) for other in others):
        message = "compares losses per token, and the baseline has other tokens; leave it out"
        raise InputError(f"evaluate.general_text {message}")
    tokens = np.array([block.targets for block in blocks], float)
    losses = {system.name: nats(system.pipeline.model, blocks, system.adapter) for system in systems}
    found: dict[str, Any] = {name: mean_ratio(loss, tokens).as_dict() for name, loss in losses.items()}
    if len(systems) > 1:
        before = losses[systems[1].name]
        change = mean_ratio(losses[first.name] - before, tokens)
        found |= {"change": change.as_dict(), "verdict": verdict(change, of=float(before.sum() / tokens.sum()))}
    return found | {"tokens": int(tokens.sum()), "text": str(path)}


def _ids(blocks: Sequence[Features]) -> list[list[int]]:
    return [block.input_ids.tolist() for block in blocks]
