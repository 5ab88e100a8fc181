"""One template renders training rows, evaluation prompts and chat alike.

A rendering alternates what the model is given and what it must produce. Each part is tokenised on its own, so that the
tokens of a training prompt are, by construction, the tokens of the prompt at evaluation and in chat.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ghosttune.data.chat_templates import Allowance, chat_text
from ghosttune.data.records import Turn
from ghosttune.errors import ModelError

MARK = "zqContextzq"
"""Stands for what a user says when a template is asked where it puts that."""


@dataclass(frozen=True)
class Part:
    """A stretch of text that is either given to the model or (`answer`) produced by it, stop token included."""

    text: str
    answer: bool = False
    after: str = ""
    """What to tokenise in front of the text, and drop again, where the tokenizer would otherwise take the text for the
    beginning of a document and put a space before it; empty where there is no difference."""


class Template:
    """Renders turns into parts for one tokenizer; `kind` is `chat`, `turns` or `plain`.

    Raises ModelError when the tokenizer lacks what the kind needs: an end-of-text token, or a chat template whose
    answers end with a special token.
    """

    def __init__(self, kind: str, tokenizer: Any):
        self.kind = kind
        self.tokenizer = tokenizer
        self.opening = _default_opening(tokenizer)
        if kind != "chat" and tokenizer.eos_token is None:
            raise ModelError("the tokenizer has no end-of-text token, so that answers could not learn to stop")
        self.stop_token = _chat_stop_token(tokenizer) if kind == "chat" else tokenizer.eos_token
        self._joint = _joint(tokenizer)
        self._specials = _special_tokens(tokenizer)

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids at which generation stops: the trained stop token, and the tokenizer's own end of text."""
        own = self.tokenizer.convert_tokens_to_ids(self.stop_token)
        return sorted({own, self.tokenizer.eos_token_id} - {None})

    def render(self, turns: Sequence[Turn]) -> list[Part]:
        """The parts of a whole row, answers with their stop tokens; turns after the last answer are left out."""
        return self._parts(turns, asks=False)

    def prompt(self, turns: Sequence[Turn]) -> list[Part]:
        """The parts up to where the model speaks next."""
        return self._parts(turns, asks=True)

    def context(self, turns: Sequence[Turn], asks: bool) -> list[tuple[int, int]]:
        """For each part of `render` (`asks`: of `prompt`), the characters that may go when a row is too long.

        They are the user's words, except the last line, which asks for the answer. The template is asked where it puts
        them, because they may also occur in its own markup.
        """
        marked = [replace(turn, content=MARK) if turn.role == "user" else turn for turn in turns]
        shapes = self._parts(marked, asks)
        return [_cuttable(part, shape) for part, shape in zip(self._parts(turns, asks), shapes, strict=True)]

    def _parts(self, turns: Sequence[Turn], asks: bool) -> list[Part]:
        if turns[0].role == "text":
            return self._joined([(turns[0].content + self.stop_token, True)], self.opening)
        texts: list[tuple[str, bool]] = []
        done, allowance = "", Allowance()
        for position, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            given = self._given(turns[:position], done, allowance)
            answer = self._answer(turns[: position + 1], done + given, allowance)
            texts += [(given, False), (answer, True)]
            done += given + answer
        if asks:
            texts.append((self._given(turns, done, allowance), False))
        return self._joined(texts, "" if self.kind == "chat" else self.opening)  # chat templates write their own

    def _joined(self, texts: list[tuple[str, bool]], opening: str) -> list[Part]:
        """The parts, each knowing what it follows; only the first text is the beginning of a document."""
        parts = [Part(opening)] if opening else []
        before = ""
        for text, answer in texts:
            parts.append(Part(text, answer, self._tail(before)))
            before = text
        return parts

    def _tail(self, before: str) -> str:
        """As much of the preceding text as decides how the next one is tokenised."""
        if not before or not self._joint:
            return ""
        return next((token for token in self._specials if before.endswith(token)), self._joint)

    def _given(self, turns: Sequence[Turn], done: str, allowance: Allowance) -> str:
        """What stands between the end of `done` and the model's next word."""
        whole = self._rendered(turns, True, allowance)
        if not whole.startswith(done):
            raise ModelError(
                "the chat template rewrites earlier turns when a later one is added, so that the prompt of training "
                "would not be the prompt of chat; use data.template: turns"
            )
        return whole[len(done) :]

    def _answer(self, turns: Sequence[Turn], begun: str, allowance: Allowance) -> str:
        """What stands behind `begun`, up to and with the stop token."""
        whole = self._rendered(turns, False, allowance)
        content = turns[-1].content.strip()
        start = whole.find(content, len(begun))
        end = whole.find(self.stop_token, start + len(content))
        if not whole.startswith(begun) or start < 0 or end < 0:
            raise ModelError(
                f"the chat template does not put the answer and {self.stop_token} behind its own generation prompt; "
                "use data.template: turns"
            )
        return whole[len(begun) : end + len(self.stop_token)]

    def _rendered(self, turns: Sequence[Turn], opens_answer: bool, allowance: Allowance) -> str:
        """The turns as one text, without the opening."""
        if self.kind == "chat":
            return chat_text(self.tokenizer, turns, opens_answer, allowance)
        if self.kind == "plain":
            behind = {"system": "\n\n", "user": "", "assistant": self.stop_token}
            return "".join(turn.content + behind[turn.role] for turn in turns)
        lines = [
            f"{turn.role.title()}: {turn.content}" + (self.stop_token if turn.role == "assistant" else "")
            for turn in turns
        ]
        return "\n".join([*lines, "Assistant:"] if opens_answer else lines)


def _cuttable(part: Part, shape: Part) -> tuple[int, int]:
    """Where the user's words stand in the part, without their last line; `shape` has MARK in their place."""
    head, mark, tail = shape.text.partition(MARK)
    fits = part.text.startswith(head) and part.text.endswith(tail) and len(part.text) >= len(head) + len(tail)
    if part.answer or not mark or not fits:
        return (0, 0)
    start, end = len(head), len(part.text) - len(tail)
    return start, end - _cue_length(part.text[start:end])


def _cue_length(text: str) -> int:
    """Characters of the last line, which asks for the answer; 0 when the text is one line and all of it is context."""
    last_break = text.rstrip("\n").rfind("\n")
    return len(text) - last_break if last_break >= 0 else 0


def _default_opening(tokenizer: Any) -> str:
    """The token that the tokenizer itself puts before a text, if it does."""
    ids = tokenizer("").input_ids
    return tokenizer.bos_token if ids and ids[0] == tokenizer.bos_token_id else ""


def _joint(tokenizer: Any) -> str:
    """A text after which a word is tokenised as a continuation; empty where that makes no difference."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    for joint in ("\n", ":", "0"):
        own, both = ids(joint), ids(joint + "word")
        if both[: len(own)] == own:
            return "" if both[len(own) :] == ids("word") else joint
    return ""


def _special_tokens(tokenizer: Any) -> list[str]:
    """The tokens that stand for themselves wherever they occur, longest first."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if str(token).strip()}
    return sorted(added | set(tokenizer.all_special_tokens), key=lambda token: (-len(token), token))


def _chat_stop_token(tokenizer: Any) -> str:
    """The special token that the chat template puts behind an answer."""
    answer = "zq answer zq"
    text = chat_text(tokenizer, (Turn("user", "zq question zq"), Turn("assistant", answer)), opens_answer=False)
    tail = text[text.rfind(answer) + len(answer) :] if answer in text else ""
    found = _first_of(_special_tokens(tokenizer), tail)
    if found is None:
        raise ModelError(
            "the chat template puts no special token behind an answer, so that answers could not learn to stop; "
            "use data.template: turns"
        )
    return found


def _first_of(tokens: Iterable[str], text: str) -> str | None:
    """The token that occurs first, the longest of those that begin there."""
    places = [(text.find(token), -len(token), token) for token in tokens if token in text]
    return min(places)[2] if places else None
