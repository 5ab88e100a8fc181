"""A corpus as blocks of `data.max_length` tokens, each with its place in the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.data.records import Record, Records, Turn
from ghosttune.errors import DataError, ModelError

if TYPE_CHECKING:
    import numpy as np

GPT2_TOKENS = 50257
GPT2_SAMPLE = ("Hello world, 1969", [15496, 995, 11, 16450])
"""A text and its tokens, by which GPT-2's vocabulary is recognised."""


@dataclass(frozen=True)
class Document:
    """A text, or the tokens of many, that is cut into blocks."""

    name: str
    """Unique in the corpus: what the ids of its blocks begin with."""
    domain: str
    split: str | None
    content: str | np.ndarray
    """Text, or GPT-2 tokens as uint16."""
    is_whole: bool
    """Whether it is one document, whose blocks stay on one side of a split; else each block is a group of its own."""


def in_blocks(documents: Iterable[Document], tokenizer: Any, length: int) -> Records:
    """The blocks of all documents, in order; the last block of each is as short as it comes out, but never one token.

    A text begins and ends with the tokens that the tokenizer puts around texts; an end-of-text token is added where it
    puts none. Raises ModelError when tokens of GPT-2 meet another tokenizer.
    """
    return Records.of(record for document in documents for record in _blocks(document, tokenizer, length))


def _blocks(document: Document, tokenizer: Any, length: int) -> Iterator[Record]:
    import numpy as np

    tokens = np.asarray(_tokens(document, tokenizer))
    for start in range(0, len(tokens) - 1, length):  # the first token of a block is not trained: one alone is no block
        block = f"{document.name}-{start:09d}"
        group = document.name if document.is_whole else block
        metadata = {"domain": document.domain}
        yield Record(block, (Turn("text", ""),), group, document.split, metadata, block, tokens[start : start + length])


def _tokens(document: Document, tokenizer: Any) -> np.ndarray:
    import numpy as np

    if not isinstance(document.content, str):
        _require_gpt2(document.name, tokenizer)
        return document.content
    ids = tokenizer(document.content, verbose=False).input_ids
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end-of-text token to put between documents")
    return np.asarray(ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id], np.int32)


def _require_gpt2(name: str, tokenizer: Any) -> None:
    text, ids = GPT2_SAMPLE
    if tokenizer(text, add_special_tokens=False).input_ids != ids:
        raise ModelError(
            f"{name}.bin holds tokens of GPT-2, and the model has another tokenizer; give the text instead"
        )


def gpt2_tokens(path: Path) -> np.ndarray:
    """The uint16 tokens of a .bin file, mapped, not read; DataError when it is none."""
    import numpy as np

    size = path.stat().st_size
    if size == 0 or size % 2:
        raise DataError(f"{path} holds {size} bytes; a .bin file holds GPT-2 tokens of two bytes each (uint16)")
    tokens = np.memmap(path, np.dtype("<u2"), "r")
    largest = max(int(tokens[start : start + (1 << 22)].max()) for start in range(0, len(tokens), 1 << 22))
    if largest >= GPT2_TOKENS:
        raise DataError(f"{path} holds the token {largest}; GPT-2 has {GPT2_TOKENS}, numbered from 0 (uint16)")
    return tokens
