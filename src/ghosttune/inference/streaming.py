"""One answer, piece by piece as it is written, up to a stop string, the stop token or the limit; calls come whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ghosttune.data.turns import Call
from ghosttune.inference.calling import Calling
from ghosttune.inference.decoding import decode, text_of
from ghosttune.inference.sampling import GREEDY, Sampling, chooser

Tell = Callable[[str], bool | None]
"""Told each new piece of text, which may be empty; True ends the answer."""

UNFINISHED = "\ufffd"
"""What the first bytes of a character decode to while the others are not there yet."""


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


def reply(
    model: Any,
    tokenizer: Any,
    prompt: list[int],
    stop_token_ids: list[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stops: Sequence[str] = (),
    tell: Tell | None = None,
    calling: Calling | None = None,
) -> Reply:
    """The answer to one prompt (token ids); the pieces that `tell` hears add up to its text.

    The text is that of `generate` for the same prompt, cut before the first of the `stops`; with `calling`, its special
    tokens stay, and what calls tools is no part of it.
    """
    text = TextStream(tokenizer, stops, calling)
    interrupted = False

    def watch(row: int, token: int) -> bool:
        nonlocal interrupted
        piece = "" if token in stop_token_ids else text.add(token)
        interrupted = bool(tell(piece)) if tell else False
        return interrupted or text.met_stop

    ids = decode(model, [prompt], stop_token_ids, max_new_tokens, chooser(sampling), watch)[0]
    at_stop_token = ids[-1] in stop_token_ids
    rest = text.finish(at_stop_token)
    if rest and tell:
        tell(rest)
    stopped = text.met_stop or at_stop_token
    ended = "tool_calls" if text.calls else "stop" if stopped else "interrupted" if interrupted else "length"
    return Reply(text.said, len(ids), len(prompt), ended, text.calls)


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
