"""What a pass of two real rows through the model shows: whether gradients arrive, and what the run needs in memory."""

from __future__ import annotations

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
from ghosttune.training.candidates import BY_GRADIENT
from ghosttune.training.engines import without_rule
from ghosttune.training.memory import Sizes, fitting, free_memory, plan_of, predicted
from ghosttune.training.probing import Probe, probe
from ghosttune.training.processes import processes
from ghosttune.workflows.prepare import Prepared
from ghosttune.workflows.train import Adapted, initialisation_of

TRIED_ROWS = 2
SHOWN = 5

MODEL = Checks()
"""The checks of a model on real rows, each made of a `Tried`."""


@dataclass(frozen=True)
class Tried:
    """A model as it would train, in numbers; without a probe while nothing of it is loaded."""

    config: RunConfig
    sizes: Sizes
    free: int
    """Bytes on its device before it was loaded."""
    rows: tuple[str, ...] = ()
    """Ids of the rows of the probe."""
    probe: Probe | None = None

    @property
    def needed(self) -> float:
        return sum(predicted(self.sizes, plan_of(self.config)).values())

    @property
    def fits(self) -> bool:
        return self.needed <= self.free

    def described(self) -> dict[str, str]:
        """What `check` prints."""
        parts = {name: _size(part) for name, part in predicted(self.sizes, plan_of(self.config)).items()}
        return {"needed": _size(self.needed), **parts, "free": _size(self.free)}


def before_loading(config: RunConfig, kind: ModelKind) -> Tried:
    """What the weights alone need, from the model's config.json."""
    linear, other = parameter_counts(config.model, kind)
    return Tried(config, Sizes(linear, other), free_memory(str(device_of(config.model))))


def on_real_rows(tried: Tried, prepared: Prepared, adapted: Adapted) -> Tried:
    """The same with what the two longest training rows show."""
    model, facts = adapted.model, adapted.facts
    features = prepared.train.features
    by_length = np.argsort([row.positions for row in features], kind="stable")
    longest = [features[place] for place in by_length[-TRIED_ROWS:]]
    device = device_of(prepared.config.model)
    batch = {name: tensor.to(device) for name, tensor in prepared.collator(longest).items()}
    with faults_of(prepared.config.model.name):
        plain = probe(prepared.task, model, facts, batch, checkpointing=False)
        seen = checkpointed = plain
        if model.supports_gradient_checkpointing and prepared.config.method.type != "prefix_tuning":
            checkpointed = probe(prepared.task, model, facts, batch, checkpointing=True)
            seen = checkpointed if prepared.config.train.activation_checkpointing else plain
    initialisation = initialisation_of(prepared, adapted)
    trained, own = sum(adapted.counts.values()), isinstance(model, DirectModel)
    sizes = replace(
        tried.sizes,
        linear=0 if own else tried.sizes.linear,
        other=tried.sizes.linear + tried.sizes.other - trained if own else tried.sizes.other,
        trained=trained,
        by_row=_by_row(prepared.config, model),
        ledger=_ledger(prepared.config, model, trained),
        starting=0 if initialisation is None else initialisation.needed,
        guide_rows=len(prepared.guide),
        layers=adapted.layers,
        kept=plain.kept_bytes / len(longest),
        kept_checkpointed=checkpointed.kept_bytes / len(longest),
        largest=plain.largest_bytes / len(longest),
    )
    return replace(tried, config=prepared.config, sizes=sizes, rows=tuple(r.example_id for r in longest), probe=seen)


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
    rows = bytes_kept(own, config.train.rows_per_step, every, config.train.adam_beta1, processes())
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
