"""Proof 4: what a row is worth against taking it out of one real optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ghosttune.proving.findings import Bench, Finding, at_least, beside, every
from ghosttune.proving.reference import (
    KeepingTrainer,
    Step,
    decays_of,
    gradient_of,
    guide_loss,
    measured,
    rows_of,
    set_weights,
    table,
)

EARLY, LATE = range(2, 12), range(51, 71)
CORRELATION = 0.98


def values_tell_what_removal_does(bench: Bench) -> list[Finding]:
    """Steps after 50, 16 rows each, clipping not binding; what is harder stands beside it."""
    unclipped = trained(bench.folder / "adamw", LATE[-1] + 2, 1e9)
    late, repeated = correlations(unclipped, bench.folder / "adamw", LATE, 1e9)
    early, _ = correlations(unclipped, bench.folder / "adamw", EARLY, 1e9)
    found = [
        every("steps that the reference repeats as they were", repeated),
        at_least(
            f"median Pearson r over {len(LATE)} steps of 16 rows after step 50", float(np.median(late)), CORRELATION
        ),
        beside("lowest of them", float(np.min(late))),
        beside(f"steps {EARLY[0]} to {EARLY[-1]}", float(np.median(early))),
    ]
    if bench.quick:
        return found
    clipped, _ = correlations(trained(bench.folder / "clip", LATE[-1] + 2, 0.2), bench.folder / "clip", LATE, 0.2)
    plain = trained(bench.folder / "sgd", LATE[-1] + 2, 1e9, values="sgd")
    sgd, _ = correlations(plain, bench.folder / "sgd", LATE, 1e9)
    return [
        *found,
        beside("with clipping that binds", float(np.median(clipped))),
        beside("SGD values of the same steps", float(np.median(sgd))),
    ]


def trained(folder: Path, steps: int, max_norm: float, values: str = "adamw") -> KeepingTrainer:
    options: dict[str, Any] = {"learning_rate": 1e-3, "weight_decay": 0.01, "max_grad_norm": max_norm}
    return measured(folder, rows=160, max_steps=steps, per_device_train_batch_size=16, values=values, **options)


def correlations(
    trainer: KeepingTrainer, folder: Path, numbers: Sequence[int], max_norm: float
) -> tuple[list[float], list[bool]]:
    """(Pearson r of each step, whether the reference arrived at the trainer's own weights in each)."""
    rows, decays = table(folder, "ledger"), decays_of(trainer)
    found, repeated = [], []
    for number in numbers:
        step = trainer.steps[number - 1]
        values: dict[str, float] = {}
        for place, at in enumerate(rows["step"]):
            if at == number:
                name = rows["example_id"][place]
                values[name] = values.get(name, 0.0) + rows["value"][place]
        set_weights(trainer.model, step.weights)
        own = [gradient_of(trainer.model, [row], step.targets) for row in rows_of(step)]
        whole = updated(step, step.gradient, decays, max_norm)
        # 1e-9 of a weight: the trainer multiplies in another order
        repeated.append(all(bool((whole[n] - step.after[n]).abs().max() <= 1e-9) for n in whole))
        losses = [
            guide_loss(trainer.model, updated(step, gradient, decays, max_norm))
            for gradient in [step.gradient, *({n: g - without[n] for n, g in step.gradient.items()} for without in own)]
        ]
        found.append(float(np.corrcoef(np.array(losses[1:]) - losses[0], list(values.values()))[0, 1]))
    return found, repeated


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
