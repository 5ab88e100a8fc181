"""Memory a run needs at its peak, predicted from its model and a pass of two rows, and what would make it smaller."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from ghosttune.config.schema import RunConfig
from ghosttune.training.optimizers import OPTIMIZERS

BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "nf4": 0.516}
"""Per number; nf4 with its scales, one per 64 numbers, themselves in 8 bits."""

GRADIENT = 4
"""Bytes per trained number, in float32."""

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says how much memory a container may use."""


@dataclass(frozen=True)
class Plan:
    """What decides how much memory a run takes."""

    batch: int
    """Rows of a training micro-batch."""
    other_batch: int
    """Rows that are evaluated at once, and that a guide pass reads at once."""
    dtype: str
    quantization: str
    checkpointing: bool
    optimizer: float
    """Bytes per trained number that it keeps."""
    sequences: int = 1
    """That a training row is."""


@dataclass(frozen=True)
class Sizes:
    """What was counted and measured: numbers of parameters, and bytes per row of the longest rows."""

    linear: int
    """Frozen parameters of linear layers in the blocks, which quantization makes smaller."""
    other: int
    """Frozen parameters elsewhere."""
    trained: int = 0
    guide_rows: int = 0
    layers: int = 1
    kept: float = 0.0
    """Kept for the backward pass, per row."""
    kept_checkpointed: float = 0.0
    """The same under activation checkpointing."""
    largest: float = 0.0
    """Of the largest tensor, per row."""
    by_row: int = 0
    """Of the gradients of a row that are whole at once, in layers that no rule measures."""
    starting: int = 0
    """What training rows leave while they decide how the adapter begins."""
    ledger: int = 0
    """What the ledger keeps: guide gradient and weights of the last guide pass, and the rows of the last updates."""


def plan_of(config: RunConfig) -> Plan:
    train = config.train
    return Plan(
        batch=train.per_device_train_batch_size,
        other_batch=train.per_device_eval_batch_size,
        dtype=config.model.dtype,
        quantization=config.model.quantization,
        checkpointing=train.activation_checkpointing,
        optimizer=OPTIMIZERS[train.optim].bytes,
        sequences=config.task.sequences_per_row,
    )


def weight_bytes(sizes: Sizes, plan: Plan) -> float:
    """Of the untouched base."""
    if plan.quantization == "none":
        return (sizes.linear + sizes.other) * BYTES[plan.dtype]
    return sizes.linear * BYTES[plan.quantization] + sizes.other * BYTES["float32"]


def predicted(sizes: Sizes, plan: Plan) -> dict[str, float]:
    """Bytes at the peak, by purpose: the backward pass of the longest rows, or what needs more.

    An evaluation may, and a start of the adapter that training rows decide.
    """
    kept = sizes.kept
    if plan.checkpointing:  # the layer at work is computed anew
        kept = sizes.kept_checkpointed + (sizes.kept - sizes.kept_checkpointed) / sizes.layers
    rows = max(plan.batch * plan.sequences, min(plan.other_batch, sizes.guide_rows))
    backward = rows * (kept + sizes.largest)
    evaluation = plan.other_batch * 2 * sizes.largest
    starting = sizes.starting and sizes.starting + sizes.kept + sizes.largest
    return {
        "weights": weight_bytes(sizes, plan) + sizes.trained * BYTES["float32"],
        "gradients and optimizer": sizes.trained * (GRADIENT + plan.optimizer),
        "activations": max(backward, evaluation, starting),
        **({"rows' gradients": float(sizes.by_row * plan.batch * plan.sequences)} if sizes.by_row else {}),
        **({"ledger": float(sizes.ledger)} if sizes.ledger else {}),
    }


def savings(config: RunConfig) -> list[dict[str, Any]]:
    """Changes of the plan that save memory, by its fields; the most harmless first, each step of halving by itself."""
    plan = plan_of(config)
    rows, changes = max(plan.batch, plan.other_batch), list[dict[str, Any]]()
    while rows > 1:
        rows = rows // 2
        changes.append({"batch": min(plan.batch, rows), "other_batch": min(plan.other_batch, rows)})
    if not plan.checkpointing and config.method.type != "prefix_tuning":
        changes.append({"checkpointing": True})
    if config.method.quantized_base and plan.quantization == "none":
        changes += [*([] if plan.dtype == "bfloat16" else [{"dtype": "bfloat16"}]), {"quantization": "nf4"}]
    return changes


def fitting(sizes: Sizes, config: RunConfig, free: float) -> str | None:
    """The first change that makes the run fit, or as many of them together as it takes; None when none does."""
    alone, plan = savings(config), plan_of(config)
    for change in (*alone, *accumulate(alone, operator.or_)):
        if sum(predicted(sizes, replace(plan, **change)).values()) <= free:
            return _in_settings(change, config)
    return None


def _in_settings(change: dict[str, Any], config: RunConfig) -> str:
    """The change as a person writes it; an update keeps its number of rows."""
    train = config.train
    said = {
        "other_batch": "train.per_device_eval_batch_size: {}",
        "checkpointing": "train.activation_checkpointing: true",
        "dtype": "model.dtype: {}",
        "quantization": "model.quantization: {}",
    }
    settings = [words.format(change[name]) for name, words in said.items() if name in change]
    if change.get("batch", train.per_device_train_batch_size) < train.per_device_train_batch_size:
        rows = train.rows_per_step
        steps = math.ceil(rows / change["batch"])
        batch = f"train.per_device_train_batch_size: {change['batch']}, train.gradient_accumulation_steps: {steps}"
        settings.insert(0, batch)
    return ", ".join(settings)


def free_memory(device: str) -> int:
    """Bytes that are free on the device now, within what a container may use."""
    import psutil

    if device != "cpu":
        import torch

        return torch.cuda.mem_get_info(torch.device(device))[0]
    free = psutil.virtual_memory().available
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, limit - used)


def own_memory(device: str) -> int:
    """Bytes of the device that this process has now, where that is the machine's own memory; 0 of a GPU."""
    import psutil

    return psutil.Process().memory_info().rss if device == "cpu" else 0


def _number(file: Path) -> int | None:
    """What a file of the cgroup says; None where there is no limit."""
    text = file.read_text().strip() if file.is_file() else "max"
    return int(text) if text.isdigit() else None
