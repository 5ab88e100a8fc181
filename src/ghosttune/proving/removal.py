"""Proof 4: what a row is worth against taking it out of one real optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ghosttune.proving.findings import Bench, Finding, at_least, beside, every, within
from ghosttune.proving.reference import (
    KeepingTrainer,
    Step,
    decays_of,
    gradient_of,
    guide_loss,
    measured,
    rows_of,
    set_weights,
)
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import read_table

EARLY, LATE = range(2, 12), range(51, 71)
CORRELATION, SLOPES = 0.98, (0.8, 1.25)
BINDING = 0.2
"""A limit of the gradient's length below that of nearly every step."""


def values_tell_what_removal_does(bench: Bench) -> list[Finding]:
    """Steps after 50, 16 rows each, with a clip that binds and without; other values of the same steps beside them."""
    found = []
    for limit, kind in ((BINDING, "clip binds"), (1e9, "no clip"))[: 1 if bench.quick else 2]:
        folder = bench.folder / kind.replace(" ", "-")
        trainer = trained(folder, LATE[-1] + 2, limit)
        late = agreements(trainer, folder, LATE, limit)
        early = agreements(trainer, folder, EARLY, limit)
        found += [
            every(f"{kind}: steps that the reference repeats as they were", [one.repeated for one in late + early]),
            at_least(f"{kind}: median Pearson r over {len(LATE)} steps of 16 rows", median(late, "r"), CORRELATION),
            within(f"{kind}: median of the real change over the value", median(late, "slope"), *SLOPES),
            beside(f"{kind}: lowest r of them", min(one.r for one in late)),
            beside(f"{kind}: steps {EARLY[0]} to {EARLY[-1]}", median(early, "r")),
        ]
    for values in () if bench.quick else ("adamw", "sgd"):
        folder = bench.folder / values
        other = agreements(trained(folder, LATE[-1] + 2, BINDING, values), folder, LATE, BINDING)
        found.append(beside(f"clip binds: r of `{values}` values of the same steps", median(other, "r")))
    return found


def trained(folder: Path, steps: int, max_norm: float, values: str = "removal") -> KeepingTrainer:
    options: dict[str, Any] = {"learning_rate": 1e-3, "weight_decay": 0.01, "max_grad_norm": max_norm}
    return measured(folder, rows=160, max_steps=steps, per_device_train_batch_size=16, values=values, **options)


@dataclass(frozen=True)
class Agreement:
    """Of one step's values with what taking each row out of it does."""

    r: float
    slope: float
    """Real change over value, by least squares."""
    repeated: bool
    """Whether the reference arrived at the trainer's own weights."""


def median(found: Sequence[Agreement], name: str) -> float:
    return float(np.median([getattr(one, name) for one in found]))


def agreements(trainer: KeepingTrainer, folder: Path, numbers: Sequence[int], max_norm: float) -> list[Agreement]:
    """Of these steps. A value is of all the movement that the row's gradient makes; of it, the step itself makes the
    share (1−β1)/(1−β1^t)."""
    values, decays = values_in(folder / "measured"), decays_of(trainer)
    found = []
    for number in numbers:
        step = trainer.steps[number - 1]
        set_weights(trainer.model, step.weights)
        own = [gradient_of(trainer.model, [row], step.targets) for row in rows_of(step)]
        whole = updated(step, step.gradient, decays, max_norm)
        # 1e-9 of a weight: the trainer multiplies in another order
        repeated = all(bool((whole[n] - step.after[n]).abs().max() <= 1e-9) for n in whole)
        losses = [
            guide_loss(trainer.model, updated(step, gradient, decays, max_norm))
            for gradient in [step.gradient, *({n: g - without[n] for n, g in step.gradient.items()} for without in own)]
        ]
        real, said = np.array(losses[1:]) - losses[0], np.array(list(values[number].values()))
        said *= 0.1 / (1 - 0.9**number)
        found.append(Agreement(*agreement(said, real), repeated))
    return found


def values_in(run: Path) -> dict[int, dict[str, float]]:
    """The value of each row in each update of a run."""
    table = read_table(RunDir(run), "ledger", ["step", "example_id", "value"]).to_pydict()
    values: dict[int, dict[str, float]] = {}
    for step, name, value in zip(*table.values(), strict=True):
        own = values.setdefault(step, {})
        own[name] = own.get(name, 0.0) + (value or 0.0)
    return values


def agreement(said: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """(Pearson r, slope of the real change over the value)."""
    return float(np.corrcoef(said, real)[0, 1]), float(np.cov(said, real)[0, 1] / said.var(ddof=1))


def updated(step: Step, gradient: dict[str, Tensor], decays: dict[str, float], max_norm: float) -> dict[str, Tensor]:
    """The weights that AdamW, written out, makes of a step's start with this gradient; clipping is part of the step."""
    length = float(sum((g**2).sum() for g in gradient.values())) ** 0.5
    clip = min(1.0, max_norm / (length + 1e-6))
    moved = {}
    for name, g in gradient.items():
        state, t = step.moments[name], float(step.moments[name]["step"]) + 1
        first = 0.9 * state["exp_avg"] + 0.1 * clip * g
        second = 0.999 * state["exp_avg_sq"] + 0.001 * (clip * g) ** 2
        root = (second / (1 - 0.999**t)).sqrt() + 1e-8
        kept = step.weights[name] * (1 - step.rate * decays[name])
        moved[name] = kept - step.rate * first / (1 - 0.9**t) / root
    return moved
