"""Finished runs as the arms of a comparison: what each was given, what it cost, and how it did on every dev row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ghosttune.config.schema import RunConfig
from ghosttune.errors import InputError, RunError, listed
from ghosttune.metrics.intervals import Interval, share
from ghosttune.metrics.judging import labels_of
from ghosttune.metrics.pooling import pooled
from ghosttune.metrics.scoring import Corpus, Item, Score, of_hits, of_mean, of_sums, ratio
from ghosttune.own_code import is_own_code
from ghosttune.registry import METRICS
from ghosttune.run.directory import read_csv
from ghosttune.stages.runs import Run, open_run
from ghosttune.tasks.sequence import SMALLEST

DEV_LOSS = "dev_loss"
REBUILT = ("answers", "endings", "labels", "label likelihoods")
"""What metrics that can be computed again from predictions/dev.jsonl may need."""

OWN = ("run", "train.seed")
"""Settings in which runs of one arm differ."""


@dataclass(frozen=True)
class Arm:
    """Runs of one configuration, one per seed."""

    name: str
    runs: list[Run]

    @cached_property
    def seeds(self) -> list[int]:
        return [run.config.train.seed for run in self.runs]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting but those in which its runs differ."""
        return settings_of(self.runs[0].config)

    @cached_property
    def budget(self) -> dict[str, int]:
        """What its runs were given; equal arms have equal ones."""
        record, train = self.runs[0].record, self.runs[0].config.train
        return {
            "trainable_parameters": sum(record["model"]["trainable_parameters"].values()),
            "updates": record["step"],
            "rows_seen": record["step"] * train.rows_per_step * record.get("processes", 1),
            "train_rows": record["data"]["rows"]["train"],
        }

    @cached_property
    def cost(self) -> dict[str, float | None]:
        """What one of its runs took, on average."""
        records = [run.record for run in self.runs]
        seconds = [record["stage_seconds"].get("train", 0.0) for record in records]
        chosen = [own for record in records if (own := _choosing(record)) is not None]
        speeds = [record["tokens_per_second"] for record in records if record.get("tokens_per_second")]
        return {
            "train_seconds": round(float(np.mean(seconds)), 1),
            "choosing_seconds": _mean(chosen),
            "tokens_per_second": _mean(speeds),
            "peak_memory_mb": max(record["peak_memory_mb"]["process"] for record in records),
        }

    def of_seeds(self, seeds: Iterable[int]) -> Arm:
        """The same arm with these seeds only, in this order."""
        by_seed = dict(zip(self.seeds, self.runs, strict=True))
        return Arm(self.name, [by_seed[seed] for seed in seeds])

    @cached_property
    def each(self) -> list[Arm]:
        """Its runs, one by one."""
        return [Arm(self.name, [run]) for run in self.runs]

    @cached_property
    def losses(self) -> list[dict[str, tuple[float, float]]]:
        """Of each run: dev row -> (nats, targets) under the best adapter."""
        return [_losses(run) for run in self.runs]

    @cached_property
    def scores(self) -> dict[str, Score]:
        """Metric -> its score over all dev rows of all runs; metrics that only some runs have are absent."""
        names = [name for losses in self.losses for name in losses]
        sums = np.array([pair for losses in self.losses for pair in losses.values()])
        loss = of_sums(sums, lambda totals: ratio(totals[:, 0], totals[:, 1]), weights=sums[:, 1])
        return {DEV_LOSS: pooled(loss, names)} | {
            name: score for name in _metrics(self.runs) if (score := _over_runs(self.runs, name)) is not None
        }

    @cached_property
    def not_rebuilt(self) -> list[str]:
        """Metrics that its runs report and that predictions/ do not hold enough to test."""
        return [name for name in _metrics(self.runs) if name not in self.scores]


def _choosing(record: Mapping[str, Any]) -> float | None:
    """Seconds of its training in which a run chose rows, or learnt which sources they come from; None where neither."""
    found = record.get("online_selection") or record.get("mixture")
    return found["seconds"] if found else None


def _mean(numbers: Sequence[float]) -> float | None:
    return round(float(np.mean(numbers)), 1) if numbers else None


def interval_of(score: Score) -> Interval:
    """95 % over rows; of rows that are all right, or all wrong, what Wilson says of so many: drawing tells nothing."""
    if score.hits is None and score.value in (0.0, 1.0) and np.ptp(score.resampled) == 0:
        return share([bool(score.value)] * score.n)
    return score.interval


def finite(interval: Interval) -> dict[str, float | None]:
    """As JSON holds it: null where a bound has no value, such as an AUC in draws of one class."""
    return {name: value if math.isfinite(value) else None for name, value in interval.as_dict().items()}


def lower_is_better(metric: str) -> bool:
    return metric == DEV_LOSS or (not is_own_code(metric) and METRICS[metric].settings.lower_is_better)


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Dotted path -> value, without the settings in which runs of one arm differ."""
    leaves = dict(_leaves(config.model_dump()))
    return {path: value for path, value in leaves.items() if not any(_inside(path, own) for own in OWN)}


def grouped(paths: Sequence[str | Path]) -> list[Arm]:
    """Runs of equal settings as one arm each, in the order they were given; InputError for what cannot be an arm."""
    runs = [_finished(path) for path in paths]
    places = [run.path.resolve() for run in runs]
    if repeated := sorted({str(place) for place in places if places.count(place) > 1}):
        raise InputError(f"{listed(repeated)} is given twice; a run cannot be compared with itself")
    found: list[tuple[dict[str, Any], list[Run]]] = []
    for run in runs:
        settings = settings_of(run.config)
        same = next((members for known, members in found if known == settings), None)
        if same is None:
            found.append((settings, [run]))
        else:
            same.append(run)
    return named({_name(members[0], places): members for _, members in found})


def named(arms: Mapping[str, Sequence[Run]]) -> list[Arm]:
    """Arms with one run per seed; InputError when a seed comes twice."""
    made = [Arm(name, list(runs)) for name, runs in arms.items()]
    for arm in made:
        if len(set(arm.seeds)) < len(arm.seeds):
            paths = listed(str(run.path) for run in arm.runs)
            raise InputError(
                f"{paths} are the same run twice: equal settings and an equal train.seed; give one of them"
            )
    return made


def _finished(path: str | Path) -> Run:
    run = open_run(path)
    status = run.record["status"]
    if status != "finished":
        raise RunError(f"{run.path} is not finished ({status}); continue it with `{run.folder.resume_command}`")
    return run


def _name(run: Run, places: Sequence[Path]) -> str:
    """The run's folder, with the one above it where another run's has the same name."""
    place = run.path.resolve()
    return (
        place.name if [other.name for other in places].count(place.name) == 1 else f"{place.parent.name}/{place.name}"
    )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _inside(path: str, part: str) -> bool:
    return path == part or path.startswith(f"{part}.")


def _losses(run: Run) -> dict[str, tuple[float, float]]:
    path = run.folder.export("dev_losses")
    if not path.is_file():
        raise RunError(f"{path} is missing, without which runs cannot be compared row by row; train the run again")
    rows = sorted(read_csv(path), key=lambda row: row["example_id"])
    return {row["example_id"]: (float(row["nats"]), float(row["targets"])) for row in rows}


def answers_of(run: Run) -> list[dict[str, Any]]:
    """The run's answers to its dev rows, by id; empty where none were asked for."""
    return sorted(run.predictions, key=lambda row: row["example_id"])


def _reported(run: Run) -> dict[str, Any]:
    """Metric -> its interval, as the run's own evaluation of its dev rows has it."""
    return ((run.evaluation or {}).get("dev") or {}).get("adapter") or {}


def _metrics(runs: Sequence[Run]) -> list[str]:
    """Metrics that every run reports."""
    first, *others = [list(_reported(run)) for run in runs]
    known = METRICS.names()
    return [name for name in first if (name in known or is_own_code(name)) and all(name in other for other in others)]


def _over_runs(runs: Sequence[Run], metric: str) -> Score | None:
    """The metric over the predictions of all runs; None where they do not hold enough to give what was reported."""
    rows = [row for run in runs for row in answers_of(run)]
    for score_of in (_of_rows, _again):
        if all(_same(score_of(metric, answers_of(run)), _reported(run)[metric]["value"]) for run in runs):
            score = score_of(metric, rows)
            return None if score is None else pooled(score, [row["example_id"] for row in rows])
    return None


def _same(score: Score | None, reported: float | None) -> bool:
    return score is not None and reported is not None and bool(np.isclose(score.value, reported, rtol=1e-9, atol=1e-12))


def _of_rows(metric: str, rows: Sequence[Mapping[str, Any]]) -> Score | None:
    """The mean of what each row scored by itself."""
    values = [row.get("scores", {}).get(metric) for row in rows]
    if not values or any(value is None for value in values):
        return None
    return of_hits([value == 1 for value in values]) if set(values) <= {0, 1} else of_mean(values)


def _again(metric: str, rows: Sequence[Mapping[str, Any]]) -> Score | None:
    """The metric computed again from the answers, for those of a whole corpus."""
    if is_own_code(metric) or METRICS[metric].settings.needs not in REBUILT or not rows:
        return None
    items = [_item(row) for row in rows]
    return METRICS[metric].build(Corpus(items, labels_of([item.references for item in items], [metric])))


def _item(row: Mapping[str, Any]) -> Item:
    """What predictions/dev.jsonl holds of an answer."""
    nats = {label: -math.log(max(share, SMALLEST)) for label, share in row.get("probabilities", {}).items()}
    return Item(row["output"], tuple(row["references"]), stopped=row.get("stopped", True), label_nats=nats)
