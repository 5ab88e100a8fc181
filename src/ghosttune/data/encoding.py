"""Records as token ids with the trained positions marked, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from ghosttune.data.files import unusable
from ghosttune.data.records import Record
from ghosttune.data.stored import Stored
from ghosttune.data.templates import Part, Template
from ghosttune.data.turns import Turn, only_last_trained, opening_turns
from ghosttune.errors import DataError, ModelError, listed

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""Label of a token that is not trained (the value torch's cross entropy skips)."""

SHOWN = "shown."
"""In front of the names that a batch gives what a processor makes of images."""

TOKENISED_TOGETHER = 2048
"""Rows, or texts, that are tokenised at once: the tokenizer's answer holds many times the memory of the ids."""


REMEMBERED = 1 << 21
"""Characters of tokenised prompts that are remembered, because many come again and again."""

LIKELY = 8
"""Exchanges of a conversation that usually fit."""


@dataclass(frozen=True)
class RowFeatures:
    """One row as the model sees it; each task adds what it is to predict."""

    index: int
    """Position in its split."""
    example_id: str
    input_ids: np.ndarray
    """[T] int32."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def positions(self) -> int:
        """Positions of the model that it needs."""
        return len(self)

    @property
    def targets(self) -> int:
        """What the loss is counted in: trained tokens, labels, spans."""
        return 1


@dataclass(frozen=True)
class Features(RowFeatures):
    """One row of language modelling."""

    trained: np.ndarray
    """[T] bool; the first position is never trained, nothing predicts it."""

    @property
    def targets(self) -> int:
        """Number of trained tokens."""
        return int(self.trained.sum())


@dataclass(frozen=True)
class Encoded:
    """The features of a split, and what had to be cut to make them."""

    features: Sequence[RowFeatures]
    """On disk."""
    cut_rows: list[str] = field(default_factory=list)
    """Ids of the rows that lost context."""
    cut_tokens: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows that have no features, by reason."""
    without_reasoning: int = 0
    """Rows with reasoning that the chat template does not write behind the answers it belongs to."""

    def __len__(self) -> int:
        return len(self.features)

    @property
    def tokens(self) -> int:
        return sum(len(row) for row in self.features)

    @property
    def targets(self) -> int:
        return sum(row.targets for row in self.features)


@dataclass(frozen=True)
class MarkedRow:
    """A row for people: its tokens, which of them are trained, and what is predicted beside them."""

    input_ids: list[int]
    trained: list[bool]
    target: str = ""
    part: str = ""
    """Which part of its row it is, where a row is several sequences."""


def require_offsets(tokenizer: Any) -> None:
    """ModelError when the tokenizer cannot say which characters a token stands for."""
    if not tokenizer.is_fast:
        raise ModelError(
            "this tokenizer (a slow one) cannot say which words its tokens stand for, which this task needs; use a "
            "model with a tokenizer.json"
        )


class RowEncoder(Protocol):
    """Turns the records of one task into features and batches."""

    tokenizer: Any

    def encode(self, records: Sequence[Record], truncated_share: float = 1.0) -> Encoded: ...
    def collator(self) -> Callable[[Sequence[Any]], dict[str, torch.Tensor]]: ...
    def marked(self, row: Any) -> list[MarkedRow]:
        """A row for people: its sequences, of which most tasks have one."""
        ...


class Encoder:
    """Turns records into features under one template and length limit."""

    def __init__(self, template: Template, max_length: int, loss_on: str):
        self.template = template
        self.max_length = max_length
        self.loss_on = loss_on
        self._leads: dict[str, list[int]] = {"": []}

    @property
    def tokenizer(self) -> Any:
        return self.template.tokenizer

    def collator(self) -> Callable[[Sequence[Any]], dict[str, torch.Tensor]]:
        return Collator(padding_token(self.tokenizer))

    def trained_on(self, loss_on: str) -> Self:
        """The same encoder, with another loss."""
        other = copy(self)
        other.loss_on = loss_on
        return other

    def marked(self, row: Features) -> list[MarkedRow]:
        """The row's tokens, the trained ones marked."""
        return [MarkedRow(row.input_ids.tolist(), row.trained.tolist())]

    def encode(self, records: Sequence[Record], truncated_share: float = 1.0) -> Encoded:
        """Features of every record, in order.

        Raises DataError when rows have nothing to train, when answers alone are too long, or when more than
        `truncated_share` of the rows must lose context; all such rows are listed.
        """
        plain: list[str] = []
        faults: list[str] = []
        cut: dict[str, int] = {}
        unsaid: list[str] = []
        features = Stored(self._features(records, plain, faults, cut, unsaid))
        self._refuse_plain(records, plain)
        self._refuse_long(records, faults, cut, truncated_share)
        return Encoded(features, list(cut), sum(cut.values()), without_reasoning=len(unsaid))

    def _features(
        self,
        records: Sequence[Record],
        plain: list[str],
        faults: list[str],
        cut: dict[str, int],
        unsaid: list[str],
    ) -> Iterator[Features]:
        """Features of every record; fills in the rows without an answer, those that do not fit, what is cut, and the
        rows whose reasoning is not written."""
        prompts: dict[Part, np.ndarray] = {}
        for start in range(0, len(records), TOKENISED_TOGETHER):
            block = records[start : start + TOKENISED_TOGETHER]
            if self.loss_on != "all":
                plain += [_place(record) for record in block if record.turns[0].role == "text"]
            rendered = [self._rendered(record) for record in block]
            unsaid += [record.example_id for record in block if self.unsaid(record)]
            ids_of = prompts | self._tokenised(part for parts in rendered for part in parts if part not in prompts)
            prompts = {part: ids for part, ids in ids_of.items() if not part.answer}
            if sum(len(part.text) for part in prompts) > REMEMBERED:
                prompts = {}
            for index, (record, parts) in enumerate(zip(block, rendered, strict=True), start):
                if record.tokens is not None:
                    yield _block(index, record.example_id, record.tokens)
                    continue
                ids = np.concatenate([ids_of[part] for part in parts])
                trained = np.concatenate([self._trains(part, len(ids_of[part])) for part in parts])
                if len(ids) > self.max_length:
                    kept = self._kept(self._turns(record), parts, len(ids) - self.max_length, asks=False)
                    if len(kept) > self.max_length:
                        faults.append(f"{_place(record)}: answer and cue need {len(kept)} tokens")
                        continue
                    cut[record.example_id] = len(ids) - len(kept)
                    ids, trained = ids[kept], trained[kept]
                trained[0] = False
                yield self._row(index, record.example_id, parts, ids, trained)

    def prompt_ids(self, record_or_turns: Record | Sequence[Turn], room: int = 0) -> list[int]:
        """Token ids of the prompt, cut so that `room` more tokens fit into `max_length`, as far as it can be cut.

        The oldest exchanges go first, then the left of the oldest context; a system message and the cue stay. Raises
        DataError when what must stay does not fit by itself.
        """
        turns = tuple(record_or_turns.prompt if isinstance(record_or_turns, Record) else record_or_turns)
        turns, parts, ids = self._recent(turns, room)
        excess = len(ids) + room - self.max_length
        if excess > 0:
            ids = ids[self._kept(turns, parts, excess, asks=True)]
        if len(ids) > self.max_length:
            raise DataError(
                f"the prompt needs {len(ids)} tokens besides what can be cut, and data.max_length is "
                f"{self.max_length}; shorten its system message or its last line, or raise data.max_length"
            )
        return self._asking(parts, ids)

    def recent_turns(self, turns: tuple[Turn, ...], room: int = 0) -> tuple[Turn, ...]:
        """The turns without the oldest exchanges that do not fit; the system message and the last question stay."""
        return self._recent(turns, room)[0]

    def _recent(self, turns: tuple[Turn, ...], room: int) -> tuple[tuple[Turn, ...], list[Part], np.ndarray]:
        """The recent turns, and their prompt.

        A conversation may be far longer than what fits, and rendering it grows with its square: what fits is looked for
        from its end, by doubling and then halving.
        """
        exchanges = len(_questions(turns))
        fits, fails = 0, exchanges + 1
        found = None
        while fits + 1 < fails:
            tried = (fits + fails) // 2 if fails <= exchanges else min(exchanges, max(LIKELY, 2 * fits))
            recent = _last_exchanges(turns, tried)
            parts, ids = self._prompt(recent)
            if len(ids) + room <= self.max_length or tried == 1:
                fits, found = tried, (recent, parts, ids)
            else:
                fails = tried
        assert found is not None
        return found

    def prompt_length(self, turns: Sequence[Turn]) -> int:
        """Tokens of the whole prompt, before anything is cut."""
        return len(self._prompt(turns)[1])

    def whole_prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids of the prompt, nothing cut."""
        return self._asking(*self._prompt(turns))

    def _prompt(self, turns: Sequence[Turn]) -> tuple[list[Part], np.ndarray]:
        parts = self.template.prompt(turns)
        ids_of = self._tokenised(parts)
        return parts, np.concatenate([ids_of[part] for part in parts])

    def _row(self, index: int, example_id: str, parts: list[Part], ids: np.ndarray, trained: np.ndarray) -> Features:
        """The row that these parts are."""
        return Features(index, example_id, ids, trained)

    def _asking(self, parts: list[Part], ids: np.ndarray) -> list[int]:
        """The prompt that these parts are."""
        return ids.tolist()

    def _text(self, part: Part) -> str:
        """What the tokenizer is given."""
        return part.text

    def unsaid(self, record: Record) -> int:
        """Of how many answers the chat template leaves out the reasoning."""
        thought = sum(turn.reasoning is not None for turn in record.turns)
        return thought and thought - sum(turn.reasoning is not None for turn in self.template.written(record.turns))

    def _rendered(self, record: Record) -> list[Part]:
        if record.tokens is not None:
            return []
        try:
            return self.template.render(self._turns(record), marked=self.loss_on != "all")
        except ModelError as error:
            raise ModelError(f"{_place(record)}: {error}") from error

    def _turns(self, record: Record) -> tuple[Turn, ...]:
        return only_last_trained(record.turns) if self.loss_on == "last_turn" else record.turns

    def _trains(self, part: Part, length: int) -> np.ndarray:
        """[T] bool, whether a token trains: one that reaches into what is marked does."""
        if part.trained is None:
            return np.full(length, part.answer or self.loss_on == "all")
        if not part.trained:
            return np.zeros(length, bool)
        spans = np.array(self._spans(part)).reshape(-1, 2)
        return np.any([(spans[:, 0] < end) & (spans[:, 1] > start) for start, end in part.trained], axis=0)

    def _tokenised(self, parts: Iterable[Part]) -> dict[Part, np.ndarray]:
        """The ids of each different part, each tokenised once."""
        different = list(dict.fromkeys(parts))
        ids_of: dict[Part, np.ndarray] = {}
        for start in range(0, len(different), TOKENISED_TOGETHER):
            block = different[start : start + TOKENISED_TOGETHER]
            rows = self._token_ids([part.after + self._text(part) for part in block])
            for part, row in zip(block, rows, strict=True):
                lead = self._lead(part.after)
                ids = row[len(lead) :] if row[: len(lead)] == lead else self._token_ids([self._text(part)])[0]
                ids_of[part] = np.asarray(ids, np.int32)
        return ids_of

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        return self.template.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
        ).input_ids

    def _lead(self, after: str) -> list[int]:
        if after not in self._leads:
            self._leads[after] = self._token_ids([after])[0]
        return self._leads[after]

    def _kept(self, turns: Sequence[Turn], parts: list[Part], excess: int, asks: bool) -> np.ndarray:
        """Positions that stay when the oldest `excess` tokens of the context go, or as many as there are."""
        going: list[int] = []
        length = 0
        for part, cuttable in zip(parts, self.template.context(turns, asks), strict=True):
            spans = self._spans(part)
            going += self._oldest(part, spans, cuttable, excess - len(going), length)
            length += len(spans)
        return np.setdiff1d(np.arange(length), going)

    def _oldest(
        self, part: Part, spans: list[tuple[int, int]], cuttable: tuple[int, int], wanted: int, first: int
    ) -> list[int]:
        """Positions (counted from `first`) of the leftmost `wanted` tokens inside `cuttable`.

        A token may reach over the blank before the context; a character of several tokens goes as a whole.
        """
        start, end = cuttable
        inside = [
            (place, left, right)
            for place, (left, right) in enumerate(spans)
            if start < right <= end and (left >= start or part.text[left:start] == " ")
        ]
        while 0 < wanted < len(inside) and inside[wanted][1] < inside[wanted - 1][2]:
            wanted += 1
        return [first + place for place, _, _ in inside[: max(0, wanted)]]

    def _spans(self, part: Part) -> list[tuple[int, int]]:
        """The characters of the part's text that each of its tokens stands for."""
        if not self.template.tokenizer.is_fast:
            raise ModelError(
                "rows must be shortened, and this tokenizer (a slow one) cannot say which tokens are context; "
                "raise data.max_length"
            )
        for after in (part.after, ""):
            found = self.template.tokenizer(
                after + self._text(part), add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            lead = self._lead(after)
            if found.input_ids[: len(lead)] == lead:
                break
        return [(left - len(after), right - len(after)) for left, right in found.offset_mapping[len(lead) :]]

    def _refuse_plain(self, records: Sequence[Record], plain: list[str]) -> None:
        if plain:
            raise DataError(
                f"{len(plain)} of {len(records)} rows are plain text without a completion to train on: "
                f"{listed(plain, 5)}. Set data.loss_on: all, or give rows with prompt and completion, messages, or "
                "User:/Assistant: lines.",
                dict.fromkeys(plain, "is plain text without a completion"),
            )

    def _refuse_long(
        self, records: Sequence[Record], faults: list[str], cut: dict[str, int], truncated_share: float
    ) -> None:
        if faults:
            rows = f"of {len(records)} rows"
            title = f"{len(faults)} {rows} do not fit into data.max_length {self.max_length}; answers are never cut"
            raise unusable(title, faults, "\nRaise data.max_length, or split these rows.")
        refuse_cut(records, cut, self.max_length, truncated_share)


def refuse_cut(records: Sequence[Record], cut: Mapping[str, int], max_length: int, truncated_share: float) -> None:
    """DataError when more than `truncated_share` of the rows had to be cut; `cut` is what each would lose."""
    share = len(cut) / max(1, len(records))
    if share > truncated_share:
        raise DataError(
            f"{len(cut)} of {len(records)} rows ({share:.1%}) are longer than data.max_length {max_length} and would "
            f"lose {sum(cut.values())} tokens of context: {listed(cut, 5)}. Raise data.max_length to "
            f"{max_length + max(cut.values())}, or accept the cut with data.truncated_share: "
            f"{min(1.0, share + 0.01):.2f}.",
            {
                _place(record): f"would lose {cut[record.example_id]} tokens of context"
                for record in records
                if record.example_id in cut
            },
        )


def _block(index: int, example_id: str, tokens: np.ndarray) -> Features:
    """A block of a corpus, trained whole."""
    trained = np.ones(len(tokens), bool)
    trained[0] = False
    return Features(index, example_id, tokens, trained)


def _place(record: Record) -> str:
    return record.place or record.example_id


def _questions(turns: tuple[Turn, ...]) -> list[int]:
    """Where each exchange begins, at the user's turn; one place where the user says nothing."""
    return [place for place, turn in enumerate(turns) if turn.role == "user"] or [opening_turns(turns)]


def _last_exchanges(turns: tuple[Turn, ...], count: int) -> tuple[Turn, ...]:
    """The last `count` exchanges, below the tools and the system message."""
    return (*turns[: opening_turns(turns)], *turns[_questions(turns)[-count] :])


def padding_token(tokenizer: Any) -> int:
    """Any token serves, padding is recognised by position; 0 where the tokenizer names none."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def padded(rows: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """[B, T] int64: the rows below each other, filled up on the right to the longest."""
    table = np.full((len(rows), max(len(row) for row in rows)), fill, np.int64)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table


def as_batch(rows: Sequence[RowFeatures], pad_token_id: int, **arrays: np.ndarray) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask [B, T], example_index [B], and the arrays of a task, as tensors.

    Padding is recognised by position, never by token, so that the padding token may be any token.
    """
    import torch

    batch = {
        "input_ids": padded([row.input_ids for row in rows], pad_token_id),
        "attention_mask": padded([np.ones_like(row.input_ids) for row in rows], 0),
        "example_index": np.array([row.index for row in rows], np.int64),
    }
    return {name: torch.from_numpy(array) for name, array in (batch | arrays).items()}


class Collator:
    """Batches of features, padded on the right to the longest row of the batch."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Features]) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask, labels (each [B, T], labels IGNORED where not trained) and example_index [B]."""
        labels = padded([np.where(row.trained, row.input_ids, IGNORED) for row in rows], IGNORED)
        return as_batch(rows, self.pad_token_id, labels=labels)
