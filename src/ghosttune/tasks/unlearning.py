"""Losses that make a model forget a row, from the row's nats alone: one function each, in nats per row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ForgetLoss:
    """A loss of rows that are to be forgotten."""

    loss: Callable[[Tensor, Tensor, float], Tensor]
    """(nats of each row [B], what they were at the start [B], beta) -> [B]."""
    source: str


def _npo(nats: Tensor, start: Tensor, beta: float) -> Tensor:
    """-(2/β) log σ(-β log(π/π_ref)): its gradient begins as that of -nats, and fades as the row grows unlikely."""
    from torch.nn.functional import softplus

    return 2 / beta * softplus(beta * (start - nats))


def _ascent(nats: Tensor, start: Tensor, beta: float) -> Tensor:
    return -nats


FORGET_LOSSES: Mapping[str, ForgetLoss] = {
    "npo": ForgetLoss(_npo, "Zhang et al. 2024, arXiv 2404.05868, equation 3"),
    "gradient_ascent": ForgetLoss(_ascent, "Jang et al. 2022, arXiv 2210.01504, equation 1"),
}
"""Name in `forget.loss` -> the loss."""


def forgetting_loss(
    nats: Tensor, start: Tensor, forgets: Tensor, loss: str, beta: float, retain_weight: float
) -> Tensor:
    """[B] the loss of each row: of those that `forgets` [B] says, the loss that forgets; of others their own, weighed.

    `start` [B] are the nats of the rows that are forgotten, before the first update.
    """
    import torch

    forgotten = FORGET_LOSSES[loss].loss(nats, start.to(nats.dtype), beta)
    return torch.where(forgets, forgotten, retain_weight * nats)
