"""Everything that can be known about a run before training, all at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ghosttune.config.advising import SETTINGS, Planned
from ghosttune.config.findings import Checks, Finding, Found
from ghosttune.config.loading import with_values
from ghosttune.config.resolve import steps_per_epoch
from ghosttune.config.schema import DEFAULT, RunConfig
from ghosttune.config.trusting import expected
from ghosttune.data.encoding import Encoded
from ghosttune.data.hub import is_hub_id
from ghosttune.data.images import ImageEncoder
from ghosttune.data.inspecting import ROWS, Inspected, repeated_rows
from ghosttune.errors import ConfigError, DataError, InputError, Problem, TooFewRows, listed
from ghosttune.judging.asking import to_answer
from ghosttune.metrics.intervals import FEWEST_ROWS
from ghosttune.models.loading import load_model, load_tokenizer, longest_input
from ghosttune.models.modules import head_modules, targets_in
from ghosttune.models.sizing import width_of
from ghosttune.run.directory import RunDir
from ghosttune.run.recording import RECORDED_PACKAGES
from ghosttune.run.versions import changed_versions, installed, unmet_requirements
from ghosttune.stages.instruments import measurement_of
from ghosttune.stages.model import Adapted, adapted_model, initialisation_of, longest_row, phasing_of
from ghosttune.stages.ordering import by_place, scores_of
from ghosttune.stages.prepare import Prepared, prepare, require_same_data, task_of
from ghosttune.stages.start import require_same_configuration
from ghosttune.stages.trying import MODEL, Tried, before_loading, on_real_rows
from ghosttune.training import checkpoints
from ghosttune.training.engines import without_rule
from ghosttune.training.order import WHOLE, MicroBatches
from ghosttune.training.packed import packing_of, padding_shares
from ghosttune.training.phasing import Phasing
from ghosttune.training.processes import processes
from ghosttune.training.sketching import predicted
from ghosttune.workflows.fixing import require_fixable, write_usable

SIGNALS = {"effective": "chosen by effective norms", "ledger": "chosen by the ledger's shares"}

ENVIRONMENT = Checks()
"""The checks of the machine; they need nothing."""


@ENVIRONMENT.add("What is tested is tested with the versions that are asked for")
def package_versions(case: None) -> Found:
    """Packages older or newer than ghosttune works with."""
    for wrong in unmet_requirements():
        yield wrong, "pip install -U ghosttune in a fresh environment, or that package alone", []


RESUMING = Checks()
"""The checks of a run that is to go on, each made of its record."""


@RESUMING.add("Other versions may compute other bytes, so that the run is not the one it would have been")
def versions_changed_since_the_start(record: dict[str, Any]) -> Found:
    """A run that was started with other versions of packages."""
    now = {name: found for name in RECORDED_PACKAGES if (found := installed(name))}
    changed = changed_versions(record["environment"]["packages"], now)
    if changed and record["status"] != "finished":
        yield listed(changed), "Install the versions that run.json names, or accept the difference", []


@RESUMING.add("There is nothing to continue")
def run_finished_already(record: dict[str, Any]) -> Found:
    """A run that has reached its end."""
    if record["status"] == "finished":
        yield "the run is finished", "Start a new run in another --out, with more train.max_steps", []


@dataclass
class Report:
    """What `ghosttune check` found."""

    errors: list[str] = field(default_factory=list)
    """Why training would refuse."""
    findings: list[Finding] = field(default_factory=list)
    """What a person should look at, though training would go on."""
    not_checked: list[str] = field(default_factory=list)
    """What could not be looked at, and why."""
    plan: dict[str, Any] = field(default_factory=dict)
    """What training would do; empty when it would refuse."""
    unusable: dict[str, str] = field(default_factory=dict)
    """Place of each row of the training source that cannot be used -> why."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """What --fix wrote."""
    refused: set[str] = field(default_factory=set)
    """Settings that errors are about."""

    @property
    def exit_code(self) -> int:
        return 2 if self.errors else 1 if self.findings else 0

    def as_dict(self) -> dict[str, Any]:
        """What --json prints."""
        findings = [vars(finding) for finding in self.findings]
        return vars(self) | {"findings": findings, "refused": sorted(self.refused)}

    def add(self, error: str) -> None:
        """An error, once: what is looked at again after rows were passed over says the same again."""
        if error not in self.errors:
            self.errors.append(error)

    def refuse_all(self, error: InputError) -> None:
        """What an error says: each problem of settings by itself."""
        if isinstance(error, ConfigError):
            self.refuse(error.problems)
        else:
            self.add(str(error))

    def refuse(self, problems: Iterable[Problem]) -> None:
        """Settings that cannot be followed."""
        for problem in problems:
            self.add(str(problem))
            self.refused.add(problem.setting)

    def concerns(self, *sections: str) -> bool:
        """Whether a setting of one of these sections is refused; another device is as good for looking further."""
        return any(setting.partition(".")[0] in sections for setting in self.refused - {"model.device"})

    def go_on(self, problems: Sequence[Problem]) -> None:
        """Collects settings that cannot be followed; ConfigError where rows could not be read in spite of them."""
        self.refuse(problems)
        if any(problem.setting.startswith(("data.", "task.")) for problem in problems):
            raise ConfigError(problems)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """What would end training ends only what stands inside."""
        try:
            yield
        except InputError as error:
            self.refuse_all(error)


def check(
    config: RunConfig,
    problems: Sequence[Problem] = (),
    out: Path | None = None,
    resume: bool = False,
    fix: Path | None = None,
    whole: bool = False,
) -> Report:
    """Runs the tokenisation, templates and modules of training without training; needs no run directory.

    `problems` are those of the configuration's text; wrong settings are not in `config`. `out` is the run directory
    that training would be given, and `resume` asks whether the run in it could go on. `fix` is where the rows that can
    be used are written. `whole`: whether gradients arrive is seen by whole rows (`trying.on_real_rows`).
    """
    report = Report(findings=ENVIRONMENT.findings(None))
    report.refuse(problems)
    if fix is not None:
        require_fixable(config, fix)
    if out is not None and not resume:
        with report.collecting():
            RunDir(out).require_unused()
    if _is_unknown(config, problems, "model", "model.name"):
        report.not_checked.append("rows and model, because model.name is not known")
        return report
    prepared = None
    if _is_unknown(config, problems, "data.train.sources") or _is_unknown(
        config, problems, "data", "data.train.path", "data.train.name", "data.train.sources"
    ):
        report.not_checked.append("rows, because it is not known which (data.train)")
    else:
        prepared = _prepared(config, report)
    with report.collecting():
        if prepared is not None:
            _look_at_the_rows(prepared, report)
        if prepared is None or report.concerns("model", "method"):
            _look_at_the_model(config, report)
        else:
            _look_at_the_run(prepared, report, whole)
    if resume and out is not None:
        look_at_resuming(RunDir(out), config, prepared, report)
    if fix is not None and prepared is None:
        report.not_checked.append(f"all of the rows, so that {fix} is not written")
    elif fix is not None:
        report.fixed = write_usable(config, report.unusable, fix)
    return report


def _is_unknown(config: RunConfig, problems: Sequence[Problem], section: str, *settings: str) -> bool:
    """Whether something in the section is wrong and nobody chose any of these: looking further would mislead."""
    is_wrong = any(f"{problem.setting}.".startswith(f"{section}.") for problem in problems)
    return is_wrong and all(config.origins.get(setting) == DEFAULT for setting in settings)


def _prepared(config: RunConfig, report: Report) -> Prepared | None:
    """The rows as training gets them, once more without those that cannot be used, until nothing more is found."""
    while True:
        try:
            prepared = prepare(config, report.unusable, report.go_on)
            return replace(prepared, config=_on_this_machine(prepared.config))
        except DataError as error:
            new = {place: reason for place, reason in error.rows.items() if place not in report.unusable}
            train = config.data.train  # a place of a mixture begins with the name of its source
            if train.sources is None and Path(config.data.dev.path or "").name == Path(train.path or "").name:
                new = {}  # two files of one name: a place could be in either
            if not isinstance(error, TooFewRows) or not report.unusable:  # else too few because of what was found
                report.add(str(error))
            if not new:
                return None
            report.unusable |= new
        except InputError as error:
            report.refuse_all(error)
            return None


def _on_this_machine(config: RunConfig) -> RunConfig:
    """The configuration on a device that is there: what else is wrong can be seen on any."""
    import torch

    device = config.model.device
    if device == "auto":
        return with_values(config, {"model.device": "cuda" if torch.cuda.is_available() else "cpu"})
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        return with_values(config, {"model.device": "cpu"})
    return config


def _look_at_the_model(config: RunConfig, report: Report) -> None:
    """Judges what can be judged without rows, or without an adapter: memory for the weights, and target modules."""
    config = with_values(_on_this_machine(config), {"model.quantization": "none"})
    kind = task_of(config).kind(load_tokenizer(config.model))
    if _loads(before_loading(config, kind), report) and hasattr(config.method, "target_modules"):
        model = load_model(config.model, config.train.seed, kind)
        with config.placing():
            targets_in(model, config.method.target_modules, head_modules(model) if kind.new_head else [])  # type: ignore[attr-defined]


def _look_at_the_rows(prepared: Prepared, report: Report) -> None:
    """Judges rows that training would accept; those that spoil it count as unusable."""
    if prepared.stream is not None:
        report.not_checked.append(f"rows of the stream behind the first {len(prepared.train_records):,}")
    spoiled: dict[str, str] = {}
    for check, finding in ROWS.found(inspected(prepared)):
        report.findings.append(finding)
        if check.spoils:
            spoiled |= dict.fromkeys(finding.rows, check.spoils)
    places = {row.example_id: row.place for row in prepared.train_records if row.example_id in spoiled}
    report.unusable |= {places[row]: reason for row, reason in spoiled.items()}


def _look_at_the_run(prepared: Prepared, report: Report, whole: bool) -> None:
    """Judges the model on its rows, and plans the run where nothing is wrong."""
    config = prepared.config
    tried = before_loading(config, prepared.task.kind(prepared.encoder.tokenizer))
    if not _loads(tried, report):
        return
    adapted = adapted_model(prepared, report.refuse)
    rows = len(prepared.train) if prepared.stream is None else prepared.rows_in_an_epoch
    planned = Planned(config, rows, len(prepared.dev), FEWEST_ROWS, width_of(adapted.model))
    report.findings += SETTINGS.findings(planned)
    if longest_row(prepared) <= (longest_input(adapted.model) or math.inf):
        tried = on_real_rows(tried, prepared, adapted, whole)
        report.findings += MODEL.findings(tried)
        to_answer(prepared, adapted.model)
    if report.concerns("phases", "measure"):
        return
    phasing = phasing_of(prepared, adapted)
    measurement_of(RunDir(config.run.root), prepared, adapted, phasing)
    if not report.errors:
        own = {"index": _store(prepared, adapted), "memory": tried.described(), "time": tried.times(prepared)}
        if values := expected(config):
            own["values"] = values
        report.plan = (
            _plan(prepared, adapted.counts, phasing) | _budget(config, adapted) | _without_rule(config, adapted)
        )
        report.plan |= own | _initialisation(prepared, adapted) | _padding(prepared, adapted)


def _loads(tried: Tried, report: Report) -> bool:
    """Whether the weights fit into memory; the report says what to do where they do not."""
    if not tried.fits:
        report.findings += MODEL.findings(tried)
        report.not_checked.append("the model, whose weights alone need more memory than is free")
    return tried.fits


def look_at_resuming(run: RunDir, config: RunConfig, prepared: Prepared | None, report: Report) -> None:
    """Judges whether a run could go on: everything that would stop it, and what has changed around it."""
    with report.collecting():
        record = run.open().read_record()
        report.findings += RESUMING.findings(record)
        with report.collecting():
            require_same_configuration(run, config)
        with report.collecting():
            if prepared is not None:
                require_same_data(run, prepared.fingerprints)
        if steps := run.checkpoint_steps():
            checkpoint = run.checkpoint(steps[-1])
            checkpoints.verify(checkpoint)
            run.require_events(steps[-1], checkpoints.read_counters(checkpoint)["events"])


def inspected(prepared: Prepared) -> Inspected:
    """What the checks of rows look at."""
    source, evaluate = prepared.config.data.train, prepared.config.evaluate
    return Inspected(
        train=prepared.train_records,
        dev=prepared.dev_records,
        test=prepared.test_records,
        features=prepared.train.features,
        collate=prepared.collator,
        tokenizer=prepared.encoder.tokenizer,
        template=prepared.template,
        max_new_tokens=None if evaluate.limit == 0 else evaluate.max_new_tokens,
        published=source.name is not None and not is_hub_id(source.name),
    )


def _plan(prepared: Prepared, counts: dict[str, int], phasing: Phasing | None) -> dict[str, Any]:
    config, train = prepared.config, prepared.config.train
    steps = train.max_steps or 0
    per_epoch = steps_per_epoch(config, prepared.rows_in_an_epoch)
    rows, selection = train.rows_per_step, config.data.online_selection
    return {
        "device": config.model.device,
        "format": config.data.train.described,
        **({"template": config.data.template} if prepared.template is not None else {}),
        "metadata_columns": ", ".join(prepared.metadata_columns) or "none",
        "rows": {
            "train": len(prepared.train_records if prepared.stream is None else prepared.stream),
            "dev": len(prepared.dev_records),
            "guide": len(prepared.guide_records),
            "repeated": len(repeated_rows(prepared.train_records)),
            "left_out": prepared.left_out,
        },
        **({"sources": prepared.sources} if prepared.sources else {}),
        **({"dev_sets": prepared.dev_sets} if prepared.dev_sets else {}),
        **({"mixture": _learnt_weights(prepared)} if config.data.mixture.by else {}),
        "tokens": {
            "longest_row": max(len(row) for row in prepared.train.features),
            "targets_per_row": _mean_targets(prepared.train),
        },
        "cut": {
            "rows": len(prepared.train.cut_rows),
            "share": round(len(prepared.train.cut_rows) / len(prepared.train), 4),
            "tokens": prepared.train.cut_tokens,
        },
        **(
            {"rows_without_their_reasoning": prepared.train.without_reasoning}
            if prepared.train.without_reasoning
            else {}
        ),
        "steps": {"total": steps}
        | ({"per_epoch": per_epoch, "epochs": round(steps / per_epoch, 2)} if prepared.stream is None else {}),
        **(
            {"chosen_per_step": {"rows": rows, "of": min(rows * selection.offered, len(prepared.train))}}
            if selection.by
            else {}
        ),
        "learning_rate": {
            "first": _first_rate(config),
            "peak": train.learning_rate,
            "peak_at_step": train.warmup_steps + 1,
        },
        "events": {"logs": steps // (train.logging_steps or 1), "evaluations": steps // (train.eval_steps or 1) + 1},
        "trainable_parameters": counts | {"total": sum(counts.values())},
        **({"phases": _phases(phasing)} if phasing else {}),
        "packages": {name: found for name in RECORDED_PACKAGES if (found := installed(name))},
    }


def _budget(config: RunConfig, adapted: Adapted) -> dict[str, Any]:
    """What is asked of the adapter's own parameters, what whole ranks reach, and what is left; nothing without one."""
    budget = getattr(config.method, "parameter_budget", None)
    if budget is None:
        return {}
    own = {name for name, fact in adapted.facts.items() if fact.factor in ("A", "B", "magnitude")}
    reached = sum(parameter.numel() for name, parameter in adapted.model.named_parameters() if name in own)
    return {"parameter_budget": {"asked": budget, "reached": reached, "left": budget - reached}}


def _initialisation(prepared: Prepared, adapted: Adapted) -> dict[str, Any]:
    """What the start of an adapter asks of training rows; nothing where it asks nothing."""
    initialisation = initialisation_of(prepared, adapted)
    return {} if initialisation is None else {"initialisation": initialisation.described()}


def _padding(prepared: Prepared, adapted: Adapted) -> dict[str, Any]:
    """How much of the run's positions would be padding, with train.packing and without; nothing where it cannot be."""
    config, train = prepared.config, prepared.config.train
    if config.task.type != "causal_lm" or isinstance(prepared.encoder, ImageEncoder):
        return {}
    lengths = [len(row) for row in prepared.train.features]
    scored = replace(prepared, scores=by_place(prepared, scores_of(prepared, adapted.model)))
    batches = MicroBatches(scored.order(), train.per_device_train_batch_size, 0, processes())
    shares = padding_shares(packing_of(prepared.collator, adapted.model), lengths, batches)
    return {"padding": shares | {"as set": "packed" if train.packing else "padded"}}


def _store(prepared: Prepared, adapted: Adapted) -> dict[str, Any] | str:
    """What `ghosttune index` would keep of the training rows, per checkpoint; or why it cannot."""
    if prepared.stream is not None:
        return "cannot be had of streamed rows; index files of them with --data"
    try:
        rows, unsupported = len(prepared.train_records), prepared.config.measure.unsupported
        return predicted(adapted.model, adapted.facts, rows, unsupported)
    except InputError as error:
        return f"cannot be had: {error}"


def _without_rule(config: RunConfig, adapted: Adapted) -> dict[str, Any]:
    """Trained parameters that no rule measures by row, and what measuring them costs; nothing where all have one."""
    found = without_rule(adapted.model)
    rows = config.train.per_device_train_batch_size
    return {"without_rule": found.planned(config.measure.unsupported, rows)} if found.names else {}


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


def _learnt_weights(prepared: Prepared) -> dict[str, Any]:
    """From what the weights of a mixture are learnt, and those that the run begins with."""
    mixture, order = prepared.config.data.mixture, prepared.learnt_order()
    begins = {name: share / WHOLE for name, share in zip(order.sources, order.shares[0], strict=True)}
    return {"learnt by": mixture.by, "every": mixture.every, "begins with": begins}


def _mean_targets(encoded: Encoded) -> float:
    return round(encoded.targets / len(encoded), 1)
