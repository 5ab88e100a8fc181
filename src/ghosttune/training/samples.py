"""Answers to the same few dev prompts at every evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Samples(Protocol):
    """Asks the model as it is by now."""

    asked: Sequence[Mapping[str, Any]]
    """`example_id`, `prompt` and `references` of each prompt."""

    def answers(self) -> list[dict[str, Any]]:
        """`example_id`, `output` and what else is known of each answer, in the order of `asked`."""
        ...
