"""The same few dev prompts, answered while a run goes on (`evaluate.samples`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ghosttune.data.questions import questions_of
from ghosttune.data.splitting import sample
from ghosttune.errors import ConfigError
from ghosttune.inference.pipeline import Pipeline, predicting
from ghosttune.judging.predicting import given_of
from ghosttune.stages.prepare import Prepared


class WrittenSamples:
    """Greedy answers; DataError where one does not fit behind its prompt.

    Args:
        prepared: of a run whose task is to write behind prompts.
        model: what answers, unwrapped.
    """

    def __init__(self, prepared: Prepared, model: Any):
        settings, seed = prepared.config.evaluate, prepared.config.train.seed
        questions, _ = questions_of(prepared.dev_records, prepared.dev_pool, settings.samples, seed)
        self.pipeline = Pipeline(model, prepared.encoder, settings.max_new_tokens)
        self.prompts = [self.pipeline.prompt_ids(question.prompt) for question in questions]
        self.asked: Sequence[Mapping[str, Any]] = [
            {"example_id": one.example_id, "prompt": one.text, "references": list(one.references)} for one in questions
        ]

    def answers(self) -> list[dict[str, Any]]:
        pairs = zip(self.asked, self.pipeline.generate(self.prompts), strict=True)
        return [
            {"example_id": one["example_id"], "output": said.text, "stopped": said.stopped, "tokens": said.tokens}
            for one, said in pairs
        ]


class PredictedSamples:
    """The same of a task that predicts."""

    def __init__(self, prepared: Prepared, model: Any):
        settings, seed = prepared.config.evaluate, prepared.config.train.seed
        self.records, self.task = sample(prepared.dev_records, settings.samples, seed), prepared.task
        self.pipeline = Pipeline(model, prepared.encoder, settings.max_new_tokens, predicting(prepared.task))
        self.asked: Sequence[Mapping[str, Any]] = [
            {"example_id": one.example_id, "prompt": given_of(one)} for one in self.records
        ]

    def answers(self) -> list[dict[str, Any]]:
        pairs = zip(self.records, self.pipeline.predicted(self.records), strict=True)
        return [{"example_id": record.example_id, "output": said.output} for record, said in pairs]


def samples_of(prepared: Prepared, model: Any) -> WrittenSamples | PredictedSamples | None:
    """What is answered at every evaluation; None where nothing is, ConfigError where no dev row asks anything."""
    config = prepared.config
    if config.evaluate.samples == 0:
        return None
    found = (PredictedSamples if predicting(prepared.task) else WrittenSamples)(prepared, model)
    if not found.asked:
        message = "needs dev rows with an answer, and these are plain text; leave it out"
        raise ConfigError([config.problem("evaluate.samples", message)])
    return found
