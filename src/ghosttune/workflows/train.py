"""One run from its configuration to a finished run directory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np

from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig
from ghosttune.errors import GhosttuneError, NoSpace, NotANumber
from ghosttune.judging.asking import to_answer
from ghosttune.judging.evaluate import evaluate_dev_rows
from ghosttune.judging.sampled import samples_of
from ghosttune.models.loading import device_of
from ghosttune.models.upstream import faults_of
from ghosttune.run.directory import RunDir
from ghosttune.run.family import interrupted_by_sigterm
from ghosttune.run.recording import Record
from ghosttune.run.tables import read_table
from ghosttune.stages.finish import (
    judge,
    note_selection,
    saved,
    seconds_in_all,
    throughput,
    write_adapters,
    write_measurements,
    write_phase_table,
)
from ghosttune.stages.instruments import signals
from ghosttune.stages.launching import own_folder
from ghosttune.stages.prepare import Prepared, default_run_folder, prepare, require_same_data
from ghosttune.stages.ready import Ready, ready
from ghosttune.stages.rewarding import judged_by_reward
from ghosttune.stages.runs import Run
from ghosttune.stages.start import begin, require_same_configuration
from ghosttune.training import checkpoints
from ghosttune.training.alerting import Alerts
from ghosttune.training.instruments import instrument_of
from ghosttune.training.mixture import Mixture
from ghosttune.training.processes import rank
from ghosttune.training.tracking import Trackers
from ghosttune.training.trainer import RunTrainer
from ghosttune.training.watching import Listener, Watch, ignore


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
    made = ready(run, prepare(config), resumes=False)
    to_answer(made.prepared, made.model)
    with run.locked():
        record = begin(run, made.prepared, made.adapted)
        return _to_the_end(run, record, made, None, start, listen)


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
    made = ready(run, prepared, resumes=checkpoint is not None)
    run.remove_partial_writes()
    run.forget_events_after(steps[-1] if steps else -1)
    made.measured.forget_after(steps[-1] if steps else 0)
    return _to_the_end(run, Record.reopen(run), made, checkpoint, start, listen)


def _to_the_end(
    run: RunDir, record: Record, made: Ready, checkpoint: Path | None, start: float, listen: Listener
) -> Run:
    """From the first step after `checkpoint`; `start` is when this process began to prepare."""
    config = made.prepared.config
    made.keep(run)
    record.note(**made.described)
    record.add_seconds("prepare", time.perf_counter() - start)
    told = {"run": run, "prepared": made.prepared, "parameters": made.adapted.counts}
    listen({"event": "begin", **told, "resumed": "resumed" in record.contents})
    alerts = Alerts(config.alerts, run.path.name, listen, run.events() if checkpoint else ())
    hear = alerts.hear if rank() == 0 else listen
    trackers = Trackers(config.run.trackers, made.measured, listen)
    try:
        with _status_at_the_end(record), faults_of(config.model.name), closing(trackers):
            _run_stages(run, record, made, checkpoint, trackers, hear)
    except NotANumber as error:
        alerts.send("nan", None, str(error))
        raise
    except NoSpace as full:
        raise NoSpace(full.path, full.reason, f"continue with `{run.resume_command}`") from full
    return Run(run, config.model.trust_remote_code)


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


def _run_stages(
    run: RunDir, record: Record, made: Ready, checkpoint: Path | None, trackers: Trackers, listen: Listener
) -> None:
    prepared, measured = made.prepared, made.measured
    watch = Watch(run, prepared.config.train, listen)
    watch.saved, watch.until = partial(saved, record), prepared.config.forget.until
    trainer = _trainer(run, made, watch, checkpoint, trackers)
    step = _steps(run, record, trainer, checkpoint)
    if watch.interrupted and not watch.complete:
        raise Stopped(f"stopped after step {step}, its state saved. Continue with `{run.resume_command}`.")
    with record.stage("measure"):
        measured.close()
        if rank() == 0:  # who has the tables of all steps
            write_measurements(run, record, prepared, measured)
            if made.phasing is not None:
                write_phase_table(run, record, prepared, made.phasing, trainer, step)
        elif not prepared.config.train.fsdp:
            return  # what is left is for one; a base that is shared out is computed by all
    with record.stage("save"):
        write_adapters(run, prepared, made.model, watch)
    listen({"event": "stage", "stage": "evaluate"})
    with record.stage("evaluate"):
        verdict = judge(run, trainer, prepared, watch)
        answered = evaluate_dev_rows(run, prepared, made.model, listen)
        if trainer.rollouts is not None:
            verdict |= judged_by_reward(answered, prepared.task.settings.rewards)
    if rank() > 0:
        return
    record.end("finished", verdict=verdict)
    _tell_trackers(run, record, prepared, trackers)
    listen({"event": "end", "verdict": verdict})


def _trainer(run: RunDir, made: Ready, watch: Watch, checkpoint: Path | None, trackers: Trackers) -> RunTrainer:
    """What makes the steps, as it was at the checkpoint but for what `transformers` restores itself."""
    prepared, measured, phasing = made.prepared, made.measured, made.phasing
    if phasing is not None:
        phasing.listen, phasing.measured = watch.record, partial(signals, measured)
    if checkpoint is not None:
        counters = checkpoints.read_counters(checkpoint)
        watch.restore(counters)
        measured.restore(checkpoints.read_instruments(checkpoint, device_of(prepared.config.model)), counters)
        if phasing is not None:
            phasing.restore(counters)
    mixture = instrument_of(measured, Mixture)
    return RunTrainer(
        made.model,
        prepared.config,
        run,
        prepared.task,
        prepared.trained,
        prepared.dev,
        prepared.collator,
        watch,
        measured,
        phasing,
        mixture.order if mixture is not None else prepared.order_of_training(),
        resuming=checkpoint is not None,
        by_source=prepared.judged_by_source,
        unlearning=made.unlearning,
        samples=samples_of(prepared, made.model),
        trackers=trackers,
    )


def _steps(run: RunDir, record: Record, trainer: RunTrainer, checkpoint: Path | None) -> int:
    """Makes the steps that are left; returns the number of the last one, with what they did in run.json."""
    watch, measured = trainer.watch, trainer.measurement
    if watch.complete and checkpoint is not None:  # it was cut off after its last step
        step = run.checkpoint_steps()[-1]
        trainer.take_up(checkpoint)
        if trainer.phasing is not None:  # its table says which learning rates there were
            trainer.phasing.rule_rates(trainer.lr_scheduler, trainer.config.train.warmup_steps)
    else:
        with record.stage("train"), watch.interruptible():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        step = trainer.state.global_step
    record.note(step=step, best_step=watch.best_step, **throughput(watch, record))
    if trainer.candidates is not None and rank() == 0:
        note_selection(run, record, measured, trainer.candidates)
    mixture: Mixture | None = instrument_of(measured, Mixture)
    if mixture is not None and rank() == 0:
        record.note(mixture={"seconds": seconds_in_all(record, "mixture", mixture.seconds), **mixture.described()})
    return step


def _tell_trackers(run: RunDir, record: Record, prepared: Prepared, trackers: Trackers) -> None:
    """What a finished run has besides curves: verdict, account, values, and the report, which is written for them."""
    if trackers.open:
        from ghosttune.workflows.report import report

        losses = {f"verdict/{name}": record.contents["verdict"][name] for name in ("dev_loss_base", "dev_loss")}
        account = {f"ledger/{name}": value for name, value in record.contents.get("ledger", {}).items()}
        values = read_table(run, "values", ["value"])["value"].drop_null().to_numpy() if account else np.array([])
        page = report(run.path, trust_remote_code=prepared.config.model.trust_remote_code)
        trackers.finished(losses | account, values, page)
    if trackers.failed:
        record.note(trackers_failed=trackers.failed)
