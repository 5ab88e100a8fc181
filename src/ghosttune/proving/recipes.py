"""The shipped recipes as they are: what the account by rows leaves of them, and what taking a row out really does."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghostgrad.crediting import Clip
from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig
from ghosttune.training.guide import evaluating, guide_losses
from ghosttune.training.instruments import instrument_of
from ghosttune.training.ledger import Ledger
from ghosttune.training.trainer import RunTrainer
from ghosttune.workflows import train as training
from ghosttune.workflows.quickstart import PROFILE

RECIPES: dict[str, dict[str, Any]] = {
    "quickstart": {"profile": PROFILE},
    "init": {"overrides": ["data.train.path=builtin:rows", "train.warmup_steps=5"]},
}
"""What `ghosttune quickstart` runs, and what `ghosttune init` writes down."""

ASIDE = ("evaluate.limit=0", "measure.norms=null", "model.device=cpu")
"""What takes time and touches neither rows nor weights."""


def recipe(name: str, *changes: str) -> RunConfig:
    """The recipe with `--set` texts."""
    given = RECIPES[name]
    return load_config(profile=given.get("profile"), overrides=[*given.get("overrides", ()), *ASIDE, *changes])


@dataclass
class Before:
    """All that an update is made of: what was before it, and its rows."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: Tensor
    inputs: dict[str, Any]
    targets: Any


class Removal:
    """Takes rows out of the updates of a run, one at a time, each in the very update that the run made.

    Args:
        numbers: of the updates, from 1.
    """

    def __init__(self, numbers: Sequence[int]):
        self.kept: dict[int, Before] = {}
        outer = self

        class Keeping(RunTrainer):
            def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
                outer.trainer = self
                if self.state.global_step > max(numbers):  # the schedule is that of the whole run
                    self.control.should_training_stop = True
                if (number := self.state.global_step + 1) in numbers:
                    outer.kept[number] = Before(
                        {n: p.detach().clone() for n, p in model.named_parameters() if n in model.trained},
                        copy.deepcopy(self.optimizer.optimizer.state_dict()),
                        torch.get_rng_state(),
                        {key: value.clone() for key, value in inputs.items()},
                        num_items_in_batch,
                    )
                return super().training_step(model, inputs, num_items_in_batch)

        self.trainer: Any = None
        self.kind = Keeping

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Runs inside are trained by the trainer that keeps updates."""
        own = training.RunTrainer
        training.RunTrainer = self.kind  # type: ignore[misc]
        try:
            yield
        finally:
            training.RunTrainer = own  # type: ignore[misc]

    def changes(self, number: int, held: bool = False) -> tuple[list[str], np.ndarray]:
        """(ids of the rows, by how much the guide loss after the update is higher without each, over the share of the
        gradient that the update uses). `held`: the clip factor stays as it was with the row."""
        trainer, before = self.trainer, self.kept[number]
        model, settings = trainer.model, trainer.config.train
        parameters = {n: p for n, p in model.named_parameters() if n in before.weights}
        _set(parameters, before.weights)
        torch.set_rng_state(before.random)
        model.train()
        losses = trainer.task.example_loss(model, before.inputs) / before.targets
        single = [torch.autograd.grad(loss, list(parameters.values()), retain_graph=True) for loss in losses]
        whole = [torch.stack(parts).sum(0) for parts in zip(*single, strict=True)]
        length = float(sum(gradient.square().sum() for gradient in whole)) ** 0.5
        factor = Clip(length, settings.max_grad_norm).factor if held else 1.0
        ledger: Ledger = instrument_of(trainer.measurement, Ledger)

        def after(removed: int | None) -> float:
            _set(parameters, before.weights)
            optimizer = trainer.optimizer.optimizer
            optimizer.load_state_dict(copy.deepcopy(before.optimizer))
            optimizer.zero_grad()
            for place, parameter in enumerate(parameters.values()):
                parameter.grad = factor * (whole[place] - (0 if removed is None else single[removed][place]))
            if not held:
                torch.nn.utils.clip_grad_norm_(list(parameters.values()), settings.max_grad_norm)
            optimizer.step()
            with evaluating(model):
                return float(guide_losses(model, ledger.guide).sum())

        beta = settings.adam_beta1
        counts = [float(s["step"]) for s in before.optimizer["state"].values()] or [0.0]
        share = (1 - beta) / (1 - beta ** (max(counts) + 1))
        with_all = after(None)
        found = np.array([after(row) - with_all for row in range(len(losses))]) / share
        rows = before.inputs["example_index"].tolist()
        return [trainer.train_rows[row].example_id for row in rows], found


def _set(parameters: dict[str, Any], weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
