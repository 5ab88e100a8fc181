"""What passes of two real rows through the model show: whether gradients arrive, and what the run needs in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ghostgrad.crediting import bytes_kept
from ghosttune.config.facts import ModelKind
from ghosttune.config.findings import Checks, Found
from ghosttune.config.schema import RunConfig
from ghosttune.errors import listed
from ghosttune.models.direct import DirectModel
from ghosttune.models.loading import device_of
from ghosttune.models.sizing import parameter_counts
from ghosttune.models.upstream import faults_of
from ghosttune.stages.model import Adapted, initialisation_of
from ghosttune.stages.prepare import Prepared
from ghosttune.stages.timing import Pace, positions_together, seconds_of, span
from ghosttune.training.candidates import BY_GRADIENT
from ghosttune.training.engines import without_rule
from ghosttune.training.memory import Sizes, fitting, free_memory, own_memory, plan_of, predicted
from ghosttune.training.probing import PART, Probe, kept, last_trained, probe
from ghosttune.training.processes import processes

TRIED_ROWS = 2
SHOWN = 5
AFFORDED = 3.0
"""Seconds for a whole micro-batch, which tells the pace better than two rows do."""

MODEL = Checks()
"""The checks of a model on real rows, each made of a `Tried`."""


@dataclass(frozen=True)
class Tried:
    """A model as it would train, in numbers; without a probe while nothing of it is loaded."""

    config: RunConfig
    sizes: Sizes
    free: int
    """Bytes on its device before it was loaded."""
    process: int = 0
    """Bytes that Python and what it has imported took by then; of a GPU none."""
    rows: tuple[str, ...] = ()
    """Ids of the rows of the probe."""
    probe: Probe | None = None
    pace: Pace | None = None

    @property
    def needed(self) -> float:
        return sum(predicted(self.sizes, plan_of(self.config)).values())

    @property
    def fits(self) -> bool:
        return self.needed <= self.free

    def described(self) -> dict[str, str]:
        """What `check` prints; what the process takes already is needed, and no longer free."""
        parts = predicted(self.sizes, plan_of(self.config))
        if self.process:
            parts["Python and libraries"] = self.process
        sizes = {name: _size(part) for name, part in parts.items()}
        return {"needed": _size(sum(parts.values())), **sizes, "free": _size(self.free)}

    def times(self, prepared: Prepared) -> dict[str, str]:
        """What `check` prints; nothing before a pace is known."""
        if self.pace is None:
            return {}
        times = seconds_of(prepared, self.pace)
        return {"about": span(sum(times.values())), **{name: span(seconds) for name, seconds in times.items()}}


def before_loading(config: RunConfig, kind: ModelKind) -> Tried:
    """What the weights alone need, from the model's config.json."""
    linear, other = parameter_counts(config.model, kind)
    device = str(device_of(config.model))
    return Tried(config, Sizes(linear, other), free_memory(device), own_memory(device))


def on_real_rows(tried: Tried, prepared: Prepared, adapted: Adapted, whole: bool = False) -> Tried:
    """The same with what the two longest training rows show.

    Whether gradients arrive is seen on a CPU by their last `PART` tokens, unless they are to be read as a `whole`.
    """
    config, model = prepared.config, adapted.model
    features = prepared.train.features
    by_length = np.argsort([row.positions for row in features], kind="stable")
    longest = [features[place] for place in by_length[-TRIED_ROWS:]]
    batch = _batch(prepared, longest)
    checkpoints = model.supports_gradient_checkpointing and config.method.type != "prefix_tuning"
    in_part = not whole and device_of(config.model).type == "cpu"
    read = [last_trained(row, PART) for row in longest] if in_part else longest
    with faults_of(config.model.name):
        plain = kept(prepared.task, model, batch, checkpointing=False)
        checkpointed = kept(prepared.task, model, batch, checkpointing=True) if checkpoints else plain
        checkpointing = checkpoints and config.train.activation_checkpointing
        seen = probe(prepared.task, model, adapted.facts, _batch(prepared, read), checkpointing)
        pace = _pace(seen, read)
        rows = _micro_batch(prepared)
        if pace.both * positions_together([row.positions for row in rows]) < AFFORDED:
            pace = _pace(probe(prepared.task, model, {}, _batch(prepared, rows), checkpointing), rows)
    initialisation = initialisation_of(prepared, adapted)
    trained, own = sum(adapted.counts.values()), isinstance(model, DirectModel)
    sizes = replace(
        tried.sizes,
        linear=0 if own else tried.sizes.linear,
        other=tried.sizes.linear + tried.sizes.other - trained if own else tried.sizes.other,
        trained=trained,
        by_row=_by_row(config, model),
        ledger=_ledger(config, model, trained),
        starting=0 if initialisation is None else initialisation.needed,
        guide_rows=len(prepared.guide),
        layers=adapted.layers,
        kept=plain.whole / len(longest),
        kept_checkpointed=checkpointed.whole / len(longest),
        largest=plain.largest / len(longest),
    )
    return replace(tried, config=config, sizes=sizes, rows=tuple(r.example_id for r in longest), probe=seen, pace=pace)


def _batch(prepared: Prepared, rows: Sequence[Any]) -> dict[str, Any]:
    device = device_of(prepared.config.model)
    return {name: tensor.to(device) for name, tensor in prepared.collator(rows).items()}


def _micro_batch(prepared: Prepared) -> list[Any]:
    """Rows of middling length, as many as a process reads at once."""
    features = prepared.train.features
    size = prepared.config.train.per_device_train_batch_size
    by_length = np.argsort([row.positions for row in features], kind="stable")
    first = max(0, len(by_length) - size) // 2
    return [features[place] for place in by_length[first : first + size]]


def _pace(seen: Probe, rows: Sequence[Any]) -> Pace:
    positions = positions_together([row.positions for row in rows])
    return Pace(seen.forward / positions, seen.backward / positions)


def _by_row(config: RunConfig, model: Any) -> int:
    """Bytes of whole gradients that a row has at once while instruments measure layers without a rule."""
    watched = config.measure.ledger.guide_every is not None or config.data.online_selection.by in BY_GRADIENT
    return without_rule(model).largest if watched and config.measure.unsupported == "exact" else 0


def _ledger(config: RunConfig, model: Any, trained: int) -> int:
    """Bytes that the ledger keeps between updates: two copies of what trains, in float32, and the rows' folds."""
    every = config.measure.ledger.guide_every
    if every is None:
        return 0
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    sequences = config.train.rows_per_step * config.task.sequences_per_row
    rows = bytes_kept(own, sequences, every, config.train.adam_beta1, processes())
    return 2 * 4 * trained + rows


@MODEL.add("Such a run ends with an out-of-memory error, perhaps hours after its start")
def more_memory_than_there_is(case: Tried) -> Found:
    """A predicted peak above the memory that is free."""
    if case.fits:
        return
    change = fitting(case.sizes, case.config, case.free)
    remedy = f"Set {change}" if change else "No setting here makes it fit: take a smaller model, or free memory"
    yield f"the run needs about {_size(case.needed)}, and {_size(case.free)} are free", remedy, []


@MODEL.add("What has no gradient stays as it is, and the run learns nothing there")
def gradients_that_do_not_arrive(case: Tried) -> Found:
    """Trained modules that the loss of two real rows does not reach."""
    if case.probe is not None and case.probe.unreached:
        count = len(case.probe.unreached)
        yield (
            f"the loss of rows {listed(case.rows)} does not reach {count} of the trained modules: "
            f"{listed(case.probe.unreached, SHOWN)}",
            "Take them out of method.target_modules; or, when it is all of them, use another method for this model",
            case.rows,
        )


@MODEL.add("The first update would make every weight a number no longer")
def loss_not_a_number(case: Tried) -> Found:
    """A loss of infinity or NaN before training has begun."""
    losses = dict(zip(case.rows, case.probe.losses, strict=True)) if case.probe is not None else {}
    broken = [row for row, loss in losses.items() if not abs(loss) < float("inf")]
    if broken:
        yield (
            f"the untrained model has a loss of {losses[broken[0]]} on rows {listed(broken)}",
            "Load the weights in float32 (model.dtype), or look at these rows with `ghosttune preview`",
            broken,
        )


def _size(count: float) -> str:
    """`1.2 GB`, or `34 MB` below one."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
