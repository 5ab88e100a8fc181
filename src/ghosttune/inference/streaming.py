"""One answer, piece by piece as it is written, up to a stop string, the stop token or the limit; calls come whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ghosttune.data.turns import Call
from ghosttune.inference.calling import Calling
from ghosttune.inference.constraining import Constraint
from ghosttune.inference.decoding import decode, text_of
from ghosttune.inference.sampling import GREEDY, Sampling, chooser

Tell = Callable[[str], bool | None]
"""Told each new piece of text, which may be empty; True ends the answer."""

UNFINISHED = "\ufffd"
"""What the first bytes of a character decode to while the others are not there yet."""


@dataclass(frozen=True)
class Noted:
    """How likely a token was that was written, and which were likeliest in its place; in nats, at temperature 1."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Reply:
    """One answer, and what it took."""

    text: str
    tokens: int
    """New tokens, the stop token included."""
    prompt_tokens: int
    ended: str
    """`stop` (stop token or stop string), `tool_calls` (the same, with calls), `length` (the limit), or `interrupted`
    (whoever listened had enough)."""
    calls: tuple[Call, ...] = ()
    """The tools it calls behind its text."""
    noted: tuple[Noted, ...] = ()
    """One for each new token, where they were to be noted."""
    began: float | None = field(default=None, compare=False)
    """When its first token was there, by `time.monotonic`."""


@dataclass(frozen=True)
class Wanted:
    """How an answer is to be written."""

    stop_token_ids: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    stops: Sequence[str] = ()
    calling: Calling | None = None
    """Reads calls from the answer."""
    likeliest: int | None = None
    """Notes each token with so many of the likeliest in its place; None notes none."""
    constraint: Constraint | None = None
    """What the answer is kept to."""


class Writing:
    """One answer while it is written: chooses its tokens, hears them, and knows when it has ended.

    The pieces that `tell` hears add up to the text of its reply.
    """

    def __init__(self, tokenizer: Any, prompt_tokens: int, wanted: Wanted, tell: Tell | None = None):
        self.has_ended = False
        self.noted: list[Noted] = []
        self.wanted, self._tell, self._prompt_tokens = wanted, tell, prompt_tokens
        self._text = TextStream(tokenizer, wanted.stops, wanted.calling)
        self._is_read = bool(tell or wanted.stops)
        self._choose = chooser(wanted.sampling)
        self._constraint = wanted.constraint.again() if wanted.constraint else None
        self._tokens, self._is_interrupted, self._at_stop_token = 0, False, False
        self._fetched = 0
        self._began: float | None = None

    def choose(self, logits: Any) -> int:
        """The next token, by logits [V]."""
        allowed = self._constraint.masked(logits) if self._constraint else logits
        token = int(self._choose(allowed[None], [0])[0])
        if self.wanted.likeliest is not None:
            self.noted.append(_noted(logits, token, self.wanted.likeliest))
        return token

    def add(self, token: int) -> bool:
        """Hears the next token; whether the answer has ended with it."""
        if self._constraint:
            self._constraint.follow(token)
        self._began = self._began or time.monotonic()
        self._tokens += 1
        self._at_stop_token = token in self.wanted.stop_token_ids
        piece = "" if self._at_stop_token else self._text.add(token) if self._is_read else self._text.keep(token)
        self._is_interrupted = bool(self._tell(piece)) if self._tell else False
        is_full = self._tokens == self.wanted.max_new_tokens
        self.has_ended = self._is_interrupted or self._text.met_stop or self._at_stop_token or is_full
        return self.has_ended

    def news(self) -> list[Noted]:
        """What was noted since this was asked last."""
        new = self.noted[self._fetched :]
        self._fetched = len(self.noted)
        return new

    def interrupt(self) -> None:
        """Ends the answer where it stands, unless it has ended."""
        self._is_interrupted = self._is_interrupted or not self.has_ended
        self.has_ended = True

    def reply(self) -> Reply:
        """The answer; to be asked for once, when it has ended."""
        rest = self._text.finish(self._at_stop_token)
        if rest and self._tell:
            self._tell(rest)
        text = self._text
        stopped = text.met_stop or self._at_stop_token
        ended = (
            "tool_calls" if text.calls else "stop" if stopped else "interrupted" if self._is_interrupted else "length"
        )
        return Reply(text.said, self._tokens, self._prompt_tokens, ended, text.calls, tuple(self.noted), self._began)


def _noted(logits: Any, token: int, likeliest: int) -> Noted:
    shares = logits.float().log_softmax(dim=-1)
    best = shares.topk(min(likeliest, len(shares)))
    return Noted(token, float(shares[token]), list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


def written(model: Any, prompt: list[int], writing: Writing) -> Reply:
    """The answer to one prompt (token ids), written by itself.

    Its text is that of `generate` for the same prompt, cut before the first of the stop strings; where calls are read,
    its special tokens stay, and what calls tools is no part of it.
    """
    import torch

    def choose(logits: Any, rows: list[int]) -> Any:
        return torch.tensor([writing.choose(own) for own in logits], device=logits.device)

    wanted = writing.wanted
    stops = list(wanted.stop_token_ids)
    decode(model, [prompt], stops, wanted.max_new_tokens, choose, lambda row, token: writing.add(token))
    return writing.reply()


class TextStream:
    """Tokens as text that never has to be taken back.

    Held back are the bytes of an unfinished character, what may turn out to be a stop string or a call, and blanks that
    may turn out to be the end; blanks at the beginning are left out, so that what was said is the stripped whole.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), calling: Calling | None = None):
        self.said = ""
        self.met_stop = False
        self.calls: tuple[Call, ...] = ()
        self._tokenizer, self._stops, self._calling = tokenizer, [stop for stop in stops if stop], calling
        self._ids: list[int] = []

    def add(self, token: int) -> str:
        """The text that is certain since the last call."""
        self._ids.append(token)
        return self._certain(self._whole.rstrip(UNFINISHED), ended=False)

    def keep(self, token: int) -> str:
        """`add` where nobody reads what is certain: nothing, at no cost."""
        self._ids.append(token)
        return ""

    def finish(self, at_stop_token: bool = True) -> str:
        """The text that was held back and no longer has to be; `calls` are read where the model itself ended."""
        whole = self._whole
        found = self._calling.read(whole) if self._calling and at_stop_token and not self.met_stop else None
        if found:
            whole, self.calls = found
        return self._certain(whole, ended=True)

    @property
    def _whole(self) -> str:
        return text_of(self._tokenizer, self._ids, special=self._calling is not None)

    def _certain(self, whole: str, ended: bool) -> str:
        places = [place for stop in self._stops if (place := whole.find(stop)) >= 0]
        if places:
            self.met_stop = True
            whole = whole[: min(places)]
        elif not ended:
            held = len(whole) - max((_begun(whole, stop) for stop in self._stops), default=0)
            whole = whole[: min(held, _words_end(whole, self._calling)) if self._calling else held]
        text = whole.strip()
        piece = text[len(self.said) :]
        self.said += piece
        return piece


def _words_end(text: str, calling: Calling) -> int:
    """Where what may turn out to be calls begins in a text that is not yet at its end."""
    begun, opening, mark = text.lstrip(), calling.opening.lstrip(), calling.mark.lstrip()
    if begun.startswith(opening) or opening.startswith(begun):
        return 0
    found = text.find(mark) if mark else -1
    return found if found >= 0 else len(text) - _begun(text, mark)


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of the text may be the beginning of the stop string."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)
