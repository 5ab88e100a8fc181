"""The ledger's `removal` values for many queries at once: what each row did to each query, added up over a run.

Used by `attribution.py`. A run is repeated, and every row taken out of every update to first order, with the clip
factor and v̂ as they are without it (the formulas of `ghostgrad.crediting`): once per query, not once for guide rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from retraining import Retraining
from torch import Tensor

from ghostgrad.crediting import Clip
from ghosttune.training.guide import evaluating


@dataclass(frozen=True)
class _Update:
    places: list[int]
    rows: Tensor
    """[B, D] clipped gradients."""
    ratios: Tensor
    """[B] clip factor without each row, over that with it."""
    whole: Tensor
    """[D] the clipped gradient."""
    scale: Tensor
    """[D] learning rate times what a change of the gradient moves."""


class RunValues:
    """Watches a retraining on all rows.

    Args:
        every: updates between two looks at the queries; updates in between take the later one.
    """

    def __init__(self, retraining: Retraining, every: int):
        self.retraining, self.every = retraining, every
        self.values = torch.zeros(len(retraining.queries), len(retraining.opened.train.features), dtype=torch.float64)
        """[queries, rows]; positive: the row lowered the query's loss."""
        self.window: list[_Update] = []

    def see(self, places: Sequence[int], losses: Tensor) -> None:
        """Takes the rows of the next update: [B] what each adds to its loss."""
        self.places = list(places)
        self.rows = torch.stack([self._gradient(loss) for loss in losses])

    def updated(self, optimizer: torch.optim.Optimizer, norm: float) -> None:
        """Takes the update; `norm` is the length of its gradient before clipping."""
        settings, config = optimizer.param_groups[0], self.retraining.opened.config.train
        states = [optimizer.state[parameter] for parameter in self.retraining.parameters]
        first, second = (_flat([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq"))
        beta, second_beta = settings["betas"]
        correction = 1 - second_beta ** float(states[0]["step"])
        root = (second / correction).sqrt()
        inverse = second.sign() / (root + settings["eps"])
        clip = Clip(norm, config.max_grad_norm)
        rows, whole = self.rows * clip.factor, self.rows.sum(0) * clip.factor
        ratios = clip.without(rows @ whole, rows.square().sum(1))
        through_v = first * inverse * whole / root.clamp_min(1e-30) * (1 - second_beta) / (1 - beta) / correction
        self.window.append(_Update(self.places, rows, ratios, whole, settings["lr"] * inverse * (1 - through_v)))
        if len(self.window) == self.every:
            self.close()

    def close(self) -> None:
        """Gives the updates since the last look their values."""
        if not self.window:
            return
        model = self.retraining.opened.adapted.model
        with evaluating(model):
            queries = torch.stack([self._gradient(self.retraining.loss(query)) for query in self.retraining.queries])
        for update in self.window:
            towards = queries * update.scale
            own, whole = towards @ update.rows.mT, (towards @ update.whole).unsqueeze(1)
            self.values[:, update.places] += (update.ratios * own - (update.ratios - 1) * whole).double()
        self.window = []

    def _gradient(self, loss: Tensor) -> Tensor:
        return _flat(torch.autograd.grad(loss, self.retraining.parameters, retain_graph=True))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
