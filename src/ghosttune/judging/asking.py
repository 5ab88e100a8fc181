"""Whether the model of a run can answer: asked before anything is written, since the end of the run would ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ghosttune.data.questions import questions_of
from ghosttune.errors import ConfigError, InputError
from ghosttune.inference.generating import try_out
from ghosttune.inference.pipeline import Pipeline
from ghosttune.judging.sampled import samples_of
from ghosttune.metrics.judging import scores_of
from ghosttune.metrics.scoring import Corpus, Item
from ghosttune.models.upstream import faults_of
from ghosttune.own_code import is_own_code
from ghosttune.registry import METRICS
from ghosttune.stages.prepare import Prepared
from ghosttune.stages.rewarding import Rewarded
from ghosttune.tasks.grpo import GrpoTask
from ghosttune.tasks.protocol import PredictingTask

ASKED_ROWS = 2


def to_answer(prepared: Prepared, model: Any) -> None:
    """Answers two dev rows as the end of the run would, two tokens each; ModelError where only the training works.

    Nothing is asked where the run asks nothing. ConfigError for metrics of own files that cannot be had and for samples
    where there is no prompt, and DataError where a metric fails on a right answer.
    """
    config, task = prepared.config, prepared.task
    else_ = "set evaluate.limit: 0 and no evaluate.samples for a run without answers, "
    samples = samples_of(prepared, model)
    if config.evaluate.limit == 0 and samples is None:
        return
    _judge_a_right_answer(prepared)
    with faults_of(config.model.name, "answer, though it can be trained", else_):
        if isinstance(task, PredictingTask):
            task.briefly().predict(model, prepared.encoder, prepared.dev_records[:ASKED_ROWS])
        elif prepared.template is not None:
            questions, _ = questions_of(prepared.dev_records, (), ASKED_ROWS, config.train.seed)
            pipeline = Pipeline(model, prepared.encoder, config.evaluate.max_new_tokens)
            prompts = [pipeline.prompt_ids(question.prompt) for question in questions]
            try_out(model, prompts, prepared.template.stop_token_ids)
    if isinstance(task, GrpoTask):
        longest = max(range(len(prepared.train.features)), key=lambda place: len(prepared.train.features[place]))
        Rewarded(prepared, model).prompt(longest)


def _judge_a_right_answer(prepared: Prepared) -> None:
    """By the metrics of own files, which run at the end, where a fault would come late, and by the rewards of a run."""
    config = prepared.config
    metrics = [] if config.evaluate.metrics == "auto" else [n for n in config.evaluate.metrics if is_own_code(n)]
    named = {"evaluate.metrics": metrics, "task.rewards": getattr(config.task, "rewards", [])}
    own = list(dict.fromkeys(name for names in named.values() for name in names))
    problems = []
    for setting, names in named.items():
        for name in names:
            try:
                METRICS[name]
            except InputError as error:
                problems.append(config.problem(setting, str(error)))
    if problems:
        raise ConfigError(problems)
    questions, _ = questions_of(prepared.dev_records, (), 1, config.train.seed) if own else ((), 0)
    tables = None if config.evaluate.tables is None else Path(config.evaluate.tables)
    right = [Item(asked.references[0], asked.references, asked.metadata) for asked in questions]
    scores_of(Corpus(right, tables=tables), own)
