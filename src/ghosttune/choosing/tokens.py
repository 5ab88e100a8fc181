"""A row's score divided among its target tokens and those of the answer.

A row's loss is the sum of its targets' losses, and so its gradient the sum of theirs. A score of `attribute` is linear
in the row's gradient and in the answer's, but for their lengths, by which `cosine` divides: it is the sum, over the
row's targets s and the answer's targets t, of ⟨P ∇L_t, g_s⟩ over those lengths. Each pair has its share.

A target token's gradient is that of its row trained at this token alone, so that every layer with a rule has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ghosttune.choosing.opened import OpenedRun
from ghosttune.data.encoding import Features, RowFeatures
from ghosttune.data.token_texts import token_texts
from ghosttune.errors import InputError
from ghosttune.training.sketching import EXACT, over_second_moments, sketcher_of

MOST_PIECES = 64
"""Of a row, or of an answer, that have a share of their own."""


@dataclass(frozen=True)
class Piece:
    """Targets that are asked about together."""

    text: str
    """Empty for targets of several texts."""
    targets: int
    rows: Sequence[RowFeatures]
    """Of which these are the targets."""


@dataclass(frozen=True)
class Share:
    """What one piece of a row, or of the answer, has of the row's score."""

    text: str
    """Of the target token, or of the several tokens that one character takes; empty for the rest of a long row."""
    tokens: int
    share: float


@dataclass(frozen=True)
class TokenShares:
    """A row's score by its own targets, by those of the answer, and by both; each adds up to the score."""

    example_id: str
    row: list[Share]
    answer: list[Share]
    """One, of all targets, for a query of several rows, or where it was not to be divided."""
    pairs: list[list[float]]
    """[row][answer]."""


def undivided(rows: Sequence[RowFeatures]) -> list[Piece]:
    """All targets of the rows as one piece."""
    return [Piece("", sum(row.targets for row in rows), rows)]


def divided(row: RowFeatures, tokenizer: Any) -> list[Piece]:
    """The first MOST_PIECES target tokens of a row one by one, and the rest together.

    Tokens that are only together a character are one piece. InputError where a row's targets are not its tokens.
    """
    if not isinstance(row, Features):
        raise InputError(
            "shares of tokens are known for causal_lm alone: the targets of other tasks are not its tokens"
        )
    texts = token_texts(tokenizer, row.input_ids.tolist())
    groups: list[tuple[str, list[int]]] = []
    unfinished: list[int] = []
    for place in np.flatnonzero(row.trained).tolist():
        unfinished.append(place)
        if texts[place]:
            groups.append((texts[place], unfinished))
            unfinished = []
    if unfinished:
        groups.append(("\ufffd", unfinished))
    rest = [place for _, places in groups[MOST_PIECES:] for place in places]
    return [_piece(row, *group) for group in [*groups[:MOST_PIECES], *([("", rest)] if rest else [])]]


def guide_shares(opened: OpenedRun, ids: Sequence[str]) -> dict[str, list[Share]]:
    """example_id -> how fast a step of AdamW along each target's gradient lowers the guide loss, per learning rate.

    ⟨∇L_guide / (√v̂ + ε), g_s⟩ at the last checkpoint, from whole gradients; needs no store. Costs a forward and
    backward of the guide rows, and one of each row for each of its pieces. InputError as `divided`.
    """
    (step,) = opened.steps(["last"])
    tokenizer, wanted = opened.prepared.encoder.tokenizer, set(ids)
    own = {row.example_id: divided(row, tokenizer) for row in opened.train.features if row.example_id in wanted}
    gradients = opened.gradients(step, sketcher_of(opened.row_facts, opened.parameters, len(own), EXACT))
    direction = over_second_moments(
        opened.direction(opened.prepared.guide.features, gradients.sketcher),
        opened.second_moments(step),
        opened.config.train.adam_epsilon,
    )
    dots = {name: gradients.dots([row for piece in own[name] for row in piece.rows], direction) for name in own}
    return {name: _shares(own[name], dots[name]) for name in ids}


def _piece(row: Features, text: str, places: list[int]) -> Piece:
    trained = np.zeros_like(row.trained)
    trained[places] = True
    return Piece(text, len(places), [replace(row, trained=trained)])


def token_shares(example_id: str, row: Sequence[Piece], answer: Sequence[Piece], pairs: Tensor) -> TokenShares:
    """The shares `pairs` [row, answer] under their texts."""
    return TokenShares(example_id, _shares(row, pairs.sum(1)), _shares(answer, pairs.sum(0)), pairs.tolist())


def _shares(pieces: Sequence[Piece], sums: Tensor) -> list[Share]:
    return [Share(piece.text, piece.targets, share) for piece, share in zip(pieces, sums.tolist(), strict=True)]
