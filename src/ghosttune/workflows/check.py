"""Everything that can be known about a run before training, all at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ghosttune.config.resolve import steps_per_epoch
from ghosttune.config.schema import RunConfig
from ghosttune.data.encoding import Encoded, Features
from ghosttune.errors import InputError, ModelError, listed
from ghosttune.models.loading import load_model, load_tokenizer
from ghosttune.models.modules import matched_modules, module_facts
from ghosttune.run.directory import RunDir
from ghosttune.training.phasing import Phasing
from ghosttune.training.sketching import predicted
from ghosttune.workflows.prepare import Prepared, prepare, task_of
from ghosttune.workflows.train import Adapted, adapted_model, measurement_of, phasing_of

SIGNALS = {"effective": "chosen by effective norms", "ledger": "chosen by the ledger's shares"}


@dataclass(frozen=True)
class Finding:
    """Something about the data that a person should look at before training."""

    subject: str
    message: str


@dataclass
class Report:
    """What `ghosttune check` found."""

    errors: list[str] = field(default_factory=list)
    """Why training would refuse."""
    findings: list[Finding] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    """What training would do; empty when it would refuse."""

    @property
    def exit_code(self) -> int:
        return 2 if self.errors else 1 if self.findings else 0


def check(config: RunConfig) -> Report:
    """Runs the tokenisation, templates and modules of training without training; needs no run directory."""
    report = Report()
    prepared: Prepared | None = None
    try:
        prepared = prepare(config)
    except ModelError as error:
        report.errors.append(str(error))
        return report
    except InputError as error:
        report.errors.append(str(error))
    try:
        if prepared is None:  # the rows failed: the model can still be judged
            kind = task_of(config).kind(load_tokenizer(config.model))
            facts = module_facts(load_model(config.model, config.train.seed, kind))
            with config.placing():
                matched_modules(facts, config.method.target_modules)  # type: ignore[attr-defined]
        else:
            adapted = adapted_model(prepared)
            phasing = phasing_of(prepared, adapted)
            measurement_of(RunDir(config.run.root), prepared, adapted, phasing)
            own = {"index": _store(prepared, adapted)}
            report.plan = _plan(prepared, adapted.counts, phasing) | _budget(config, adapted) | own
    except InputError as error:
        report.errors.append(str(error))
    if prepared is not None:
        report.findings = [*_label_findings(prepared), *_row_findings(prepared)]
    return report


def _plan(prepared: Prepared, counts: dict[str, int], phasing: Phasing | None) -> dict[str, Any]:
    config, train = prepared.config, prepared.config.train
    steps = train.max_steps or 0
    per_epoch = steps_per_epoch(config, len(prepared.train))
    return {
        "device": config.model.device,
        "format": config.data.train.name or config.data.train.format,
        **({"template": config.data.template} if prepared.template is not None else {}),
        "metadata_columns": ", ".join(prepared.metadata_columns) or "none",
        "rows": {
            "train": len(prepared.train_records),
            "dev": len(prepared.dev_records),
            "guide": len(prepared.guide_records),
            "left_out": prepared.left_out,
        },
        "tokens": {
            "longest_row": max(len(row) for row in prepared.train.features),
            "targets_per_row": _mean_targets(prepared.train),
        },
        "cut": {"rows": len(prepared.train.cut_rows), "tokens": prepared.train.cut_tokens},
        "steps": {"total": steps, "per_epoch": per_epoch, "epochs": round(steps / per_epoch, 2)},
        "learning_rate": {
            "first": _first_rate(config),
            "peak": train.learning_rate,
            "peak_at_step": train.warmup_steps + 1,
        },
        "events": {"logs": steps // (train.logging_steps or 1), "evaluations": steps // (train.eval_steps or 1) + 1},
        "trainable_parameters": counts | {"total": sum(counts.values())},
        **({"phases": _phases(phasing)} if phasing else {}),
    }


def _budget(config: RunConfig, adapted: Adapted) -> dict[str, Any]:
    """What is asked of the adapter's own parameters, what whole ranks reach, and what is left; nothing without one."""
    budget = getattr(config.method, "parameter_budget", None)
    if budget is None:
        return {}
    own = {name for name, fact in adapted.facts.items() if fact.factor in ("A", "B", "magnitude")}
    reached = sum(parameter.numel() for name, parameter in adapted.model.named_parameters() if name in own)
    return {"parameter_budget": {"asked": budget, "reached": reached, "left": budget - reached}}


def _store(prepared: Prepared, adapted: Adapted) -> dict[str, Any] | str:
    """What `ghosttune index` would keep of the training rows, per checkpoint; or why it cannot."""
    try:
        return predicted(adapted.model, adapted.facts, len(prepared.train_records))
    except InputError as error:
        return f"cannot be had: {error}"


def _phases(phasing: Phasing) -> dict[str, Any]:
    """What each phase trains, by its updates; then the tensors that no phase trains."""
    sizes = {name: parameter.numel() for name, parameter in phasing.parameters.items()}
    plan = {}
    for phase, names in zip(phasing.schedule.phases, phasing.active, strict=True):
        trains = str(phase.selection) if phase.selection else SIGNALS[phase.choice.signal]  # type: ignore[union-attr]
        size = f" ({sum(sizes[name] for name in names):,} parameters in {len(names)} tensors)" if names else ""
        plan[f"{phase.start + 1}-{phase.end}"] = trains + size
    if all(names is not None for names in phasing.active):
        never = sizes.keys() - frozenset().union(*(names or () for names in phasing.active))
        if never:
            plan["never"] = f"{sum(sizes[name] for name in never):,} parameters in {len(never)} tensors"
    return plan


def _first_rate(config: RunConfig) -> float:
    """Learning rate of the first update: warm-up starts from 0."""
    warm_up = config.train.warmup_steps > 0 and config.train.lr_scheduler_type != "constant"
    return 0.0 if warm_up else config.train.learning_rate


def _mean_targets(encoded: Encoded) -> float:
    return round(encoded.targets / len(encoded), 1)


def _label_findings(prepared: Prepared) -> list[Finding]:
    """Rows without a target, and answers whose stop token is not trained."""
    template = prepared.template
    stops = set(template.stop_token_ids) if template is not None else set()
    empty = [row.example_id for row in prepared.train.features if row.targets == 0]
    endless = [
        row.example_id
        for row in prepared.train.features
        if isinstance(row, Features) and row.targets and int(row.input_ids[row.trained][-1]) not in stops
    ]
    found = []
    if empty:
        found.append(Finding("labels", f"{len(empty)} rows have no trained token: {listed(empty, 5)}"))
    if endless:
        found.append(Finding("stop token", f"{len(endless)} rows do not train their stop token: {listed(endless, 5)}"))
    return found


def _row_findings(prepared: Prepared) -> list[Finding]:
    """Rows that stand more than once."""
    rows = Counter(
        (record.group, record.reference if record.turns else repr(record.columns)) for record in prepared.train_records
    )
    repeated = sum(count - 1 for count in rows.values())
    if repeated:
        return [Finding("duplicates", f"{repeated} training rows repeat another row's prompt and answer")]
    return []
