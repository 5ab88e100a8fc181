"""The training rows that raised or lowered the likelihood of an answer, from the stored gradients of a run.

To first order, a step along a row's gradient g lowers the query's loss by the learning rate times ⟨∇L_query, g⟩:

    dot              ⟨∇L, g⟩ (TracIn; Pruthi et al. 2020, arXiv 2002.08484)
    cosine           the same without the lengths of both, which long and surprising rows have for any query
    adamw            ⟨∇L / (√v̂ + ε), g⟩: the step that AdamW makes (LESS; Xia et al. 2024, arXiv 2402.04333)
    preconditioned   ⟨(F + λ)⁻¹ ∇L, g⟩, F the curvature that the rows show (`ghostgrad.curvature`)

Positive lowered the loss. Several checkpoints give the mean, weighted by the learning rate at each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ghostgrad.curvature import preconditioned
from ghostgrad.influence import norms, scores
from ghostgrad.store import GradientStore
from ghosttune.data.content import content
from ghosttune.data.encoding import RowFeatures
from ghosttune.data.records import TURN_FORMATS, Record, Turn
from ghosttune.errors import DataError, InputError, listed
from ghosttune.training.sketching import over_second_moments
from ghosttune.workflows.opened import OpenedRun, Rows, sketch_error

By = Literal["cosine", "dot", "adamw", "preconditioned"]

DAMPING = 0.1
"""λ over the mean eigenvalue of F, parameter by parameter."""


@dataclass(frozen=True)
class Influence:
    """What one row did to the query."""

    example_id: str
    score: float
    error: float
    """Standard error that the projection of gradients leaves in the score; 0 where whole ones are stored."""
    content: dict[str, Any]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Attribution:
    """The rows that most lowered the query's loss, and those that most raised it."""

    by: str
    checkpoints: list[int]
    query_rows: int
    rows: int
    helpful: list[Influence]
    """Of positive score, highest first."""
    harmful: list[Influence]
    """Of negative score, lowest first."""


@dataclass(frozen=True)
class Scored:
    """A score per row, in the order of `Rows.ids`."""

    scores: Tensor
    errors: Tensor


def attribute(
    run: str | Path | OpenedRun,
    query: str | Path | None = None,
    *,
    prompt: str | Sequence[Turn] | None = None,
    completion: str | None = None,
    by: By = "cosine",
    checkpoints: Sequence[str] = ("best",),
    data: str | Path | None = None,
    damping: float | None = None,
    top: int = 10,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Attribution:
    """The `top` most helpful and most harmful rows for the rows of a file, or for a prompt and its completion.

    The rows are the training rows, or those of `data`, and must have been indexed at the checkpoints. `damping` is for
    `preconditioned` alone, DAMPING if not given. Raises InputError where anything of this is missing or does nothing.
    """
    if damping is not None and by != "preconditioned":
        raise InputError(f"--damping does nothing for --by {by}; it is for --by preconditioned")
    opened = run if isinstance(run, OpenedRun) else OpenedRun(run, device, trust_remote_code)
    asked = _asked(opened, query, prompt, completion)
    rows, steps = opened.rows(data), opened.steps(checkpoints)
    found = scored(opened, rows, asked, steps, by, DAMPING if damping is None else damping)
    order = torch.argsort(found.scores, descending=True, stable=True).tolist()

    def influence(place: int) -> Influence:
        record = rows.record(rows.ids[place])
        score, error = float(found.scores[place]), float(found.errors[place])
        return Influence(record.example_id, score, error, content(record), record.metadata)

    ranked = [influence(place) for place in dict.fromkeys([*order[:top], *order[::-1][:top]])]
    helpful = [row for row in ranked if row.score > 0][:top]
    harmful = sorted((row for row in ranked if row.score < 0), key=lambda row: row.score)[:top]
    return Attribution(by, steps, len(asked), len(rows.ids), helpful, harmful)


def why(run: str | Path | OpenedRun, prompt: str | Sequence[Turn], completion: str, top: int = 5) -> Attribution:
    """The training rows behind an answer; an `OpenedRun` in place of its path is not opened for every question."""
    return attribute(run, prompt=prompt, completion=completion, top=top)


def scored(
    opened: OpenedRun, rows: Rows, query: Sequence[RowFeatures], steps: Sequence[int], by: By, damping: float = DAMPING
) -> Scored:
    """What every row did to the query, with the error of the projections."""
    if by not in get_args(By):
        raise InputError(f"rows cannot be scored by {by!r}; known are {listed(get_args(By))}")
    stores = [opened.store(rows, step) for step in steps]  # all that is missing is said before anything is computed
    rates = torch.tensor([opened.learning_rate(step) for step in steps]) if len(steps) > 1 else torch.ones(1)
    if not rates.any():
        raise InputError(f"the learning rate was 0 at the checkpoints {listed(steps)}; choose others")
    total, squares = torch.zeros(len(rows.ids)), torch.zeros(len(rows.ids))
    for step, store, weight in zip(steps, stores, (rates / rates.sum()).tolist(), strict=True):
        towards = _direction(opened, store, query, step, by, damping)
        own = scores(store, towards, "cosine" if by == "cosine" else "dot")[0]
        places = torch.tensor([store.place(name) for name in rows.ids])
        total += weight * own[places]
        squares += (weight * _errors(store, towards, by)[places]) ** 2
    return Scored(total, squares.sqrt())


def _direction(
    opened: OpenedRun, store: GradientStore, query: Sequence[RowFeatures], step: int, by: By, damping: float
) -> Tensor:
    """[1, size] what the stored rows are multiplied with."""
    sketcher = opened.sketcher(store)
    gradient = opened.gradients(step, sketcher).direction(query)
    if by == "adamw":
        gradient = over_second_moments(gradient, opened.second_moments(step), opened.config.train.adam_epsilon)
    towards = sketcher.row(gradient).unsqueeze(0)
    if not towards.any():
        raise DataError(f"the query has no gradient at step {step}, so that no row can have done anything to it")
    if by != "preconditioned":
        return towards
    try:
        return preconditioned(store, towards, damping, sketcher.sides)
    except ValueError as error:
        raise InputError(f"damping cannot be done: {error}") from error


def _errors(store: GradientStore, towards: Tensor, by: By) -> Tensor:
    """[n] the standard error of each score: of a cosine as it was measured, of a product that times the lengths."""
    error = sketch_error(store)
    if error is None:
        return torch.zeros(len(store))
    cosine = error["cosine"]
    return torch.full((len(store),), cosine) if by == "cosine" else cosine * towards.norm() * norms(store)


def _asked(
    opened: OpenedRun, query: str | Path | None, prompt: str | Sequence[Turn] | None, completion: str | None
) -> Sequence[RowFeatures]:
    """The query as the model sees it."""
    if (query is None) == (prompt is None) or (prompt is None) != (completion is None):
        raise InputError("give either a query file, or a prompt and its completion")
    if query is not None:
        return opened.rows(query).features
    if not set(opened.task.formats) & set(TURN_FORMATS):
        raise InputError(f"{opened.config.task.type} answers no prompts; give a file of its rows as the query")
    if not completion or not completion.strip():
        raise DataError("the completion is empty; give the answer that is to be explained")
    turns = (Turn("user", prompt),) if isinstance(prompt, str) else tuple(prompt or ())
    record = Record("query", (*turns, Turn("assistant", completion)), group="query")
    return opened.encode([record], truncated_share=1.0).features  # as an answer is given to the end of a long talk
