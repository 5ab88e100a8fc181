"""The requests and answers of OpenAI's chat and completion calls, as far as one model on one machine has them.

Closed like the configuration: what is not known is refused, because an ignored `tools` would look like a bad model.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ghosttune.data.records import Turn
from ghosttune.inference.sampling import Sampling
from ghosttune.inference.streaming import Reply

MAX_STOPS = 16


class RequestError(Exception):
    """What is answered instead: a status, and the message of OpenAI's error object."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, kind: str = "invalid_request_error"):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": None}}


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Closed):
    type: Literal["text"]
    text: str


class Message(_Closed):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def turn(self) -> Turn:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, text)


class StreamOptions(_Closed):
    include_usage: bool = False


Stop = Annotated[str, Field(min_length=1, max_length=200)]


class Request(_Closed):
    """What both calls have. Null is the default, as in OpenAI's clients."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    user: str | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def sampling(self) -> Sampling:
        """Greedy unless a temperature is given."""
        return Sampling(self.temperature or 0.0, self.top_p or 1.0, self.top_k or 0, self.seed or 0)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Request):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def turns(self) -> tuple[Turn, ...]:
        """RequestError unless, below an optional system message, user and assistant alternate and the user is last."""
        turns = tuple(message.turn for message in self.messages)
        said = [turn.role for turn in (turns[1:] if turns[0].role == "system" else turns)]
        if said != (["user", "assistant"] * (len(said) // 2 + 1))[: len(said)] or len(said) % 2 == 0:
            raise RequestError(
                "messages must be an optional system message, then user and assistant in turn, the user last; are "
                + ", ".join(turn.role for turn in turns),
                param="messages",
            )
        return turns


class CompletionRequest(Request):
    prompt: str


AnyRequest = TypeVar("AnyRequest", bound=Request)


def parsed(body: bytes, kind: type[AnyRequest]) -> AnyRequest:
    """The request in a body; RequestError says everything that is wrong with it."""
    try:
        fields = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        json.dumps(fields, ensure_ascii=False).encode(
            "utf-8"
        )  # half of a surrogate pair is text to JSON, to nobody else
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors(include_url=False)]
        text = "; ".join(f"{place or 'body'}: {message}" for place, message in faults[:10])
        raise RequestError(text, param=faults[0][0] or None) from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


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
        said = {"message": {"role": "assistant", "content": reply.text}} if self._is_chat else {"text": reply.text}
        choices = [{"index": 0, **said, "logprobs": None, "finish_reason": reply.ended}]
        return {**self._common, "object": self._object, "choices": choices, "usage": usage(reply)}

    def first(self) -> list[dict[str, Any]]:
        """What opens a stream: chat says who speaks."""
        return [self._chunk({"delta": {"role": "assistant", "content": ""}})] if self._is_chat else []

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk({"delta": {"content": text}} if self._is_chat else {"text": text})

    def last(self, reply: Reply, with_usage: bool) -> list[dict[str, Any]]:
        """What closes a stream: why it ended, and the counts where they were asked for."""
        end = self._chunk({"delta": {}} if self._is_chat else {"text": ""}, reply.ended)
        return [end, {**end, "choices": [], "usage": usage(reply)}] if with_usage else [end]

    def _chunk(self, said: dict[str, Any], ended: str | None = None) -> dict[str, Any]:
        choices = [{"index": 0, **said, "logprobs": None, "finish_reason": ended}]
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return {**self._common, "object": kind, "choices": choices}


def usage(reply: Reply) -> dict[str, int]:
    """Tokens of prompt and answer; the stop token counts as one of the answer's."""
    counts = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.tokens}
    return {**counts, "total_tokens": sum(counts.values())}


def event(value: dict[str, Any] | str) -> str:
    """One server-sent event."""
    return f"data: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n\n"


def model_list(names: Sequence[str]) -> dict[str, Any]:
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "ghosttune"} for name in names]
    return {"object": "list", "data": data}
