"""Rows as questions: what is asked once, and everything that would be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ghosttune.data.records import Record, Turn
from ghosttune.data.splitting import sampled
from ghosttune.data.stored import key_of


@dataclass(frozen=True)
class Question:
    """One prompt with all its references."""

    example_id: str
    """Of the first row that asks it."""
    prompt: tuple[Turn, ...]
    references: tuple[str, ...]
    metadata: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The prompt as one text; roles are named where there is more than the user's one turn."""
        if len(self.prompt) == 1:
            return self.prompt[0].words
        return "\n".join(f"{turn.role}: {turn.words}" for turn in self.prompt)


def questions_of(
    records: Sequence[Record], among: Sequence[Record], limit: int | None, seed: int
) -> tuple[list[Question], int]:
    """(at most `limit` questions that the records ask, drawn by id; how many were left out).

    Rows with the same prompt are one question, and so are all references that any row `among` gives to it. Rows of
    plain text ask nothing.
    """
    first: dict[bytes, int] = {}
    for place, record in enumerate(records):
        if record.reference is not None:
            first.setdefault(_key(record), place)
    asked = list(first.values())
    if limit is not None and limit < len(asked):
        asked = [asked[place] for place in sampled((records[place].example_id for place in asked), limit, seed)]
    references: dict[bytes, dict[str, None]] = {_key(records[place]): {} for place in asked}
    for record in chain(records, among):
        if record.reference is not None and (known := references.get(_key(record))) is not None:
            known[record.reference] = None
    questions = [
        Question(record.example_id, record.prompt, tuple(references[_key(record)]), record.metadata)
        for record in (records[place] for place in asked)
    ]
    return questions, len(first) - len(questions)


def _key(record: Record) -> bytes:
    """Equal for equal prompts."""
    return key_of(repr(record.prompt))
