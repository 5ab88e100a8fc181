"""Proof 8: what the model is asked is what it was trained behind, in every template."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from ghosttune.data.encoding import Encoder
from ghosttune.data.records import Record, Turn
from ghosttune.data.templates import Template
from ghosttune.inference import pipeline
from ghosttune.proving.findings import Bench, Finding, every
from ghosttune.proving.reading import ROWS, shown_is_trained
from ghosttune.proving.specimens import small_llama
from ghosttune.proving.tokenizers import MADE, NO_SYSTEM, ONLY_ASCII

WORDS = ("Paris", "user", "Assistant:", "User:", "model", "a", "7", "Lily's", "\n", "\n\n", " ", "  ", "[x]")
UNICODE = ("é", "£", "日本", "🎉", "👩‍🚀", "ي")
CONVERSATIONS = 40


def prompts_are_the_same(bench: Bench) -> list[Finding]:
    """Every tokenizer with every kind of template it has, on conversations that try to be mistaken for marks."""
    same: dict[str, bool] = {}
    for name, kind in itertools.product(MADE, ("plain", "turns", "chat")):
        tokenizer = MADE[name]()
        if kind == "chat" and tokenizer.chat_template is None:
            continue
        encoder = Encoder(Template(kind, tokenizer), 10_000, "completion")
        rows = conversations(name)
        same[f"{name}, {kind}"] = all(trained_prompts(encoder, row) == asked_prompts(encoder, row) for row in rows)
    read = {task: shown_is_trained(task, bench.folder / "reading" / task) for task in ROWS}
    return [
        every(f"templates: training, evaluation and chat prompts of {CONVERSATIONS} conversations, id by id", same),
        every("tasks that read answers off: rows in training and with another answer, id by id", read),
    ]


def conversations(name: str) -> list[Record]:
    """Conversations of one to three exchanges in words that look like marks, with a system message where it may be."""
    random = np.random.default_rng(0)
    words = [*WORDS, *(() if name in ONLY_ASCII else UNICODE)]

    def text() -> str:
        made = "".join(random.choice(words, random.integers(1, 9)))
        return made if made.strip() else "a"

    rows = []
    for number in range(CONVERSATIONS):
        turns = [Turn("system", text())] if number % 2 and name not in NO_SYSTEM else []
        for _ in range(random.integers(1, 4)):
            turns += [Turn("user", text()), Turn("assistant", text())]
        rows.append(Record(f"row-{number}", tuple(turns), group=str(number)))
    return rows


def trained_prompts(encoder: Encoder, row: Record) -> list[list[int]]:
    """The tokens before each stretch of trained ones: what each answer was trained behind."""
    features: Any = encoder.encode([row]).features[0]
    starts = np.flatnonzero(np.diff(np.concatenate([[False], features.trained]).astype(int)) == 1)
    return [features.input_ids[:start].tolist() for start in starts]


def asked_prompts(encoder: Encoder, row: Record) -> list[list[int]]:
    """What a pipeline gives its model when it is asked for each answer: evaluation and chat both ask this way."""
    places = [place for place, turn in enumerate(row.turns) if turn.role == "assistant"]
    return asked(encoder, [row.turns[:place] for place in places])


def asked(encoder: Encoder, questions: Sequence[Any]) -> list[list[int]]:
    """The token ids that reach generation, question by question."""
    seen: list[list[int]] = []

    def spy(model: Any, tokenizer: Any, prompts: Sequence[list[int]], *rest: Any) -> list[Any]:
        seen.extend(prompts)
        return []

    torch.manual_seed(0)
    model = small_llama(len(encoder.template.tokenizer), max_position_embeddings=20_000)
    with patch.object(pipeline, "generate", spy):
        pipeline.Pipeline(model, encoder, 8).generate(questions)
    return seen
