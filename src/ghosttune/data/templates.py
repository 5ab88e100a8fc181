"""One template renders training rows, evaluation prompts and chat alike.

A rendering alternates what the model is given and what it must produce. Each part is tokenised on its own, so that the
tokens of a training prompt are, by construction, the tokens of the prompt at evaluation and in chat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ghosttune.data.records import Turn
from ghosttune.errors import ModelError


@dataclass(frozen=True)
class Part:
    """A stretch of text that is either given to the model or (`answer`) produced by it, stop token included."""

    text: str
    answer: bool = False
    cuttable: tuple[int, int] = (0, 0)
    """Characters that may be dropped from the left when a row is too long: context, never the cue that ends a prompt."""


class Template:
    """Renders turns into parts for one tokenizer; `kind` is `chat`, `turns` or `plain`.

    Raises ModelError when the tokenizer lacks what the kind needs: an end-of-text token, or a chat template whose answers
    end with a special token.
    """

    def __init__(self, kind: str, tokenizer: Any):
        self.kind = kind
        self.tokenizer = tokenizer
        self.opening = "" if kind == "chat" else _default_opening(tokenizer)
        if kind != "chat" and tokenizer.eos_token is None:
            raise ModelError("the tokenizer has no end-of-text token, so that answers could not learn to stop")
        self.stop_token = _chat_stop_token(tokenizer) if kind == "chat" else tokenizer.eos_token

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids at which generation stops: the trained stop token, and the tokenizer's own end of text."""
        own = self.tokenizer.convert_tokens_to_ids(self.stop_token)
        return sorted({own, self.tokenizer.eos_token_id} - {None})

    def render(self, turns: Sequence[Turn]) -> list[Part]:
        """The parts of a whole row, answers with their stop tokens."""
        if turns[0].role == "text":
            return [Part(self.opening), Part(turns[0].content + self.stop_token, answer=True)]
        parts: list[Part] = []
        for position, turn in enumerate(turns):
            if turn.role == "assistant":
                parts += [self._given(turns[:position], before=parts), self._answer(turns[: position + 1])]
        return parts

    def prompt(self, turns: Sequence[Turn]) -> list[Part]:
        """The parts up to where the model speaks next."""
        parts = self.render(turns) if any(turn.role == "assistant" for turn in turns) else []
        return [*parts, self._given(turns, before=parts)]

    def _given(self, turns: Sequence[Turn], before: list[Part]) -> Part:
        """What stands between the end of `before` and the model's next word."""
        whole = self._rendered(turns, opens_answer=True)
        done = "".join(part.text for part in before)
        if not whole.startswith(done):
            raise ModelError(
                "the chat template rewrites earlier turns when a later one is added, so that the prompt of training would "
                "not be the prompt of chat; use data.template: turns"
            )
        text = whole[len(done) :]
        first = next(turn for turn in turns if turn.role == "user").content.strip()
        start = text.find(first) if not before else -1
        return Part(text, cuttable=(start, start + len(first) - _cue_length(first)) if start >= 0 else (0, 0))

    def _answer(self, turns: Sequence[Turn]) -> Part:
        given = self._rendered(turns[:-1], opens_answer=True)
        whole = self._rendered(turns, opens_answer=False)
        end = whole.find(self.stop_token, len(given) + len(turns[-1].content.strip()))
        if not whole.startswith(given) or end < 0:
            raise ModelError(
                f"the chat template does not put the answer and {self.stop_token} behind its own generation prompt; "
                "use data.template: turns"
            )
        return Part(whole[len(given) : end + len(self.stop_token)], answer=True)

    def _rendered(self, turns: Sequence[Turn], opens_answer: bool) -> str:
        if self.kind == "chat":
            messages = [{"role": turn.role, "content": turn.content} for turn in turns]
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens_answer)
        if self.kind == "plain":
            said = [turn.content + (self.stop_token if turn.role == "assistant" else "") for turn in turns]
            return self.opening + "".join(said)
        lines = [
            f"{turn.role.title()}: {turn.content}" + (self.stop_token if turn.role == "assistant" else "")
            for turn in turns
        ]
        return self.opening + "\n".join([*lines, "Assistant:"] if opens_answer else lines)


def _cue_length(text: str) -> int:
    """Characters of the last line, which asks for the answer; 0 when the text is one line and all of it is context."""
    last_break = text.rstrip("\n").rfind("\n")
    return len(text) - last_break if last_break >= 0 else 0


def _default_opening(tokenizer: Any) -> str:
    """The token that the tokenizer itself puts before a text, if it does."""
    ids = tokenizer("").input_ids
    return tokenizer.bos_token if ids and ids[0] == tokenizer.bos_token_id else ""


def _chat_stop_token(tokenizer: Any) -> str:
    """The special token that the chat template puts behind an answer."""
    answer = "zq answer zq"
    asked = [{"role": "user", "content": "zq question zq"}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(asked, tokenize=False)
    tail = text[text.rfind(answer) + len(answer) :]
    specials = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} | set(
        tokenizer.all_special_tokens
    )
    found = sorted((tail.find(token), token) for token in specials if token and token in tail)
    if not found:
        raise ModelError(
            "the chat template puts no special token behind an answer, so that answers could not learn to stop; "
            "use data.template: turns"
        )
    return found[0][1]
