"""Leave-some-out retraining: what the loss of every query becomes when half of the rows are trained, and which half.

Used by `attribution.py`. A retraining is the training of `ghosttune.train` without what it records: the same rows in
the same order, loss, clipping and AdamW, which `same_as_run` checks to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import get_scheduler

from ghosttune.choosing.opened import OpenedRun
from ghosttune.data.encoding import RowFeatures
from ghosttune.training.guide import GuideRows, guide_losses
from ghosttune.training.order import RowOrder, rows_of_steps


def subset(number: int, rows: int) -> np.ndarray:
    """[rows / 2] places of the rows of a subset, in order; the same for the same number."""
    return np.sort(np.random.default_rng([7, number]).choice(rows, rows // 2, replace=False))


class Retraining:
    """Trains the adapter of a run anew on some of its rows; made before anything was loaded into the model."""

    def __init__(self, opened: OpenedRun, queries: Sequence[RowFeatures]):
        self.opened, self.queries = opened, queries
        self.parameters = list(opened.parameters.values())
        self.steps: int = opened.config.train.max_steps  # type: ignore[assignment]
        self.start = [parameter.detach().clone() for parameter in self.parameters]

    def trained(self, places: Sequence[int], seed: int, watch: Any = None) -> list[Tensor]:
        """The trained parameters after as many steps as the run has, from the weights it started with. `watch` sees
        the rows of each step and its update (`run_values.RunValues`)."""
        train, model = self.opened.config.train, self.opened.adapted.model
        rows = [self.opened.train.features[place] for place in places]
        with torch.no_grad():
            for parameter, start in zip(self.parameters, self.start, strict=True):
                parameter.copy_(start)
        optimizer = torch.optim.AdamW(
            self.parameters,
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_epsilon,
            weight_decay=train.weight_decay,
            fused=True,
        )
        schedule = get_scheduler(train.lr_scheduler_type, optimizer, train.warmup_steps, self.steps)
        order = RowOrder([len(row) for row in rows], train.per_device_train_batch_size, seed, train.group_by_length)
        model.train()
        for step in rows_of_steps(order, train.per_device_train_batch_size, 1, self.steps):
            own = [rows[place] for place in step]
            losses = self.opened.task.example_loss(model, self.opened.prepared.collator(own))
            optimizer.zero_grad()
            targets = sum(row.targets for row in own)
            if watch is not None:
                watch.see([places[place] for place in step], losses / targets)
            (losses.sum() / targets).backward()
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, train.max_grad_norm)
            optimizer.step()
            if watch is not None:
                watch.updated(optimizer, float(norm))
            schedule.step()
        return [parameter.detach().clone() for parameter in self.parameters]

    def loss(self, query: RowFeatures) -> Tensor:
        """Nats per target of a query."""
        nats = self.opened.task.example_loss(self.opened.adapted.model, self.opened.prepared.collator([query]))
        return nats.sum() / query.targets

    def losses(self) -> np.ndarray:
        """[queries] nats per target of each query under the weights that the model has now."""
        device = torch.device("cpu")
        own = [GuideRows(self.opened.task, self.opened.prepared.collator, [row], 1, device) for row in self.queries]
        return np.array([float(guide_losses(self.opened.adapted.model, query).sum()) for query in own])

    def same_as_run(self) -> bool:
        """Whether training all rows with the run's seed ends in the weights of its last checkpoint, bit by bit."""
        own = self.trained(range(len(self.opened.train.features)), self.opened.config.train.seed)
        self.opened.at(self.steps)
        return all(torch.equal(ours, theirs) for ours, theirs in zip(own, self.parameters, strict=True))


def retrain(opened: OpenedRun, queries: Sequence[RowFeatures], out: Path, subsets: int, seeds: Sequence[int]) -> None:
    """Adds the losses of every subset and seed that `out` has not; a call that was cut off goes on."""
    out.mkdir(parents=True, exist_ok=True)
    retraining = Retraining(opened, queries)
    if not (out / "same").exists():
        if not retraining.same_as_run():
            raise SystemExit("retraining on all rows does not end in the weights of the run; nothing can be concluded")
        (out / "same").touch()
    for seed in seeds:
        for number in range(subsets):
            file = out / f"{number:03}-{seed}.npy"
            if not file.exists():
                retraining.trained(subset(number, len(opened.train.features)).tolist(), seed)
                partial = file.with_suffix(".partial")
                with open(partial, "wb") as stream:
                    np.save(stream, retraining.losses())
                partial.rename(file)
                print(f"subset {number}, seed {seed}", flush=True)


def retrained(out: Path, seeds: Sequence[int]) -> np.ndarray:
    """[subsets, seeds, queries] of the subsets that all seeds have trained."""
    found = []
    for number in range(len(list(out.glob(f"*-{seeds[0]}.npy")))):
        files = [out / f"{number:03}-{seed}.npy" for seed in seeds]
        if not all(file.exists() for file in files):
            break
        found.append([np.load(file) for file in files])
    return np.array(found)
