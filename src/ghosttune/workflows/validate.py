"""How far a run's numbers of its rows hold: the run trained again on halves of them, and without the ones it names.

Each retraining is a run of its own with the settings of the first, but for the rows, the seed and what is measured. A
half is trained for as many updates, so that each of its rows is seen about twice as often: what its rows are predicted
to do is twice the sum of their values.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ghosttune.choosing.attribute import By, scored
from ghosttune.choosing.opened import OpenedRun
from ghosttune.config.loading import load_config
from ghosttune.config.rendering import inline
from ghosttune.config.sweeps import Trial
from ghosttune.errors import InputError, RunError, listed
from ghosttune.metrics.agreement import agreement, ceiling
from ghosttune.metrics.intervals import FEWEST_ROWS, mean_ratio, verdict
from ghosttune.run.directory import RunDir, require_contained, write_json, write_jsonl
from ghosttune.stages.runs import Run, open_run
from ghosttune.workflows.sweep import NAMES, Listener, Sweep, SweepDir, claim, train_all

ALL, HALF = "all", "half-{:03}"
WITHOUT = {"lowest": "without-lowest", "highest": "without-highest", "random": "without-random"}

START_SECONDS = 10.0
"""What a process takes to begin and to judge, besides training."""


@dataclass(frozen=True)
class Cost:
    """What a validation will take."""

    runs: int
    seconds: float
    processes: int


@dataclass(frozen=True)
class Arms:
    """Name of each arm -> ids of the rows it trains."""

    halves: dict[str, list[str]]
    others: dict[str, list[str]]

    @property
    def every(self) -> dict[str, list[str]]:
        return self.others | self.halves


def validate(
    run: str | Path,
    *,
    subsets: int = 32,
    seeds: int = 1,
    drop: float = 0.1,
    processes: int = 1,
    plan: bool = False,
    begin: Callable[[Cost], None] = lambda cost: None,
    listen: Listener = lambda trial, what: None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Trains the run again and says how far its values, standings and indexed gradients agree with what comes out.

    Args:
        subsets: random halves of the training rows.
        seeds: of each arm, the run's own and those after it; from two on there is a ceiling.
        drop: the share of rows that the arms without the lowest, the highest and random rows leave out.
        processes: retrainings at once.
        plan: say what it would cost, and train nothing.
        begin: is told the cost before anything is trained.
        trust_remote_code: whether code that comes with the run's model may run.

    What was trained stays in RUN/validation, and is not trained again by a second call; more subsets or seeds are
    added to it. Returns the contents of validation.json. Raises InputError or RunError where the run cannot be
    validated, and RunError, after all else was trained, where a retraining failed.
    """
    opened = _required(open_run(run, trust_remote_code=trust_remote_code), subsets, seeds, drop)
    arms = _arms(opened, subsets, drop)
    cost = Cost(
        len(arms.every) * seeds,
        round(len(arms.every) * seeds * (opened.record["stage_seconds"]["train"] + START_SECONDS) / processes, 1),
        processes,
    )
    begin(cost)
    if plan:
        return {"cost": vars(cost)}
    folder = SweepDir(opened.folder.validation)
    with RunDir(folder.path).locked():
        require_contained(folder.path, {*NAMES, "rows", opened.folder.validation_result.name})
        trials = _trials(opened, folder, arms, seeds)
        claim(folder, trials)
        result = Sweep(folder)
        train_all(folder, trials, processes, result, listen)
        if result.failed:
            raise RunError(f"{len(result.failed)} retrainings failed: {listed(result.failed)}; see {folder.path}/logs")
        found = _found(opened, folder, arms, trials, drop) | {"cost": vars(cost)}
        write_json(opened.folder.validation_result, found)
    return found


def _required(run: Run, subsets: int, seeds: int, drop: float) -> Run:
    """The run, when it can be validated."""
    if run.record["status"] != "finished":
        raise RunError(f"{run.path} is not finished; continue it with `{run.folder.resume_command}`")
    if run.config.measure.ledger.guide_every is None:
        raise RunError(f"{run.path} has no ledger, and so no values that could be validated; train it with one")
    if subsets < FEWEST_ROWS:
        raise InputError(f"{subsets} subsets tell nothing; give {FEWEST_ROWS} or more")
    if seeds < 1:
        raise InputError(f"{seeds} seeds train nothing; give 1 or more")
    if not 0 < drop < 0.5:
        raise InputError(f"--drop is {drop:g}; give a share of the rows between 0 and 0.5")
    return run


def _arms(run: Run, subsets: int, drop: float) -> Arms:
    """Every arm's rows; the same for the same run."""
    values = sorted(run.values, key=lambda row: row["example_id"])
    ids = [row["example_id"] for row in values]
    ranked = [row["example_id"] for row in sorted(values, key=lambda row: _number(row["standing"]))]
    count = max(1, round(drop * len(ids)))
    if len(ids) < 2 * FEWEST_ROWS:
        raise InputError(f"{run.path} trained {len(ids)} rows; halves of them tell nothing")
    drawn = np.random.default_rng(0).choice(ids, count, replace=False).tolist()
    dropped = {"lowest": ranked[:count], "highest": ranked[-count:], "random": drawn}
    others = {ALL: ids} | {WITHOUT[kind]: _without(ids, names) for kind, names in dropped.items()}
    halves = {
        HALF.format(number): np.random.default_rng([1, number]).choice(ids, len(ids) // 2, replace=False).tolist()
        for number in range(subsets)
    }
    return Arms(halves, others)


def _without(ids: Sequence[str], dropped: Sequence[str]) -> list[str]:
    out = set(dropped)
    return [name for name in ids if name not in out]


def _number(value: float | None) -> float:
    """Rows that were never scored did nothing."""
    return 0.0 if value is None else value


def _trials(run: Run, folder: SweepDir, arms: Arms, seeds: int) -> list[Trial]:
    """Every retraining, with its rows written where its configuration names them."""
    config = run.config
    trials = []
    for name, ids in arms.every.items():
        rows = (folder.path / "rows" / f"{name}.jsonl").absolute()
        if not rows.is_file():
            write_jsonl(rows, ({"example_id": own} for own in sorted(ids)))
        for seed in range(config.train.seed, config.train.seed + seeds):
            changes = {
                "data.train.keep": str(rows),
                "train.seed": seed,
                "train.save_total_limit": 1,
                "measure.norms.every": None,
                "measure.norms.effective": None,
                "measure.ledger.guide_every": config.train.max_steps,
                "evaluate.limit": 0,
                "run.trackers": [],
                "alerts": None,
            }
            overrides = [f"{setting}={inline(value)}" for setting, value in changes.items()]
            again = load_config(run.folder.config, overrides=overrides, trust_remote_code=run.trust_remote_code)
            trials.append(Trial(name, seed, again))
    return trials


def _found(run: Run, folder: SweepDir, arms: Arms, trials: Sequence[Trial], drop: float) -> dict[str, Any]:
    losses = {(trial.arm, trial.seed): _guide_losses(folder.run(trial)) for trial in trials}
    seeds = sorted({trial.seed for trial in trials})
    drops = {arm: [_drop(losses[arm, seed]) for seed in seeds] for arm in arms.every}
    measured = np.array([drops[name] for name in arms.halves])
    return {
        "subsets": len(arms.halves),
        "seeds": seeds,
        "rows": len(arms.others[ALL]),
        "ceiling": ceiling(measured),
        "scores": {
            name: agreement(predicted, measured.mean(1), in_nats=name == "value").as_dict()
            for name, predicted in _predictions(run, arms).items()
        },
        "halves": {
            name: {"predicted": float(value), "measured": drops[name]}
            for name, value in zip(arms.halves, _predictions_by_value(run, arms), strict=True)
        },
        "dropped": {"share": drop} | {kind: _effect(losses, arm, seeds) for kind, arm in WITHOUT.items()},
        "not_compared": _not_compared(run),
    }


def _guide_losses(run: RunDir) -> dict[str, tuple[float, float]]:
    """Guide row -> what it adds to the guide loss before and after training."""
    with open(run.export("guide_losses"), encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        found: dict[str, tuple[float, float]] = {}
        for row in rows:
            before, after = found.get(row["example_id"], (0.0, 0.0))
            found[row["example_id"]] = before + float(row["before"]), after + float(row["after"])
    return found


def _drop(losses: Mapping[str, tuple[float, float]]) -> float:
    return sum(before - after for before, after in losses.values())


def _effect(losses: Mapping[tuple[str, int], Any], arm: str, seeds: Sequence[int]) -> dict[str, Any]:
    """What leaving the rows out changed of the guide loss, over guide rows and seeds."""
    names = list(losses[ALL, seeds[0]])
    after = {own: np.array([[losses[own, seed][name][1] for name in names] for seed in seeds]) for own in (ALL, arm)}
    totals = (after[arm] - after[ALL]).mean(0) * len(names)
    change = mean_ratio(totals, np.ones(len(names)))
    by_seed = (after[arm] - after[ALL]).sum(1).tolist()
    return {"change": change.as_dict(), "by_seed": by_seed, "verdict": verdict(change, float(after[ALL].sum(1).mean()))}


def _predictions(run: Run, arms: Arms) -> dict[str, np.ndarray]:
    """Name of a score -> [halves] what its rows add up to."""
    rows = {row["example_id"]: row for row in run.values}
    standings = {name: _number(row["standing"]) for name, row in rows.items()}
    found = {"value": _predictions_by_value(run, arms), "standing": _sums(standings, arms)}
    if _index_steps(run):
        opened = OpenedRun(run.path, trust_remote_code=run.trust_remote_code)
        for by in get_args(By):
            towards = opened.prepared.guide.features
            scores = scored(opened, opened.train, towards, _index_steps(run), by).scores.tolist()
            found[f"attribute --by {by}"] = _sums(dict(zip(opened.train.ids, scores, strict=True)), arms)
    return found


def _predictions_by_value(run: Run, arms: Arms) -> np.ndarray:
    """In nats per target: each row of a half is seen as much more often as the half is smaller."""
    values = {row["example_id"]: _number(row["value"]) for row in run.values}
    oftener = len(values) / len(next(iter(arms.halves.values())))
    return oftener * _sums(values, arms)


def _sums(scores: Mapping[str, float], arms: Arms) -> np.ndarray:
    return np.array([sum(scores.get(name, 0.0) for name in ids) for ids in arms.halves.values()])


def _index_steps(run: Run) -> list[int]:
    """The checkpoints whose gradients are stored."""
    return [step for step in run.folder.checkpoint_steps() if run.folder.store("train", step).exists()]


def _not_compared(run: Run) -> list[str]:
    if _index_steps(run):
        return []
    return [f"attribute: the run's rows are not indexed; `ghosttune index {run.path}` and validate again"]
