"""A metric of a user's own file: a function of one answer, whose mean over the answers is the metric."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from ghosttune.errors import DataError, InputError
from ghosttune.metrics.scoring import Corpus, Item, Metric, Score, of_hits, of_mean
from ghosttune.own_code import digest, fault_in, own_function
from ghosttune.registry import Entry

TAKES = ("output", "references", "metadata")
"""What such a function may take, by these names: the answer, all that are right, and the row's other columns."""


def entry(name: str) -> Entry:
    """The metric `path.py:function`; InputError where the function cannot be had or takes something else."""
    function = own_function(name)
    taken = _taken(name, function)
    meaning = (function.__doc__ or "").strip().splitlines()
    described = Metric("of your own", f"{name}, SHA-256 {digest(name)}")
    return Entry(name, described, lambda corpus: _score(name, function, taken, corpus), meaning[0] if meaning else "")


def _taken(name: str, function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if any(p.kind is p.POSITIONAL_ONLY for p in parameters) or not set(needed) <= set(TAKES):
        raise InputError(f"{name} takes {', '.join(needed) or 'nothing'}; a metric takes any of {', '.join(TAKES)}")
    return [p.name for p in parameters if p.name in TAKES]


def _score(name: str, function: Callable[..., Any], taken: list[str], corpus: Corpus) -> Score:
    """The mean of the function's numbers, or the share of answers that it calls right; DataError where it fails."""
    values = [_value(name, function, taken, item, place) for place, item in enumerate(corpus.items)]
    hits = [value for value in values if isinstance(value, bool)]
    return of_hits(hits) if len(hits) == len(values) else of_mean([float(value) for value in values])


def _value(name: str, function: Callable[..., Any], taken: list[str], item: Item, place: int) -> bool | float:
    whole = {"output": item.output, "references": list(item.references), "metadata": dict(item.metadata)}
    try:
        value = function(**{argument: whole[argument] for argument in taken})
    except Exception as error:
        raise DataError(f"{name} fails on answer {place + 1} ({item.output!r:.80}): {fault_in(name, error)}") from error
    number = value.item() if hasattr(value, "item") else value
    if not isinstance(number, bool | int | float) or not math.isfinite(number):
        raise DataError(
            f"{name} says {value!r:.80} of answer {place + 1} ({item.output!r:.80}); "
            "it must say a finite number, or a bool"
        )
    return number
