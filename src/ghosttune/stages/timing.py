"""How long a run will take on this machine: the pace of a probe, times the positions that the run reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ghosttune.config.schema import RunConfig
from ghosttune.stages.prepare import Prepared
from ghosttune.training.candidates import BY_GRADIENT
from ghosttune.training.order import MicroBatches
from ghosttune.training.processes import processes


@dataclass(frozen=True)
class Pace:
    """Seconds per position, padding included."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        return self.forward + self.backward


def seconds_of(prepared: Prepared, pace: Pace) -> dict[str, float]:
    """What a process computes with the model, by purpose; saving, the optimizer and answers are not in it."""
    config, measure = prepared.config, prepared.config.measure
    train, selection = config.train, config.data.online_selection
    steps, sizes = train.max_steps or 0, _sizes(prepared.train.features)
    batches = list(MicroBatches(prepared.order(), train.per_device_train_batch_size, 0, processes()))
    epoch = sum(_positions(config, [sizes[place] for place in batch]) for batch in batches)
    updates = steps * train.rows_per_step * epoch / max(1, sum(map(len, batches)))
    times = {"updates": updates * pace.both}
    if selection.by in (*BY_GRADIENT, "loss"):
        times["candidates"] = updates * selection.offered * (pace.forward if selection.by == "loss" else pace.both)
    read_at_once = train.per_device_eval_batch_size
    if every := measure.ledger.guide_every:
        guide = _by_length(_sizes(prepared.guide.features), read_at_once)
        times["guide passes"] = (1 + -(-steps // every)) * guide * pace.both
    evaluations = steps // (train.eval_steps or steps or 1) + 1
    times["dev losses"] = evaluations * _by_length(_sizes(prepared.dev.features), read_at_once) * pace.forward
    return times


def _sizes(rows: Sequence[Any]) -> list[int]:
    return [row.positions for row in rows]


def positions_together(sizes: Sequence[int]) -> int:
    """Positions of a batch of rows of these sizes."""
    return len(sizes) * max(sizes)


def span(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _positions(config: RunConfig, sizes: Sequence[int]) -> int:
    """Of a batch; packed rows stand one behind the other."""
    return sum(sizes) if config.train.packing else positions_together(sizes)


def _by_length(sizes: Sequence[int], at_once: int) -> int:
    """Positions of rows that are read in order of their length, so many at once."""
    ordered = sorted(sizes)
    return sum(positions_together(ordered[start : start + at_once]) for start in range(0, len(ordered), at_once))
