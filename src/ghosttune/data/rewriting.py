"""Texts and what they are rewritten to, as token ids of their own: encoder and decoder each read one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ghosttune.data.encoding import (
    IGNORED,
    TOKENISED_TOGETHER,
    Encoded,
    MarkedRow,
    RowFeatures,
    as_batch,
    padded,
    padding_token,
    refuse_cut,
)
from ghosttune.data.files import unusable
from ghosttune.data.records import Record
from ghosttune.data.stored import Stored
from ghosttune.errors import ModelError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RewriteFeatures(RowFeatures):
    """One text and its answer."""

    target_ids: np.ndarray
    """The answer with its stop token; empty for a row without one."""

    def __len__(self) -> int:
        return len(self.input_ids) + len(self.target_ids)

    @property
    def positions(self) -> int:
        """Encoder and decoder count their own."""
        return max(len(self.input_ids), len(self.target_ids))

    @property
    def targets(self) -> int:
        """Tokens of the answer, the stop token included."""
        return len(self.target_ids)


class RewriteEncoder:
    """Turns prompts and answers into features as the tokenizer frames them; too long prompts lose their end.

    Prompts of such models begin with what to do (`summarize: …`). Answers are never cut.
    """

    def __init__(self, tokenizer: Any, max_length: int, max_target_length: int):
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-text token, so that answers could not learn to stop")
        self.tokenizer, self.max_length, self.max_target_length = tokenizer, max_length, max_target_length

    def encode(self, records: Sequence[Record], truncated_share: float = 1.0) -> Encoded:
        """Features of every record, in order; DataError lists the answers that are too long."""
        faults: list[str] = []
        cut: dict[str, int] = {}
        features = Stored(self._features(records, faults, cut))
        if faults:
            title = f"{len(faults)} of {len(records)} answers are longer than task.max_target_length"
            raise unusable(f"{title} {self.max_target_length}; answers are never cut: raise it", faults)
        refuse_cut(records, cut, self.max_length, truncated_share)
        return Encoded(features, list(cut), sum(cut.values()))

    def _features(self, records: Sequence[Record], faults: list[str], cut: dict[str, int]) -> Iterator[RewriteFeatures]:
        for start in range(0, len(records), TOKENISED_TOGETHER):
            block = records[start : start + TOKENISED_TOGETHER]
            asked = ["\n".join(turn.words for turn in record.prompt) for record in block]
            prompts = self._ids(text=asked)
            answers = self._ids(text_target=[record.reference or "" for record in block])
            for place, (record, ids, answer) in enumerate(zip(block, prompts, answers, strict=True)):
                target = self._stopped(answer) if record.reference else []
                if len(target) > self.max_target_length:
                    faults.append(f"{record.place or record.example_id}: the answer has {len(target)} tokens")
                if (lost := len(ids) - self.max_length) > 0:
                    (ids,) = self._ids(text=[asked[place]], truncation=True, max_length=self.max_length)
                    cut[record.example_id] = lost
                arrays = np.asarray(ids, np.int32), np.asarray(target, np.int32)
                yield RewriteFeatures(start + place, record.example_id, *arrays)

    def _ids(self, **texts: Any) -> list[list[int]]:
        return self.tokenizer(**texts, verbose=False).input_ids

    def _stopped(self, answer: list[int]) -> list[int]:
        stop = self.tokenizer.eos_token_id
        return answer if answer and answer[-1] == stop else [*answer, stop]

    def marked(self, row: RewriteFeatures) -> list[MarkedRow]:
        """The prompt's tokens, then those of the answer, marked."""
        ids = [*row.input_ids.tolist(), *row.target_ids.tolist()]
        return [MarkedRow(ids, [place >= len(row.input_ids) for place in range(len(ids))])]

    def collator(self) -> Callable[[Sequence[Any]], dict[str, torch.Tensor]]:
        """Batches with labels [B, U], IGNORED behind the answers."""
        padding = padding_token(self.tokenizer)

        def collate(rows: Sequence[RewriteFeatures]) -> dict[str, torch.Tensor]:
            return as_batch(rows, padding, labels=padded([row.target_ids for row in rows], IGNORED))

        return collate
