"""Rendered rows with every token marked as trained or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ghosttune.config.schema import RunConfig
from ghosttune.workflows.prepare import prepare


@dataclass(frozen=True)
class PreviewedRow:
    """One training row, token by token."""

    example_id: str
    tokens: list[tuple[str, bool]]
    """(the token's text, whether it is trained)."""
    metadata: dict[str, object]
    target: str = ""
    """What is predicted beside the tokens, such as a label."""


def preview(config: RunConfig, rows: int = 3) -> list[PreviewedRow]:
    """The first training rows exactly as training sees them, after template, truncation and masking."""
    prepared = prepare(config)
    tokenizer = prepared.encoder.tokenizer
    first = prepared.train.features[:rows]
    wanted = {features.example_id for features in first}
    metadata = {row.example_id: row.metadata for row in prepared.train_records if row.example_id in wanted}
    shown = []
    for features in first:
        row = prepared.encoder.marked(features)
        tokens = list(zip(token_texts(tokenizer, row.input_ids), row.trained, strict=True))
        shown.append(PreviewedRow(features.example_id, tokens, metadata[features.example_id], row.target))
    return shown


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text each token adds; a character spread over several tokens is shown by the last of them."""
    texts: list[str] = []
    done = ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        texts.append(text[len(done) :] if text.startswith(done) and not text.endswith("\ufffd") else "")
        done = text if not text.endswith("\ufffd") else done
    return texts
