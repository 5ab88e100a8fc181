"""Whether the model of a run can answer: asked before anything is written, since the end of the run would ask it."""

from __future__ import annotations

from typing import Any

from ghosttune.data.questions import questions_of
from ghosttune.errors import ConfigError, InputError
from ghosttune.inference.generating import try_out
from ghosttune.inference.pipeline import Pipeline
from ghosttune.metrics.judging import scores_of
from ghosttune.metrics.scoring import Corpus, Item
from ghosttune.models.upstream import faults_of
from ghosttune.own_code import is_own_code
from ghosttune.registry import METRICS
from ghosttune.tasks.protocol import PredictingTask
from ghosttune.workflows.prepare import Prepared

ASKED_ROWS = 2


def to_answer(prepared: Prepared, model: Any) -> None:
    """Answers two dev rows as the end of the run would, two tokens each; ModelError where only the training works.

    Nothing is asked where the run asks nothing. ConfigError for metrics of own files that cannot be had, and DataError
    where one of them fails on a right answer.
    """
    config, task = prepared.config, prepared.task
    else_ = "set evaluate.limit: 0 for a run without answers, "
    if config.evaluate.limit == 0:
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


def _judge_a_right_answer(prepared: Prepared) -> None:
    """By the metrics of own files: they run at the end, where a fault would come late."""
    config = prepared.config
    own = [] if config.evaluate.metrics == "auto" else [n for n in config.evaluate.metrics if is_own_code(n)]
    problems = []
    for name in own:
        try:
            METRICS[name]
        except InputError as error:
            problems.append(config.problem("evaluate.metrics", str(error)))
    if problems:
        raise ConfigError(problems)
    questions, _ = questions_of(prepared.dev_records, (), 1, config.train.seed) if own else ((), 0)
    scores_of(Corpus([Item(asked.references[0], asked.references, asked.metadata) for asked in questions]), own)
