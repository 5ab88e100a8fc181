"""Rows of preferences as token ids: each answer is a sequence of its own behind the same prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ghosttune.data.encoding import (
    IGNORED,
    TOKENISED_TOGETHER,
    Encoded,
    Encoder,
    MarkedRow,
    RowFeatures,
    as_batch,
    padded,
    padding_token,
)
from ghosttune.data.preferences import LABEL, MARGIN, REJECTED
from ghosttune.data.records import Record, Turn
from ghosttune.data.stored import Stored
from ghosttune.data.templates import Part, Template
from ghosttune.errors import DataError, ModelError

if TYPE_CHECKING:
    import torch

SIDES = ("chosen", "rejected", "mismatched")
"""What an answer is: wanted, not wanted, or that of another row, which only tells how far the policy is from the base.
The number of a side is its place."""

MISMATCHED = 2


@dataclass(frozen=True)
class PreferenceFeatures(RowFeatures):
    """One row: its answers behind their prompt, one after the other."""

    trained: np.ndarray
    """[T] bool: the tokens of the answers, stop tokens included."""
    lengths: tuple[int, ...]
    """Tokens of each sequence."""
    sides: tuple[int, ...]
    """Of SIDES, that of each sequence."""
    margin: float = 0.0
    """By how much the row says that the chosen answer is better."""

    @property
    def positions(self) -> int:
        """Those of its longest sequence, one at a time."""
        return max(self.lengths)

    def sequences(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, trained) of each."""
        ends = np.cumsum(self.lengths)[:-1]
        return list(zip(np.split(self.input_ids, ends), np.split(self.trained, ends), strict=True))

    @property
    def keys(self) -> list[bytes]:
        """A digest of all that the model is asked about each sequence."""
        return [_digest(ids, trained) for ids, trained in self.sequences()]


def _digest(ids: np.ndarray, trained: np.ndarray) -> bytes:
    return hashlib.blake2b(ids.astype(np.int32).tobytes() + trained.tobytes(), digest_size=16).digest()


class PreferenceEncoder(Encoder):
    """Turns pairs, and single answers, into features under one template and length limit.

    `mismatched`: each row also gets the answer of the row before it, the first that of the last.
    """

    def __init__(self, template: Template, max_length: int, mismatched: bool = False):
        super().__init__(template, max_length, "completion")
        self.mismatched = mismatched

    def collator(self) -> Callable[[Sequence[Any]], dict[str, torch.Tensor]]:
        return PreferenceCollator(padding_token(self.tokenizer))

    def marked(self, row: Any) -> list[MarkedRow]:
        """Each answer behind its prompt, its tokens marked."""
        return [
            MarkedRow(ids.tolist(), trained.tolist(), part=SIDES[side])
            for side, (ids, trained) in zip(row.sides, row.sequences(), strict=True)
            if side != MISMATCHED
        ]

    def encode(self, records: Sequence[Record], truncated_share: float = 1.0) -> Encoded:
        """Features of every record, in order.

        A prompt that is too long loses the same of its oldest context before either answer. DataError when answers
        alone are too long, or when more than `truncated_share` of the rows must lose context; all such rows are listed.
        """
        faults: list[str] = []
        cut: dict[str, int] = {}
        features = Stored(self._pairs(records, faults, cut))
        self._refuse_long(records, faults, cut, truncated_share)
        return Encoded(features, list(cut), sum(cut.values()))

    def _pairs(self, records: Sequence[Record], faults: list[str], cut: dict[str, int]) -> Iterator[PreferenceFeatures]:
        other = records[-1] if self.mismatched and len(records) else None
        for start in range(0, len(records), TOKENISED_TOGETHER):
            block = records[start : start + TOKENISED_TOGETHER]
            asked = []
            for record in block:
                asked.append(answers_of(record) | ({MISMATCHED: _with_answer(record, other)} if other else {}))
                other = record if self.mismatched else None
            rendered = [
                {side: self._rendered_turns(record, turns) for side, turns in sides.items()}
                for record, sides in zip(block, asked, strict=True)
            ]
            ids_of = self._tokenised(part for row in rendered for parts in row.values() for part in parts)
            for place, record in enumerate(block):
                sequences = self._fitting(record, asked[place], rendered[place], ids_of, faults, cut)
                if sequences:
                    yield PreferenceFeatures(
                        start + place,
                        record.example_id,
                        np.concatenate([ids for ids, _ in sequences]),
                        np.concatenate([trained for _, trained in sequences]),
                        tuple(len(ids) for ids, _ in sequences),
                        tuple(asked[place]),
                        record.columns.get(MARGIN, 0.0),
                    )

    def _fitting(
        self,
        record: Record,
        asked: Mapping[int, tuple[Turn, ...]],
        rendered: Mapping[int, list[Part]],
        ids_of: dict[Part, np.ndarray],
        faults: list[str],
        cut: dict[str, int],
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, trained) of each answer behind the same prompt, cut where the longest of them needs it; none where that
        is not enough. Answers are never cut, but for those of another row."""
        found = {side: _marked(parts, ids_of) for side, parts in rendered.items()}
        own = [side for side in found if side != MISMATCHED]
        excess = max(len(found[side][0]) for side in own) - self.max_length
        for side, (ids, trained) in found.items():
            more = max(excess, len(ids) - self.max_length) if side == MISMATCHED else excess
            if more > 0:
                kept = self._kept(asked[side], rendered[side], more, asks=False)
                found[side] = ids[kept], trained[kept]
        needed = max(len(found[side][0]) for side in own)
        if needed > self.max_length:
            faults.append(f"{record.place or record.example_id}: answer and cue need {needed} tokens")
            return []
        if excess > 0:
            cut[record.example_id] = excess
        return [(ids[: self.max_length], trained[: self.max_length]) for ids, trained in found.values()]

    def _rendered_turns(self, record: Record, turns: tuple[Turn, ...]) -> list[Part]:
        try:
            return self.template.render(turns, marked=False)
        except ModelError as error:
            raise ModelError(f"{record.place or record.example_id}: {error}") from error


class JudgedEncoder:
    """Pairs for a model that judges answers and writes none."""

    def __init__(self, pairs: PreferenceEncoder):
        self.pairs = pairs

    @property
    def tokenizer(self) -> Any:
        return self.pairs.tokenizer

    def encode(self, records: Sequence[Record], truncated_share: float = 1.0) -> Encoded:
        return self.pairs.encode(records, truncated_share)

    def collator(self) -> Callable[[Sequence[Any]], dict[str, torch.Tensor]]:
        return self.pairs.collator()

    def marked(self, row: Any) -> list[MarkedRow]:
        return self.pairs.marked(row)


def answers_of(record: Record) -> dict[int, tuple[Turn, ...]]:
    """Side -> the turns with its answer."""
    if REJECTED in record.columns:
        other = replace(record.turns[-1], content=record.columns[REJECTED])
        return {0: record.turns, 1: (*record.turns[:-1], other)}
    if LABEL not in record.columns:
        raise DataError(f"{record.place or record.example_id} says of no answer that it is better or worse")
    return {0 if record.columns[LABEL] else 1: record.turns}


def _with_answer(record: Record, other: Record) -> tuple[Turn, ...]:
    return (*record.turns[:-1], replace(record.turns[-1], content=other.turns[-1].content))


def _marked(parts: Sequence[Part], ids_of: dict[Part, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(ids, trained) of a sequence: of its answers only the last is trained."""
    ids = np.concatenate([ids_of[part] for part in parts])
    trained = np.zeros(len(ids), bool)
    trained[len(ids) - len(ids_of[parts[-1]]) :] = True
    trained[0] = False
    return ids, trained


class PreferenceCollator:
    """Batches of rows, their sequences one after the other and padded on the right to the longest of the batch."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[PreferenceFeatures]) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask and labels (each [S, T], labels IGNORED but for answers), owner and side [S] (the
        row and the side of each sequence), and example_index and margin [B]."""
        sequences = [RowFeatures(row.index, row.example_id, ids) for row in rows for ids, _ in row.sequences()]
        labels = [np.where(trained, ids, IGNORED) for row in rows for ids, trained in row.sequences()]
        counts = [len(row.lengths) for row in rows]
        batch = as_batch(
            sequences,
            self.pad_token_id,
            labels=padded(labels, IGNORED),
            owner=np.repeat(np.arange(len(rows)), counts),
            side=np.array([side for row in rows for side in row.sides], np.int64),
            margin=np.array([row.margin for row in rows], np.float32),
        )
        import torch

        return batch | {"example_index": torch.tensor([row.index for row in rows])}
