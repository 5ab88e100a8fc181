"""The training rows that raised or lowered the likelihood of an answer, from the stored gradients of a run.

To first order, a step along a row's gradient g lowers the query's loss by the learning rate times ⟨∇L_query, g⟩:

    dot              ⟨∇L, g⟩ (TracIn; Pruthi et al. 2020, arXiv 2002.08484)
    cosine           the same without the lengths of both, which long and surprising rows have for any query
    adamw            ⟨∇L / (√v̂ + ε), g⟩: the step that AdamW makes (LESS; Xia et al. 2024, arXiv 2402.04333)
    preconditioned   ⟨(F + λ)⁻¹ ∇L, g⟩, F the curvature that the rows show (`ghostgrad.curvature`)

Positive lowered the loss. Several checkpoints give the mean, weighted by the learning rate at each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ghostgrad import Sketcher
from ghostgrad.curvature import preconditioned
from ghostgrad.influence import norms, scores
from ghostgrad.store import GradientStore
from ghosttune.choosing.opened import OpenedRun, Rows, sketch_error
from ghosttune.choosing.tokens import TokenShares, divided, token_shares, undivided
from ghosttune.data.content import content
from ghosttune.data.encoding import RowFeatures
from ghosttune.data.records import TURN_FORMATS, Record, Turn
from ghosttune.errors import DataError, InputError, listed
from ghosttune.training.sketching import over_second_moments

By = Literal["cosine", "dot", "adamw", "preconditioned"]

DAMPING = 0.3
"""λ over the mean eigenvalue of F."""


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
    tokens: list[TokenShares] = field(default_factory=list)
    """Of the first helpful, then of the first harmful rows, as many as were asked for."""


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
    tokens: int = 0,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Attribution:
    """The `top` most helpful and most harmful rows for the rows of a file, or for a prompt and its completion.

    The rows are the training rows, or those of `data`, and must have been indexed at the checkpoints. `damping` is for
    `preconditioned` alone, DAMPING if not given. `tokens` rows of each side are divided among their tokens and those of
    the answer (`by_token` says what that costs). Raises InputError where anything of this is missing or does nothing.
    """
    if damping is not None and by != "preconditioned":
        raise InputError(f"--damping does nothing for --by {by}; it is for --by preconditioned")
    if tokens > top:
        raise InputError(f"--tokens {tokens} asks for more rows than --top {top} shows")
    opened = run if isinstance(run, OpenedRun) else OpenedRun(run, device, trust_remote_code)
    if by == "adamw":
        opened.require_second_moments()
    asked = _asked(opened, query, prompt, completion)
    rows, steps = opened.rows(data), opened.steps(checkpoints)
    damping = DAMPING if damping is None else damping
    found = _ranked(opened, rows, asked, steps, top, by, damping)
    first = [row.example_id for row in (*found.helpful[:tokens], *found.harmful[:tokens])]
    return replace(found, tokens=by_token(opened, rows, first, asked, steps, by, damping)) if first else found


def why(
    run: str | Path | OpenedRun, prompt: str | Sequence[Turn], completion: str, top: int = 5, tokens: bool = False
) -> Attribution:
    """The training rows behind an answer; an `OpenedRun` in place of its path is not opened for every question.

    With `tokens` the first helpful row is divided among its tokens, against the answer as a whole.
    """
    opened = run if isinstance(run, OpenedRun) else OpenedRun(run)
    asked, steps = _asked(opened, None, prompt, completion), opened.steps(["best"])
    found = _ranked(opened, opened.train, asked, steps, top)
    if not tokens:
        return found
    first = [row.example_id for row in found.helpful[:1]]
    return replace(found, tokens=by_token(opened, opened.train, first, asked, steps, divide_answer=False))


def _ranked(
    opened: OpenedRun,
    rows: Rows,
    query: Sequence[RowFeatures],
    steps: list[int],
    top: int,
    by: By = "cosine",
    damping: float = DAMPING,
) -> Attribution:
    """The rows with the highest scores, and those with the lowest."""
    found = scored(opened, rows, query, steps, by, damping)
    order = torch.argsort(found.scores, descending=True, stable=True).tolist()

    def influence(place: int) -> Influence:
        record = rows.record(rows.ids[place])
        score, error = float(found.scores[place]), float(found.errors[place])
        return Influence(record.example_id, score, error, content(record), record.metadata)

    ranked = [influence(place) for place in dict.fromkeys([*order[:top], *order[::-1][:top]])]
    helpful = [row for row in ranked if row.score > 0][:top]
    harmful = sorted((row for row in ranked if row.score < 0), key=lambda row: row.score)[:top]
    return Attribution(by, steps, len(query), len(rows.ids), helpful, harmful)


def scored(
    opened: OpenedRun, rows: Rows, query: Sequence[RowFeatures], steps: Sequence[int], by: By, damping: float = DAMPING
) -> Scored:
    """What every row did to the query, with the error of the projections."""
    if by not in get_args(By):
        raise InputError(f"rows cannot be scored by {by!r}; known are {listed(get_args(By))}")
    total, squares = torch.zeros(len(rows.ids)), torch.zeros(len(rows.ids))
    for step, store, weight in _checkpoints(opened, rows, steps, by):
        sketcher = opened.sketcher(store)
        opened.at(step)
        towards = _directions(opened, store, sketcher, [query], step, by, damping)
        own = scores(store, towards, "cosine" if by == "cosine" else "dot")[0]
        places = torch.tensor([store.place(name) for name in rows.ids])
        total += weight * own[places]
        squares += (weight * _errors(store, towards, by)[places]) ** 2
    return Scored(total, squares.sqrt())


def by_token(
    opened: OpenedRun,
    rows: Rows,
    ids: Sequence[str],
    query: Sequence[RowFeatures],
    steps: Sequence[int],
    by: By = "cosine",
    damping: float = DAMPING,
    divide_answer: bool = True,
) -> list[TokenShares]:
    """The scores of these rows, divided among their tokens and those of the query where it is one row.

    Computed from the model: a target token's gradient is that of its row trained at this token alone, in the sketch
    of the store. Shares of a row add up to its score, but for the rounding of stored rows. Costs one forward and
    backward for each piece of each row and of the query (`tokens.divided`), memory one gradient (or sketch) for each
    piece of two rows. InputError for rows whose targets are not tokens.
    """
    tokenizer = opened.prepared.encoder.tokenizer
    answer = divided(query[0], tokenizer) if divide_answer and len(query) == 1 else undivided(query)
    wanted = set(ids)
    own = {row.example_id: divided(row, tokenizer) for row in rows.features if row.example_id in wanted}
    weights = [[piece.targets / sum(each.targets for each in answer)] for piece in answer]
    found = {name: torch.zeros(len(pieces), len(answer)) for name, pieces in own.items()}
    for step, store, rate in _checkpoints(opened, rows, steps, by):
        gradients = opened.gradients(step, opened.sketcher(store))
        towards = _directions(opened, store, gradients.sketcher, [piece.rows for piece in answer], step, by, damping)
        towards = towards * towards.new_tensor(weights)
        for name, pieces in own.items():
            targets = gradients.unrounded([row for piece in pieces for row in piece.rows]).cpu()
            products = targets @ towards.mT
            if by == "cosine":
                lengths = targets.sum(0).norm() * towards.sum(0).norm()
                products /= lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
            found[name] = found[name] + rate * products
    return [token_shares(name, own[name], answer, found[name]) for name in ids]


def _checkpoints(
    opened: OpenedRun, rows: Rows, steps: Sequence[int], by: By
) -> Iterator[tuple[int, GradientStore, float]]:
    """(step, store of the rows, weight of its scores) of each; what is missing is said before anything is computed.

    The weight is the learning rate, by which a step was taken there; of `preconditioned`, whose scores are of the end
    of training and not of a step, it is the same for all.
    """
    stores = [opened.store(rows, step) for step in steps]
    stepwise = len(steps) > 1 and by != "preconditioned"
    rates = torch.tensor([opened.learning_rate(step) for step in steps]) if stepwise else torch.ones(len(steps))
    if not rates.any():
        raise InputError(f"the learning rate was 0 at the checkpoints {listed(steps)}; choose others")
    return zip(steps, stores, (rates / rates.sum()).tolist(), strict=True)


def _directions(
    opened: OpenedRun,
    store: GradientStore,
    sketcher: Sketcher,
    queries: Sequence[Sequence[RowFeatures]],
    step: int,
    by: By,
    damping: float,
) -> Tensor:
    """[q, size] what the stored rows are multiplied with, for each of the queries, in nats per target of it."""
    moments = opened.second_moments(step) if by == "adamw" else {}
    found = []
    for query in queries:
        gradient = opened.direction(query, sketcher)
        if by == "adamw":
            gradient = over_second_moments(gradient, moments, opened.config.train.adam_epsilon)
        found.append(sketcher.row(gradient).cpu())
    towards = torch.stack(found)
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
