"""Rows as questions: what is asked once, and everything that would be right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ghosttune.data.records import IMAGE, Record, Turn
from ghosttune.data.splitting import sample
from ghosttune.errors import DataError, listed


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
            return self.prompt[0].content
        return "\n".join(f"{turn.role}: {turn.content}" for turn in self.prompt)


def questions_of(
    records: Sequence[Record], among: Sequence[Record], limit: int | None, seed: int
) -> tuple[list[Question], int]:
    """(at most `limit` questions that the records ask, drawn by id; how many were left out).

    Rows with the same prompt are one question, and so are all references that any row `among` gives to it. Rows of
    plain text ask nothing. DataError where one shows an image: that would be asked without it.
    """
    references: defaultdict[tuple[Turn, ...], dict[str, None]] = defaultdict(dict)
    for record in [*records, *among]:
        if record.reference is not None:
            references[record.prompt][record.reference] = None
    first: dict[tuple[Turn, ...], Record] = {}
    for record in records:
        if record.reference is not None:
            first.setdefault(record.prompt, record)
    asked = list(first.values())
    chosen = sample(asked, limit, seed)
    shown = [record.example_id for record in chosen if IMAGE in record.columns]
    if shown:
        raise DataError(
            f"{len(shown)} of {len(chosen)} prompts show an image ({listed(shown, 5)}), and answers to images are not "
            "generated: set evaluate.limit: 0; the dev loss judges such a run"
        )
    questions = [
        Question(record.example_id, record.prompt, tuple(references[record.prompt]), record.metadata)
        for record in chosen
    ]
    return questions, len(asked) - len(chosen)
