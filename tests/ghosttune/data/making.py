"""Tokenizers, rows and files for the tests of the data layer."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest

from ghosttune.data.encoding import Encoder
from ghosttune.data.records import Record, Turn
from ghosttune.data.templates import Template
from ghosttune.proving.tokenizers import (  # noqa: F401  # tests of the data layer take all of them from here
    CHATML,
    CORPUS,
    LLAMA_2,
    MADE,
    NO_SYSTEM,
    ONLY_ASCII,
    SMALL,
    byte_level,
    first_word_only,
    from_folder,
)

REPOSITORY = Path(__file__).resolve().parents[3]


def shared(*names: str) -> Path:
    """A file of the shared folder; skips the test where there is none."""
    folder = Path(os.environ.get("GHOSTTUNE_SHARED") or REPOSITORY.parent / "shared")
    path = folder.joinpath(*names)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(names)} in ../shared (or in the folder that GHOSTTUNE_SHARED names)")
    return path


@functools.cache
def gpt2(template: str | None = None) -> Any:
    """The real GPT-2 tokenizer; with a template, its marks are added as special tokens."""
    from transformers import GPT2Tokenizer

    folder = shared("models", "tokenizers", "gpt2")
    tokenizer = GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    if template is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = {
    **MADE,
    "gpt2": lambda: gpt2(),
    "gpt2-chatml": lambda: gpt2(CHATML),
    "stories260K": lambda: from_folder(shared("models", "stories260K")),
    "stories260K-llama2": lambda: from_folder(shared("models", "stories260K"), LLAMA_2),
}

WITHOUT_CHAT = {"small", "first-word", "gpt2", "stories260K"}

CASES = [
    (name, kind)
    for name in TOKENIZERS
    for kind in ("plain", "turns", "chat")
    if kind != "chat" or name not in WITHOUT_CHAT
]
"""Every tokenizer with every kind of template it has."""


@functools.cache
def tokenizer_called(name: str) -> Any:
    return TOKENIZERS[name]()


@functools.cache
def template_for(name: str, kind: str) -> Template:
    return Template(kind, tokenizer_called(name))


def encoder_for(name: str, kind: str, max_length: int = 10_000, loss_on: str = "completion") -> Encoder:
    return Encoder(template_for(name, kind), max_length, loss_on)


def record(*turns: tuple[str, str], example_id: str = "row") -> Record:
    """A record of (role, content) turns."""
    made = tuple(Turn(role, content) for role, content in turns)
    return Record(example_id, made, group=" ".join(content for _, content in turns))


def question(prompt: str, completion: str, example_id: str = "row") -> Record:
    return record(("user", prompt), ("assistant", completion), example_id=example_id)
