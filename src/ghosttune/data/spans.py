"""Questions about a text as windows of token ids, with the answer's place in each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from ghosttune.data.encoding import (
    TOKENISED_TOGETHER,
    Encoded,
    MarkedRow,
    RowFeatures,
    as_batch,
    padded,
    padding_token,
    require_offsets,
)
from ghosttune.data.files import unusable
from ghosttune.data.records import Record
from ghosttune.data.stored import Stored
from ghosttune.errors import DataError, listed

if TYPE_CHECKING:
    import torch

UNANSWERED = (0, 0)
"""The span that says `not in this window`: the first token, which is no part of the text."""

INSIDE_A_TOKEN = "the answer begins or ends inside a token"
TOO_LONG = "the answer fits into no window"

Span = tuple[int, int]
"""First and last token, both inside."""


@dataclass(frozen=True)
class SpanFeatures(RowFeatures):
    """One window of one row."""

    segments: np.ndarray
    """[T] 0 for the question, 1 for the text."""
    offsets: np.ndarray
    """[T, 2] the characters of the text that each token stands for; (0, 0) outside it."""
    in_text: np.ndarray
    """[T] bool."""
    span: Span | None
    """None where there is no answer to learn: the window can be predicted, not trained."""

    @property
    def targets(self) -> int:
        """One span."""
        return 0 if self.span is None else 1

    def written(self, span: Span, text: str) -> str:
        """What the span says; empty for UNANSWERED."""
        left, right = self.offsets[span[0], 0], self.offsets[span[1], 1]
        return "" if span == UNANSWERED else text[left:right].strip()


class SpanEncoder:
    """Turns rows into windows of at most `max_length` tokens that overlap by `stride`, the question in front of each.

    A window that does not hold the whole answer has UNANSWERED as its span. Rows whose answer no span can say are left
    out and counted.
    """

    def __init__(self, tokenizer: Any, max_length: int, stride: int):
        require_offsets(tokenizer)
        self.tokenizer, self.max_length, self.stride = tokenizer, max_length, stride
        self.marks, single = (tokenizer.num_special_tokens_to_add(pair=pair) for pair in (True, False))
        self.behind = "" if self.marks > single else "\n"
        """What parts the question from the text where the tokenizer puts no mark of its own there."""

    def encode(self, records: Sequence[Record], truncated_share: float = 1.0) -> Encoded:
        """Windows of every record, in order; nothing is cut. DataError lists questions that leave a text no room."""
        left_out: Counter[str] = Counter()
        windows = chain.from_iterable(self._usable(records, left_out))
        features = Stored(replace(window, index=place) for place, window in enumerate(windows))
        if records and not features:
            raise DataError(f"none of the {len(records)} rows can be used: {listed(left_out)}")
        return Encoded(features, left_out=dict(left_out))

    def _usable(self, records: Sequence[Record], left_out: Counter[str]) -> Iterator[list[SpanFeatures]]:
        """The windows of each record whose answer they can say; counts the others."""
        for start in range(0, len(records), TOKENISED_TOGETHER):
            block = records[start : start + TOKENISED_TOGETHER]
            for record, windows in zip(block, self._windows(block), strict=True):
                if fault := _fault(record, windows):
                    left_out[fault] += 1
                else:
                    yield windows

    def _windows(self, records: Sequence[Record]) -> Iterator[list[SpanFeatures]]:
        """The windows of each record."""
        questions = [record.columns["question"] + self.behind for record in records]
        self._refuse_long(records, questions)
        found = self.tokenizer(
            questions,
            [record.columns["context"] for record in records],
            truncation="only_second",
            max_length=self.max_length,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=True,
            verbose=False,
        )
        windows: list[list[SpanFeatures]] = [[] for _ in records]
        for place, row in enumerate(found.overflow_to_sample_mapping):
            in_text = np.array([sequence == 1 for sequence in found.sequence_ids(place)])
            offsets = np.where(in_text[:, None], np.array(found.offset_mapping[place], np.int32), 0)
            windows[row].append(
                SpanFeatures(
                    0,
                    records[row].example_id,
                    np.array(found.input_ids[place], np.int32),
                    np.array(found.token_type_ids[place], np.int32),
                    offsets,
                    in_text,
                    _span(offsets, in_text, _answer(records[row])),
                )
            )
        yield from windows

    def _refuse_long(self, records: Sequence[Record], questions: list[str]) -> None:
        ids = self.tokenizer(questions, add_special_tokens=False, verbose=False).input_ids
        faults = [
            f"{record.place or record.example_id}: the question has {len(row)} tokens"
            for record, row in zip(records, ids, strict=True)
            if len(row) + self.marks + self.stride >= self.max_length
        ]
        if faults:
            title = (
                f"{len(faults)} questions leave no room for windows of data.max_length {self.max_length} that overlap "
                f"by task.stride {self.stride}; raise the one or lower the other"
            )
            raise unusable(title, faults)

    def marked(self, row: SpanFeatures) -> list[MarkedRow]:
        """The window's tokens, those of the answer marked."""
        first, last = row.span or UNANSWERED
        inside = [first <= position <= last and row.span != UNANSWERED for position in range(len(row))]
        return [MarkedRow(row.input_ids.tolist(), inside, "" if any(inside) else "no answer in this window")]

    def collator(self) -> Callable[[Sequence[Any]], dict[str, torch.Tensor]]:
        """Batches with token_type_ids and in_text [B, T] and, where the rows have them, spans [B, 2]."""
        padding = padding_token(self.tokenizer)

        def collate(rows: Sequence[SpanFeatures]) -> dict[str, torch.Tensor]:
            arrays = {
                "token_type_ids": padded([row.segments for row in rows], 0),
                "in_text": padded([row.in_text for row in rows], 0),
            }
            spans = [row.span for row in rows if row.span is not None]
            if len(spans) == len(rows):
                arrays["spans"] = np.array(spans, np.int64)
            return as_batch(rows, padding, **arrays)

        return collate


def _answer(record: Record) -> tuple[int, int] | None:
    """Where the first answer stands in the text, without blanks around it; None for a question without one."""
    answers = record.columns.get("answers")
    if answers is None:
        return None
    text, start = answers["text"][0], answers["answer_start"][0]
    start += len(text) - len(text.lstrip())
    return start, start + len(text.strip())


def _span(offsets: np.ndarray, in_text: np.ndarray, answer: tuple[int, int] | None) -> Span | None:
    """The tokens that reach over the answer; UNANSWERED where the window does not hold all of it."""
    if answer is None:
        return None
    places = np.flatnonzero(in_text & (offsets[:, 0] < offsets[:, 1]))
    if not len(places) or offsets[places[0], 0] > answer[0] or offsets[places[-1], 1] < answer[1]:
        return UNANSWERED
    reached = places[(offsets[places, 1] > answer[0]) & (offsets[places, 0] < answer[1])]
    return (int(reached[0]), int(reached[-1])) if len(reached) else UNANSWERED


def _fault(record: Record, windows: Sequence[SpanFeatures]) -> str | None:
    """Why no span can say the answer; None when one can, or when there is nothing to learn."""
    answer, text = _answer(record), record.columns["context"]
    if answer is None:
        return None
    said = [window.written(window.span, text) for window in windows if window.span not in (None, UNANSWERED)]
    if not said:
        return TOO_LONG
    return None if all(words == text[slice(*answer)] for words in said) else INSIDE_A_TOKEN
