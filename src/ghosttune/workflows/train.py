"""One run from its configuration to a finished run directory."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from ghosttune.config.facts import ParameterFacts
from ghosttune.config.loading import load_config
from ghosttune.config.rendering import plain_yaml
from ghosttune.config.resolve import Refuse, refuse
from ghosttune.config.schema import RunConfig
from ghosttune.data.encoding import RowFeatures
from ghosttune.data.images import ImageEncoder
from ghosttune.data.mixing import source_of_row
from ghosttune.data.records import Records
from ghosttune.data.stored import Each
from ghosttune.data.templates import Template
from ghosttune.errors import ConfigError, GhosttuneError, NoSpace, Problem, RunError
from ghosttune.metrics.intervals import FEWEST_ROWS, mean_ratio, verdict
from ghosttune.models.loading import add_adapter, device_of, load_model, longest_input, revision_of, untrained_twins
from ghosttune.models.modules import module_facts, parameter_facts, trainable_counts
from ghosttune.models.quantizing import weight_bytes
from ghosttune.models.upstream import faults_of
from ghosttune.registry import STRATEGIES
from ghosttune.run.directory import RunDir, write_csv, write_folder, write_text
from ghosttune.run.family import interrupted_by_sigterm
from ghosttune.run.recording import Record
from ghosttune.run.tables import Table, read_table
from ghosttune.schedules.language import PlanError
from ghosttune.training import checkpoints
from ghosttune.training.candidates import Candidates
from ghosttune.training.engines import found_wrong, without_rule
from ghosttune.training.exports import (
    selection_totals,
    separated_columns,
    write_gradient_analysis,
    write_modules,
    write_phases,
    write_values,
)
from ghosttune.training.guide import GuideRows
from ghosttune.training.initialising import WAYS, Initialisation
from ghosttune.training.instruments import Measurement
from ghosttune.training.ledger import Ledger
from ghosttune.training.measuring import instrument_of, measurement, signals
from ghosttune.training.mixture import Mixture
from ghosttune.training.optimizers import unmet_by_optimizer
from ghosttune.training.order import RowOrder, rows_of_steps
from ghosttune.training.packed import why_not_packed
from ghosttune.training.phasing import Phasing
from ghosttune.training.processes import processes, rank
from ghosttune.training.referring import Reference, is_kept
from ghosttune.training.rotation import CONTRAST_COLUMNS, Rotation
from ghosttune.training.trainer import RunTrainer
from ghosttune.training.unlearning import Unlearning, is_begun
from ghosttune.training.watching import Listener, Watch, ignore
from ghosttune.workflows.asking import to_answer
from ghosttune.workflows.evaluate import evaluate_dev_rows
from ghosttune.workflows.launching import own_folder
from ghosttune.workflows.ordering import Scores, by_place, keep, scores_of
from ghosttune.workflows.ordering import described as order_described
from ghosttune.workflows.prepare import Prepared, default_run_folder, prepare, require_same_data
from ghosttune.workflows.rewarding import judged_by_reward, rollouts_of
from ghosttune.workflows.runs import Run
from ghosttune.workflows.unlearning import described, unlearning_of


class Stopped(GhosttuneError):
    """Someone ended the run early; its state is saved and `resume` continues it."""


def train(config: RunConfig, out: str | Path | None = None, *, listen: Listener = ignore) -> Run:
    """Trains the run a configuration describes, into `out` (or a new folder below `run.root`), and returns it.

    Raises an InputError before anything is written when the input is wrong or the folder is used, and GhosttuneError
    when training cannot go on; what was written stays, and `resume` takes it up.
    """
    path = Path(out or default_run_folder(config, datetime.now().strftime("%Y%m%d-%H%M%S")))
    with interrupted_by_sigterm(), own_folder(path) as run:
        return _train(config, run, listen)


def _train(config: RunConfig, run: RunDir, listen: Listener) -> Run:
    run.require_unused()
    start = time.perf_counter()
    prepared = prepare(config)
    adapted = adapted_model(prepared)
    scores = scores_of(prepared, adapted.model)
    prepared = replace(prepared, scores=by_place(prepared, scores))
    reference = reference_of(prepared, adapted)
    prepared = referring(prepared, reference)
    unlearning = unlearning_of(run, prepared, adapted.model, resumes=False)
    initialised = _begun(prepared, adapted, unlearning)
    phasing = phasing_of(prepared, adapted)
    measured = measurement_of(run, prepared, adapted, phasing)
    to_answer(prepared, adapted.model)
    with run.locked():
        record = _begin(run, prepared, adapted)
        _keep(run, prepared, reference, unlearning, scores)
        record.note(**initialised, **order_described(prepared.config, scores))
        record.add_seconds("prepare", time.perf_counter() - start)
        listen({"event": "begin", "run": run, "prepared": prepared, "parameters": adapted.counts, "resumed": False})
        return _to_the_end(run, record, prepared, adapted.model, measured, phasing, unlearning, None, listen)


def resume(out: str | Path, *, listen: Listener = ignore, trust_remote_code: bool = False) -> Run:
    """Continues the run in `out` from its newest checkpoint, to the same bytes as if it had never stopped.

    A finished run is returned as it is. Code that comes with its model runs under `trust_remote_code` only: the run may
    be a stranger's. Raises ConfigError where it is asked for without that, RunError when there is no run, when its
    newest checkpoint is damaged, when events before it are missing, when its configuration was edited or when another
    process is at it, and DataError when its data changed.
    """
    RunDir(out).open()
    with interrupted_by_sigterm(), own_folder(Path(out)) as run, run.locked():
        return _resume(run, listen, trust_remote_code)


def _resume(run: RunDir, listen: Listener, trust_remote_code: bool) -> Run:
    if run.read_record()["status"] == "finished":
        listen({"event": "already finished", "run": run})
        return Run(run, trust_remote_code)
    start = time.perf_counter()
    config = load_config(run.config, trust_remote_code=trust_remote_code)
    require_same_configuration(run, config)
    prepared = prepare(config)
    steps = run.checkpoint_steps()
    checkpoint = run.checkpoint(steps[-1]) if steps else None
    require_same_data(run, prepared.fingerprints)
    if checkpoint is not None:
        checkpoints.verify(checkpoint)
        run.require_events(steps[-1], checkpoints.read_counters(checkpoint)["events"])
    adapted = adapted_model(prepared)
    scores = scores_of(prepared, adapted.model, run)
    prepared = replace(prepared, scores=by_place(prepared, scores))
    reference = Reference.read(run) if is_kept(run) else reference_of(prepared, adapted)
    prepared = referring(prepared, reference)
    unlearning = unlearning_of(run, prepared, adapted.model, resumes=checkpoint is not None)
    initialised = _begun(prepared, adapted, unlearning) if checkpoint is None else {}
    phasing = phasing_of(prepared, adapted)
    measured = measurement_of(run, prepared, adapted, phasing)
    run.remove_partial_writes()
    run.forget_events_after(steps[-1] if steps else -1)
    measured.forget_after(steps[-1] if steps else 0)
    _keep(run, prepared, reference, unlearning, scores)
    record = Record.reopen(run)
    record.note(**initialised, **order_described(prepared.config, scores))
    record.add_seconds("prepare", time.perf_counter() - start)
    listen({"event": "begin", "run": run, "prepared": prepared, "parameters": adapted.counts, "resumed": True})
    return _to_the_end(run, record, prepared, adapted.model, measured, phasing, unlearning, checkpoint, listen)


def _to_the_end(
    run: RunDir,
    record: Record,
    prepared: Prepared,
    model: Any,
    measured: Measurement,
    phasing: Phasing | None,
    unlearning: Unlearning | None,
    checkpoint: Path | None,
    listen: Listener,
) -> Run:
    try:
        with _status_at_the_end(record), faults_of(prepared.config.model.name):
            _run_stages(run, record, prepared, model, measured, phasing, unlearning, checkpoint, listen)
    except NoSpace as full:
        raise NoSpace(full.path, full.reason, f"continue with `{run.resume_command}`") from full
    return Run(run, prepared.config.model.trust_remote_code)


@contextmanager
def _status_at_the_end(record: Record) -> Iterator[None]:
    """What ends the run early is recorded."""
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        record.end("stopped")
        raise
    except BaseException as error:
        reason = str(error).splitlines()[0] if isinstance(error, GhosttuneError) else type(error).__name__
        record.end("failed", error=reason)
        raise


@dataclass(frozen=True)
class Adapted:
    """A model with its adapter, on its device."""

    model: Any
    counts: dict[str, int]
    """Trainable parameters per group."""
    facts: dict[str, ParameterFacts]
    """Where each trainable parameter belongs."""
    layers: int
    """How many the model has."""


def adapted_model(prepared: Prepared, refuse: Refuse = refuse) -> Adapted:
    """The model that trains; ConfigError or ModelError when it does not fit the method.

    `refuse` is told of settings that do not fit the model.
    """
    config = prepared.config
    kind = prepared.task.kind(prepared.encoder.tokenizer)
    refuse(list(unmet_by_optimizer(config)))
    with config.placing():
        base = load_model(config.model, config.train.seed, kind)
    limit, longest = longest_input(base), longest_row(prepared)
    limit = None if limit is None else limit - getattr(config.method, "num_virtual_tokens", 0)
    if limit is not None and longest > limit:
        message = f"lets rows of {longest} tokens through, and the model reads at most {limit}; set it to {limit}"
        refuse([config.problem("data.max_length", message)])
    if prepared.template is not None and config.method.type != "full":
        refuse(_stop_token_problems(base, prepared.template, prepared))
    if isinstance(prepared.encoder, ImageEncoder):
        prepared.encoder.images.require_seen_by(base)
    facts = module_facts(base)
    with config.placing():
        model = add_adapter(base, config.method, config.train.seed, kind)
    counts = trainable_counts(model, facts)
    layers = 1 + max(fact.layer for fact in facts if fact.layer is not None)
    model = model.to(device_of(config.model))
    if config.train.packing and (limit is None or longest <= limit):
        refuse(_packing_problems(prepared, model))
    return Adapted(model, counts, parameter_facts(model, facts), layers)


def _packing_problems(prepared: Prepared, model: Any) -> list[Problem]:
    """Why rows cannot be packed for this model, which is asked with two rows of middling length."""
    config, features = prepared.config, prepared.train.features
    if isinstance(prepared.encoder, ImageEncoder):
        return [config.problem("train.packing", "is for rows of text, and these show images: set it to false")]
    by_length = np.argsort([len(row) for row in features], kind="stable")
    middle = max(1, len(by_length) // 2)
    rows = [features[place] for place in by_length[middle - 1 : middle + 1]]
    reason = why_not_packed(prepared.task, model, prepared.collator, rows)
    if reason is None:
        return []
    kind = model.config.model_type
    message = f"cannot be with {config.model.name} ({kind}): in one sequence, {reason}; set it to false"
    return [config.problem("train.packing", message)]


def initialisation_of(prepared: Prepared, adapted: Adapted) -> Initialisation | None:
    """What training rows decide of the adapter before its first update; None where they decide nothing.

    ConfigError where the rows it may look at are too short for it.
    """
    method, rows = prepared.config.method, prepared.train.features
    name = getattr(method, "init_lora_weights", None)
    if name not in WAYS:
        return None
    first = [rows[place] for place in islice(prepared.order(), method.init_rows)]  # type: ignore[attr-defined]
    device = device_of(prepared.config.model)
    made = Initialisation(name, adapted.model, prepared.task, prepared.collator, first, device)
    if made.positions < made.least:
        message = (
            f"gives {name} {len(first)} rows of {made.positions} tokens, and method.r needs {made.least}; raise it, or "
            "lower method.r"
        )
        raise ConfigError([prepared.config.problem("method.init_rows", message)])
    return made


def initialise(prepared: Prepared, adapted: Adapted) -> dict[str, Any]:
    """Lets training rows decide how the adapter begins; returns what run.json says of it, nothing for most methods."""
    initialisation = initialisation_of(prepared, adapted)
    if initialisation is None:
        return {}
    with faults_of(prepared.config.model.name):
        initialisation.apply()
    return {"initialisation": initialisation.described()}


def _begun(prepared: Prepared, adapted: Adapted, unlearning: Unlearning | None) -> dict[str, Any]:
    """How the adapter begins, for run.json: from rows, or from another run's adapter, which it has by now."""
    return initialise(prepared, adapted) if unlearning is None else described(prepared, unlearning)


def reference_of(prepared: Prepared, adapted: Adapted) -> Reference | None:
    """What the untouched base says of all answers that the run will read; None where its loss does not ask."""
    task, train = prepared.task, prepared.config.train
    if not getattr(task, "needs_reference", False):
        return None
    rows = prepared.train.features
    visits = (train.max_steps or 0) * train.rows_per_step * prepared.config.data.online_selection.offered * processes()
    all_of_them = visits >= len(rows) or prepared.config.data.mixture.by is not None
    read = rows if all_of_them else [rows[place] for place in islice(prepared.order(), visits)]
    size, device = train.per_device_eval_batch_size, device_of(prepared.config.model)
    asked: Any = chain(read, prepared.dev.features, prepared.guide.features)
    with faults_of(prepared.config.model.name):
        return Reference.of(task, adapted.model, prepared.collator, asked, size, device)


def referring(prepared: Prepared, reference: Reference | None) -> Prepared:
    """With batches that hold what the base says."""
    return prepared if reference is None else replace(prepared, collator=reference.beside(prepared.collator))


def _keep(
    run: RunDir, prepared: Prepared, reference: Reference | None, unlearning: Unlearning | None, scores: Scores | None
) -> None:
    """Writes what was known of rows before the first update, once, into the run directory."""
    if rank() > 0:
        return
    keep(run, scores)
    if unlearning is not None and not is_begun(run):
        unlearning.write(run)
    if reference is not None and not is_kept(run):
        rows: Any = chain(prepared.train.features, prepared.dev.features, prepared.guide.features)
        reference.write(run, rows)


def longest_row(prepared: Prepared) -> int:
    """Positions that the longest row of all splits takes."""
    return max(row.positions for split in (prepared.train, prepared.dev, prepared.guide) for row in split.features)


def phasing_of(prepared: Prepared, adapted: Adapted) -> Phasing | None:
    """What trains when; None where everything always does. ConfigError for phases that mean nothing in this model."""
    config = prepared.config
    schedule = STRATEGIES[config.phases.strategy].build(config.phases, config.train.max_steps)
    if schedule is None:
        return None
    try:
        return Phasing(adapted.model, adapted.facts, schedule, adapted.layers, config.train.seed)
    except PlanError as error:
        raise ConfigError([config.problem("phases.plan", f"cannot be followed: {error}")]) from error


def _stop_token_problems(base: Any, template: Template, prepared: Prepared) -> list[Problem]:
    """Why answers could not learn to stop: the base never learned the stop token, and nothing would train it."""
    method = prepared.config.method
    stop = template.tokenizer.convert_tokens_to_ids(template.stop_token)
    twins = untrained_twins(base, [stop])
    if not twins or stop in (getattr(method, "trainable_token_indices", None) or []):
        return []
    message = (
        f"the base never learned the stop token {template.stop_token}, whose row is the same as that of {twins[stop]} "
        "other tokens, so that answers could not learn to stop"
    )
    if hasattr(method, "trainable_token_indices"):
        return [prepared.config.problem("method.trainable_token_indices", f"must hold {stop}: {message}")]
    remedy = f"use lora with trainable_token_indices: [{stop}], or full"
    return [prepared.config.problem("method.type", f"cannot be {method.type}: {message}; {remedy}")]


def measurement_of(run: RunDir, prepared: Prepared, adapted: Adapted, phasing: Phasing | None) -> Measurement:
    """The instruments of a run; nothing is written before training begins. ConfigError when they cannot measure it."""
    config = prepared.config
    rows, size, device = prepared.guide.features, config.train.per_device_eval_batch_size, device_of(config.model)
    guided = partial(GuideRows, prepared.task, prepared.collator, batch_size=size, device=device)
    guide = guided(rows) if rows else None
    ends = [phase.end for phase in phasing.schedule.phases] if phasing else ()
    rotation = _rotation(run, config, rows, guided, adapted)
    candidates = partial(Candidates, adapted.model, prepared.task, prepared.collator, prepared.train.features)
    chosen = candidates if config.data.online_selection.by else None
    parts, rollouts, learnt = prepared.task.parts, rollouts_of(run, prepared, adapted.model), config.data.mixture
    mixture = partial(Mixture, prepared.train.features, prepared.learnt_order(), learnt, device) if learnt.by else None
    return measurement(
        adapted.model, adapted.facts, guide, config, run, ends, rotation, chosen, parts, rollouts, mixture
    )


def _rotation(run: RunDir, config: RunConfig, rows: Sequence[Any], guided: Any, adapted: Adapted) -> Rotation | None:
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


def _begin(run: RunDir, prepared: Prepared, adapted: Adapted) -> Record:
    run.create()
    write_text(run.config, plain_yaml(prepared.config))
    _write_splits(run, prepared)
    splits = {"train": prepared.train, "dev": prepared.dev, "guide": prepared.guide}
    unsaid = {name: split.without_reasoning for name, split in splits.items()}
    return Record.begin(
        run,
        seed=prepared.config.train.seed,
        model={
            "name": prepared.config.model.name,
            "revision": revision_of(adapted.model),
            "trainable_parameters": adapted.counts,
            "weight_bytes": weight_bytes(adapted.model),
        },
        data={
            "fingerprints": prepared.fingerprints,
            "rows": {name: len(records) for name, records in _records(prepared).items()},
            "tokens": {name: split.tokens for name, split in splits.items()},
            "targets": {name: split.targets for name, split in splits.items()},
            "cut_rows": {name: split.cut_rows for name, split in splits.items()},
            **({"without_reasoning": unsaid} if any(unsaid.values()) else {}),
            **({"sources": prepared.sources} if prepared.sources else {}),
            **({"dev_sets": prepared.dev_sets} if prepared.dev_sets else {}),
        },
        left_out=prepared.left_out,
        **_without_rule(prepared.config, adapted.model, ()),
        configuration=_digest(prepared.config),
        origins=prepared.config.origins,
    )


def _without_rule(config: RunConfig, model: Any, engines: Sequence[Any]) -> dict[str, Any]:
    """Which trained parameters have no rule that is right, and how rows are measured there; nothing if there are none.

    `engines` have seen their first pass.
    """
    none, wrong = without_rule(model), found_wrong(engines)
    return {"without_rule": none.recorded(config.measure.unsupported, wrong)} if none.names or wrong else {}


def require_same_configuration(run: RunDir, config: RunConfig) -> None:
    """RunError when the configuration of a run is not the one it was started with."""
    if run.read_record().get("configuration") != _digest(config):
        raise RunError(
            f"{run.config} was edited since the run was started, and would continue as neither the old run nor a new "
            f"one; restore it, or start the new one: `ghosttune train {shlex.quote(str(run.config))} --out OTHER`"
        )


def _digest(config: RunConfig) -> str:
    return hashlib.sha256(plain_yaml(config).encode()).hexdigest()


def _run_stages(
    run: RunDir,
    record: Record,
    prepared: Prepared,
    model: Any,
    measured: Measurement,
    phasing: Phasing | None,
    unlearning: Unlearning | None,
    checkpoint: Path | None,
    listen: Listener,
) -> None:
    config = prepared.config
    watch = Watch(run, config.train, listen)
    watch.saved, watch.until = partial(_saved, record), config.forget.until
    if phasing is not None:
        phasing.listen, phasing.measured = watch.record, partial(signals, measured)
    if checkpoint is not None:
        counters = checkpoints.read_counters(checkpoint)
        watch.restore(counters)
        measured.restore(checkpoints.read_instruments(checkpoint, device_of(config.model)), counters)
        if phasing is not None:
            phasing.restore(counters)
    mixture: Mixture | None = instrument_of(measured, Mixture)
    trainer = RunTrainer(
        model,
        config,
        run,
        prepared.task,
        prepared.train,
        prepared.dev,
        prepared.collator,
        watch,
        measured,
        phasing,
        mixture.order if mixture is not None else prepared.order(config.data.online_selection.offered),
        resuming=checkpoint is not None,
        by_source=prepared.judged_by_source,
        unlearning=unlearning,
    )
    if watch.complete and checkpoint is not None:  # it was cut off after its last step
        step = run.checkpoint_steps()[-1]
        trainer.take_up(checkpoint)
        if phasing is not None:  # its table says which learning rates there were
            phasing.rule_rates(trainer.lr_scheduler, config.train.warmup_steps)
    else:
        with record.stage("train"), watch.interruptible():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        step = trainer.state.global_step
    record.note(step=step, best_step=watch.best_step, **_throughput(watch, record))
    if trainer.candidates is not None and rank() == 0:
        _note_selection(run, record, measured, trainer.candidates)
    if mixture is not None and rank() == 0:
        record.note(mixture={"seconds": _seconds_in_all(record, "mixture", mixture.seconds), **mixture.described()})
    if watch.interrupted and not watch.complete:
        raise Stopped(f"stopped after step {step}, its state saved. Continue with `{run.resume_command}`.")
    with record.stage("measure"):
        measured.close()
        if rank() > 0:  # what is left is for one, who has the tables of all steps
            return
        _write_measurements(run, record, prepared, measured)
        if phasing is not None:
            _write_phases(run, record, prepared, phasing, trainer, step)
    with record.stage("save"):
        _write_adapters(run, prepared, model, watch)
    with record.stage("evaluate"):
        judged = _judge(run, trainer, prepared, watch)
        answered = evaluate_dev_rows(run, prepared, model, listen)
        if trainer.rollouts is not None:
            judged |= judged_by_reward(answered, prepared.task.settings.rewards)
    record.end("finished", verdict=judged)
    listen({"event": "end", "verdict": judged})


def _write_measurements(run: RunDir, record: Record, prepared: Prepared, measured: Measurement) -> None:
    """Exports what the closed instruments hold: tables, gradient_analysis and the account."""
    record.note(**_without_rule(prepared.config, measured.model, measured.engines()))
    if prepared.config.measure.norms.every is not None:
        write_gradient_analysis(run, prepared.config.measure.norms.layers)
    ledger = instrument_of(measured, Ledger)
    if ledger is not None:
        rows = Each(prepared.train_records, lambda record: (record.example_id, record.metadata))
        values = write_values(run, rows, list(_tokens(prepared)))
        write_modules(run)
        _write_guide_losses(run, ledger)
        record.note(ledger=ledger.account() | {"columns": separated_columns(values)})


def _write_guide_losses(run: RunDir, ledger: Ledger) -> None:
    """tables/guide_losses.csv: what each guide row, or window of one, adds to the guide loss at both ends."""
    assert isinstance(ledger.guide, GuideRows) and ledger.end is not None  # a run's own, and closed
    losses = zip(ledger.guide.example_ids, ledger.start["losses"].tolist(), ledger.end.tolist(), strict=True)
    write_csv(run.export("guide_losses"), ["example_id", "before", "after"], losses)


def _tokens(prepared: Prepared) -> Iterator[int]:
    """The tokens of each training row: of all its windows where it is several, 0 where it has no features."""
    windows = groupby(prepared.train.features, key=lambda row: row.example_id)
    example_id, own = next(windows, (None, iter(())))
    for record in prepared.train_records:
        if record.example_id == example_id:
            yield sum(len(window) for window in own)
            example_id, own = next(windows, (None, iter(())))
        else:
            yield 0


def _write_phases(
    run: RunDir, record: Record, prepared: Prepared, phasing: Phasing, trainer: RunTrainer, steps: int
) -> None:
    """tables/phases.csv, and which phase the best and the last adapter come from."""
    tokens = _tokens_of_steps(run, prepared, trainer.order, steps)
    rows = write_phases(run, phasing.table(steps, prepared.config.train.learning_rate), tokens)
    origin = {"best": trainer.watch.best_step, "last": steps}
    record.note(
        phases={
            name: None if step is None else rows[phasing.schedule.index(step)]["phase"] for name, step in origin.items()
        }
    )


def _tokens_of_steps(run: RunDir, prepared: Prepared, order: RowOrder, steps: int) -> list[int]:
    """The tokens that each update trained."""
    train, features = prepared.config.train, prepared.train.features
    if prepared.config.data.online_selection.by is not None:
        tokens = np.zeros(steps, np.int64)
        table = read_table(run, "selection", ["step", "tokens", "kept"]).to_pydict()
        np.add.at(tokens, np.array(table["step"]) - 1, np.where(table["kept"], table["tokens"], 0))
        return tokens.tolist()
    if prepared.config.task.type == "grpo":
        return _tokens_of_answers(run, prepared, steps)
    consumed = rows_of_steps(order, train.per_device_train_batch_size, processes(), steps)
    return [sum(len(features[position]) for position in step) for step in consumed]


def _tokens_of_answers(run: RunDir, prepared: Prepared, steps: int) -> list[int]:
    """The same where the model draws the answers that train: with their prompts, at every update that they train."""
    drawn = np.zeros(steps + 1, np.int64)
    table = read_table(run, "completions", ["step", "prompt_tokens", "tokens"]).to_pydict()
    np.add.at(drawn, table["step"], np.add(table["prompt_tokens"], table["tokens"]))
    first = np.maximum.accumulate(np.where(drawn > 0, np.arange(steps + 1), 0))
    return drawn[first[1:]].tolist()


def _note_selection(run: RunDir, record: Record, measured: Measurement, candidates: Candidates) -> None:
    """What online selection has done and taken so far, in all the parts of a run that was interrupted."""
    measured.flush()
    seconds = _seconds_in_all(record, "online_selection", candidates.seconds)
    record.note(online_selection={"seconds": seconds, **selection_totals(run)})


def _seconds_in_all(record: Record, name: str, seconds: float) -> float:
    """Those of this process and of the parts of the run before it."""
    return round(record.contents.get(name, {}).get("seconds", 0.0) + seconds, 3)


def _saved(record: Record, step: int) -> None:
    """Notes how far the run is and how long it took, for a run that is killed and goes on from here."""
    record.count_seconds()
    record.note(step=step)


def _throughput(watch: Watch, record: Record) -> dict[str, Any]:
    """Of all updates, in the seconds that made them: what was lost with a kill and done again counts once."""
    tokens, padding, targets = watch.counted()
    seconds = record.contents["stage_seconds"].get("train", 0.0)
    return {
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "targets_per_second": round(targets / seconds, 1) if seconds else None,
        "padding_share": round(padding / (tokens + padding), 4) if tokens else None,
    }


def _write_adapters(run: RunDir, prepared: Prepared, model: Any, watch: Watch) -> None:
    """`last/` from the model as it is, then `adapter/` from the best checkpoint, whose weights the model keeps."""
    write_folder(run.last, _adapter_writer(prepared, model))
    if watch.best_step is not None:
        checkpoints.restore_adapter(run.checkpoint(watch.best_step), model)
    write_folder(run.adapter, _adapter_writer(prepared, model))


def _adapter_writer(prepared: Prepared, model: Any) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        checkpoints.write_adapter(model, folder)
        prepared.encoder.tokenizer.save_pretrained(str(folder))

    return fill


def _judge(run: RunDir, trainer: RunTrainer, prepared: Prepared, watch: Watch) -> dict[str, Any]:
    """Whether the best adapter lowered the dev loss of the untouched base, with an interval; writes dev_losses.csv."""
    rows = prepared.dev.features
    targets = _by_record(rows, np.array([row.targets for row in rows], float))
    tuned = _by_record(rows, trainer.example_losses(rows).numpy())
    with trainer.model.disable_adapter():
        base = _by_record(rows, trainer.example_losses(rows).numpy())
    ids = dict.fromkeys(row.example_id for row in rows)
    losses = zip(ids, targets.tolist(), tuned.tolist(), base.tolist(), strict=True)
    write_csv(run.export("dev_losses"), ["example_id", "targets", "nats", "base_nats"], losses)
    change = mean_ratio(tuned - base, targets)
    return {
        "verdict": verdict(change, of=float(base.sum() / targets.sum())),
        "dev_loss_base": float(base.sum() / targets.sum()),
        "dev_loss": float(tuned.sum() / targets.sum()),
        "change": change.as_dict(),
        "best_step": watch.best_step,
        "note": f"{change.n} dev rows are too few to tell" if change.n < FEWEST_ROWS else None,
        **({"sources": _by_source(list(ids), targets, tuned, base)} if prepared.judged_by_source else {}),
    }


def _by_source(ids: Sequence[str], targets: np.ndarray, tuned: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """The same of the dev rows of each source of a mixture."""
    names = np.array([source_of_row(example_id) for example_id in ids], object)
    found = {}
    for name in dict.fromkeys(names.tolist()):
        own = names == name
        total = targets[own].sum()
        change = mean_ratio((tuned - base)[own], targets[own])
        losses = {"dev_loss_base": float(base[own].sum() / total), "dev_loss": float(tuned[own].sum() / total)}
        found[name] = losses | {"change": change.as_dict()}
    return found


def _by_record(rows: Sequence[RowFeatures], values: np.ndarray) -> np.ndarray:
    """The sum of each record's values, in order of appearance: windows of one record are not independent."""
    sums: dict[str, float] = dict.fromkeys((row.example_id for row in rows), 0.0)
    for row, value in zip(rows, values, strict=True):
        sums[row.example_id] += float(value)
    return np.array(list(sums.values()))


def _write_splits(run: RunDir, prepared: Prepared) -> None:
    splits = _records(prepared).items()
    write_csv(
        run.splits,
        ["example_id", "split"],
        ([record.example_id, split] for split, records in splits for record in records),
    )


def _records(prepared: Prepared) -> dict[str, Records]:
    return {"train": prepared.train_records, "dev": prepared.dev_records, "guide": prepared.guide_records}
