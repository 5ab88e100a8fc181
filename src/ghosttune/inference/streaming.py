"""One answer, piece by piece as it is written, up to a stop string, the stop token or the limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
    """`stop` (stop token or stop string), `length` (the limit), or `interrupted` (whoever listened had enough)."""


def reply(
    model: Any,
    tokenizer: Any,
    prompt: list[int],
    stop_token_ids: list[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stops: Sequence[str] = (),
    tell: Tell | None = None,
) -> Reply:
    """The answer to one prompt (token ids); the pieces that `tell` hears add up to its text.

    The text is that of `generate` for the same prompt, cut before the first of the `stops`.
    """
    text = TextStream(tokenizer, stops)
    interrupted = False

    def watch(row: int, token: int) -> bool:
        nonlocal interrupted
        piece = "" if token in stop_token_ids else text.add(token)
        interrupted = bool(tell(piece)) if tell else False
        return interrupted or text.met_stop

    ids = decode(model, [prompt], stop_token_ids, max_new_tokens, chooser(sampling), watch)[0]
    rest = text.finish()
    if rest and tell:
        tell(rest)
    stopped = text.met_stop or ids[-1] in stop_token_ids
    ended = "stop" if stopped else "interrupted" if interrupted else "length"
    return Reply(text.said, len(ids), len(prompt), ended)


class TextStream:
    """Tokens as text that never has to be taken back.

    Held back are the bytes of an unfinished character, what may turn out to be a stop string, and blanks that may
    turn out to be the end; blanks at the beginning are left out, so that what was said is the stripped whole.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()):
        self.said = ""
        self.met_stop = False
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._ids: list[int] = []

    def add(self, token: int) -> str:
        """The text that is certain since the last call."""
        self._ids.append(token)
        whole = text_of(self._tokenizer, self._ids)
        return self._certain(whole.rstrip(UNFINISHED), ended=False)

    def finish(self) -> str:
        """The text that was held back and no longer has to be."""
        return self._certain(text_of(self._tokenizer, self._ids), ended=True)

    def _certain(self, whole: str, ended: bool) -> str:
        places = [place for stop in self._stops if (place := whole.find(stop)) >= 0]
        if places:
            self.met_stop = True
            whole = whole[: min(places)]
        elif not ended:
            whole = whole[: len(whole) - max((_begun(whole, stop) for stop in self._stops), default=0)]
        text = whole.strip()
        piece = text[len(self.said) :]
        self.said += piece
        return piece


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of the text may be the beginning of the stop string."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)
