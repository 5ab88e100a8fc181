"""OpenAI's embeddings call: one vector of length 1 for each text."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import TypedDict  # the one that pydantic takes before Python 3.12

from ghosttune.inference.logprobs import closed
from ghosttune.inference.protocol import Closed

if TYPE_CHECKING:
    import torch

MAX_TEXTS = 2048
"""As OpenAI's."""

Token = Annotated[int, Field(ge=0)]
Ids = Annotated[list[Token], Field(min_length=1, fail_fast=True)]
Text = Annotated[str, Field(min_length=1)]


class EmbeddingRequest(Closed):
    most_values: ClassVar[int] = 65536

    model: str
    input: (
        Text
        | Ids
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)]
    )
    """A text, its tokens, or a list of either."""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: None = None
    """Vectors have the model's own width; a part of one means nothing here."""
    user: str | None = None

    @property
    def texts(self) -> list[str | list[int]]:
        """One or more, each a text or its tokens."""
        if isinstance(self.input, str) or isinstance(self.input[0], int):
            return [self.input]  # type: ignore[list-item]
        return list(self.input)  # type: ignore[arg-type]


@closed
class Embedding(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Or the base64 of its little-endian float32."""


@closed
class Read(TypedDict):
    prompt_tokens: int
    total_tokens: int


@closed
class EmbeddingList(TypedDict):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: Read


def embedding_list(model: str, vectors: torch.Tensor, tokens: int, encoding: str | None) -> EmbeddingList:
    """The answer with these vectors [N, width], read from so many tokens."""
    rows: Any = vectors.numpy().astype("<f4")
    told = [b64encode(row.tobytes()).decode() if encoding == "base64" else row.tolist() for row in rows]
    return {
        "object": "list",
        "model": model,
        "data": [{"object": "embedding", "index": place, "embedding": value} for place, value in enumerate(told)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
