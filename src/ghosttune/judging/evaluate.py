"""Answers judged: at the end of a run and alone, by the same functions and with the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig
from ghosttune.config.sections.data import RowsSettings
from ghosttune.config.sections.evaluate import EvaluateSettings
from ghosttune.data.contamination import contamination
from ghosttune.data.questions import Question, questions_of
from ghosttune.data.records import Record, Records
from ghosttune.data.sources import BUILTIN_ROWS, Source, open_source, settings_of_file
from ghosttune.data.splitting import sample
from ghosttune.data.turns import Turn, images_of
from ghosttune.errors import DataError, InputError, RunError, listed
from ghosttune.inference.pipeline import Pipeline, predicting
from ghosttune.judging.answering import Answered, System, answered
from ghosttune.judging.engines import open_pipeline
from ghosttune.judging.forgetting import forgetting
from ghosttune.judging.predicting import judged_predictions
from ghosttune.metrics.degenerate import alarm
from ghosttune.metrics.judging import CONSTANT, constant, for_constant, judged, needs, scores_of
from ghosttune.models.loading import load_tokenizer
from ghosttune.registry import DATASETS
from ghosttune.run.directory import RunDir, write_json, write_jsonl
from ghosttune.stages.prepare import (
    Drawn,
    Prepared,
    dev_source_of,
    guide_source_of,
    require_same_data,
    source_of,
    split_records,
    task_of,
)
from ghosttune.training.watching import Listener

AUTO = ("exact_match", "chrf")
"""Metrics of rows that come from no known dataset."""

BASE = "base"
"""Name of the untouched base."""

FEW_SHOT = "few_shot"
"""Name of the untouched base behind answered training rows."""

Evaluation = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Rows to be judged by."""

    name: str
    """Under which evaluation.json and predictions/ keep the results."""
    records: Records
    pool: Sequence[Record]
    """Rows that may hold further references of the same prompts."""
    dataset: str | None
    """The known dataset they are of."""
    trained: Records | str = ""
    """The rows the run was trained on, where these were not looked at when it began; else why there are none."""


def evaluate_dev_rows(run: RunDir, prepared: Prepared, model: Any, listen: Listener) -> list[dict[str, Any]]:
    """Writes predictions/dev.jsonl, which it returns, and evaluation.json at the end of a run.

    The adapter is judged beside the untouched base.
    """
    config = prepared.config
    pipeline = Pipeline(model, prepared.encoder, config.evaluate.max_new_tokens, predicting(prepared.task))
    rows = Rows("dev", prepared.dev_records, prepared.dev_pool, config.data.train.name)
    systems = [System("adapter", pipeline), System(BASE, pipeline, adapter=False)]
    systems += _few_shot(pipeline, prepared.train_records, config)
    result, predictions = _evaluated(systems, rows, config)
    if result:
        write_evaluation(run, rows.name, result, predictions)
        listen({"event": "answers", "evaluation": result, "rows": predictions})
    return predictions


def evaluate(
    run_or_model: str | Path,
    data: str | Path | None = None,
    *,
    split: str | None = None,
    baseline: str | None = None,
    overrides: Iterable[str] = (),
    out: str | Path | None = None,
    engine: str = "transformers",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> Evaluation:
    """What a run or model scores on rows, with intervals, beside a baseline and the best constant answer.

    `data` is a file, a folder or a known dataset; left out, it is the data of the run, of which `split` defaults to the
    dev rows. `baseline` is another run or model, or `base`, the untouched base, which is a run's default. `overrides`
    are settings of the `evaluate` section, such as `evaluate.limit=500`. A run's results are written into the run
    unless `out` names another folder; a model's only there. `engine` is what writes the answers: transformers, or vllm.
    Code that comes with a model runs under `trust_remote_code` only. Raises InputError when any of this cannot be had.
    """
    run, config = opened(run_or_model, overrides, trust_remote_code)
    rows = rows_of(run, config, None if data is None else str(data), split)
    systems = systems_of(run, str(run_or_model), baseline, config, device, trust_remote_code, engine)
    if config.evaluate.shots:
        systems += _few_shot(systems[0].pipeline, _rows_to_show(run, config), config)
    result, predictions = _evaluated(systems, rows, config)
    if not result:
        raise DataError(f"{rows.name} has no row with an answer to compare with; give rows with prompt and completion")
    result |= _contamination(rows)
    folder = RunDir(out) if out is not None else run
    if folder is not None:
        with folder.locked():
            write_evaluation(folder, rows.name, result, predictions)
    return {rows.name: result}


def opened(
    run_or_model: str | Path, overrides: Iterable[str], trust_remote_code: bool
) -> tuple[RunDir | None, RunConfig]:
    """The run, None of a model alone, and the configuration that it is asked under; InputError where nothing is."""
    run = RunDir(run_or_model).open() if RunDir(run_or_model).exists else None
    config = configured(run, str(run_or_model), list(overrides), trust_remote_code)
    if config.evaluate.limit == 0:
        raise InputError(f"{run_or_model} has evaluate.limit: 0, so that nothing would be asked; give --limit")
    return run, config


def configured(run: RunDir | None, name: str, overrides: Sequence[str], trust_remote_code: bool) -> RunConfig:
    """The run's configuration, or the defaults for a model, with other settings for the evaluation."""
    if others := [text for text in overrides if not text.startswith("evaluate.")]:
        raise InputError(
            f"{listed(others)}: only settings of `evaluate` can be replaced here, such as evaluate.limit=500"
        )
    if run is not None:
        return load_config(run.config, overrides=overrides, trust_remote_code=trust_remote_code)
    model = {"name": name, "trust_remote_code": trust_remote_code}
    return load_config({"model": model, "data": {"train": {"path": BUILTIN_ROWS}}}, overrides=overrides)


def systems_of(
    run: RunDir | None,
    name: str,
    baseline: str | None,
    config: RunConfig,
    device: str,
    trust_remote_code: bool,
    engine: str = "transformers",
) -> list[System]:
    """Who answers: the run or model, then what it is compared with."""
    if engine != "transformers" and baseline not in (None, BASE):
        raise InputError(
            f"--baseline {baseline}: {engine} holds one model and its base; evaluate each by itself, or leave out "
            "--engine"
        )
    pipeline = open_pipeline(name, engine, device, trust_remote_code)
    pipeline.max_new_tokens = config.evaluate.max_new_tokens
    first = System("adapter" if run else "model", pipeline)
    if baseline == BASE and run is None:
        raise InputError(f"{name} is no run and has no base below it; give --baseline another run or model, or none")
    if baseline is None and run is None:
        return [first]
    if baseline in (None, BASE):
        return [first, System(BASE, pipeline, adapter=False)]
    other = Pipeline.open(str(baseline), device, trust_remote_code)
    other.max_new_tokens = config.evaluate.max_new_tokens
    return [first, System("baseline", other)]


def _rows_to_show(run: RunDir | None, config: RunConfig) -> Records:
    """The training rows of a run; InputError for a model, which has none."""
    if run is None:
        raise InputError("evaluate.shots shows training rows, and a model has none; evaluate a run, or leave it out")
    return splits_of(run, config)[1].train


def _few_shot(pipeline: Pipeline, rows: Records, config: RunConfig) -> list[System]:
    """The untouched base behind a few training rows, drawn by id; none where none are asked for, or nothing is."""
    count, seed = config.evaluate.shots, config.train.seed
    if not count or pipeline.task is not None or config.evaluate.limit == 0:
        return []
    examples, _ = questions_of(rows, (), count, seed)
    exchanges = ((*one.prompt, Turn("assistant", one.references[0])) for one in examples)
    shots = tuple(turn for turns in exchanges for turn in turns if turn.role != "system")
    return [System(FEW_SHOT, pipeline, adapter=False, shots=shots)] if shots else []


def rows_of(run: RunDir | None, config: RunConfig, data: str | None, split: str | None) -> Rows:
    if data is None and run is None:
        raise InputError("a model has no rows of its own; say with --data on which it is to be judged")
    if run is None or data is None:
        return _own_rows(run, config, split or "dev") if run else _given_rows(config, str(data), split)
    return replace(_given_rows(config, data, split), trained=_trained_rows(run, config))


def _trained_rows(run: RunDir, config: RunConfig) -> Records | str:
    """The rows that a run was trained on, or why they cannot be had."""
    try:
        source, drawn = splits_of(run, config)
        return drawn.train if source.stream is None else f"{run.path} streamed its training rows"
    except InputError as error:
        return str(error)


def splits_of(run: RunDir, config: RunConfig) -> tuple[Source, Drawn]:
    """The source of a run, and which of its rows do what; DataError where files are not what they were."""
    tokenizer = load_tokenizer(config.model)
    source, dev_source = source_of(config, tokenizer), dev_source_of(config, tokenizer)
    guide_source = guide_source_of(config, tokenizer)
    judges = [judge.fingerprints for judge in (dev_source, guide_source) if judge is not None]
    require_same_data(run, {file: digest for own in (source.fingerprints, *judges) for file, digest in own.items()})
    return source, split_records(config, source, dev_source, guide_source)


def _own_rows(run: RunDir, config: RunConfig, split: str) -> Rows:
    """Rows of the run's own data: those that chose its checkpoints, trained it, guided it, or any other split."""
    source, drawn = splits_of(run, config)
    drawn_rows = {"dev": (drawn.dev, drawn.dev_pool), "train": (drawn.train, []), "guide": (drawn.guide, [])}
    if split == "train" and source.stream is not None:
        raise RunError(f"{run.path} streamed its training rows; name a file of them with --data")
    others = {name: source.records.of_split(name) for name in source.splits}
    known = {name: (rows, rows) for name, rows in others.items()} | drawn_rows
    if not known.get(split, ([], []))[0]:
        raise RunError(
            f"{run.path} has no rows of a split {split!r}; it has {listed(k for k, v in known.items() if v[0])}"
        )
    records, pool = known[split]
    return Rows(split, records, pool, config.data.train.name)


def _given_rows(config: RunConfig, data: str, split: str | None) -> Rows:
    """Rows of a file, a folder or a known dataset, all of them where they name no splits."""
    is_known = not Path(data).exists() and data != BUILTIN_ROWS and data in DATASETS.names()
    settings = RowsSettings(name=data) if is_known else settings_of_file(data, config.data.train)
    source = open_source(settings, task_of(config).formats)
    if split is None and source.splits:
        if "dev" not in source.splits:
            raise DataError(f"{data} has the splits {listed(source.splits)}; choose one with --split")
        split = "dev"
    records = source.records.of_split(split)
    if not records:
        raise DataError(f"{data} has no split {split!r}; it has {listed(source.splits) or 'no splits'}")
    stem = data.replace("builtin:", "builtin-") if is_known or data == BUILTIN_ROWS else Path(data).name.split(".")[0]
    return Rows("-".join(["data", stem, *([split] if split else [])]), records, records, data if is_known else None)


def _contamination(rows: Rows) -> dict[str, Any]:
    """Which of the rows the run was trained on; nothing for rows that it looked at when it began."""
    if isinstance(rows.trained, str):
        return {"contamination": {"not_checked": rows.trained}} if rows.trained else {}
    return {"contamination": contamination(rows.trained, {rows.name: rows.records}).recorded()}


def metrics_of(config: RunConfig, dataset: str | None) -> list[str]:
    """The names of the metrics: those chosen, else those of the known dataset, else AUTO; `stopped` besides.

    Where answers are rewarded, by what they are; these are all that `auto` takes then.
    """
    chosen, rewards = config.evaluate.metrics, getattr(config.task, "rewards", [])
    if rewards:
        chosen = [*rewards, *(chosen if chosen != "auto" else [])]
    if chosen == "auto":
        known = DATASETS[dataset].settings.metrics if dataset in DATASETS.names() else ()
        chosen = [name for name in known or AUTO if name != "sql_execution" or config.evaluate.tables is not None]
    return list(dict.fromkeys([*chosen, "stopped"]))


def _evaluated(systems: Sequence[System], rows: Rows, config: RunConfig) -> tuple[Evaluation, list[dict[str, Any]]]:
    """(numbers, predictions); both are empty where nothing is asked."""
    settings = config.evaluate
    if systems[0].pipeline.task is not None:
        return _predicted(systems, rows, config)
    questions, left_out = questions_of(rows.records, rows.pool, settings.limit, config.train.seed)
    result: Evaluation = {}
    predictions: list[dict[str, Any]] = []
    _require_weighing(systems[0].pipeline, metrics_of(config, rows.dataset), settings)
    if questions:
        names = metrics_of(config, rows.dataset)
        said = {system.name: answered(system, questions, names, settings) for system in systems}
        best = constant(next(iter(said.values())).corpus)
        scores = {name: found.scores for name, found in said.items()}
        result = judged(scores | {CONSTANT: scores_of(best, for_constant(names))}, names)
        result["constant_answer"] = best.items[0].output
        result["degenerate"] = {name: _alarm(found, questions) for name, found in said.items()}
        result |= {"questions": len(questions), "left_out": left_out}
        engine = systems[0].pipeline.engine
        result["generation"] = {"decoding": "greedy", "max_new_tokens": settings.max_new_tokens, "engine": engine}
        for system in systems:
            if system.shots:
                fitted = [system.shown(question) for question in questions]
                result["shots"] = {"asked": settings.shots, "fewest": min(fitted), "mean": float(np.mean(fitted))}
        predictions = _predictions(questions, said)
    if settings.general_text is not None:
        result["forgetting"] = forgetting(systems, Path(settings.general_text))
    return result, predictions


def _require_weighing(pipeline: Pipeline, names: Sequence[str], settings: EvaluateSettings) -> None:
    """InputError where a likelihood is asked for, of a pipeline that only answers."""
    asking = [name for name in names if "likelihood" in " ".join(needs([name]))]
    asking += ["evaluate.general_text"] if settings.general_text is not None else []
    if asking and pipeline.engine != "transformers":
        raise InputError(
            f"{listed(asking)} asks how likely given text is, and --engine vllm only answers; leave it out"
        )


def _predicted(systems: Sequence[System], rows: Rows, config: RunConfig) -> tuple[Evaluation, list[dict[str, Any]]]:
    """The same for tasks that do not write behind a prompt; every system must have the first one's task."""
    task, records = systems[0].pipeline.task, sample(rows.records, config.evaluate.limit, config.train.seed)
    if not records:
        return {}, []
    if strangers := [system.name for system in systems if type(system.pipeline.task) is not type(task)]:
        raise InputError(f"{listed(strangers)} has another task; give --baseline a run of {config.task.type}, or base")
    said = {system.name: system.pipeline.predicted(records, adapter=system.adapter) for system in systems}
    result, lines = judged_predictions(task, said, records, config.evaluate.metrics)
    return result | {"left_out": len(rows.records) - len(records)}, lines


def _alarm(found: Answered, questions: Sequence[Question]) -> dict[str, Any]:
    return alarm([(question.example_id, faults) for question, faults in zip(questions, found.faults, strict=True)])


def _predictions(questions: Sequence[Question], said: Mapping[str, Answered]) -> list[dict[str, Any]]:
    """A row per question: the first system's answer under plain names, each other's under its own."""
    first, *others = said
    return [
        {
            "example_id": question.example_id,
            "prompt": question.text,
            **({"images": list(images)} if (images := images_of(question.prompt)) else {}),
            "references": list(question.references),
            **said[first].row(at),
            **{f"{name}_{key}": value for name in others for key, value in said[name].row(at).items()},
        }
        for at, question in enumerate(questions)
    ]


def write_evaluation(folder: RunDir, name: str, result: Evaluation, predictions: Sequence[dict[str, Any]]) -> None:
    """Puts one evaluation beside those that are there."""
    before = folder.read_evaluation()
    write_jsonl(folder.predictions(name), predictions)
    write_json(folder.evaluation, before | {name: result})
