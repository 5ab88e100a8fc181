"""The instruments on a `transformers.Trainer` of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

from ghosttune.config.facts import ParameterFacts
from ghosttune.errors import InputError
from ghosttune.models.modules import module_facts, parameter_facts
from ghosttune.run.directory import RunDir, write_json
from ghosttune.run.tables import Table
from ghosttune.schedules.phases import scheduled
from ghosttune.training.engines import Unsupported
from ghosttune.training.exports import write_gradient_analysis, write_modules, write_values
from ghosttune.training.instruments import Instrument, Measurement, MicroBatch
from ghosttune.training.ledger import MODULE_COLUMNS, ROW_COLUMNS, Ledger, Values
from ghosttune.training.norms import EFFECTIVE_COLUMNS, NORM_COLUMNS, EffectiveNorms, Norms
from ghosttune.training.phasing import Phasing
from ghosttune.training.rotation import CONTRAST_COLUMNS, FEWEST_GUIDE_ROWS, Rotation

INDEX = "example_index"


def attach(
    trainer: Trainer,
    folder: str | Path,
    guide: Sequence[Any] | None = None,
    *,
    norms_every: int | None = 1,
    effective_every: int | None = 10,
    guide_every: int = 10,
    guide_subset: int | None = None,
    values: Values = "removal",
    phases: str | None = None,
    optimizer_state: str = "rewarm 10",
    unsupported: Unsupported = "exact",
) -> Measurement:
    """Measures the training of `trainer`: the tables, exports and account of a run, in `folder`, when it has trained.

    Args:
        trainer: before `train()`; one process, no float16 gradient scaling.
        folder: new or empty; gets `tables/`, `gradient_analysis.*` and `ledger.json`.
        guide: rows like those of the training dataset and not among them; without them there is no ledger.
        norms_every, effective_every, guide_every, guide_subset, values: as in a run's `measure` section.
        phases: a plan, such as `both@0-300 > mlp@300-`; the trainer needs `args.max_steps`.
        optimizer_state: of tensors that enter with a phase: `keep`, `reset` or `rewarm N`.
        unsupported: what is done with trained parameters without a rule: `exact`, `leave_out` or `refuse`.

    A row's id is its position in the training dataset. Without phases training itself stays as it was, bit for bit.

    Raises:
        InputError: a used folder, or a trainer whose numbers would be wrong.
        PlanError: phases that are no plan, or mean nothing in this model.
        UnsupportedLayer: a trained parameter whose per-row gradient is not known, by name.
    """
    _require_exact(trainer)
    run = RunDir(folder).create()
    model: Any = trainer.model
    facts = parameter_facts(model, module_facts(model))
    instruments: list[Instrument] = []
    if norms_every is not None:
        instruments.append(Norms(model, facts, Table(run, "norms", NORM_COLUMNS), norms_every, by_module=True))
    if effective_every is not None:
        instruments.append(
            EffectiveNorms(model, facts, Table(run, "effective", EFFECTIVE_COLUMNS), effective_every, unsupported)
        )
    phasing = _phasing(trainer, facts, phases, optimizer_state) if phases else None
    ends = [phase.end for phase in phasing.schedule.phases] if phasing else ()
    ledger = None
    if guide is not None:
        tables = Table(run, "ledger", ROW_COLUMNS), Table(run, "module_steps", MODULE_COLUMNS)
        rotation = _rotation(trainer, run, guide, guide_subset, guide_every, facts) if guide_subset else None
        own = _TrainerGuide(trainer, guide)
        size = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
        ledger = Ledger(model, facts, own, *tables, guide_every, values, size, ends, rotation, unsupported)
        instruments.append(ledger)
    measured = Measurement(model, instruments, trainer.args.max_grad_norm)
    rows = len(trainer.train_dataset)  # type: ignore[arg-type]
    _number_rows(trainer)
    _watch_steps(trainer, measured)
    trainer.add_callback(measured)
    if phasing is not None:
        trainer.add_callback(phasing)
    trainer.add_callback(_AtTheEnd(run, measured, ledger, rows, norms_every is not None))
    return measured


def _require_exact(trainer: Trainer) -> None:
    arguments = trainer.args
    wrong = {
        "args.fp16 scales gradients; use bf16": arguments.fp16,
        "args.world_size is above 1; use `ghosttune train --processes`": arguments.world_size > 1,
        "args.n_gpu is above 1, which splits batches; make one device visible": arguments.n_gpu > 1,
        "its model takes no num_items_in_batch, so that losses of unequal batches do not add up": (
            not trainer.model_accepts_loss_kwargs
        ),
        "args.torch_compile: per-row gradients of compiled models are not seen": arguments.torch_compile,
    }
    if problems := [problem for problem, holds in wrong.items() if holds]:
        raise InputError("this Trainer cannot be measured: " + "; ".join(problems))


def _phasing(trainer: Trainer, facts: Mapping[str, ParameterFacts], plan: str, entry: str) -> Phasing:
    if trainer.args.max_steps <= 0:
        raise InputError("phases need a run of known length: give the Trainer's arguments max_steps")
    model: Any = trainer.model
    layers = 1 + max(fact.layer for fact in module_facts(model) if fact.layer is not None)
    return Phasing(model, facts, scheduled(plan, trainer.args.max_steps, entry), layers, trainer.args.seed)


class _Numbered(Dataset[Any]):
    """A dataset whose rows carry their position."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {**self.rows[position], INDEX: position}


def _number_rows(trainer: Trainer) -> None:
    """Lets every batch carry the positions of its rows."""
    import torch

    collate: Any = trainer.data_collator

    def collate_with_positions(rows: list[dict[str, Any]]) -> dict[str, Any]:
        if INDEX not in rows[0]:  # evaluation rows
            return collate(rows)
        positions = torch.tensor([row[INDEX] for row in rows])
        return {**collate([{k: v for k, v in row.items() if k != INDEX} for row in rows]), INDEX: positions}

    trainer.train_dataset = _Numbered(trainer.train_dataset)
    trainer.data_collator = collate_with_positions
    trainer._set_signature_columns_if_needed()
    trainer._signature_columns.append(INDEX)  # type: ignore[union-attr]


def _watch_steps(trainer: Any, measured: Measurement) -> None:
    step = trainer.training_step

    def training_step(model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        positions = inputs.pop(INDEX)
        rows = MicroBatch([str(position) for position in positions.tolist()])
        with measured.micro_batch(lambda: rows, lambda: trainer.accelerator.gradient_state.sync_gradients):
            return step(model, inputs, num_items_in_batch)

    trainer.training_step = training_step


class _TrainerGuide:
    """Guide rows under the Trainer's own collator and loss."""

    def __init__(self, trainer: Trainer, rows: Sequence[Any]):
        size = trainer.args.per_device_eval_batch_size
        collate: Any = trainer.data_collator
        parts = [[rows[i] for i in range(start, min(start + size, len(rows)))] for start in range(0, len(rows), size)]
        self.trainer: Any = trainer
        self.parts = [dict(collate(part)) for part in parts]
        self.targets = self.trainer._get_num_items_in_batch(self.parts, trainer.args.device)

    def batches(self) -> list[Mapping[str, Any]]:
        return [self.trainer._prepare_inputs(part) for part in self.parts]

    def loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        return self.trainer.compute_loss(model, dict(batch), num_items_in_batch=self.targets)


def _rotation(
    trainer: Trainer, run: RunDir, rows: Sequence[Any], size: int, every: int, facts: Mapping[str, ParameterFacts]
) -> Rotation:
    if not FEWEST_GUIDE_ROWS <= size <= len(rows):
        accepted = f"{FEWEST_GUIDE_ROWS} to {len(rows)}, the number of guide rows"
        raise InputError(f"guide_subset is {size}; accepted are {accepted}, or None for all rows in every guide pass")
    table = Table(run, "guide_contrasts", CONTRAST_COLUMNS)
    return Rotation(rows, size, every, trainer.args.seed, partial(_TrainerGuide, trainer), table, facts)


class _AtTheEnd(TrainerCallback):
    """Writes the exports when training has ended."""

    def __init__(self, run: RunDir, measured: Measurement, ledger: Ledger | None, rows: int, norms: bool):
        self.run, self.measured, self.ledger, self.rows, self.norms = run, measured, ledger, rows, norms

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.measured.close()
        if self.norms:
            write_gradient_analysis(self.run, layers=True)
        if self.ledger is not None:
            write_values(self.run, [(str(position), {}) for position in range(self.rows)])
            write_modules(self.run)
            write_json(self.run.path / "ledger.json", self.ledger.account())
