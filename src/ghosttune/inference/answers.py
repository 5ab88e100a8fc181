"""The answers to OpenAI's chat and completion calls: their shapes, and the bodies that answer one request."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal, NotRequired

from starlette.responses import JSONResponse
from typing_extensions import TypedDict  # the one that pydantic takes before Python 3.12

from ghosttune.data.turns import Call
from ghosttune.inference.logprobs import ChatLogprobs, TextLogprobs, chat_logprobs, closed, text_logprobs
from ghosttune.inference.protocol import RequestError
from ghosttune.inference.streaming import Noted, Reply

LONGEST_SAID = 2000
"""Characters of what an error says: it may quote a whole body."""

RETRIED = (429, 503)
"""Statuses of what may go well a second later."""


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
    answering: int
    """Places that are taken."""
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
    index: int
    message: Said
    logprobs: ChatLogprobs | None
    finish_reason: Ended


@closed
class ChatChunkChoice(TypedDict):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Ended | None


@closed
class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Ended


@closed
class TextChunkChoice(TypedDict):
    index: int
    text: str
    logprobs: TextLogprobs | None
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
    """The bodies that answer one request: whole, or in chunks. `notes`: whether it asked for logprobs."""

    def __init__(self, model: str, is_chat: bool, tokenizer: Any, notes: bool = False):
        self._is_chat, self._tokenizer, self._notes = is_chat, tokenizer, notes
        self._object = "chat.completion" if is_chat else "text_completion"
        self._characters: dict[int, int] = {}
        """Of each answer of a completion, told so far as tokens."""
        self._common = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """A ChatCompletion or a Completion."""
        choices = [
            {
                "index": place,
                **({"message": message(reply)} if self._is_chat else {"text": reply.text}),
                "logprobs": self._logprobs(place, reply.noted),
                "finish_reason": reply.ended,
            }
            for place, reply in enumerate(replies)
        ]
        return {**self._common, "object": self._object, "choices": choices, "usage": usage(replies)}

    def first(self, count: int) -> list[dict[str, Any]]:
        """What opens a stream: chat says who speaks."""
        if not self._is_chat:
            return []
        return [self._chunk(place, {"delta": {"role": "assistant", "content": ""}}) for place in range(count)]

    def piece(self, place: int, text: str, noted: Sequence[Noted]) -> dict[str, Any]:
        """What one of the answers goes on with."""
        return self._chunk(place, {"delta": {"content": text}} if self._is_chat else {"text": text}, noted)

    def last(self, place: int, reply: Reply, noted: Sequence[Noted]) -> list[dict[str, Any]]:
        """What closes one of the answers: its calls, why it ended, and the tokens noted since its last piece."""
        calls = [{"index": number, **called(call)} for number, call in enumerate(reply.calls)]
        told = [self._chunk(place, {"delta": {"tool_calls": calls}})] if calls else []
        return [*told, self._chunk(place, {"delta": {}} if self._is_chat else {"text": ""}, noted, reply.ended)]

    def counts(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """The chunk that tells the usage, behind all others."""
        return {**self._chunk(0, {}), "choices": [], "usage": usage(replies)}

    def _chunk(
        self, place: int, said: dict[str, Any], noted: Sequence[Noted] = (), ended: str | None = None
    ) -> dict[str, Any]:
        logprobs = self._logprobs(place, noted) if noted else None
        choices = [{"index": place, **said, "logprobs": logprobs, "finish_reason": ended}]
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._common, "object": kind, "choices": choices}

    def _logprobs(self, place: int, noted: Sequence[Noted]) -> ChatLogprobs | TextLogprobs | None:
        if not self._notes:
            return None
        if self._is_chat:
            return chat_logprobs(self._tokenizer, noted)
        before = self._characters.get(place, 0)
        told = text_logprobs(self._tokenizer, noted, before)
        self._characters[place] = before + sum(map(len, told["tokens"]))
        return told


def message(reply: Reply) -> Said:
    """What the assistant said and calls; no content where it calls without a word."""
    if not reply.calls:
        return {"role": "assistant", "content": reply.text}
    return {"role": "assistant", "content": reply.text or None, "tool_calls": [called(call) for call in reply.calls]}


def called(call: Call) -> Called:
    """A call in OpenAI's form."""
    assert call.id is not None
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def usage(replies: Sequence[Reply]) -> Usage:
    """Tokens of the prompt and of all answers; the stop token counts as one of the answer's."""
    prompt, written = replies[0].prompt_tokens, sum(reply.tokens for reply in replies)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


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
