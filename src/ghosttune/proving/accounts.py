"""Proofs 1 and 3: the ledger adds up to what the loss did, and looking changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghosttune.proving.findings import Bench, Finding, at_most, every
from ghosttune.proving.recipes import recipe
from ghosttune.proving.reference import (
    GUIDE,
    KeepingTrainer,
    account,
    gradient_of,
    guide_loss,
    keeping_trainer,
    measured,
    rows_of,
    set_weights,
    small_llama,
    table,
)
from ghosttune.training.attaching import attach
from ghosttune.workflows.train import train

RATES = (3e-3, 3e-4)
MAX_NORM = 0.2
"""To which `keeping_trainer` clips."""

RESIDUAL, BETWEEN = 0.1, 0.2
"""Of the drop: at a guide pass after every update, and every few updates."""

SHARE = 0.02
"""Of the path of the guide loss: what the trapezoid rule leaves of a step's curvature at the larger rate."""


def account_closes(bench: Bench) -> list[Finding]:
    """Proof 1, for an adapter and, where there is time, for all weights."""
    found = []
    for full in (False,) if bench.quick else (False, True):
        found += modules_add_up(bench.folder / f"sums-{full}", full)
    found += rows_add_up(bench.folder / "rows")
    return found if bench.quick else found + recipes_close(bench)


def modules_add_up(folder: Path, full: bool) -> list[Finding]:
    """The sum over modules against the guide loss at both ends, measured apart, at two learning rates."""
    kind = "all weights" if full else "LoRA"
    shares, found = [], []
    for rate in RATES:
        trainer = measured(folder / str(rate), full=full, learning_rate=rate, max_steps=24)
        said = account(folder / str(rate))
        ends = [guide_loss(trainer.model, weights) for weights in (trainer.steps[0].weights, trainer.steps[-1].after)]
        drop = ends[0] - ends[1]
        modules = sum(table(folder / str(rate), "module_steps")["guide_loss_drop"])
        shares.append(abs(modules - drop) / said["guide_loss_path"])
        # 1e-4: Llama's logits are float32 whatever the model's dtype
        apart = abs((said["guide_loss_start"] - said["guide_loss_end"]) / drop - 1)
        found.append(at_most(f"{kind}, lr {rate:g}: the drop that is reported against one measured apart", apart, 1e-4))
    return [
        *found,
        at_most(f"{kind}, lr {RATES[0]:g}: |sum over modules - drop| of the loss's path", shares[0], SHARE),
        at_most(f"{kind}, lr {RATES[1]:g}: the same, a fifth at most", shares[1], max(shares[0] / 5, 1e-6)),
    ]


def rows_add_up(folder: Path) -> list[Finding]:
    """Credits of rows against gradients of single rows and AdamW's own states, written out; and what they leave."""
    trainer = measured(folder)
    said, expected = account(folder), written_out(trainer)
    rows = table(folder, "ledger")
    credits: dict[tuple[int, str], float] = {}
    for step, name, credit in zip(rows["step"], rows["example_id"], rows["credit"], strict=True):
        credits[step, name] = credits.get((step, name), 0.0) + credit
    found = [value for _, value in sorted(credits.items(), key=lambda item: item[0][0])]
    largest = max(map(abs, expected))
    apart = max(abs(one - other) for one, other in zip(found, expected, strict=True)) / largest
    drop = said["guide_loss_start"] - said["guide_loss_end"]
    terms = said["rows"] + said["weight_decay"] + said["residual"]
    return [
        at_most(f"{len(expected)} credits against the sums written out, of the largest", apart, 1e-6),
        at_most("rows + decay + residual - drop, of the drop", abs(terms / drop - 1), 1e-9),
        at_most("residual of the account by rows, of the drop", abs(said["residual"] / drop), RESIDUAL),
    ]


def recipes_close(bench: Bench) -> list[Finding]:
    """What the account by rows leaves of the drop at the shipped recipes, with their own guide passes."""
    runs = {"quickstart": bench.learned, "init": train(recipe("init"), bench.folder / "init")}
    found = []
    for name, run in runs.items():
        said = run.record["ledger"]
        drop = said["guide_loss_start"] - said["guide_loss_end"]
        found.append(at_most(f"{name}: residual by rows, of the drop", abs(said["residual"] / drop), BETWEEN))
    return found


def written_out(trainer: KeepingTrainer) -> list[float]:
    """What each row's gradient did to the guide loss, row by row in the order of the steps: through the updates of its
    own step and all later ones, each with the guide gradient halfway."""
    model: Any = trainer.model
    single: list[list[dict[str, Tensor]]] = []
    found: list[list[float]] = []
    for step in trainer.steps:
        set_weights(model, step.weights)
        towards = gradient_of(model, GUIDE)
        norm = float(sum((g**2).sum() for g in step.gradient.values())) ** 0.5
        clip = min(1.0, MAX_NORM / (norm + 1e-6))
        rows = rows_of(step)
        own = [{n: clip * g for n, g in gradient_of(model, [row], step.targets).items()} for row in rows]
        set_weights(model, step.after)
        after = gradient_of(model, GUIDE)
        single.append(own)
        found.append([0.0] * len(rows))
        for name, guide in towards.items():
            state = step.moments_after[name]
            t = float(state["step"])
            root = (state["exp_avg_sq"] / (1 - 0.999**t)).sqrt() + 1e-8
            direction = torch.where(state["exp_avg_sq"] > 0, 0.5 * (guide + after[name]) / root, 0.0)
            for source, gradients in enumerate(single):
                part = step.rate * 0.1 * 0.9 ** (len(single) - 1 - source) / (1 - 0.9**t)
                for place, gradient in enumerate(gradients):
                    found[source][place] += part * float((direction * gradient[name]).sum())
    return [value for step in found for value in step]


def looking_changes_nothing(bench: Bench) -> list[Finding]:
    """Proof 3, for an adapter and for all weights, with accumulation."""
    return [unchanged(bench.folder / f"looking-{full}", full) for full in (False, True)]


def unchanged(folder: Path, full: bool) -> Finding:
    """Weights, optimizer state and random generator after training, with the instruments and without."""
    ends = []
    for seen in (False, True):
        model = small_llama(full, torch.float32)
        trainer = keeping_trainer(folder / str(seen), model, gradient_accumulation_steps=2)
        if seen:
            attach(trainer, folder / "measured", GUIDE, guide_every=2, effective_every=3)
        trainer.train()
        ends.append((trainer.steps[-1], torch.random.get_rng_state()))
    (plain, plain_random), (step, random) = ends
    same = {f"weights {name}": torch.equal(value, step.after[name]) for name, value in plain.after.items()}
    for name, state in plain.moments_after.items():
        same |= {f"{key} {name}": torch.equal(value, step.moments_after[name][key]) for key, value in state.items()}
    kind = "all weights" if full else "LoRA"
    return every(
        f"{kind}: tensors and generator bit-identical", same | {"generator": torch.equal(plain_random, random)}
    )
