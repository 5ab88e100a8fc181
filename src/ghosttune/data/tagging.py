"""Words with one tag each, as token ids: the first token of a word carries its tag."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from ghosttune.data.columns import RowFault
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
    require_offsets,
)
from ghosttune.data.files import shown, unusable
from ghosttune.data.records import Record
from ghosttune.data.stored import Stored

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TaggedFeatures(RowFeatures):
    """One row of words."""

    first_tokens: np.ndarray
    """Position of the first token of each word that fits."""
    tags: np.ndarray | None
    """The tag of each of these words; None where there are none: the row can be predicted, not trained."""

    @property
    def targets(self) -> int:
        """Number of tagged words."""
        return 0 if self.tags is None else len(self.tags)


class TagEncoder:
    """Turns words into features: written with spaces between them, so that tokens are those of ordinary text.

    `place_of` gives the number of a tag, `labels` their names. Too long rows lose their last words.
    """

    def __init__(self, tokenizer: Any, max_length: int, place_of: Callable[[Any], int], labels: Sequence[str]):
        require_offsets(tokenizer)
        self.tokenizer, self.max_length = tokenizer, max_length
        self.place_of, self.labels = place_of, labels

    def encode(self, records: Sequence[Record], truncated_share: float = 1.0) -> Encoded:
        """Features of every record, in order; DataError lists rows with unknown tags or words that have no token."""
        faults: list[str] = []
        cut: dict[str, int] = {}
        features = Stored(self._all_features(records, faults, cut))
        if faults:
            raise unusable(f"{len(faults)} of {len(records)} rows cannot be used", faults)
        refuse_cut(records, cut, self.max_length, truncated_share)
        return Encoded(features, list(cut), sum(cut.values()))

    def _all_features(
        self, records: Sequence[Record], faults: list[str], cut: dict[str, int]
    ) -> Iterator[TaggedFeatures]:
        for start in range(0, len(records), TOKENISED_TOGETHER):
            block = records[start : start + TOKENISED_TOGETHER]
            for place, (record, row) in enumerate(zip(block, self._tokenised(block), strict=True), start):
                try:
                    yield self._features(place, record, *row[:2])
                except RowFault as fault:
                    faults.append(f"{record.place or record.example_id}: {fault}")
                if row[2]:
                    cut[record.example_id] = row[2]

    def _tokenised(self, records: Sequence[Record]) -> Iterator[tuple[list[int], list[int | None], int]]:
        """(token ids, the word that each token begins in, tokens lost) of each row."""
        texts: list[str] = [" ".join(record.columns["tokens"]) for record in records]
        whole = self._offsets(texts)
        for place, (record, text) in enumerate(zip(records, texts, strict=True)):
            lost = max(0, len(whole.input_ids[place]) - self.max_length)
            found, row = (
                (self._offsets([text], truncation=True, max_length=self.max_length), 0) if lost else (whole, place)
            )
            marks = [sequence is None for sequence in found.sequence_ids(row)]
            words = _words(text, record.columns["tokens"], found.offset_mapping[row], marks)
            yield found.input_ids[row], words, lost

    def _offsets(self, texts: Sequence[str], **options: Any) -> Any:
        return self.tokenizer(texts, return_offsets_mapping=True, verbose=False, **options)

    def _features(self, index: int, record: Record, ids: list[int], words: list[int | None]) -> TaggedFeatures:
        firsts: dict[int, int] = {}
        for position, word in enumerate(words):
            if word is not None:
                firsts.setdefault(word, position)
        seen = max(firsts, default=-1) + 1
        missing = [word for word in range(seen) if word not in firsts]
        if missing:
            tokens = record.columns["tokens"]
            raise RowFault(f"word {missing[0]} ({shown(tokens[missing[0]])}) has no token of its own")
        tags = record.columns.get("tags")
        places = None if tags is None else np.array([self.place_of(tag) for tag in tags[:seen]], np.int64)
        positions = np.array([firsts[word] for word in range(seen)], np.int64)
        return TaggedFeatures(index, record.example_id, np.asarray(ids, np.int32), positions, places)

    def marked(self, row: TaggedFeatures) -> list[MarkedRow]:
        """The row's tokens, those that carry a tag marked, and the tags."""
        trained = np.isin(np.arange(len(row)), row.first_tokens).tolist()
        tags = [] if row.tags is None else [self.labels[int(tag)] for tag in row.tags]
        return [MarkedRow(row.input_ids.tolist(), trained, " ".join(tags))]

    def collator(self) -> Callable[[Sequence[Any]], dict[str, torch.Tensor]]:
        """Batches with, where the rows have them, labels [B, T]: IGNORED but at the first token of a word."""
        padding = padding_token(self.tokenizer)

        def collate(rows: Sequence[TaggedFeatures]) -> dict[str, torch.Tensor]:
            labels = [_labels(row, row.tags) for row in rows if row.tags is not None]
            arrays = {"labels": padded(labels, IGNORED)} if len(labels) == len(rows) else {}
            return as_batch(rows, padding, **arrays)

        return collate


def _labels(row: TaggedFeatures, tags: np.ndarray) -> np.ndarray:
    labels = np.full(len(row), IGNORED, np.int64)
    labels[row.first_tokens] = tags
    return labels


def _words(
    text: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]], marks: Sequence[bool]
) -> list[int | None]:
    """The word that each token begins in, behind blanks that it may hold too; None for the tokenizer's own marks."""
    ends = list(accumulate(len(token) + 1 for token in tokens))
    words: list[int | None] = []
    for (left, right), is_mark in zip(offsets, marks, strict=True):
        blanks = right - left - len(text[left:right].lstrip())
        words.append(None if is_mark or blanks == right - left else bisect_right(ends, left + blanks))
    return words
