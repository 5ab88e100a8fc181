"""Which training rows are behind an answer: what is asked of a server, what it answers, and who can say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field
from typing_extensions import TypedDict  # the one that pydantic takes before Python 3.12

from ghosttune.data.turns import Turn, images_of
from ghosttune.errors import GhosttuneError
from ghosttune.inference.logprobs import closed
from ghosttune.inference.protocol import MAX_MESSAGES, AnyMessage, AssistantMessage, Closed, RequestError, turns_in

UNKNOWN = "this server was started without the rows of its runs"


class WhyRequest(Closed):
    """A conversation, the last message of which is the answer that is asked about."""

    model: str
    messages: Annotated[list[AnyMessage], Field(min_length=2, max_length=MAX_MESSAGES)]
    top: Annotated[int, Field(ge=1, le=50)] = 5
    """Rows of each side."""

    @property
    def asked(self) -> tuple[tuple[Turn, ...], str]:
        """(what was said before, the answer); RequestError unless an answer in words is last, and for images."""
        *before, last = self.messages
        answer = last.turn("the answer") if isinstance(last, AssistantMessage) else None
        if answer is None or answer.calls or not answer.content.strip():
            raise RequestError("the last message must be the assistant's, in words: the answer", param="messages")
        turns = turns_in(before)
        if images_of(turns):
            raise RequestError("rows behind answers to images are not told; ask about words alone", param="messages")
        return turns, answer.content


@closed
class Row(TypedDict):
    example_id: str
    score: float
    """Positive where the row raised the likelihood of the answer."""
    error: float
    """Standard error that projections leave in the score; 0 where there are none."""
    content: dict[str, Any]


@closed
class Shared(TypedDict):
    text: str
    share: float


@closed
class Shares(TypedDict):
    """A row's score, divided among the tokens that it trained."""

    example_id: str
    row: list[Shared]


@closed
class Why(TypedDict):
    object: Literal["why"]
    model: str
    by: str
    checkpoints: list[int]
    rows: int
    """Training rows that were looked at."""
    helpful: list[Row]
    harmful: list[Row]
    tokens: list[Shares]
    """Of the first helpful row."""


@closed
class Answerable(TypedDict):
    id: str
    why_not: str | None
    """Why nothing can be said of this model's answers; null where it can."""


@closed
class AnswerableList(TypedDict):
    object: Literal["list"]
    data: list[Answerable]


class Reasons(Protocol):
    """What knows the rows of a run."""

    why_not: str | None

    def explain(self, turns: Sequence[Turn], answer: str, top: int) -> dict[str, Any]:
        """`by`, `checkpoints`, `rows`, `helpful`, `harmful` and `tokens`; GhosttuneError where that cannot be said."""
        ...


def answerable(names: Sequence[str], reasons: Mapping[str, Reasons]) -> AnswerableList:
    """Of which models it can be said what is behind an answer."""
    data: list[Answerable] = [
        {"id": name, "why_not": reasons[name].why_not if name in reasons else UNKNOWN} for name in names
    ]
    return {"object": "list", "data": data}


def explained(model: str, reasons: Reasons, request: WhyRequest) -> dict[str, Any]:
    """A Why; takes seconds, and where the run is not open yet the time to open it. RequestError says why not."""
    try:
        return {"object": "why", "model": model, **reasons.explain(*request.asked, request.top)}
    except GhosttuneError as error:
        raise RequestError(str(error)) from error
