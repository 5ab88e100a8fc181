"""What a row says, in columns that read back as the same row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ghosttune.data.preferences import LABEL, REJECTED
from ghosttune.data.records import Record
from ghosttune.data.showing import IMAGES
from ghosttune.data.turns import TOOLS, Turn, images_of, tools_of


def content(record: Record) -> dict[str, Any]:
    """`text`, `prompt` and `completion`, `messages` (with `images` and `tools`, where there are any), `prompt`,
    `chosen` and `rejected`, or the columns of the task.

    Empty for a block of a corpus, which consists of tokens.
    """
    if record.tokens is not None:
        return {}
    roles = [turn.role for turn in record.turns]
    if not roles:
        return dict(record.columns)
    if roles == ["text"]:
        return {"text": record.turns[0].content}
    if REJECTED in record.columns:
        return {"prompt": _prompt(record), "chosen": record.turns[-1].content, **record.columns}
    if LABEL in record.columns:
        return {"prompt": _prompt(record), "completion": record.turns[-1].content, **record.columns}
    images = images_of(record.turns)
    if roles == ["user", "assistant"] and not images and _is_words(record.turns[1]):
        return {"prompt": record.turns[0].content, "completion": record.turns[1].content}
    tools = tools_of(record.turns)
    beside = {**({IMAGES: list(images)} if images else {}), **({TOOLS: tools} if tools else {})}
    return {**record.columns, "messages": _messages(record.turns), **beside}


def _is_words(turn: Turn) -> bool:
    return turn == Turn(turn.role, turn.content)


def _prompt(record: Record) -> Any:
    """A text, or messages where it is more than one."""
    return record.prompt[0].content if len(record.prompt) == 1 else _messages(record.prompt)


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [turn.message | ({} if turn.trains else {"train": False}) for turn in turns if turn.role != TOOLS]
