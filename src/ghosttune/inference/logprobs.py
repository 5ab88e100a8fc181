"""How likely the tokens of an answer were, in the shapes of OpenAI's chat and completion calls.

Natural logarithms of probabilities at temperature 1, before anything is cut off or ruled out: what the loss is made of.
There is an entry for every token that counts, the stop token included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import with_config
from typing_extensions import TypedDict  # the one that pydantic takes before Python 3.12

from ghosttune.inference.decoding import text_of
from ghosttune.inference.streaming import UNFINISHED, Noted

closed = with_config(extra="forbid")


@closed
class Likely(TypedDict):
    token: str
    logprob: float
    bytes: list[int] | None


@closed
class TokenLikelihood(Likely):
    top_logprobs: list[Likely]


@closed
class ChatLogprobs(TypedDict):
    content: list[TokenLikelihood]
    refusal: None


@closed
class TextLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


def chat_logprobs(tokenizer: Any, noted: Sequence[Noted]) -> ChatLogprobs:
    """What chat tells of these tokens; `bytes` is null for a token that is part of a character."""
    content: list[TokenLikelihood] = [
        {
            **_likely(tokenizer, one.token, one.logprob),
            "top_logprobs": [_likely(tokenizer, token, logprob) for token, logprob in one.top],
        }
        for one in noted
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokenizer: Any, noted: Sequence[Noted], before: int = 0) -> TextLogprobs:
    """What a completion tells of these tokens, the first of which stands behind so many characters of the answer."""
    tokens = [_text(tokenizer, one.token) for one in noted]
    offsets = [before + sum(map(len, tokens[:place])) for place in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [one.logprob for one in noted],
        "top_logprobs": [{_text(tokenizer, token): logprob for token, logprob in one.top} for one in noted],
        "text_offset": offsets,
    }


def _likely(tokenizer: Any, token: int, logprob: float) -> Likely:
    text = _text(tokenizer, token)
    return {"token": text, "logprob": logprob, "bytes": None if UNFINISHED in text else list(text.encode())}


def _text(tokenizer: Any, token: int) -> str:
    """What the token adds to a text; decoders take a blank off the first one."""
    return text_of(tokenizer, [token, token], special=True)[len(text_of(tokenizer, [token], special=True)) :]
