"""What a chat template leaves out of a row: asked of the same row with a label in the place of everything it may drop.

A label stands in the name and the parameters of each tool, in the arguments of each call, in what a tool answers, in
the words beside a call, and in the reasoning; what the text then lacks, the template does not write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ghosttune.data.turns import TOOL, TOOLS, Turn

LABEL = "zq{}zq{}zq"
"""Of kind and number: no text holds it, and no template changes its letters."""


def labelled(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with labels in the place of what a template may leave out."""
    return [_labelled(turn, place) for place, turn in enumerate(turns)]


def lost_from(text: str, turns: Sequence[Turn]) -> list[str]:
    """What the rendering of the labelled turns lacks, in words; reasoning is not among it."""
    return list(dict.fromkeys(what for label, what in _expected(turns) if label not in text))


def unsaid_in(text: str, turns: Sequence[Turn]) -> set[int]:
    """Places of the turns whose reasoning the rendering of the labelled turns lacks."""
    return {
        place
        for place, turn in enumerate(turns)
        if turn.reasoning is not None and LABEL.format("thought", place) not in text
    }


def _labelled(turn: Turn, place: int) -> Turn:
    if turn.role == TOOLS:
        return replace(turn, content=json.dumps([_tool(number) for number in range(_count(turn))]))
    if turn.role == TOOL:
        return replace(turn, content=LABEL.format("result", place))
    calls = tuple(
        replace(call, arguments=json.dumps({"argument": LABEL.format(f"call{number}", place)}))
        for number, call in enumerate(turn.calls)
    )
    said = LABEL.format("said", place) if turn.calls and turn.content.strip() else turn.content
    thought = None if turn.reasoning is None else LABEL.format("thought", place)
    return replace(turn, content=said, calls=calls, reasoning=thought)


def _expected(turns: Sequence[Turn]) -> Iterator[tuple[str, str]]:
    """(label, what it stands for)."""
    for place, turn in enumerate(turns):
        if turn.role == TOOLS:
            for number in range(_count(turn)):
                yield LABEL.format("tool", number), "tools"
                yield LABEL.format("parameter", number), "parameters of tools"
        elif turn.role == TOOL:
            yield LABEL.format("result", place), "what a tool answers"
        for number in range(len(turn.calls)):
            yield LABEL.format(f"call{number}", place), "tool_calls"
        if turn.calls and turn.content.strip():
            yield LABEL.format("said", place), "what the assistant says beside its tool_calls"


def _count(turn: Turn) -> int:
    return len(json.loads(turn.content))


def _tool(number: int) -> dict[str, object]:
    properties = {LABEL.format("parameter", number): {"type": "string", "description": "an argument"}}
    function = {
        "name": LABEL.format("tool", number),
        "description": "a tool",
        "parameters": {"type": "object", "properties": properties, "required": list(properties)},
    }
    return {"type": "function", "function": function}
