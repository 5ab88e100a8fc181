"""What is said in a row, turn by turn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

TOOLS = "tools"
"""Role of the turn that says which tools there are; it stands before all others."""

IMAGE_MARK = "<image>"
"""Stands in the words of a turn where it shows an image."""

TOOL = "tool"
"""Role of a tool that answers a call."""


@dataclass(frozen=True)
class Call:
    """A tool that the assistant calls."""

    name: str
    arguments: str
    """JSON text of an object."""
    id: str | None = None

    @property
    def message(self) -> dict[str, Any]:
        """As messages hold it, in OpenAI's form with the arguments as an object."""
        named = {"id": self.id} if self.id is not None else {}
        return {**named, "type": "function", "function": {"name": self.name, "arguments": json.loads(self.arguments)}}


@dataclass(frozen=True)
class Turn:
    """What one side says; role `text` marks a row that is plain text without sides, `tools` what there is to call."""

    role: str
    content: str
    """Of the role `tools`, the JSON text of a list of OpenAI's function schemas."""
    reasoning: str | None = None
    """What the assistant thinks before it answers."""
    calls: tuple[Call, ...] = ()
    """What the assistant calls behind its words."""
    name: str | None = None
    """Of the tool that answers."""
    call_id: str | None = None
    """Of the call that a tool answers."""
    trains: bool = True
    """Whether an assistant's turn may be trained."""
    images: tuple[str, ...] = ()
    """What each IMAGE_MARK in the words stands for: the path of a file, or a data: URL."""

    @property
    def has_more(self) -> bool:
        """Whether it is more than words of the system, the user or the assistant."""
        return self.reasoning is not None or bool(self.calls) or self.role in (TOOLS, TOOL)

    @property
    def words(self) -> str:
        """All of it as one text: the reasoning, the words, and each call as JSON on a line of its own."""
        if self.reasoning is None and not self.calls:
            return self.content
        return "\n".join(part for part in (self.reasoning, self.answer) if part)

    @property
    def answer(self) -> str:
        """The words and the calls, without the reasoning."""
        calls = (json.dumps(call.message["function"], ensure_ascii=False) for call in self.calls)
        return "\n".join(part for part in (self.content, *calls) if part) if self.calls else self.content

    @property
    def message(self) -> dict[str, Any]:
        """As a chat template gets it and rows hold it; keys that would say nothing are left out."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [call.message for call in self.calls]
        if self.name is not None:
            message["name"] = self.name
        if self.call_id is not None:
            message["tool_call_id"] = self.call_id
        return message


def images_of(turns: Sequence[Turn]) -> tuple[str, ...]:
    """All images that the turns show, in order."""
    return tuple(image for turn in turns for image in turn.images)


def opening_turns(turns: Sequence[Turn]) -> int:
    """How many turns stand before the first question: the tools, the system message."""
    return next((place for place, turn in enumerate(turns) if turn.role not in (TOOLS, "system")), len(turns))


def tools_of(turns: Sequence[Turn]) -> list[dict[str, Any]] | None:
    """The schemas of the tools there are; None where there are none."""
    return json.loads(turns[0].content) if turns and turns[0].role == TOOLS else None


def only_last_trained(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns, of which only the last of the assistant's may be trained."""
    last = max((place for place, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    return tuple(
        replace(turn, trains=turn.trains and place == last) if turn.role == "assistant" else turn
        for place, turn in enumerate(turns)
    )
