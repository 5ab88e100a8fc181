"""One template renders training rows, evaluation prompts and chat alike.

A rendering alternates what the model is given and what it must produce. Each part is tokenised on its own, so that the
tokens of a training prompt are, by construction, the tokens of the prompt at evaluation and in chat.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from ghosttune.data.chat_templates import Allowance, chat_text, marked_by, shows_images
from ghosttune.data.omissions import labelled, lost_from, unsaid_in
from ghosttune.data.turns import IMAGE_MARK, Turn, images_of
from ghosttune.errors import ModelError, listed

MARK = "zqContextzq"
"""Stands for what a user says when a template is asked where it puts that."""

Spans = tuple[tuple[int, int], ...]
"""(first character, end) of stretches of a text."""


@dataclass(frozen=True)
class Part:
    """A stretch of text that is either given to the model or (`answer`) produced by it, stop token included."""

    text: str
    answer: bool = False
    after: str = ""
    """What to tokenise in front of the text, and drop again, where the tokenizer would otherwise take the text for the
    beginning of a document and put a space before it; empty where there is no difference."""
    trained: Spans | None = None
    """Characters that train, where the row or the template's own marks say; None: all of an answer, nothing else."""
    images: tuple[str, ...] = ()
    """What the places of images in the text stand for, in order."""


@dataclass(frozen=True)
class Pictures:
    """How a model's texts show images."""

    token: str
    """Stands in a rendered text once for each image."""
    shown: str
    """The token with what its chat template writes around it."""

    @cached_property
    def place(self) -> re.Pattern[str]:
        """Where an image stands in a rendered text."""
        return re.compile(f"{re.escape(self.shown)}|{re.escape(self.token)}")


class Template:
    """Renders turns into parts for one tokenizer; `kind` is `chat`, `turns` or `plain`.

    Raises ModelError when the tokenizer lacks what the kind needs: an end-of-text token, or a chat template whose
    answers end with a special token.
    """

    def __init__(self, kind: str, tokenizer: Any):
        self.kind = kind
        self.tokenizer = tokenizer
        self.pictures: Pictures | None = None
        """None for a model that sees none."""
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

    def render(self, turns: Sequence[Turn], marked: bool = True) -> list[Part]:
        """The parts of a whole row, answers with their stop tokens; turns after the last answer are left out.

        `marked`: what trains is what the template itself marks as the assistant's, where it does. ModelError where the
        template leaves out or rewrites what the row holds.
        """
        return self._parts(turns, asks=False, marked=marked)

    def prompt(self, turns: Sequence[Turn]) -> list[Part]:
        """The parts up to where the model speaks next."""
        return self._parts(turns, asks=True)

    def answered(self, turns: Sequence[Turn], answer: Turn) -> str:
        """What the template writes for this answer to the turns, without the stop token.

        ModelError where it leaves out something of it, or does not write it behind the prompt.
        """
        allowance = Allowance()
        whole = self._rendered(self.written((*turns, answer), allowance=allowance), False, allowance)
        start = self._start(turns, whole, allowance)
        end = self._end(answer, whole, start)
        if end < 0:
            raise self._unproven(turns, whole, allowance)
        return whole[start : end - len(self.stop_token)]

    def context(self, turns: Sequence[Turn], asks: bool) -> list[tuple[int, int]]:
        """For each part of `render` (`asks`: of `prompt`), the characters that may go when a row is too long.

        They are the user's words, except the last line, which asks for the answer. The template is asked where it puts
        them, because they may also occur in its own markup.
        """
        marked = [replace(turn, content=MARK, images=()) if turn.role == "user" else turn for turn in turns]
        shapes = self._parts(marked, asks)
        return [_cuttable(part, shape) for part, shape in zip(self._parts(turns, asks), shapes, strict=True)]

    def written(self, turns: Sequence[Turn], asks: bool = False, allowance: Allowance | None = None) -> Sequence[Turn]:
        """The turns without the reasoning that the template leaves out by a rule of its own, as Qwen3's does of earlier
        answers. ModelError where it leaves out anything else, or writes no reasoning at all."""
        if not any(turn.has_more for turn in turns):
            return turns
        allowance = allowance or Allowance()
        if self.kind != "chat":
            raise ModelError(
                f"data.template: {self.kind} writes no tools, calls or reasoning, and the row has some; use "
                "data.template: chat and a tokenizer whose chat template writes them"
            )
        text = self._rendered(labelled(turns), asks, allowance)
        if lost := lost_from(text, turns):
            raise ModelError(
                f"the chat template leaves out {listed(lost)}, so that the model would not see it; use a "
                "tokenizer whose chat template writes all of it, or do without"
            )
        unsaid = unsaid_in(text, turns)
        if unsaid and not self._writes_reasoning:
            raise ModelError(
                "the chat template writes no reasoning (reasoning_content, thinking), which the row has; use a "
                "tokenizer whose chat template does, or take it out of the rows"
            )
        return tuple(replace(turn, reasoning=None) if place in unsaid else turn for place, turn in enumerate(turns))

    @cached_property
    def _writes_reasoning(self) -> bool:
        """Whether the chat template writes what the assistant thinks before its last answer."""
        turns = (Turn("user", "zq question zq"), Turn("assistant", "zq answer zq", reasoning=MARK))
        return MARK in chat_text(self.tokenizer, turns, opens_answer=False)

    def _parts(self, turns: Sequence[Turn], asks: bool, marked: bool = False) -> list[Part]:
        if turns[0].role == "text":
            return self._joined([(turns[0].content + self.stop_token, True, None)], self.opening)
        answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
        if not answers and not asks:
            return []
        allowance = Allowance()
        turns = self.written(turns if asks else turns[: answers[-1] + 1], asks, allowance)
        whole = self._rendered(turns, asks, allowance)
        marks = marked_by(self.tokenizer, turns, allowance) if marked and self.kind == "chat" else None
        texts: list[tuple[str, bool, Spans | None]] = []
        done = 0
        for place in answers:
            start = self._start(turns[:place], whole, allowance)
            end = self._end(turns[place], whole, start)
            trains = turns[place].trains
            if start < done or end < start:
                if trains and not asks:
                    raise self._unproven(turns[:place], whole, allowance)
                continue  # it is context alone, written as the template does once more is said
            for first, last, answer in ((done, start, False), (start, end, True)):
                texts.append((whole[first:last], answer, _trained(marks, first, last, answer, trains)))
            done = end
        if asks:
            texts.append((whole[done:], False, None))
        opening = "" if self.kind == "chat" else self.opening  # chat templates write their own
        return self._showing(self._joined(texts, opening), images_of(turns))

    def _start(self, turns: Sequence[Turn], whole: str, allowance: Allowance) -> int:
        """Where the model's next words stand in the whole text; -1 where it does not begin with its prompt."""
        given = self._rendered(turns, True, allowance)
        return len(given) if whole.startswith(given) else -1

    def _end(self, turn: Turn, whole: str, start: int) -> int:
        """Where the answer's stop token ends; -1 where it has none, or other words."""
        place = start
        for said in (turn.reasoning or "", turn.content):
            found = whole.find(said.strip(), max(0, place))
            if found < 0:
                return -1
            place = found + len(said.strip()) if said.strip() else place
        found = whole.find(self.stop_token, max(0, place))
        return -1 if found < 0 or start < 0 else found + len(self.stop_token)

    def _unproven(self, turns: Sequence[Turn], whole: str, allowance: Allowance) -> ModelError:
        """Why an answer behind these turns cannot be told from what is given."""
        if not whole.startswith(self._rendered(turns, False, allowance)):
            return ModelError(
                "the chat template rewrites earlier turns when a later one is added, so that the prompt of training "
                "would not be the prompt of chat; use data.template: turns, or data.loss_on: last_turn"
            )
        return ModelError(
            f"the chat template does not put the answer and {self.stop_token} behind its own generation prompt; "
            "use data.template: turns"
        )

    def _joined(self, texts: list[tuple[str, bool, Spans | None]], opening: str) -> list[Part]:
        """The parts, each knowing what it follows; only the first text is the beginning of a document."""
        parts = [Part(opening)] if opening else []
        before = ""
        for text, answer, trained in texts:
            parts.append(Part(text, answer, self._tail(before), trained))
            before = text
        return parts

    def _showing(self, parts: list[Part], images: tuple[str, ...]) -> list[Part]:
        """The parts with the images that their texts have places for; ModelError where these are more or fewer."""
        if self.pictures is None:
            return parts
        places = [len(self.pictures.place.findall(part.text)) for part in parts]
        if sum(places) != len(images):
            raise ModelError(
                f"its text has {sum(places)} places for images ({self.pictures.token}) and shows {len(images)}; write "
                f"{IMAGE_MARK} once for each image and {self.pictures.token} nowhere else, or use data.template: turns"
            )
        ends = list(accumulate(places))
        return [
            replace(part, images=images[end - count : end])
            for part, count, end in zip(parts, places, ends, strict=True)
        ]

    def _tail(self, before: str) -> str:
        """As much of the preceding text as decides how the next one is tokenised."""
        if not before or not self._joint:
            return ""
        return next((token for token in self._specials if before.endswith(token)), self._joint)

    def _rendered(self, turns: Sequence[Turn], opens_answer: bool, allowance: Allowance) -> str:
        """The turns as one text, without the opening."""
        if images_of(turns):
            turns = self._with_places(turns)
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

    def _with_places(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns with the model's own words where they show images, unless its chat template writes them."""
        if self.pictures is None:
            raise ModelError(
                f"it shows an image ({IMAGE_MARK}), and this model reads text alone; take a model that sees, such as "
                "LLaVA 1.5, or rows without images"
            )
        if self.kind == "chat" and shows_images(self.tokenizer):
            return turns
        shown = self.pictures.shown
        return [
            replace(turn, content=turn.content.replace(IMAGE_MARK, shown), images=()) if turn.images else turn
            for turn in turns
        ]


def _trained(marks: Spans | None, first: int, last: int, answer: bool, trains: bool) -> Spans | None:
    """Which characters of the text between `first` and `last` train, by what the template marks in the whole.

    None where that is all of an answer, or nothing of what is given.
    """
    if not trains:
        return () if answer else None
    if marks is None:
        return None
    inside = tuple(
        (max(start, first) - first, min(end, last) - first) for start, end in marks if start < last and end > first
    )
    usual = ((0, last - first),) if answer else ()
    return None if inside == usual else inside


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
