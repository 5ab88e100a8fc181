"""The answers to OpenAI's chat and completion calls: their shapes, and the bodies that answer one request."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal, NotRequired

from pydantic import with_config
from starlette.responses import JSONResponse
from typing_extensions import TypedDict  # the one that pydantic takes before Python 3.12

from ghosttune.data.turns import Call
from ghosttune.inference.protocol import RequestError
from ghosttune.inference.streaming import Reply

LONGEST_SAID = 2000
"""Characters of what an error says: it may quote a whole body."""

RETRIED = (429, 503)
"""Statuses of what may go well a second later."""

closed = with_config(extra="forbid")


@closed
class Fault(TypedDict):
    message: str
    type: str
    param: str | None
    code: None


@closed
class ErrorBody(TypedDict):
    error: Fault


@closed
class Health(TypedDict):
    status: Literal["ok"]
    model: str
    answering: bool
    waiting: int


@closed
class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


@closed
class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


@closed
class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@closed
class CalledFunction(TypedDict):
    name: str
    arguments: str


@closed
class Called(TypedDict):
    id: str
    type: Literal["function"]
    function: CalledFunction


@closed
class Said(TypedDict):
    role: Literal["assistant"]
    content: str | None
    tool_calls: NotRequired[list[Called]]


@closed
class CalledChunk(Called):
    """A whole call: none is told in pieces."""

    index: int


@closed
class Delta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    tool_calls: NotRequired[list[CalledChunk]]


Ended = Literal["stop", "tool_calls", "length", "interrupted"]
"""`interrupted`: the server was ended."""


@closed
class ChatChoice(TypedDict):
    index: Literal[0]
    message: Said
    logprobs: None
    finish_reason: Ended


@closed
class ChatChunkChoice(TypedDict):
    index: Literal[0]
    delta: Delta
    logprobs: None
    finish_reason: Ended | None


@closed
class TextChoice(TypedDict):
    index: Literal[0]
    text: str
    logprobs: None
    finish_reason: Ended


@closed
class TextChunkChoice(TypedDict):
    index: Literal[0]
    text: str
    logprobs: None
    finish_reason: Ended | None


class _Answer(TypedDict):
    id: str
    created: int
    model: str


@closed
class ChatCompletion(_Answer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


@closed
class ChatCompletionChunk(_Answer):
    """One event of a streamed chat; the usage is in a last one, without choices, where it was asked for."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage]


@closed
class Completion(_Answer):
    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage


@closed
class CompletionChunk(_Answer):
    """One event of a streamed completion; the usage is in a last one, without choices, where it was asked for."""

    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
    usage: NotRequired[Usage]


class Response:
    """The bodies that answer one request: whole, or in chunks."""

    def __init__(self, model: str, is_chat: bool):
        self._is_chat = is_chat
        self._object = "chat.completion" if is_chat else "text_completion"
        self._common = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, reply: Reply) -> dict[str, Any]:
        """A ChatCompletion or a Completion."""
        said = {"message": message(reply)} if self._is_chat else {"text": reply.text}
        choices = [{"index": 0, **said, "logprobs": None, "finish_reason": reply.ended}]
        return {**self._common, "object": self._object, "choices": choices, "usage": usage(reply)}

    def first(self) -> list[dict[str, Any]]:
        """What opens a stream: chat says who speaks."""
        return [self._chunk({"delta": {"role": "assistant", "content": ""}})] if self._is_chat else []

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk({"delta": {"content": text}} if self._is_chat else {"text": text})

    def last(self, reply: Reply, with_usage: bool) -> list[dict[str, Any]]:
        """What closes a stream: the calls, why it ended, and the counts where they were asked for."""
        calls = [{"index": place, **called(call)} for place, call in enumerate(reply.calls)]
        told = [self._chunk({"delta": {"tool_calls": calls}})] if calls else []
        end = self._chunk({"delta": {}} if self._is_chat else {"text": ""}, reply.ended)
        return [*told, end, *([{**end, "choices": [], "usage": usage(reply)}] if with_usage else [])]

    def _chunk(self, said: dict[str, Any], ended: str | None = None) -> dict[str, Any]:
        choices = [{"index": 0, **said, "logprobs": None, "finish_reason": ended}]
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._common, "object": kind, "choices": choices}


def message(reply: Reply) -> Said:
    """What the assistant said and calls; no content where it calls without a word."""
    if not reply.calls:
        return {"role": "assistant", "content": reply.text}
    return {"role": "assistant", "content": reply.text or None, "tool_calls": [called(call) for call in reply.calls]}


def called(call: Call) -> Called:
    """A call in OpenAI's form."""
    assert call.id is not None
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def usage(reply: Reply) -> Usage:
    """Tokens of prompt and answer; the stop token counts as one of the answer's."""
    total = reply.prompt_tokens + reply.tokens
    return {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.tokens, "total_tokens": total}


def event(value: Any) -> str:
    """One server-sent event."""
    return f"data: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n\n"


def model_list(names: Sequence[str]) -> ModelList:
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 0, "owned_by": "ghosttune"} for name in names],
    }


def error_body(error: RequestError) -> ErrorBody:
    """OpenAI's error object."""
    message, param = _shown(str(error)), error.param and _shown(error.param)
    return {"error": {"message": message, "type": error.kind, "param": param, "code": None}}


def refusal(error: RequestError) -> JSONResponse:
    """The answer that refuses; it says when to try again where that may help."""
    return JSONResponse(error_body(error), error.status, {"Retry-After": "1"} if error.status in RETRIED else None)


def _shown(text: str) -> str:
    return text if len(text) <= LONGEST_SAID else f"{text[: LONGEST_SAID - 1]}…"
