"""What a row says, in columns that read back as the same row."""

from __future__ import annotations

from typing import Any

from ghosttune.data.records import IMAGE, Record


def content(record: Record) -> dict[str, Any]:
    """`text`, `prompt` and `completion`, `messages` (with `image`, where they show one), or the columns of the task.

    Empty for a block of a corpus, which consists of tokens.
    """
    if record.tokens is not None:
        return {}
    roles = [turn.role for turn in record.turns]
    if not roles:
        return dict(record.columns)
    if roles == ["text"]:
        return {"text": record.turns[0].content}
    if roles == ["user", "assistant"] and IMAGE not in record.columns:
        return {"prompt": record.turns[0].content, "completion": record.turns[1].content}
    return {**record.columns, "messages": [{"role": turn.role, "content": turn.content} for turn in record.turns]}
