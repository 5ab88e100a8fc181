"""The requests of OpenAI's chat and completion calls, as far as one model on one machine has them.

Closed like the configuration: what is not known is refused, because an ignored setting would look like a bad model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, field_validator, model_validator
from pydantic.config import JsonDict

from ghosttune.data.columns import RowFault
from ghosttune.data.messages import calls_in, require_order, tools_in
from ghosttune.data.turns import IMAGE_MARK, TOOL, TOOLS, Turn
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


class Closed(BaseModel):
    """Of known fields, which have the types that JSON has."""

    most_values: ClassVar[int] = MAX_VALUES
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Closed):
    type: Literal["text"]
    text: str


IMAGE_URL = re.compile(r"data:image/(png|jpeg|webp|gif);base64,")


class ImageUrl(Closed):
    url: Annotated[str, Field(json_schema_extra={"pattern": f"^{IMAGE_URL.pattern}"})]
    detail: Literal["auto"] | None = None

    @field_validator("url")
    @classmethod
    def _is_here(cls, url: str) -> str:
        if not IMAGE_URL.match(url):
            raise ValueError(
                "must begin with data:image/png;base64, (or jpeg, webp, gif) and hold the image itself: this server "
                "opens no network and no file for a request"
            )
        return url


class ImagePart(Closed):
    type: Literal["image_url"]
    image_url: ImageUrl


Content = str | Annotated[list[TextPart], Field(max_length=MAX_PARTS)]

Said = str | Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(max_length=MAX_PARTS)]
"""What a user may say."""

Name = Annotated[str, Field(pattern=r"\S", max_length=200)]


class CalledFunction(Closed):
    name: Name
    arguments: str
    """JSON text of an object."""


class ToolCall(Closed):
    id: Name
    type: Literal["function"]
    function: CalledFunction


class Message(Closed):
    """Of the system."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None

    def turn(self, where: str) -> Turn:
        return Turn("system", _text(self.content))


class UserMessage(Closed):
    role: Literal["user"]
    content: Said
    name: str | None = None

    @property
    def shown(self) -> tuple[str, ...]:
        """The URLs of its images."""
        parts = () if isinstance(self.content, str) else self.content
        return tuple(part.image_url.url for part in parts if isinstance(part, ImagePart))

    def turn(self, where: str) -> Turn:
        """RowFault where the words hold what stands for an image."""
        turn = Turn("user", _text(self.content), images=self.shown)
        if turn.images and turn.content.count(IMAGE_MARK) != len(turn.images):
            raise RowFault(f"{where}: its words hold {IMAGE_MARK}, which stands for an image; word it otherwise")
        return turn


class ToolMessage(Closed):
    role: Literal["tool"]
    content: Content
    tool_call_id: Name
    name: str | None = None

    def turn(self, where: str) -> Turn:
        return Turn(TOOL, _text(self.content), name=self.name, call_id=self.tool_call_id)


class AssistantMessage(Closed):
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


def _text(content: Content | Said) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text if isinstance(part, TextPart) else IMAGE_MARK for part in content)


AnyMessage = Annotated[Message | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Closed):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema, which the template shows to the model; kept to where a call is made sure of."""
    strict: bool | None = None


class _Tool(Closed):
    type: Literal["function"]
    function: Function


Tool = Annotated[_Tool, WrapValidator(lambda sent, validated: validated(sent) and sent)]
"""As it was sent: the template writes it with its keys in that order."""


class NamedFunction(Closed):
    name: Name


class NamedTool(Closed):
    type: Literal["function"]
    function: NamedFunction


class AnyText(Closed):
    type: Literal["text"]


class AnyObject(Closed):
    type: Literal["json_object"]


class NamedSchema(Closed):
    name: Name
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    """A keyword that cannot be kept is refused by name."""
    strict: bool | None = None
    """Kept to in either case."""


class OfSchema(Closed):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[AnyText | AnyObject | OfSchema, Field(discriminator="type")]


class StreamOptions(Closed):
    include_usage: bool = False


Stop = Annotated[str, Field(min_length=1, max_length=200)]


class Request(Closed):
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
    n: Annotated[int, Field(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    """Keeps the answer to it token by token; the model is not told of it, which is for the messages to do."""
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
    def count(self) -> int:
        """Answers that are asked for."""
        return self.n or 1

    @property
    def likeliest(self) -> int | None:
        """How many tokens are to be noted beside each; None where none is."""
        raise NotImplementedError

    @property
    def schema_kept(self) -> dict[str, Any] | None:
        """The JSON Schema that the answer is kept to; None where it may be any text."""
        match self.response_format:
            case AnyObject():
                return {"type": "object"}
            case OfSchema(json_schema=named):
                return named.json_schema
        return None

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
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    """`none` keeps the tools from the model; `required` or a tool makes sure of one call, and of nothing else."""
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _calls_or_keeps(self) -> ChatRequest:
        if self.tools and self.tool_choice != "none" and self.schema_kept is not None:
            raise ValueError("an answer that is kept to a response_format calls no tools: leave out one of the two")
        return self

    @model_validator(mode="after")
    def _promises_what_it_keeps(self) -> ChatRequest:
        if self.must_call is None:
            if self.parallel_tool_calls is False:
                raise ValueError("parallel_tool_calls: false is kept with tool_choice required or a tool's name alone")
            if any(tool["function"].get("strict") for tool in self._tools):
                raise ValueError("strict: true of a tool is kept with tool_choice required or a tool's name alone")
        elif not self.must_call:
            names = ", ".join(tool["function"]["name"] for tool in self._tools) or "none"
            raise ValueError(f"tool_choice asks for a call of a tool that is not given; tools are: {names}")
        return self

    @model_validator(mode="after")
    def _notes_what_it_lists(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true")
        return self

    @property
    def must_call(self) -> list[dict[str, Any]] | None:
        """The functions one of which is to be called; None where words would do as well."""
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            return [tool["function"] for tool in self._tools if tool["function"]["name"] == name]
        return [tool["function"] for tool in self._tools] if self.tool_choice == "required" else None

    @property
    def characters_of_images(self) -> int:
        """Of the URLs of all images."""
        said = (m.shown for m in self.messages if isinstance(m, UserMessage))
        return sum(len(url) for shown in said for url in shown)

    @property
    def _tools(self) -> list[dict[str, Any]]:
        """As they were sent."""
        return self.tools or []  # type: ignore[return-value]

    @property
    def likeliest(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The tools and the messages."""
        return turns_in(self.messages, None if self.tool_choice == "none" else self.tools)


def turns_in(messages: Sequence[AnyMessage], tools: Sequence[Any] | None = None) -> tuple[Turn, ...]:
    """The tools and the messages; RequestError unless these stand in the order of rows and ask for an answer."""
    try:
        turns = tuple(m.turn(f"message {place} ({m.role})") for place, m in enumerate(messages))
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
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @property
    def likeliest(self) -> int | None:
        return self.logprobs

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The text as it is."""
        return (Turn("user", self.prompt),)


AnyRequest = TypeVar("AnyRequest", bound=Closed)


def parsed(body: bytes, kind: type[AnyRequest]) -> AnyRequest:
    """The request in a body; RequestError says everything that is wrong with it. Milliseconds at most."""
    try:
        fields = read_json(body.decode("utf-8"))
        json.dumps(fields, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair is text to JSON only
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if sum(1 for _ in islice(_values(fields), kind.most_values + 1)) > kind.most_values:
        raise RequestError(f"the body has more than {kind.most_values} values; send fewer messages or tools")
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
