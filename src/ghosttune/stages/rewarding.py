"""Answers of the model that trains, and what they earn: in training, and on dev prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ghosttune.data.encoding import padding_token
from ghosttune.data.questions import Question, questions_of
from ghosttune.errors import DataError
from ghosttune.inference.generating import answer_of, write
from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.sampling import Sampling
from ghosttune.metrics.intervals import FEWEST_ROWS, mean_ratio, verdict
from ghosttune.metrics.judging import scores_of
from ghosttune.metrics.scoring import Corpus, Item
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import Table
from ghosttune.stages.prepare import Prepared
from ghosttune.tasks.grpo import GrpoTask
from ghosttune.training.rollouts import COLUMNS, TABLE, Drawn, Rollouts


class Rewarded:
    """Writes behind the prompts of a run's rows and says what the answers earn.

    Args:
        prepared: a run of task `grpo`.
        model: what answers, unwrapped.
    """

    def __init__(self, prepared: Prepared, model: Any):
        config = prepared.config
        self.prepared, self.settings = prepared, prepared.task.settings
        self.pipeline = Pipeline(model, prepared.encoder, config.evaluate.max_new_tokens)
        self.tables = None if config.evaluate.tables is None else Path(config.evaluate.tables)

    def prompt(self, position: int) -> list[int]:
        """Token ids of the prompt of a training row; DataError where no answer fits behind it."""
        record = self._record(position)
        try:
            return self.pipeline.prompt_ids(record.prompt, self.settings.max_new_tokens)
        except DataError as error:
            raise DataError(f"{record.place or record.example_id}: {error} (task.max_new_tokens)") from error

    def draw(self, prompts: Sequence[list[int]], seed: int) -> list[Drawn]:
        template, wanted = self.pipeline.encoder.template, self.settings.max_new_tokens
        sampling = Sampling(temperature=self.settings.temperature, seed=seed)
        written = write(self.pipeline.model, prompts, template.stop_token_ids, wanted, sampling)
        answers = [answer_of(template.tokenizer, ids, template.stop_token_ids) for ids in written]
        return [Drawn(ids, one.text, one.stopped) for ids, one in zip(written, answers, strict=True)]

    def rewards(self, positions: Sequence[int], drawn: Sequence[Drawn]) -> np.ndarray:
        records = [self._record(position) for position in positions]
        return self._earned(
            [
                Item(one.text, (record.reference or "",), record.metadata, one.stopped)
                for record, one in zip(records, drawn, strict=True)
            ]
        )

    def on_dev_rows(self) -> dict[str, float]:
        """`reward` and `success`, means over the dev prompts that the run is evaluated on."""
        asked = self._questions
        answers = self.pipeline.generate([question.prompt for question in asked])
        pairs = zip(asked, answers, strict=True)
        earned = self._earned([Item(one.text, q.references, q.metadata, one.stopped) for q, one in pairs])
        return {"reward": float(earned.sum(1).mean()), "success": float((earned >= 1).all(1).mean())}

    @cached_property
    def _questions(self) -> list[Question]:
        prepared, config = self.prepared, self.prepared.config
        limit, seed = config.evaluate.limit, config.train.seed
        return questions_of(prepared.dev_records, prepared.dev_pool, limit, seed)[0]

    def _record(self, position: int) -> Any:
        return self.prepared.train_records[self.prepared.train.features[position].index]

    def _earned(self, items: Sequence[Item]) -> np.ndarray:
        """[N, rewards]."""
        found = scores_of(Corpus(items, tables=self.tables), self.settings.rewards)
        return np.array([score.rows for score in found.values()], float).T


def rollouts_of(run: RunDir, prepared: Prepared, model: Any) -> Rollouts | None:
    """What draws the answers that a run trains; None where it trains those of its rows."""
    task = prepared.task
    if not isinstance(task, GrpoTask):
        return None
    padding, seed = padding_token(prepared.encoder.tokenizer), prepared.config.train.seed
    answers, table = Rewarded(prepared, model), Table(run, TABLE, COLUMNS)
    return Rollouts(model, task, prepared.train.features, answers, padding, table, seed)


def judged_by_reward(predictions: Sequence[Mapping[str, Any]], rewards: Sequence[str]) -> dict[str, Any]:
    """The verdict on what greedy answers to dev prompts earn, beside those of the base (`base_scores`)."""
    tuned, base = (
        np.array([[row[key][name] for name in rewards] for row in predictions], float)
        for key in ("scores", "base_scores")
    )
    change = mean_ratio(tuned.sum(1) - base.sum(1), np.ones(len(tuned)))
    loss = mean_ratio(base.sum(1) - tuned.sum(1), np.ones(len(tuned)))
    return {
        "verdict": verdict(loss, of=float(base.sum(1).mean())),
        "reward": {
            "base": float(base.sum(1).mean()),
            "adapter": float(tuned.sum(1).mean()),
            "success_base": float((base >= 1).all(1).mean()),
            "success": float((tuned >= 1).all(1).mean()),
            "change": change.as_dict(),
        },
        "note": f"{change.n} dev prompts are too few to tell" if change.n < FEWEST_ROWS else None,
    }
