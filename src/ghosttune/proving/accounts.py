"""Proofs 1 and 3: the ledger adds up to what the loss did, and looking changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ghosttune.proving.findings import Bench, Finding, at_most, beside, every
from ghosttune.proving.reference import (
    GUIDE,
    KeepingTrainer,
    account,
    decays_of,
    gradient_of,
    guide_loss,
    keeping_trainer,
    measured,
    set_weights,
    small_llama,
    table,
)
from ghosttune.training.attaching import attach

RATES = (3e-3, 3e-4)
SHARE = 0.02
"""Of the path of the guide loss: what the trapezoid rule leaves of a step's curvature at the larger rate."""


def account_closes(bench: Bench) -> list[Finding]:
    """Proof 1, for an adapter and, where there is time, for all weights."""
    found = []
    for full in (False,) if bench.quick else (False, True):
        found += modules_add_up(bench.folder / f"sums-{full}", full)
    return found + terms_are_the_optimizers(bench.folder / "terms")


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


def terms_are_the_optimizers(folder: Path) -> list[Finding]:
    """The row account's terms against what AdamW's own states say; its residual is stated."""
    trainer = measured(folder)
    said = account(folder)
    expected = first_order_effect(trainer)
    terms = said["rows"] + said["carried_momentum"] + said["weight_decay"]
    drop = said["guide_loss_start"] - said["guide_loss_end"]
    return [
        at_most("rows + momentum + decay against the optimizer's states, relative", abs(terms / expected - 1), 1e-6),
        at_most(
            "rows + momentum + decay + residual - drop, of the drop", abs((terms + said["residual"]) / drop - 1), 1e-9
        ),
        beside("the drop, nats per target", drop),
        beside("its residual (curvature, drift of the second moment)", said["residual"]),
    ]


def first_order_effect(trainer: KeepingTrainer) -> float:
    """What the updates did to the guide loss to first order, had each second moment been the one before."""
    model: Any = trainer.model
    decays, total = decays_of(trainer), 0.0
    for step in trainer.steps:
        set_weights(model, step.weights)
        for name, gradient in gradient_of(model, GUIDE).items():
            before, after = step.moments[name], step.moments_after[name]
            total += step.rate * decays[name] * float((gradient * step.weights[name]).sum())
            if before:
                second = before["exp_avg_sq"]
                root = (second / (1 - 0.999 ** float(before["step"]))).sqrt() + 1e-8
                first = after["exp_avg"] / (1 - 0.9 ** float(after["step"]))
                total += float((gradient * step.rate * torch.where(second > 0, first / root, 0.0)).sum())
    return total


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
