"""Texts and pairs of texts with one label each, as token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ghosttune.data.columns import RowFault
from ghosttune.data.encoding import (
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

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LabelledFeatures(RowFeatures):
    """One text or pair."""

    segments: np.ndarray
    """[T] 0 for the first text, 1 for the second."""
    label: int | float | None
    """None where there is none: the row can be predicted, not trained."""


class LabelEncoder:
    """Turns texts and pairs into features as the tokenizer itself frames them; too long ones lose their end.

    `label_of` gives what is predicted for the label of a row, `name_of` what people call it.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        label_of: Callable[[Any], int | float],
        name_of: Callable[[Any], str] = str,
    ):
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.label_of, self.name_of = label_of, name_of
        pair, single = (tokenizer.num_special_tokens_to_add(pair=pair) for pair in (True, False))
        self.parts_pairs = pair > single
        """Whether the tokenizer puts a mark of its own between two texts; a line break does it otherwise."""

    def encode(self, records: Sequence[Record], truncated_share: float = 1.0) -> Encoded:
        """Features of every record, in order; DataError lists the rows whose label cannot be meant."""
        labels = self._labels(records)
        cut: dict[str, int] = {}
        features = Stored(self._features(records, labels, cut))
        refuse_cut(records, cut, self.max_length, truncated_share)
        return Encoded(features, list(cut), sum(cut.values()))

    def _features(
        self, records: Sequence[Record], labels: Sequence[int | float | None], cut: dict[str, int]
    ) -> Iterator[LabelledFeatures]:
        for start in range(0, len(records), TOKENISED_TOGETHER):
            block = records[start : start + TOKENISED_TOGETHER]
            for place, (record, ids, segments) in enumerate(zip(block, *self._tokenised(block), strict=True), start):
                if (lost := len(ids) - self.max_length) > 0:
                    (ids,), (segments,) = self._tokenised([record], self.max_length)
                    cut[record.example_id] = lost
                arrays = np.asarray(ids, np.int32), np.asarray(segments, np.int32)
                yield LabelledFeatures(place, record.example_id, *arrays, labels[place])

    def _tokenised(
        self, records: Sequence[Record], longest: int | None = None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """(token ids, segments) of the rows; of a pair, the longer text loses its end first."""
        firsts = [self._first(record) for record in records]
        seconds = [record.columns["hypothesis"] for record in records] if self._framed(records) else None
        found = self.tokenizer(
            firsts,
            seconds,
            truncation="longest_first" if longest else False,
            max_length=longest,
            return_token_type_ids=True,
            return_attention_mask=False,
            verbose=False,
        )
        return found.input_ids, found.token_type_ids

    def _framed(self, records: Sequence[Record]) -> bool:
        return self.parts_pairs and "hypothesis" in records[0].columns

    def _first(self, record: Record) -> str:
        columns = record.columns
        if "text" in columns:
            return columns["text"]
        return columns["premise"] if self.parts_pairs else f"{columns['premise']}\n{columns['hypothesis']}"

    def _labels(self, records: Sequence[Record]) -> list[int | float | None]:
        labels: list[int | float | None] = []
        faults: list[str] = []
        for record in records:
            label = record.columns.get("label")
            try:
                labels.append(None if label is None else self.label_of(label))
            except RowFault as fault:
                faults.append(f"{record.place or record.example_id}: {fault}")
        if faults:
            raise unusable(f"{len(faults)} of {len(records)} labels cannot be used", faults)
        return labels

    def marked(self, row: LabelledFeatures) -> list[MarkedRow]:
        """The row's tokens and its label; no token is predicted."""
        ids = row.input_ids.tolist()
        return [MarkedRow(ids, [False] * len(ids), self.name_of(row.label))]

    def collator(self) -> Callable[[Sequence[Any]], dict[str, torch.Tensor]]:
        """Batches with token_type_ids [B, T] and, where the rows have them, labels [B]."""
        padding = padding_token(self.tokenizer)

        def collate(rows: Sequence[LabelledFeatures]) -> dict[str, torch.Tensor]:
            arrays = {"token_type_ids": padded([row.segments for row in rows], 0)}
            if all(row.label is not None for row in rows):
                arrays["labels"] = np.array([row.label for row in rows])
            return as_batch(rows, padding, **arrays)

        return collate
