"""Rows that judge and were trained on: the same prompt, the same prompt and answer, or most of the same words.

Words are compared by n-grams of 13, as GPT-3's authors did (Brown et al. 2020, appendix C) and lm-evaluation-harness
does. An n-gram in more than ten training rows is how rows are worded and says nothing, as there; a row counts where at
least 80 % of the words that are left stand in n-grams of training rows, which Llama 2's authors call dirty (Touvron et
al. 2023, appendix A.6).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ghosttune.data.records import Record
from ghosttune.data.stored import key_of

if TYPE_CHECKING:
    import numpy as np

NAMED = 20
"""Rows that judge and were trained on, which results name; tables/contamination.csv has all of a run's own."""

GRAM = 13
"""Words of an n-gram."""

COMMON = 10
"""N-grams of more training rows than that are left out."""

DIRTY = 0.8
"""Least share of a row's words."""

ANSWERED, ASKED, WORDED = "prompt and answer", "prompt", f"{GRAM}-grams"
"""How a row can have been trained on, the worst first; each is counted once."""

ANSWER_COLUMNS = ("label", "tags", "answers")
"""Of rows without turns, what the model is not given."""

WRITTEN_WITHOUT_SPACES = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[{WRITTEN_WITHOUT_SPACES}]|[^\\W{WRITTEN_WITHOUT_SPACES}]+")
"""A word, or a character where none are told apart by spaces."""

CHUNK = 200_000
"""Words that are compared at once: bounds memory."""


@dataclass(frozen=True)
class Overlap:
    """A row that judges, and the training row that it was trained on with."""

    split: str
    example_id: str
    kind: str
    train_example_id: str
    """The first of them; of n-grams, the one that most of them stand in."""
    share: float
    """Of the row's words."""


@dataclass(frozen=True)
class Contamination:
    """What was found, in the order of the rows that judge."""

    rows: Mapping[str, int]
    """Split -> how many rows were looked at."""
    short: Mapping[str, int]
    """Split -> how many of them have too few words for an n-gram, so that only the same prompt could be found."""
    overlaps: Sequence[Overlap]

    def counts(self, split: str) -> dict[str, int]:
        """Kind -> how many rows of the split."""
        found = Counter(overlap.kind for overlap in self.overlaps if overlap.split == split)
        return {kind: found[kind] for kind in (ANSWERED, ASKED, WORDED) if found[kind]}

    def recorded(self) -> dict[str, Any]:
        """As JSON holds it, with the first NAMED rows by name."""
        splits = {
            split: {"rows": rows, "short": self.short[split], "trained": self.counts(split)}
            for split, rows in self.rows.items()
        }
        return {"splits": splits, "named": [asdict(overlap) for overlap in self.overlaps[:NAMED]]}


def contamination(train: Iterable[Record], judges: Mapping[str, Iterable[Record]]) -> Contamination:
    """Which rows that judge were trained on.

    Reads every row once: about ten seconds for 100,000 training rows of a hundred words, and 40 bytes of memory per
    word of the rows that judge.
    """
    judged = _Judged(judges)
    judged.meet(train)
    return judged.found()


class _Judged:
    """The rows that judge, and what of them has been met in training rows."""

    def __init__(self, judges: Mapping[str, Iterable[Record]]):
        import numpy as np

        self.words = _Words()
        self.names: list[tuple[str, str]] = []
        self.keys: list[tuple[bytes, bytes]] = []
        parts = list(self._read(judges))
        self.grams = np.concatenate([grams for grams, _, _ in parts]) if parts else np.zeros(0, np.uint64)
        """[G] of all rows, in order."""
        self.starts = np.concatenate([starts for _, starts, _ in parts]) if parts else np.zeros(0, np.int64)
        """[G] the first word of each, among the words of all rows."""
        self.lengths = np.concatenate([lengths for _, _, lengths in parts]) if parts else np.zeros(0, np.int64)
        """[N] words of each row."""
        self.known, self.which = np.unique(self.grams, return_inverse=True)
        self.rows_with = np.zeros(len(self.known), np.int64)
        """Training rows that hold each n-gram."""
        self.first = np.full(len(self.known), -1, np.int64)
        """The first of them."""
        self.train_ids: list[str] = []
        self.by_prompt: dict[bytes, list[int]] = {}
        for place, (prompt, _) in enumerate(self.keys):
            self.by_prompt.setdefault(prompt, []).append(place)
        self.same: dict[int, tuple[str, str]] = {}
        """Row -> (kind, training row) where the prompt is the same."""

    def _read(self, judges: Mapping[str, Iterable[Record]]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        named = ((split, record) for split, records in judges.items() for record in records)
        done = 0
        for chunk in self.words.chunks(named, of=lambda one: one[1]):
            self.names += [(split, record.example_id) for split, record in chunk.rows]
            self.keys += [_keys(record) for _, record in chunk.rows]
            yield chunk.grams, chunk.starts + done, chunk.lengths
            done += int(chunk.lengths.sum())

    def meet(self, train: Iterable[Record]) -> None:
        import numpy as np

        for chunk in self.words.chunks(train, of=lambda record: record):
            before = len(self.train_ids)
            for record in chunk.rows:
                self.train_ids.append(record.example_id)
                self._compare(record)
            if not len(self.known):
                continue
            place = np.minimum(np.searchsorted(self.known, chunk.grams), len(self.known) - 1)
            met = self.known[place] == chunk.grams
            row = np.searchsorted(np.cumsum(chunk.lengths), chunk.starts, side="right") + before
            pairs = np.unique(np.stack([place[met], row[met]]), axis=1)
            np.add.at(self.rows_with, pairs[0], 1)
            new, firsts = np.unique(pairs[0], return_index=True)
            unmet = self.first[new] < 0
            self.first[new[unmet]] = pairs[1][firsts[unmet]]

    def _compare(self, record: Record) -> None:
        prompt, answer = _keys(record)
        for place in self.by_prompt.get(prompt, ()):
            kind = ANSWERED if self.keys[place][1] == answer else ASKED
            if place not in self.same or (kind == ANSWERED and self.same[place][0] == ASKED):
                self.same[place] = (kind, record.example_id)

    def found(self) -> Contamination:

        rows, short = Counter(split for split, _ in self.names), Counter()
        for (split, _), length in zip(self.names, self.lengths.tolist(), strict=True):
            short[split] += length < GRAM
        shares = self._shares()
        overlaps = []
        for place, (split, example_id) in enumerate(self.names):
            if place in self.same:
                overlaps.append(Overlap(split, example_id, *self.same[place], 1.0))
            elif shares[place] >= DIRTY:
                overlaps.append(Overlap(split, example_id, WORDED, self._source(place), round(float(shares[place]), 3)))
        return Contamination(dict(rows), {split: short[split] for split in rows}, overlaps)

    def _telling(self) -> np.ndarray:
        """[G] whether training rows hold the n-gram, and not as a common wording."""
        return ((self.rows_with > 0) & (self.rows_with <= COMMON))[self.which]

    def _shares(self) -> np.ndarray:
        """[N] of the words that are no common wording, how many stand in n-grams of training rows; 0 for few words."""
        import numpy as np

        common = _covered(self.starts[(self.rows_with > COMMON)[self.which]], int(self.lengths.sum()))
        met = _covered(self.starts[self._telling()], int(self.lengths.sum())) & ~common
        row = np.repeat(np.arange(len(self.lengths)), self.lengths)
        own = np.bincount(row, ~common, len(self.lengths))
        return np.where(own >= GRAM, np.bincount(row, met, len(self.lengths)) / np.maximum(own, 1), 0.0)

    def _source(self, place: int) -> str:
        """The training row in which most of a row's n-grams stand first."""
        import numpy as np

        end = int(self.lengths[: place + 1].sum())
        own = (self.starts >= end - self.lengths[place]) & (self.starts < end) & self._telling()
        return self.train_ids[int(np.bincount(self.first[self.which[own]]).argmax())]


@dataclass(frozen=True)
class _Chunk:
    rows: Sequence[Any]
    lengths: np.ndarray
    """[N] words of each."""
    grams: np.ndarray
    """[G] n-grams of the rows, none across two of them."""
    starts: np.ndarray
    """[G] the first word of each among those of the chunk."""


class _Words:
    """Numbers words, so that an n-gram is a sum."""

    def __init__(self) -> None:
        import numpy as np

        self.numbers: dict[Any, int] = {}
        self.factors = np.random.default_rng(0).integers(1, 2**63, GRAM, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

    def chunks(self, rows: Iterable[Any], of: Any) -> Iterator[_Chunk]:
        """Rows with their n-grams, CHUNK words at a time; `of` takes the record out of a row."""
        held: list[Any] = []
        ids: list[int] = []
        lengths: list[int] = []
        for row in rows:
            own = [self.numbers.setdefault(word, len(self.numbers) + 1) for word in _words(of(row))]
            held.append(row)
            ids += own
            lengths.append(len(own))
            if len(ids) >= CHUNK:
                yield self._chunk(held, ids, lengths)
                held, ids, lengths = [], [], []
        if held:
            yield self._chunk(held, ids, lengths)

    def _chunk(self, rows: Sequence[Any], ids: Sequence[int], lengths: Sequence[int]) -> _Chunk:
        import numpy as np

        words, many = np.array(ids, np.uint64), np.array(lengths, np.int64)
        count = max(0, len(words) - GRAM + 1)
        grams = np.zeros(count, np.uint64)
        for place, factor in enumerate(self.factors):
            grams += words[place : place + count] * factor  # wraps, as a hash may
        row = np.repeat(np.arange(len(many)), many)
        starts = np.flatnonzero(row[:count] == row[GRAM - 1 :][:count])
        return _Chunk(rows, many, grams[starts], starts)


def _covered(starts: np.ndarray, words: int) -> np.ndarray:
    """[words] whether each stands in an n-gram that begins at one of these."""
    import numpy as np

    change = np.zeros(words + 1, np.int64)
    np.add.at(change, starts, 1)
    np.add.at(change, starts + GRAM, -1)
    return np.cumsum(change)[:words] > 0


def _words(record: Record) -> Sequence[Any]:
    """The words of prompt and answer; of a block of a corpus its tokens."""
    if record.tokens is not None:
        return record.tokens.tolist()
    return WORD.findall(_plain("\n".join(_texts(record))))


def _keys(record: Record) -> tuple[bytes, bytes]:
    """(of the prompt, of the answer), equal where they differ in case, width or spaces only."""
    if record.tokens is not None:
        return key_of(repr(record.tokens.tobytes())), b""
    prompt, answer = _texts(record)
    return _key(prompt), _key(answer)


def _key(text: str) -> bytes:
    return key_of(repr(" ".join(_plain(text).split())))


def _texts(record: Record) -> tuple[str, str]:
    """(prompt, answer)."""
    if record.turns:
        return "\n".join(turn.words for turn in record.prompt), record.reference or ""
    given = [value for name, value in record.columns.items() if name not in ANSWER_COLUMNS]
    right = [value for name, value in record.columns.items() if name in ANSWER_COLUMNS]
    return "\n".join(map(_text, given)), "\n".join(map(_text, right))


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
