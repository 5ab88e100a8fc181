"""The instruments of a run, as its configuration asks for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from ghostgrad import UnsupportedLayer
from ghosttune.config.facts import ParameterFacts
from ghosttune.config.schema import RunConfig
from ghosttune.errors import ConfigError
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import Table
from ghosttune.training.allocating import RankAllocation, is_allocated
from ghosttune.training.candidates import SELECTION_COLUMNS, Candidates
from ghosttune.training.engines import unsupported_layers
from ghosttune.training.guide import Guide
from ghosttune.training.instruments import Instrument, Measurement
from ghosttune.training.ledger import MODULE_COLUMNS, PART_COLUMNS, ROW_COLUMNS, Ledger
from ghosttune.training.mixture import MIXTURE_COLUMNS, Mixture
from ghosttune.training.norms import EFFECTIVE_COLUMNS, NORM_COLUMNS, EffectiveNorms, Norms
from ghosttune.training.rollouts import Rollouts
from ghosttune.training.rotation import Rotation


def measurement(
    model: nn.Module,
    facts: Mapping[str, ParameterFacts],
    guide: Guide | None,
    config: RunConfig,
    run: RunDir,
    boundaries: Collection[int] = (),
    rotation: Rotation | None = None,
    candidates: partial[Candidates] | None = None,
    parts: Sequence[str] = (),
    rollouts: Rollouts | None = None,
    mixture: partial[Mixture] | None = None,
) -> Measurement:
    """What `measure`, `data.online_selection` and `data.mixture` switch on; ConfigError naming the modules that one
    cannot read.

    `parts` are those of the task's rows, `rollouts` what draws answers to them.
    """
    ledger = _ledger(model, facts, guide, config, run, boundaries, rotation, parts)
    return Measurement(
        model,
        [
            *([rollouts] if rollouts else []),
            *_allocation(model, config),
            *_norms(model, facts, config, run),
            *ledger,
            *(_candidates(candidates, config, run, ledger[0] if ledger else None) if candidates else []),
            *([mixture(Table(run, "mixture", MIXTURE_COLUMNS), ledger[0] if ledger else None)] if mixture else []),
        ],
        config.train.max_grad_norm,
    )


def _allocation(model: nn.Module, config: RunConfig) -> list[Instrument]:
    return [RankAllocation(model, config.train.max_steps or 0)] if is_allocated(model) else []


def _norms(model: nn.Module, facts: Mapping[str, ParameterFacts], config: RunConfig, run: RunDir) -> list[Instrument]:
    norms = config.measure.norms
    chosen: list[Instrument] = []
    if norms.every is not None:
        chosen.append(Norms(model, facts, Table(run, "norms", NORM_COLUMNS), norms.every, norms.layers))
    if norms.effective is not None:
        table = Table(run, "effective", EFFECTIVE_COLUMNS)
        try:
            chosen.append(EffectiveNorms(model, facts, table, norms.effective, config.measure.unsupported))
        except UnsupportedLayer as error:
            raise _refusal(config, "measure.norms.effective", "measure.norms.effective", error) from error
    return chosen


def _ledger(
    model: nn.Module,
    facts: Mapping[str, ParameterFacts],
    guide: Guide | None,
    config: RunConfig,
    run: RunDir,
    boundaries: Collection[int],
    rotation: Rotation | None,
    parts: Sequence[str],
) -> list[Ledger]:
    ledger = config.measure.ledger
    if ledger.guide_every is None or guide is None:
        return []
    rows = Table(run, "ledger", PART_COLUMNS if parts else ROW_COLUMNS)
    modules = Table(run, "module_steps", MODULE_COLUMNS)
    every, unsupported = ledger.guide_every, config.measure.unsupported
    try:
        size, values, at_once = config.train.rows_per_step, ledger.values, config.data.mixture.by == "guide"
        options = every, values, size, boundaries, rotation, unsupported, parts, at_once
        return [Ledger(model, facts, guide, rows, modules, *options)]
    except UnsupportedLayer as error:
        raise _refusal(config, "measure.ledger.guide_every", "measure.ledger", error) from error


def _candidates(made: partial[Candidates], config: RunConfig, run: RunDir, ledger: Ledger | None) -> list[Instrument]:
    train, table = config.train, Table(run, "selection", SELECTION_COLUMNS)
    selection = config.data.online_selection
    try:
        size, unsupported = train.per_device_train_batch_size, config.measure.unsupported
        return [made(selection, train.seed, size, table, ledger, unsupported)]
    except UnsupportedLayer as error:
        raise _refusal(config, "data.online_selection.by", "data.online_selection", error) from error


def _refusal(config: RunConfig, setting: str, switch: str, error: UnsupportedLayer) -> ConfigError:
    message = (
        f"cannot be measured with method {config.method.type}: the gradients of single rows are not known for "
        f"{unsupported_layers(error)}. {_remedy(config)}{switch}: null; training works without it"
    )
    return ConfigError([config.problem(setting, message)])


def _remedy(config: RunConfig) -> str:
    """How it could be measured all the same, where the configuration refuses to."""
    others = {"refuse": "exact or leave_out", "leave_out": "exact", "exact": None}[config.measure.unsupported]
    return f"Set measure.unsupported: {others}, or " if others else "Set "


def signals(measurement: Measurement, kind: str) -> dict[str, float]:
    """The latest value of `effective` or `ledger` for each trained tensor that has one."""
    for instrument in measurement.instruments:
        if kind == "effective" and isinstance(instrument, EffectiveNorms):
            return instrument.of_tensors()
        if kind == "ledger" and isinstance(instrument, Ledger):
            return instrument.latest
    return {}


def instrument_of(measurement: Measurement, kind: type[Instrument]) -> Any:
    """The instrument of a kind; None when it is off."""
    return next((one for one in measurement.instruments if isinstance(one, kind)), None)
