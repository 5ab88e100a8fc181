"""Rows that say which answer is better: as the ordinary row with the better answer, and what is said beside it.

Pairs of answers, in the columns of TRL and of LLaMA-Factory: `chosen` and `rejected` behind a `prompt` (text or
messages), `messages`, `conversations` or `instruction`; both as whole conversations or texts that begin alike, which is
the prompt then; or an `output` of two answers. Single answers with a yes or no: `label`, or `kto_tag`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ghosttune.data.columns import RowFault, number_of, request, text_of, value_of
from ghosttune.data.files import Fields, shown

Answered = tuple[dict[str, Any], dict[str, Any]]
"""(`messages` that end with the better, or the only answer; `rejected` with its `margin`, or `label`)."""

REJECTED, LABEL, MARGIN = "rejected", "label", "margin"

CONVERSATIONS = ("messages", "conversations")
LABELS = (LABEL, "kto_tag")
UNREAD = ("tool_calls", "reasoning_content", "thinking")
WORDS = {"true": True, "false": False, "1": True, "0": False}


def _pair(fields: Fields) -> Answered:
    prompt = _prompt(fields)
    if "chosen" in fields:
        answers = [_messages(fields, "chosen", prompt), _messages(fields, REJECTED, prompt)]
    else:
        answers = _ranked(fields)
    if not prompt or max(map(len, answers)) > 1:
        prompt, answers = _apart(prompt, answers)
    faults = [name for name, said in zip(("chosen", REJECTED), answers, strict=True) if len(said) != 1]
    if faults:
        raise RowFault(f"{faults[0]} must be one answer of the assistant behind the prompt that both share")
    (chosen,), (rejected,) = answers
    beside: dict[str, Any] = {REJECTED: _answer(rejected, REJECTED)}
    if fields.get(MARGIN) is not None:
        beside[MARGIN] = number_of(fields[MARGIN], MARGIN)
    return {"messages": [*prompt, _as_assistant(_answer(chosen, "chosen"))]}, beside


def _judged(fields: Fields) -> Answered:
    column = next((name for name in LABELS if name in fields), LABEL)
    given = value_of(fields, column)
    label = given if isinstance(given, bool) else WORDS.get(str(given).strip().lower())
    if label is None:
        raise RowFault(f"{column} must be true or false, is {shown(given)}")
    conversation = next((fields[name] for name in CONVERSATIONS if isinstance(fields.get(name), list)), None)
    if conversation is None:
        prompt = _prompt(fields)
        conversation = [*prompt, *_messages(fields, "completion" if "completion" in fields else "output", prompt)]
    return {"messages": conversation}, {LABEL: label}


def _prompt(fields: Fields) -> list[Any]:
    """Messages before the answer; none where both answers hold them."""
    for name in (*CONVERSATIONS, "prompt"):
        if isinstance(fields.get(name), list):
            return fields[name]
    if fields.get("prompt") is not None:
        return [{"role": "user", "content": text_of(fields, "prompt")}]
    if "instruction" not in fields:
        return []
    about = text_of(fields, "input", may_be_empty=True) if fields.get("input") is not None else ""
    return [{"role": "user", "content": request(text_of(fields, "instruction"), about)}]


def _messages(fields: Fields, column: str, prompt: Sequence[Any]) -> list[Any]:
    """The messages in a column; a text is the assistant's."""
    value = value_of(fields, column)
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        return [value]
    if not prompt and column == "completion":
        raise RowFault("has no prompt")
    return [_as_assistant(text_of(fields, column))]


def _ranked(fields: Fields) -> list[list[Any]]:
    """The answers of an `output` that holds the better one first."""
    output = value_of(fields, "output")
    if not isinstance(output, list) or len(output) != 2 or not all(isinstance(text, str) for text in output):
        raise RowFault(
            f"output must be two answers, the better first (or give chosen and rejected), is {shown(output)}"
        )
    return [[_as_assistant(text)] for text in output]


def _apart(prompt: list[Any], answers: list[list[Any]]) -> tuple[list[Any], list[list[Any]]]:
    """(what both begin with, what is left of each), of whole conversations or of texts."""
    if max(map(len, answers)) > 1:
        shared = answers[0][: _shared(*answers)]
        if prompt and (not shared or _said(shared[-1]) != _said(prompt[-1])):
            raise RowFault("chosen and rejected are conversations that do not both begin with the prompt")
        if not shared:
            raise RowFault("chosen and rejected are conversations that have no beginning in common, and no prompt")
        return shared, [said[len(shared) :] for said in answers]
    texts = [_said(said[0]) if said else "" for said in answers]
    if not all(isinstance(text, str) for text in texts):
        raise RowFault("chosen and rejected have no prompt")
    shared_text = texts[0][: _shared(*texts)]
    if shared_text.endswith(" "):  # a blank is the beginning of the next word
        shared_text = shared_text[:-1]
    if not shared_text.strip():
        raise RowFault("chosen and rejected begin differently and there is no prompt")
    rest = [[_as_assistant(text[len(shared_text) :])] for text in texts]
    return [{"role": "user", "content": shared_text}], rest


def _shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How far both begin alike."""
    alike = (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return next(alike, min(len(first), len(second)))


def _said(message: Any) -> Any:
    return message.get("content", message.get("value")) if isinstance(message, dict) else None


def _answer(message: Any, column: str) -> str:
    """The text of an assistant's message."""
    role = message.get("role", message.get("from")) if isinstance(message, dict) else None
    text = _said(message)
    if role not in ("assistant", "gpt", "model"):
        raise RowFault(f"{column} must be an answer of the assistant, is {shown(message)}")
    unread = next((name for name in UNREAD if message.get(name)), None)
    if unread:
        raise RowFault(f"{column} has {unread}; answers that are compared are text alone")
    if not isinstance(text, str) or not text.strip():
        raise RowFault(f"{column} is empty" if isinstance(text, str) else f"{column} must be text, is {shown(text)}")
    return text


def _as_assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PREFERENCE_COLUMNS: dict[str, list[tuple[str, ...]]] = {
    "preference": [("prompt", "chosen", "rejected"), ("chosen", "rejected"), ("instruction", "output")],
    "unpaired_preference": [
        ("prompt", "completion", "label"),
        *((answer, label) for label in LABELS for answer in (*CONVERSATIONS, "completion", "output")),
    ],
}
"""Columns of each format, in the ways in which they may be given."""

PREFERENCES_READ: dict[str, tuple[str, ...]] = {
    "preference": ("prompt", *CONVERSATIONS, "instruction", "input", "output", "chosen", REJECTED, MARGIN),
    "unpaired_preference": ("prompt", *CONVERSATIONS, "instruction", "input", "output", "completion", *LABELS),
}
"""All columns that a format takes something from."""

READ_PREFERENCES: dict[str, Callable[[Fields], Answered]] = {"preference": _pair, "unpaired_preference": _judged}
