"""Conversations as rows hold them: OpenAI's messages, and ShareGPT's turns in the columns of LLaMA-Factory.

`messages` are of role and content, `conversations` of from and value; either may be written in the other's names. An
assistant's message may hold `tool_calls` and reasoning, a `tool` answers, and `tools` beside them says what there is to
call. Null is as good as nothing, because Parquet writes it wherever another row has a value.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ghosttune.data.columns import RowFault
from ghosttune.data.files import Fields, shown
from ghosttune.data.turns import TOOL, TOOLS, Call, Turn
from ghosttune.errors import listed
from ghosttune.foreign import read_json

MESSAGES, SHAREGPT = "messages", "conversations"

SYSTEM = "system"
"""Role, and column beside `conversations`."""

ROLES = (SYSTEM, "user", "assistant", TOOL)
OTHER_ROLE_NAMES = {
    "human": "user",
    **dict.fromkeys(("gpt", "model", "chatgpt", "bing"), "assistant"),
    "observation": TOOL,
}
FUNCTION_CALL = "function_call"
"""ShareGPT's name for an assistant whose text is the JSON of a call, or of a list of calls."""

REASONING = ("reasoning_content", "thinking", "reasoning")
WEIGHTS = ("weight", "loss_weight")

FOLLOWERS = {
    "": (SYSTEM, "user"),
    SYSTEM: ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    FUNCTION_CALL: (TOOL,),
    TOOL: (TOOL, "assistant"),
}
"""What a message is -> whose message may stand behind it; nothing: which may stand first."""


def turns_of_messages(fields: Fields) -> tuple[Turn, ...]:
    """The turns of a conversation that ends with the assistant's, with the tools before them; RowFault says why not."""
    column = conversation_column(fields)
    messages = fields.get(column)
    if not isinstance(messages, list) or not messages:
        raise RowFault(f"{column} must be a list of messages, is {shown(messages)}")
    turns = tuple(_turn(message, position) for position, message in enumerate(messages))
    if turns[-1].role != "assistant":
        raise RowFault(f"the last message is the {turns[-1].role}'s; it must be the assistant's answer")
    require_order(turns)
    return (*tools_in(fields), *_system(fields, turns), *turns)


def conversation_column(fields: Fields) -> str:
    return SHAREGPT if SHAREGPT in fields and MESSAGES not in fields else MESSAGES


def columns_beside(column: str) -> set[str]:
    """Columns that a conversation is read from besides its own, which is this one."""
    return {TOOLS, SYSTEM} if column == SHAREGPT else {TOOLS}


def role_of(message: Fields) -> Any:
    """The role in our names; whatever stands in its place where it is none."""
    role = message.get("role", message.get("from"))
    if role == FUNCTION_CALL:
        return "assistant"
    return OTHER_ROLE_NAMES.get(role, role) if isinstance(role, str) else role


def require_order(turns: Sequence[Turn]) -> None:
    """RowFault where a message cannot stand behind the one before it, or answers a call that was not made."""
    before, calls = "", set[str | None]()
    for position, turn in enumerate(turns):
        if turn.role not in FOLLOWERS[before]:
            raise RowFault(_disorder(turns, position, before))
        if turn.role == TOOL and turn.call_id is not None and None not in calls and turn.call_id not in calls:
            raise RowFault(f"message {position} (tool) answers the call {turn.call_id!r}; made are {listed(calls)}")
        if turn.role == "assistant":
            calls = {call.id for call in turn.calls}
        before = FUNCTION_CALL if turn.calls else turn.role


def _disorder(turns: Sequence[Turn], position: int, before: str) -> str:
    role = turns[position].role
    if role == TOOL:
        return f"message {position} (tool) answers nothing: no message of the assistant before it calls a tool"
    if before == FUNCTION_CALL:
        return f"message {position} ({role}) stands where a tool must answer the call of message {position - 1}"
    roles = listed(turn.role for turn in turns)
    twice = f": message {position} is a second one of the {role}, join the two" if role == before else ""
    return f"roles must alternate user, assistant (a system message may stand first), are {roles}{twice}"


def _turn(message: Any, position: int) -> Turn:
    if not isinstance(message, dict):
        raise RowFault(f"message {position} must be an object with role and content, is {shown(message)}")
    role = role_of(message)
    if role not in ROLES:
        raise RowFault(f"message {position} has role {shown(role)}; known are {listed(ROLES)}")
    where = f"message {position} ({role})"
    said = message.get("content", message.get("value"))
    if message.get("role", message.get("from")) == FUNCTION_CALL:
        return Turn(role, "", _reasoning(message, role, where), _called(said, where), trains=_trains(message, where))
    calls = calls_in(message, role, where)
    content = _text(said, where) if said is not None else ""
    if (said is None or role != TOOL) and not content.strip() and not calls:
        raise RowFault(f"{where} must have text, has {shown(said)}")
    return Turn(
        role,
        content,
        _reasoning(message, role, where),
        calls,
        _name(message, "name", where) if role == TOOL else None,
        _name(message, "tool_call_id", where) if role == TOOL else None,
        _trains(message, where) if role == "assistant" else _untrained(message, where),
    )


def _text(content: Any, where: str) -> str:
    """The words, of a text or of its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowFault(f"{where} must have text, has {shown(content)}")
    return "".join(_part(part, where) for part in content)


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = next((part[name] for name in ("text", "value") if part.get(name) is not None), None) if kind else None
    if kind != "text" or not isinstance(text, str):
        raise RowFault(
            f'{where} has a part that is no {{"type": "text", "text": …}}, but {shown(part)} (rows with images train '
            "with data.train.name: image_text)"
        )
    return text


def _reasoning(message: Fields, role: str, where: str) -> str | None:
    given = {name: message[name] for name in REASONING if message.get(name) is not None}
    if not given:
        return None
    name, text = next(iter(given.items()))
    if not isinstance(text, str) or any(other != text for other in given.values()):
        raise RowFault(f"{where} must have one text as {name}, has {shown(given if len(given) > 1 else text)}")
    if not text.strip():
        return None
    if role != "assistant":
        raise RowFault(f"{where} has {name}, which only the assistant's messages have")
    return text


def calls_in(message: Fields, role: str, where: str) -> tuple[Call, ...]:
    """The tools that a message calls."""
    given = message.get("tool_calls")
    if given is None or given == []:
        return ()
    if role != "assistant":
        raise RowFault(f"{where} has tool_calls, which only the assistant's messages have")
    if not isinstance(given, list):
        raise RowFault(f"{where} must have a list of tool_calls, has {shown(given)}")
    return tuple(_call(call, where) for call in given)


def _called(said: Any, where: str) -> tuple[Call, ...]:
    """The calls in the text of a `function_call`."""
    found = _json(said, f"{where} must be the JSON text of a call,")
    return tuple(_call(call, where) for call in (found if isinstance(found, list) and found else [found]))


def _call(call: Any, where: str) -> Call:
    function = call.get("function") or call if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name.strip():
        raise RowFault(f"{where} must call functions with a name and arguments, calls {shown(call)}")
    given = function.get("arguments")
    if isinstance(given, str) and given.strip():
        given = _json(given, f"{where} must call {name} with an object, or the JSON text of one,")
    arguments = {} if given in (None, "") else given
    if not isinstance(arguments, dict):
        raise RowFault(f"{where} must call {name} with an object of arguments, not with {shown(given)}")
    return Call(name, json.dumps(arguments, ensure_ascii=False), _name(call, "id", where))


def _name(fields: Fields, column: str, where: str) -> str | None:
    value = fields.get(column)
    if value is not None and not isinstance(value, str):
        raise RowFault(f"{where} must have text as {column}, has {shown(value)}")
    return value or None


def _trains(message: Fields, where: str) -> bool:
    """What the message says of its own training; True where it says nothing."""
    said: dict[str, bool] = {}
    for name in WEIGHTS:
        weight = message.get(name)
        if weight is None:
            continue
        if isinstance(weight, bool) or weight not in (0, 1):
            raise RowFault(
                f"{where} has the {name} {shown(weight)}; known are 0 (not trained) and 1 (trained): with one between, "
                "the loss of a row would no longer be that of its tokens"
            )
        said[name] = bool(weight)
    train = message.get("train")
    if train is not None:
        if not isinstance(train, bool):
            raise RowFault(f"{where} must have true or false as train, has {shown(train)}")
        said["train"] = train
    if len(set(said.values())) > 1:
        raise RowFault(f"{where} says both to train it and not to: {listed(said)}")
    return next(iter(said.values()), True)


def _untrained(message: Fields, where: str) -> bool:
    """True, which is what turns of others say; RowFault where one asks to be trained."""
    names = [name for name in (*WEIGHTS, "train") if message.get(name) is not None]
    if names and _trains(message, where):
        raise RowFault(f"{where} has {names[0]}: {shown(message[names[0]])}; only the assistant's messages are trained")
    return True


def _system(fields: Fields, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The system message in a column of its own, as ShareGPT's rows have it."""
    text = fields.get(SYSTEM) if conversation_column(fields) == SHAREGPT else None
    if text is None or text == "":
        return ()
    if not isinstance(text, str) or not text.strip():
        raise RowFault(f"system must be text, is {shown(text)}")
    if turns[0].role == SYSTEM:
        raise RowFault("has a column system and a system message; one of the two must go")
    return (Turn(SYSTEM, text),)


def tools_in(fields: Fields) -> tuple[Turn, ...]:
    """The tools as a turn; nothing where there are none."""
    given = fields.get(TOOLS)
    if isinstance(given, str) and given.strip():
        given = _json(given, "tools must be a list of function schemas, or the JSON text of one,")
    if given is None or given == [] or (isinstance(given, str) and not given.strip()):
        return ()
    if not isinstance(given, list):
        raise RowFault(f"tools must be a list of function schemas, is {shown(given)}{_OTHERWISE}")
    schemas = [_schema(tool, position) for position, tool in enumerate(given)]
    return (Turn(TOOLS, json.dumps(schemas, ensure_ascii=False)),)


def _schema(tool: Any, position: int) -> Fields:
    """OpenAI's form, in which LLaMA-Factory's bare functions are put."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise RowFault(f"tools[{position}] must be a function with a name, is {shown(tool)}{_OTHERWISE}")
    return tool if "function" in tool else {"type": "function", "function": tool}


_OTHERWISE = "; if it means something else, name it otherwise with data.train.columns: {other_name: tools}"


def _json(text: Any, must: str) -> Any:
    """What a JSON text holds."""
    if not isinstance(text, str):
        raise RowFault(f"{must} is {shown(text)}")
    try:
        return read_json(text)
    except ValueError as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise RowFault(f"{must} is {shown(text)} ({reason})") from None
