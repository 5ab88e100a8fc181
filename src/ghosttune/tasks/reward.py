"""Reward models: a number per answer, higher for the chosen of two (Bradley and Terry 1952)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ghosttune.config.facts import ModelKind
from ghosttune.config.sections.data import DataSettings
from ghosttune.config.setting import TaskSettings, task_name
from ghosttune.data.records import Record
from ghosttune.metrics.scoring import Item
from ghosttune.registry import TASKS
from ghosttune.tasks.labels import padding_entry
from ghosttune.tasks.losses import preferred
from ghosttune.tasks.protocol import PredictingTask, Prediction, read_rows
from ghosttune.tasks.sequence import row_outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ghosttune.config.schema import RunConfig
    from ghosttune.data.pairing import JudgedEncoder


class RewardSettings(TaskSettings):
    type: Literal["reward"] = task_name("reward")
    """The task (`ghosttune show tasks`)."""

    def conflicts(self, config: RunConfig) -> Iterator[tuple[str, str]]:
        if config.data.loss_on != "completion":
            yield "data.loss_on", "must be completion: a reward is of an answer"


@TASKS.register("reward", RewardSettings)
class RewardTask(PredictingTask):
    """Give answers a number that is higher for the chosen of two."""

    renders = True
    parts = ("chosen", "rejected")
    formats = ("preference",)

    def __init__(self, settings: RewardSettings):
        pass

    def kind(self, tokenizer: Any) -> ModelKind:
        entries = {"num_labels": 1, "problem_type": "regression", **padding_entry(tokenizer)}
        return ModelKind("AutoModelForSequenceClassification", "SEQ_CLS", entries)

    def encoder(self, tokenizer: Any, data: DataSettings) -> JudgedEncoder:
        from ghosttune.data.pairing import JudgedEncoder, PreferenceEncoder
        from ghosttune.data.templates import Template

        return JudgedEncoder(PreferenceEncoder(Template(data.template, tokenizer), data.max_length))

    def example_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """-log of the chance that the chosen answer wins by the row's margin, in nats: [B]."""
        from torch.nn.functional import logsigmoid

        rewards = row_outputs(model, batch)[:, 0]
        chosen, rejected = (rewards[batch["side"] == side] for side in (0, 1))
        return -logsigmoid(chosen - rejected - batch["margin"].to(rewards.dtype))

    def sequences(self, batch: Mapping[str, Tensor]) -> tuple[Tensor | None, Sequence[str]]:
        return batch["owner"], [self.parts[int(side)] for side in batch["side"].tolist()]

    def predict(self, model: nn.Module, encoder: Any, records: Sequence[Record]) -> list[Prediction]:
        """Which answer of each pair has the higher reward, and both rewards."""

        def read(batch: dict[str, Tensor]) -> list[Prediction]:
            rewards = row_outputs(model, batch)[:, 0]
            tokens = (batch["labels"] >= 0).sum(1)
            numbers = [column[batch["side"] == side].tolist() for column in (rewards, tokens) for side in (0, 1)]
            names = [f"{part}_{what}" for what in ("reward", "tokens") for part in self.parts]
            return [_prediction(dict(zip(names, row, strict=True))) for row in zip(*numbers, strict=True)]

        return read_rows(model, encoder, encoder.encode(records).features, read)

    def metrics(self) -> list[str]:
        return ["reward_accuracy", "reward_margin", "length_bias"]

    def item(self, prediction: Prediction, record: Record) -> Item:
        return Item(prediction.output, (self.parts[0],), metadata=prediction.details)


def _prediction(row: dict[str, Any]) -> Prediction:
    worth = row["chosen_reward"] - row["rejected_reward"]
    return Prediction(preferred(worth), row)
