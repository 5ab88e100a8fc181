"""Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682): an average of the weights answers, others train."""

from __future__ import annotations

import torch
from schedulefree import AdamWScheduleFree  # pyright: ignore[reportMissingImports]


class ScheduleFreeAdamW(AdamWScheduleFree):
    """The package's own, but that an evaluation or a checkpoint leaves the weights that train as they were.

    They would else be computed back from the average, a little off, so that a run would depend on how often it was
    looked at. The learning rate is the scheduler's, its warm-up included.
    """

    @torch.no_grad()
    def eval(self) -> None:
        """Puts the average in place of the weights, which the states keep."""
        for group in self.param_groups:
            for parameter in group["params"] if group["train_mode"] else ():
                if "z" in self.state[parameter]:
                    self.state[parameter]["trained"] = parameter.detach().clone()
        super().eval()

    @torch.no_grad()
    def train(self) -> None:
        """Puts the weights that train in their place again."""
        for group in self.param_groups:
            for parameter in () if group["train_mode"] else group["params"]:
                if (kept := self.state[parameter].pop("trained", None)) is not None:
                    parameter.copy_(kept)
            group["train_mode"] = True
