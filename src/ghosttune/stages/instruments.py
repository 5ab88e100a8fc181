"""The instruments of a run, as its configuration asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ghostgrad import UnsupportedLayer
from ghosttune.config.schema import RunConfig
from ghosttune.errors import ConfigError
from ghosttune.models.loading import device_of
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import Table
from ghosttune.stages.model import Adapted
from ghosttune.stages.ordering import reference_nats
from ghosttune.stages.prepare import Prepared
from ghosttune.stages.rewarding import rollouts_of
from ghosttune.training.allocating import RankAllocation, is_allocated
from ghosttune.training.candidates import SELECTION_COLUMNS, Candidates
from ghosttune.training.drawn import DRAWN_COLUMNS, Drawn
from ghosttune.training.engines import unsupported_layers
from ghosttune.training.guide import GuideRows
from ghosttune.training.instruments import Instrument, Measurement
from ghosttune.training.ledger import MODULE_COLUMNS, PART_COLUMNS, ROW_COLUMNS, Ledger
from ghosttune.training.mixture import MIXTURE_COLUMNS, Mixture
from ghosttune.training.norms import EFFECTIVE_COLUMNS, NORM_COLUMNS, EffectiveNorms, Norms
from ghosttune.training.phasing import Phasing
from ghosttune.training.rotation import CONTRAST_COLUMNS, Rotation


def measurement_of(run: RunDir, prepared: Prepared, adapted: Adapted, phasing: Phasing | None) -> Measurement:
    """What `measure`, `data.online_selection` and `data.mixture` switch on; nothing is written before training begins.

    ConfigError naming the modules that an instrument cannot read.
    """
    ledger = _ledger(run, prepared, adapted, phasing)
    instruments = [
        *_drawn(run, prepared, adapted),
        *_norms(run, prepared.config, adapted),
        *([ledger] if ledger else []),
        *_candidates(run, prepared, adapted, ledger),
        *_mixture(run, prepared, ledger),
    ]
    return Measurement(adapted.model, instruments, prepared.config.train.max_grad_norm)


def _drawn(run: RunDir, prepared: Prepared, adapted: Adapted) -> Iterator[Instrument]:
    """What makes rows, answers and ranks while the run goes on."""
    if prepared.stream is not None:
        yield Drawn(prepared.stream, Table(run, "drawn", DRAWN_COLUMNS))
    if rollouts := rollouts_of(run, prepared, adapted.model):
        yield rollouts
    if is_allocated(adapted.model):
        yield RankAllocation(adapted.model, prepared.config.train.max_steps or 0)


def _norms(run: RunDir, config: RunConfig, adapted: Adapted) -> Iterator[Instrument]:
    norms, model, facts = config.measure.norms, adapted.model, adapted.facts
    if norms.every is not None:
        yield Norms(model, facts, Table(run, "norms", NORM_COLUMNS), norms.every, norms.layers)
    if norms.effective is not None:
        table = Table(run, "effective", EFFECTIVE_COLUMNS)
        try:
            yield EffectiveNorms(model, facts, table, norms.effective, config.measure.unsupported)
        except UnsupportedLayer as error:
            raise _refusal(config, "measure.norms.effective", "measure.norms.effective", error) from error


def _ledger(run: RunDir, prepared: Prepared, adapted: Adapted, phasing: Phasing | None) -> Ledger | None:
    config, guide = prepared.config, prepared.guide.features
    ledger, parts = config.measure.ledger, prepared.task.parts
    size, device = config.train.per_device_eval_batch_size, device_of(config.model)
    guided = partial(GuideRows, prepared.task, prepared.collator, batch_size=size, device=device)
    rotation = _rotation(run, config, guide, guided, adapted)
    if ledger.guide_every is None or not guide:
        return None
    try:
        return Ledger(
            adapted.model,
            adapted.facts,
            guided(guide),
            Table(run, "ledger", PART_COLUMNS if parts else ROW_COLUMNS),
            Table(run, "module_steps", MODULE_COLUMNS),
            ledger.guide_every,
            ledger.values,
            config.train.rows_per_step,
            [phase.end for phase in phasing.schedule.phases] if phasing else (),
            rotation,
            config.measure.unsupported,
            parts,
            config.data.mixture.by == "guide",
        )
    except UnsupportedLayer as error:
        raise _refusal(config, "measure.ledger.guide_every", "measure.ledger", error) from error


def _rotation(run: RunDir, config: RunConfig, rows: Any, guided: Any, adapted: Adapted) -> Rotation | None:
    """Guide rows in turn, where they are asked for; ConfigError when there are fewer than one turn takes."""
    ledger = config.measure.ledger
    if ledger.guide_subset is None or ledger.guide_every is None:
        return None
    if len(rows) < ledger.guide_subset:
        message = f"asks for {ledger.guide_subset} rows of {len(rows)} guide rows; lower it, or raise data.guide.rows"
        raise ConfigError([config.problem("measure.ledger.guide_subset", message)])
    table = Table(run, "guide_contrasts", CONTRAST_COLUMNS)
    seed = config.train.seed
    return Rotation(rows, ledger.guide_subset, ledger.guide_every, seed, guided, table, adapted.facts)


def _candidates(run: RunDir, prepared: Prepared, adapted: Adapted, ledger: Ledger | None) -> Iterator[Instrument]:
    config = prepared.config
    selection, train = config.data.online_selection, config.train
    if not selection.by:
        return
    made = partial(Candidates, adapted.model, prepared.task, prepared.collator, prepared.trained.features)
    table, size = Table(run, "selection", SELECTION_COLUMNS), train.per_device_train_batch_size
    try:
        yield made(selection, train.seed, size, table, ledger, config.measure.unsupported)
    except UnsupportedLayer as error:
        raise _refusal(config, "data.online_selection.by", "data.online_selection", error) from error


def _mixture(run: RunDir, prepared: Prepared, ledger: Ledger | None) -> Iterator[Instrument]:
    """What learns the weights of the sources; DataError where a reference does not know a row."""
    config, rows = prepared.config, prepared.train.features
    settings = config.data.mixture
    if settings.by is None:
        return
    reference = reference_nats(settings.reference_losses, rows) if settings.reference_losses else None
    table, device = Table(run, "mixture", MIXTURE_COLUMNS), device_of(config.model)
    yield Mixture(rows, prepared.learnt_order(), settings, device, table, ledger, reference=reference)


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
