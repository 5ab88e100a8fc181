"""The requests of OpenAI's chat and completion calls, as far as one model on one machine has them.

Closed like the configuration: what is not known is refused, because an ignored setting would look like a bad model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator
from pydantic.config import JsonDict

from ghosttune.data.columns import RowFault
from ghosttune.data.messages import calls_in, require_order, tools_in
from ghosttune.data.turns import TOOL, TOOLS, Turn
from ghosttune.foreign import read_json
from ghosttune.inference.sampling import SMALLEST, Sampling

MAX_STOPS = 16

MAX_MESSAGES = 256
"""A template renders the whole conversation twice for every answer in it, which grows with the square: a tenth of a
second here, half a minute at 3,000."""

MAX_PARTS = 64
"""Of one message."""

MAX_TOOLS = 128
"""And of the calls of one message."""

MAX_VALUES = 4096
"""Of a body, at any depth: each wrong one is a fault, and 100,000 faults take a second and a half to list."""


TEMPERATURE: JsonDict = {"anyOf": [{"const": 0}, {"minimum": SMALLEST}]}
"""What Sampling accepts, which also refuses the rest."""


class RequestError(Exception):
    """What is answered instead: a status, and what OpenAI's error object says."""

    def __init__(self, message: str, status: int = 400, param: str | None = None, kind: str = "invalid_request_error"):
        super().__init__(message)
        self.status, self.param, self.kind = status, param, kind


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Closed):
    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(max_length=MAX_PARTS)]

Name = Annotated[str, Field(pattern=r"\S", max_length=200)]


class CalledFunction(_Closed):
    name: Name
    arguments: str
    """JSON text of an object."""


class ToolCall(_Closed):
    id: Name
    type: Literal["function"]
    function: CalledFunction


class Message(_Closed):
    """Of the system or the user."""

    role: Literal["system", "developer", "user"]
    content: Content
    name: str | None = None

    def turn(self, where: str) -> Turn:
        return Turn("system" if self.role == "developer" else self.role, _text(self.content))


class ToolMessage(_Closed):
    role: Literal["tool"]
    content: Content
    tool_call_id: Name
    name: str | None = None

    def turn(self, where: str) -> Turn:
        return Turn(TOOL, _text(self.content), name=self.name, call_id=self.tool_call_id)


class AssistantMessage(_Closed):
    """As it was answered; the last four are what OpenAI's client knows besides, of which nothing is written here."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None
    name: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _says_or_calls(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls:
            raise ValueError("must have content or tool_calls")
        return self

    def turn(self, where: str) -> Turn:
        """RowFault where arguments are not the JSON text of an object."""
        calls = [call.model_dump() for call in self.tool_calls or ()]
        return Turn("assistant", _text(self.content or ""), calls=calls_in({"tool_calls": calls}, "assistant", where))


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


AnyMessage = Annotated[Message | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(_Closed):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema, which the template shows to the model; nothing makes the model keep to it."""
    strict: Literal[False] | None = None


class _Tool(_Closed):
    type: Literal["function"]
    function: Function


Tool = Annotated[_Tool, WrapValidator(lambda sent, validated: validated(sent) and sent)]
"""As it was sent: the template writes it with its keys in that order."""


class StreamOptions(_Closed):
    include_usage: bool = False


Stop = Annotated[str, Field(min_length=1, max_length=200)]


class Request(_Closed):
    """What both calls have. Null is the default, as in OpenAI's clients."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, json_schema_extra=TEMPERATURE)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, json_schema_extra={"minimum": SMALLEST})] | None = None
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
    def turns(self) -> tuple[Turn, ...]:
        """What the model is given."""
        raise NotImplementedError

    @property
    def sampling(self) -> Sampling:
        """Greedy unless a temperature is given; InputError for one that means nothing."""
        return Sampling(self.temperature or 0.0, self.top_p or 1.0, self.top_k or 0, self.seed or 0)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Request):
    messages: Annotated[list[AnyMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    """`none` keeps the tools from the model; that it calls one could not be promised."""
    parallel_tool_calls: Literal[True] | None = None

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The tools and the messages; RequestError unless these stand in the order of rows and ask for an answer."""
        tools = None if self.tool_choice == "none" else self.tools
        try:
            turns = tuple(m.turn(f"message {place} ({m.role})") for place, m in enumerate(self.messages))
            require_order(turns)
            offered = tools_in({TOOLS: tools})
        except RowFault as fault:
            raise RequestError(str(fault), param="messages") from None
        if turns[-1].role not in ("user", TOOL):
            raise RequestError(
                f"the last message is the {turns[-1].role}'s; it must be the user's, or what a tool answers",
                param="messages",
            )
        return (*offered, *turns)


class CompletionRequest(Request):
    prompt: str

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The text as it is."""
        return (Turn("user", self.prompt),)


AnyRequest = TypeVar("AnyRequest", bound=Request)


def parsed(body: bytes, kind: type[AnyRequest]) -> AnyRequest:
    """The request in a body; RequestError says everything that is wrong with it. Milliseconds at most."""
    try:
        fields = read_json(body.decode("utf-8"))
        json.dumps(fields, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair is text to JSON only
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if sum(1 for _ in islice(_values(fields), MAX_VALUES + 1)) > MAX_VALUES:
        raise RequestError(f"the body has more than {MAX_VALUES} values; send fewer messages or tools")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        listed = error.errors(include_url=False, include_input=False, include_context=False)
        faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in listed[:10]]
        text = "; ".join(f"{place[:200] or 'body'}: {message}" for place, message in faults)
        raise RequestError(text, param=faults[0][0] or None) from error


def _values(fields: Any) -> Iterator[Any]:
    """Every value in it, at any depth."""
    left = [fields]
    while left:
        value = left.pop()
        yield value
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
