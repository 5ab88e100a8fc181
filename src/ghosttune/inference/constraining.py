"""Answers that are JSON of a schema, or a call of a tool: tokens that would lead elsewhere are ruled out one by one.

llguidance (extra `serve`) does the work; it reads any fast tokenizer and knows which tokens may follow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ghosttune.errors import InputError, ModelError

if TYPE_CHECKING:
    import torch

COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `json.dumps` writes it: where blanks are free, a model may write nothing else up to its limit."""


class Grammars:
    """Makes constraints for the tokens of one tokenizer."""

    def __init__(self, tokenizer: Any, stop_token_ids: Sequence[int]):
        self._tokenizer, self._stop_token_ids = tokenizer, list(stop_token_ids)

    def json(self, schema: dict[str, Any]) -> Constraint:
        """Keeps an answer to JSON of this schema.

        InputError where a keyword of the schema cannot be kept, ModelError for a tokenizer that is not a fast one.
        Milliseconds; a tenth of a second for the first schema, or for one of hundreds of entries.
        """
        return self._constraint("%llguidance {}\nstart: " + _json(schema))

    def calls(self, forms: Sequence[tuple[str, dict[str, Any], str]]) -> Constraint:
        """Keeps an answer to one of these: a text, JSON of a schema that is an object, and a text. Raises as `json`."""
        rules = [f"start: {' | '.join(f'call_{number}' for number in range(len(forms)))}"]
        for number, (before, schema, behind) in enumerate(forms):
            parts = (*self._literal(before), f"arguments_{number}", *self._literal(behind))
            rules += [f"call_{number}: {' '.join(parts)}", f"arguments_{number}: {_json(schema)}"]
        return self._constraint("\n".join(["%llguidance {}", *rules]))

    def _constraint(self, grammar: str) -> Constraint:
        try:
            from llguidance import LLMatcher
        except ModuleNotFoundError as error:
            raise InputError(
                "keeping an answer to a schema needs llguidance: pip install 'ghosttune[serve]'"
            ) from error
        matcher = LLMatcher(self._tokens, grammar)
        if matcher.is_error():
            raise InputError(f"the schema cannot be kept: {matcher.get_error()}")
        return Constraint(matcher)

    def _literal(self, text: str) -> Iterator[str]:
        """The text as a grammar has it, each added token of the tokenizer as the one that it is."""
        added = {token.content: number for number, token in self._tokenizer.added_tokens_decoder.items()}
        marks = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
        for piece in filter(None, re.split(f"({marks})", text) if marks else [text]):
            yield f"<[{added[piece]}]>" if piece in added else json.dumps(piece, ensure_ascii=False)

    @cached_property
    def _tokens(self) -> Any:
        from llguidance import LLTokenizer

        fast = getattr(self._tokenizer, "backend_tokenizer", None)
        if fast is None:
            raise ModelError("answers are kept to JSON with a fast tokenizer, which this model has not")
        return LLTokenizer(fast.to_str(), eos_token=self._stop_token_ids)


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': COMPACT})}"


class Constraint:
    """What may follow in one answer."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    def again(self) -> Constraint:
        """The same for another answer, from its beginning."""
        return Constraint(self._matcher.deep_copy())

    def masked(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [V] with those of tokens that may not follow at minus infinity."""
        import numpy as np
        import torch

        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        if self._matcher.is_error():
            raise ModelError(f"the schema could not be kept: {self._matcher.get_error()}")
        allowed = torch.zeros(len(logits), dtype=torch.bool)
        count = min(len(bits), len(logits))
        allowed[:count] = torch.from_numpy(bits[:count].astype(bool))
        return logits.masked_fill(~allowed.to(logits.device), float("-inf"))

    def follow(self, token: int) -> None:
        """Goes on behind this token."""
        if not self._matcher.consume_token(token):
            raise ModelError(f"the schema could not be kept: {self._matcher.get_error()}")
