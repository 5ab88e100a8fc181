"""Makes the adapter of a finished run forget some of its rows, and says how far that went and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ghosttune.choosing.opened import OpenedRun
from ghosttune.config.loading import load_config
from ghosttune.config.rendering import inline
from ghosttune.config.schema import RunConfig
from ghosttune.data.encoding import RowFeatures
from ghosttune.data.retaining import forgotten_ids
from ghosttune.data.splitting import sampled
from ghosttune.errors import InputError, RunError
from ghosttune.metrics.intervals import FEWEST_ROWS, Interval, mean_ratio, verdict
from ghosttune.run.directory import RunDir, write_json, write_jsonl
from ghosttune.stages.prepare import Prepared, prepare
from ghosttune.stages.runs import Run, open_run
from ghosttune.stages.unlearning import best_checkpoint
from ghosttune.tasks.protocol import row_nats
from ghosttune.training import checkpoints
from ghosttune.training.watching import Listener, ignore
from ghosttune.workflows.train import resume, train

STEPS = 60

GENTLER = 0.1
"""Learning rate as a share of the run's own: at that itself a few updates forget all, and tear others along."""

EVALUATIONS = 30
"""How often in the run it is looked whether the rows are forgotten."""

JUDGED = 1000
"""Retained rows that are judged at most, drawn by id."""

BEFORE, AFTER, RETRAINED = "before", "after", "retrained"
FORGOTTEN, PARAPHRASES, RETAINED, HELD_OUT = "forgotten", "paraphrases", "retained", "held_out"

Nats = dict[str, np.ndarray]
"""Who is judged -> nats of each row."""


def forget(
    run: str | Path,
    rows: str | Path,
    out: str | Path | None = None,
    *,
    loss: str = "npo",
    steps: int = STEPS,
    until: float | None = None,
    retain: str | Path | None = None,
    retrain: bool = False,
    paraphrases: str | Path | None = None,
    overrides: Sequence[str] = (),
    listen: Listener = ignore,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Trains a new run in `out` (RUN-without-NAME if not given) whose adapter has forgotten the rows, and judges it.

    Args:
        rows: file of the ids to forget.
        loss: `npo` or `gradient_ascent`.
        steps: updates at most.
        until: mean loss of the rows at which to stop, in nats per target; that of the retrained model where there is
            one and nothing is given.
        retain: file of the ids to hold on to; a sample of the run's other rows if not given.
        retrain: also train the run's own recipe without the rows, which takes as long as the run did.
        paraphrases: file of rows that say in other words what is to be forgotten.
        overrides: other settings of the new run, such as `forget.beta=0.5` or `train.learning_rate=1e-4`.

    What an earlier call with the same settings has trained is kept, and what was interrupted goes on. Returns the
    contents of forgetting/forgetting.json. Raises InputError where it cannot be done, before anything is trained.
    """
    source = _required(open_run(run, trust_remote_code=trust_remote_code))
    folder = RunDir(out or source.path.with_name(f"{source.path.name}-without-{Path(rows).name.split('.')[0]}"))
    given = {"forget.rows": str(rows), "forget.loss": loss, "forget.until": until}
    given |= {} if retain is None else {"forget.retain": str(retain)}
    config = _configured(source, steps, given, overrides)
    prepared = prepare(config)
    opened = OpenedRun(source.path, config.model.device, trust_remote_code)
    if paraphrases is not None:
        opened.rows(paraphrases)
    if retrain:
        retrained = _retrained(source, opened, folder, config, listen)
        if config.forget.until is None:
            nats, targets = _of_rows(opened, retrained.folder, _forgotten(opened, config))
            mark = float(nats.sum() / targets.sum())
            config = _configured(source, steps, given | {"forget.until": mark}, overrides)
            prepared = prepare(config)
    _carried_on(folder, config, prepared, listen)
    result = _judged(opened, open_run(folder.path, trust_remote_code=trust_remote_code), config, paraphrases, retrain)
    write_json(folder.forgetting_result, result)
    return result


def _required(run: Run) -> Run:
    """The run, when its rows can be forgotten."""
    if run.record["status"] != "finished":
        raise RunError(f"{run.path} is not finished; continue it with `{run.folder.resume_command}`")
    if run.config.forget.run is not None:
        raise RunError(
            f"{run.path} forgets rows of {run.config.forget.run}; let that one forget these and those, in one file"
        )
    return run


def _configured(run: Run, steps: int, given: Mapping[str, Any], overrides: Sequence[str]) -> RunConfig:
    """The run's own configuration, changed into one that forgets."""
    if steps < 1:
        raise InputError(f"--steps is {steps}; give 1 or more")
    every = max(1, steps // EVALUATIONS)
    changes = {
        "forget.run": str(run.path),
        **given,
        "train.max_steps": steps,
        "train.learning_rate": run.config.train.learning_rate * GENTLER,
        "train.lr_scheduler_type": "constant",
        "train.warmup_steps": 0,
        "train.logging_steps": every,
        "train.eval_steps": every,
        "train.save_steps": every,
        "train.early_stopping_patience": None,
        "train.early_stopping_threshold": 0.0,
        "train.packing": False,
        "data.online_selection": None,
        "phases": None,
        "measure.norms": None,
        "measure.norms.layers": True,
        "run.name": None,
        "run.trackers": [],
        "alerts": None,
    }
    if run.config.measure.ledger.guide_every is not None:
        changes["measure.ledger.guide_every"] = steps
    texts = [f"{setting}={inline(value)}" for setting, value in changes.items()]
    return load_config(run.folder.config, overrides=[*texts, *overrides], trust_remote_code=run.trust_remote_code)


def _retrained(source: Run, opened: OpenedRun, folder: RunDir, config: RunConfig, listen: Listener) -> Run:
    """The run's own recipe, trained on its rows but for those that are forgotten; kept where it is there."""
    with folder.locked():
        again, names = folder.retrained, forgotten_ids(config.forget)
        kept = [{"example_id": own} for own in opened.train.ids if own not in names]
        write_jsonl(folder.retrained_rows, kept)
        if again.exists:
            return resume(again.path, listen=listen, trust_remote_code=source.trust_remote_code)
        changes = {
            "data.train.keep": str(folder.retrained_rows.absolute()),
            "run.name": None,
            "run.trackers": [],
            "alerts": None,
        }
        texts = [f"{setting}={inline(value)}" for setting, value in changes.items()]
        recipe = load_config(source.folder.config, overrides=texts, trust_remote_code=source.trust_remote_code)
        return train(recipe, again.path, listen=listen)


def _carried_on(folder: RunDir, config: RunConfig, prepared: Prepared, listen: Listener) -> None:
    """Trains the run, or what is left of it; RunError where the folder holds another one."""
    if not folder.exists:
        train(config, folder.path, listen=listen)
        return
    there = open_run(folder.path, trust_remote_code=config.model.trust_remote_code)
    if there.config != prepared.config:
        raise RunError(f"{folder.path} holds a run with other settings; give another --out")
    resume(folder.path, listen=listen, trust_remote_code=config.model.trust_remote_code)


def _judged(
    opened: OpenedRun, run: Run, config: RunConfig, paraphrases: str | Path | None, retrained: bool
) -> dict[str, Any]:
    """Losses of all sets of rows under all adapters, what changed, and what is to be said of it."""
    adapters = {BEFORE: opened.run, AFTER: run.folder} | ({RETRAINED: run.folder.retrained} if retrained else {})
    sets = {FORGOTTEN: _forgotten(opened, config), RETAINED: _retained(opened, config)}
    sets[HELD_OUT] = list(opened.prepared.dev.features)
    if paraphrases is not None:
        sets[PARAPHRASES] = list(opened.rows(paraphrases).features)
    found = {name: _compared(opened, adapters, rows) for name, rows in sets.items()}
    record = run.record
    return {
        "run": str(opened.run.path),
        "out": str(run.path),
        "step": record["best_step"],
        "until": config.forget.until,
        "rows": found,
        "verdict": _verdict(found),
        "seconds": {name: adapters[name].read_record()["stage_seconds"]["train"] for name in adapters},
    }


def _forgotten(opened: OpenedRun, config: RunConfig) -> list[RowFeatures]:
    names = forgotten_ids(config.forget)
    return [row for row in opened.train.features if row.example_id in names]


def _retained(opened: OpenedRun, config: RunConfig) -> list[RowFeatures]:
    """The run's other rows, or a draw of them, whether they were trained meanwhile or not."""
    names = forgotten_ids(config.forget)
    others = [own for own in opened.train.ids if own not in names]
    drawn = {others[place] for place in sampled(others, JUDGED, config.train.seed).tolist()}
    return [row for row in opened.train.features if row.example_id in drawn]


def _of_rows(opened: OpenedRun, run: RunDir, rows: Sequence[RowFeatures]) -> tuple[np.ndarray, np.ndarray]:
    """(nats, targets) of each row under a run's adapter; windows of one row are added up."""
    model, folder = opened.adapted.model, best_checkpoint(run)
    checkpoints.verify(folder)
    checkpoints.restore_adapter(folder, model)
    nats: dict[str, float] = dict.fromkeys((row.example_id for row in rows), 0.0)
    targets = dict.fromkeys(nats, 0)
    for row, loss in zip(rows, row_nats(opened.task, model, opened.prepared.encoder, rows), strict=True):
        nats[row.example_id] += loss
        targets[row.example_id] += row.targets
    return np.array(list(nats.values())), np.array(list(targets.values()), float)


def _compared(opened: OpenedRun, adapters: Mapping[str, RunDir], rows: Sequence[RowFeatures]) -> dict[str, Any]:
    """Loss per target of the rows under each adapter, and how that afterwards differs from the others, row by row."""
    nats: Nats = {}
    targets = np.empty(0)
    for name, run in adapters.items():
        nats[name], targets = _of_rows(opened, run, rows)
    changes = {}
    for name in adapters.keys() - {AFTER}:
        change = mean_ratio(nats[AFTER] - nats[name], targets)
        of = float(nats[name].sum() / targets.sum())
        changes[f"from_{name}"] = change.as_dict() | {"verdict": verdict(change, of)}
    losses = {name: mean_ratio(own, targets).as_dict() for name, own in nats.items()}
    return {"loss": losses} | dict(sorted(changes.items()))


def _verdict(found: Mapping[str, Any]) -> dict[str, Any]:
    """What may be said: of the forgotten rows against a model that never saw them, and of the retained ones.

    Beside a retrained model as well, which differs from the one before by chance too, whatever is forgotten.
    """
    loss = found[FORGOTTEN]["loss"]
    said = {
        f"retained_{against}": found[RETAINED][against]["verdict"] for against in found[RETAINED] if against != "loss"
    }
    if loss[AFTER]["n"] < FEWEST_ROWS:
        return {"forgotten": f"{loss[AFTER]['n']} rows are too few to tell", **said}
    if RETRAINED not in loss:
        change = found[FORGOTTEN]["from_before"]["verdict"]
        return {"forgotten": {"worse": "less known than before"}.get(change, change), **said}
    own = Interval(**loss[RETRAINED])
    value = loss[AFTER]["value"]
    words = "still known" if value < own.low else "pushed beyond" if value > own.high else "as if never seen"
    return {"forgotten": words, **said}
