"""Records as token ids with the trained positions marked, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ghosttune.data.files import listed_faults
from ghosttune.data.records import Record
from ghosttune.data.templates import Part, Template
from ghosttune.errors import DataError, ModelError

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""Label of a token that is not trained (the value torch's cross entropy skips)."""


@dataclass(frozen=True)
class Features:
    """One row as the model sees it."""

    index: int
    """Position in its split."""
    example_id: str
    input_ids: np.ndarray
    """[T] int32."""
    trained: np.ndarray
    """[T] bool; the first position is never trained, nothing predicts it."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def targets(self) -> int:
        """Number of trained tokens."""
        return int(self.trained.sum())


@dataclass(frozen=True)
class Encoded:
    """The features of a split, and what had to be cut to make them."""

    features: list[Features]
    cut_rows: list[str] = field(default_factory=list)
    """Ids of the rows that lost context."""
    cut_tokens: int = 0

    def __len__(self) -> int:
        return len(self.features)

    @property
    def tokens(self) -> int:
        return sum(len(row) for row in self.features)

    @property
    def targets(self) -> int:
        return sum(row.targets for row in self.features)


class Encoder:
    """Turns records into features under one template and length limit."""

    def __init__(self, template: Template, max_length: int, loss_on: str):
        self.template = template
        self.max_length = max_length
        self.loss_on = loss_on
        self._known: dict[str, list[int]] = {}

    def encode(self, records: Sequence[Record], truncated_share: float = 1.0) -> Encoded:
        """Features of every record, in order.

        Raises DataError when a row has nothing to train, when an answer alone is too long, or when more than
        `truncated_share` of the rows must lose context; all such rows are listed.
        """
        parts = [self._checked_parts(record) for record in records]
        self._tokenise([part.text for row in parts for part in row])
        faults: list[str] = []
        features: list[Features] = []
        cut_rows: list[str] = []
        cut_tokens = 0
        for index, (record, row) in enumerate(zip(records, parts, strict=True)):
            ids, trained = self._joined(row)
            excess = len(ids) - self.max_length
            if excess > 0:
                ids, trained = self._shortened(row, excess)
                if len(ids) > self.max_length:
                    faults.append(f"{record.place or record.example_id}: answer and cue need {len(ids)} tokens")
                    continue
                cut_rows.append(record.example_id)
                cut_tokens += excess
            trained[0] = False
            features.append(Features(index, record.example_id, np.asarray(ids, np.int32), np.asarray(trained, bool)))
        self._refuse(records, faults, cut_rows, truncated_share)
        return Encoded(features, cut_rows, cut_tokens)

    def prompt_ids(self, record_or_turns: Record | Sequence[Any], room: int = 0) -> list[int]:
        """Token ids of the prompt, shortened from the left of its context so that `room` more tokens fit."""
        turns = record_or_turns.prompt if isinstance(record_or_turns, Record) else record_or_turns
        parts = self.template.prompt(turns)
        self._tokenise([part.text for part in parts])
        ids, _ = self._joined(parts)
        excess = len(ids) + room - self.max_length
        return self._shortened(parts, excess)[0] if excess > 0 else ids

    def _checked_parts(self, record: Record) -> list[Part]:
        parts = self.template.render(record.turns)
        if self.loss_on == "completion" and record.turns[0].role == "text":
            raise DataError(
                f"{record.place or record.example_id}: plain text has no completion to train on; set data.loss_on: all, "
                "or give rows with prompt and completion, messages, or User:/Assistant: lines"
            )
        return parts

    def _tokenise(self, texts: list[str]) -> None:
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if new:
            ids = self.template.tokenizer(new, add_special_tokens=False).input_ids
            self._known.update(zip(new, ids, strict=True))

    def _joined(self, parts: list[Part]) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        trained: list[bool] = []
        for part in parts:
            own = self._known[part.text]
            ids += own
            trained += [part.answer or self.loss_on == "all"] * len(own)
        return ids, trained

    def _shortened(self, parts: list[Part], excess: int) -> tuple[list[int], list[bool]]:
        """The row without the oldest `excess` tokens of its first context, or as many as there are."""
        first = parts[0]
        if not self.template.tokenizer.is_fast:
            raise ModelError(
                "rows must be shortened, and the slow tokenizer cannot say which tokens are context; raise data.max_length"
            )
        spans = self.template.tokenizer(
            first.text, add_special_tokens=False, return_offsets_mapping=True
        ).offset_mapping
        start, end = first.cuttable
        droppable = [position for position, (left, right) in enumerate(spans) if start <= left < right <= end]
        dropped = set(droppable[:excess])
        ids, trained = self._joined(parts)
        keep = [position for position in range(len(ids)) if position not in dropped]
        return [ids[position] for position in keep], [trained[position] for position in keep]

    def _refuse(
        self, records: Sequence[Record], faults: list[str], cut_rows: list[str], truncated_share: float
    ) -> None:
        if faults:
            title = f"{len(faults)} of {len(records)} rows do not fit into data.max_length {self.max_length}, and answers are never cut"
            raise DataError(listed_faults(title, faults) + "\nRaise data.max_length, or split these rows.")
        share = len(cut_rows) / max(1, len(records))
        if share > truncated_share:
            raise DataError(
                f"{len(cut_rows)} of {len(records)} rows ({share:.1%}) are longer than data.max_length {self.max_length} and would lose "
                f"context: {', '.join(cut_rows[:5])}{', …' if len(cut_rows) > 5 else ''}. Raise data.max_length, "
                f"or accept the cut with data.truncated_share: {min(1.0, share + 0.01):.2f}."
            )


class Collator:
    """Batches of features, padded on the right to the longest row of the batch."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Features]) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask, labels (each [B, T], labels IGNORED where not trained) and example_index [B].

        Padding is recognised by position, never by token, so that the padding token may be any token.
        """
        import torch

        width = max(len(row) for row in rows)
        ids = np.full((len(rows), width), self.pad_token_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        labels = np.full((len(rows), width), IGNORED, np.int64)
        for place, row in enumerate(rows):
            length = len(row)
            ids[place, :length] = row.input_ids
            mask[place, :length] = 1
            labels[place, :length][row.trained] = row.input_ids[row.trained]
        index = np.array([row.index for row in rows], np.int64)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "example_index": index}
        return {name: torch.from_numpy(array) for name, array in batch.items()}
