"""Benchmarks of lm-evaluation-harness on a run, beside its untouched base.

What the harness computes is its own, of the merged weights: its numbers stand as they come. Ours are the intervals, and
the comparison of both models document by document.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ghosttune.config.loading import load_config
from ghosttune.errors import InputError, RunError, listed, nearest
from ghosttune.inference.pipeline import Pipeline
from ghosttune.judging.evaluate import BASE, write_evaluation
from ghosttune.metrics.comparing import compared, together
from ghosttune.metrics.scoring import Score, of_hits, of_mean
from ghosttune.models.loading import inference_device, load_model
from ghosttune.models.merging import merged
from ghosttune.models.prompting import prompt_length
from ghosttune.own_code import consent
from ghosttune.run.directory import RunDir

MISSING = "--suite runs lm-evaluation-harness, which is not installed: pip install 'ghosttune[suite]'"

Found = dict[str, Any]
"""What the harness returns for one model."""


def evaluate_suite(
    run_or_model: str | Path,
    tasks: Sequence[str],
    *,
    tasks_dir: str | Path | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """What a run, and its untouched base, score on tasks of lm-evaluation-harness; a model stands alone.

    `tasks_dir` holds the YAML of tasks of one's own, which then are the only ones; they can call code, so that
    `allow_code` must have been given. `limit` is of each task's documents. Documents are read one at a time, as the
    harness does by itself. Results are kept as `evaluate` keeps them. InputError where the harness is not installed, a
    task is not there, or the adapter cannot be merged.
    """
    if find_spec("lm_eval") is None:
        raise InputError(MISSING)
    if tasks_dir is not None and not Path(tasks_dir).is_dir():
        raise InputError(f"--tasks-dir {tasks_dir} is no folder; give the one that holds the YAML files of the tasks")
    if tasks_dir is not None and not consent():
        raise InputError(
            f"tasks of {tasks_dir} can call code that would run on this machine: read them, then give --allow-code "
            "(in Python ghosttune.allow_code())"
        )
    with _quiet():
        manager = _manager(tasks, tasks_dir)
        run = RunDir(run_or_model).open() if RunDir(run_or_model).exists else None
        pipeline = Pipeline.open(run_or_model, device, trust_remote_code)
        tokenizer = pipeline.encoder.template.tokenizer
        if prompt_length(pipeline.model):
            raise RunError(
                f"{run_or_model} learned a prompt, which the harness cannot be given: it takes merged weights"
            )
        said: dict[str, Found] = {}
        if run is not None:
            said[BASE] = _asked(_base(run, device, trust_remote_code), tokenizer, tasks, manager, limit)
        model = merged(pipeline.model) if run is not None else pipeline.model
        said = {"adapter" if run else "model": _asked(model, tokenizer, tasks, manager, limit)} | said
    name = f"suite-{'+'.join(tasks)}"
    result = _judged(said)
    folder = RunDir(out) if out is not None else run
    if folder is not None:
        with folder.locked():
            write_evaluation(folder, name, result, _documents(said))
    return {name: result}


def _manager(tasks: Sequence[str], tasks_dir: str | Path | None) -> Any:
    """What knows the tasks; InputError names those that it does not."""
    from lm_eval.tasks import TaskManager

    folder = None if tasks_dir is None else str(Path(tasks_dir).resolve())
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    known = manager.all_tasks
    if unknown := [task for task in tasks if task not in known]:
        where = "lm-evaluation-harness" if tasks_dir is None else str(tasks_dir)
        names = f"; it has {listed(sorted(known))}" if tasks_dir is not None else nearest(unknown[0], known)
        raise InputError(f"{where} has no task {listed(unknown)}{names}")
    return manager


def _asked(model: Any, tokenizer: Any, tasks: Sequence[str], manager: Any, limit: int | None) -> Found:
    import lm_eval
    from lm_eval.models import huggingface

    untyped: Any = huggingface.HFLM
    harness = untyped(pretrained=model, tokenizer=tokenizer, batch_size=1)
    harness.get_model_info = dict  # by itself it asks the hub who the model is
    untyped = lm_eval.simple_evaluate
    return untyped(model=harness, tasks=list(tasks), task_manager=manager, limit=limit)


def _base(run: RunDir, device: str, trust_remote_code: bool) -> Any:
    """The untouched base by itself: the harness ties weights, which a model with an adapter may not bear."""
    config = load_config(run.config, trust_remote_code=trust_remote_code)
    settings = config.model.model_copy(update={"attention": None})  # a kernel of the machine that trained
    model: Any = load_model(settings, config.train.seed)
    return model.to(inference_device(device)).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the harness says of its own progress."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _judged(said: Mapping[str, Found]) -> dict[str, Any]:
    """The harness's numbers, with our intervals where a number is the mean over its documents."""
    from lm_eval import __version__

    systems = {who: _numbers(found) for who, found in said.items()}
    scores = {who: _scores(found) for who, found in said.items()}
    first, *others = said
    source = f"lm-evaluation-harness {__version__}"
    return {
        **{
            who: {name: _interval(value, scores[who].get(name)) for name, value in numbers.items()}
            for who, numbers in systems.items()
        },
        "comparison": {
            other: _comparison(scores[first], scores[other], _lower_is_better(said[first])) for other in others
        },
        "metrics": {name: {"scale": "as the task says", "source": source} for name in systems[first]},
        "documents": {task: counts["effective"] for task, counts in said[first]["n-samples"].items()},
        "standard_errors": {who: _numbers(found, errors=True) for who, found in said.items()},
    }


def _numbers(found: Found, errors: bool = False) -> dict[str, float]:
    """`task/metric` -> the number; of a filter other than none, `task/metric,filter`."""
    numbers = {}
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            is_error = metric.endswith("_stderr")
            if filtered and is_error == errors and isinstance(value, int | float):
                numbers[_name(task, metric.removesuffix("_stderr"), filtered)] = float(value)
    return numbers


def _name(task: str, metric: str, filtered: str) -> str:
    return f"{task}/{metric}" if filtered == "none" else f"{task}/{metric},{filtered}"


def _scores(found: Found) -> dict[str, Score]:
    """The scores whose value is the mean over documents, each of which has a number."""
    numbers, values = _numbers(found), {}
    for task, lines in found["samples"].items():
        for line in lines:
            for metric in line["metrics"]:
                values.setdefault(_name(task, metric, line["filter"]), []).append(line[metric])
    scores = {}
    for name, rows in values.items():
        if name in numbers and all(isinstance(row, int | float) for row in rows):
            score = (
                of_hits([bool(row) for row in rows]) if set(rows) <= {0, 1} else of_mean([float(row) for row in rows])
            )
            if abs(score.value - numbers[name]) <= 1e-9 * max(1.0, abs(numbers[name])):
                scores[name] = score
    return scores


def _interval(value: float, score: Score | None) -> dict[str, Any]:
    """The harness's own number, with the interval over documents where there is one."""
    if score is None:
        return {"value": value, "low": None, "high": None, "n": 0}
    return score.interval.as_dict() | {"value": value}


def _comparison(ours: Mapping[str, Score], theirs: Mapping[str, Score], lower: set[str]) -> dict[str, Any]:
    found = {name: compared(score, theirs[name], name in lower) for name, score in ours.items() if name in theirs}
    tested = together({name: comparison for name, comparison in found.items() if comparison is not None})
    return {name: comparison.as_dict() for name, comparison in tested.items()}


def _lower_is_better(found: Found) -> set[str]:
    """The numbers of which less is better."""
    directions = found["higher_is_better"]
    return {
        name
        for name in _numbers(found)
        if directions.get(name.partition("/")[0], {}).get(name.partition("/")[2].partition(",")[0]) is False
    }


def _documents(said: Mapping[str, Found]) -> list[dict[str, Any]]:
    """A line per document and filter: the first system's answer under plain names, each other's under its own."""
    first, *others = said
    lines = []
    for task, samples in said[first]["samples"].items():
        for place, sample in enumerate(samples):
            same = {other: said[other]["samples"][task][place] for other in others}
            lines.append(
                {
                    "example_id": f"{task}:{sample['doc_id']}",
                    "filter": sample["filter"],
                    "prompt": str(sample["arguments"][0][0]),
                    "references": [str(sample["target"])],
                    **_said(sample),
                    **{f"{other}_{key}": value for other in others for key, value in _said(same[other]).items()},
                }
            )
    return lines


def _said(sample: Mapping[str, Any]) -> dict[str, Any]:
    scores = {metric: sample[metric] for metric in sample["metrics"]}
    return {"output": str(sample["filtered_resps"]), "scores": scores}
