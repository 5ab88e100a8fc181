"""One answer per text or pair of texts: a label of a fixed set, or a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ghosttune.config.facts import ModelKind
from ghosttune.config.sections.data import DataSettings
from ghosttune.config.setting import Names, TaskSettings, setting, task_name
from ghosttune.data.columns import label_name, number_of
from ghosttune.data.records import Record
from ghosttune.metrics.scoring import Item
from ghosttune.registry import TASKS
from ghosttune.tasks.labels import found_labels, label_entries, padding_entry, place_of
from ghosttune.tasks.protocol import PredictingTask, Prediction, model_inputs, precise, read_rows, unwrapped

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ghosttune.data.labelling import LabelEncoder


SMALLEST = 1e-300
"""A share that rounds to 0 is taken for this one, so that it has nats."""


class SequenceSettings(TaskSettings):
    type: Literal["sequence_classification"] = task_name("sequence_classification")
    """The task (`ghosttune show tasks`)."""
    labels: Names | None = setting(
        None,
        why="their order is that of the model's outputs",
        benefit="the order stays when rows are added, and adapters agree on it",
        cost="every label of the rows has to stand in it",
    )
    """The labels; unset: those of the training rows, in order."""


class RegressionSettings(TaskSettings):
    type: Literal["regression"] = task_name("regression")
    """The task (`ghosttune show tasks`)."""


@TASKS.register("sequence_classification", SequenceSettings)
class SequenceTask(PredictingTask):
    """Give each text, or pair of texts, one label."""

    formats = ("labelled_pair", "labelled_text")

    def __init__(self, settings: SequenceSettings):
        self.labels = settings.labels

    def derived(self, records: Sequence[Record]) -> dict[str, Any]:
        """The labels that the training rows have; DataError when all have the same."""
        return {} if self.labels else {"labels": found_labels(record.columns["label"] for record in records)}

    def kind(self, tokenizer: Any) -> ModelKind:
        return ModelKind(
            "AutoModelForSequenceClassification",
            "SEQ_CLS",
            {**label_entries(self.labels or []), **padding_entry(tokenizer)},
        )

    def encoder(self, tokenizer: Any, data: DataSettings) -> LabelEncoder:
        from ghosttune.data.labelling import LabelEncoder

        labels = self.labels or []
        return LabelEncoder(tokenizer, data.max_length, lambda label: place_of(label, labels), labels.__getitem__)

    def example_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Negative log-likelihood of each row's label, in nats: [B], at least float32."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(row_outputs(model, batch), batch["labels"], reduction="none")

    def predict(self, model: nn.Module, encoder: LabelEncoder, records: Sequence[Record]) -> list[Prediction]:
        """The most probable label, and the probability of each."""
        names = self.labels or []

        def read(batch: dict[str, Tensor]) -> list[Prediction]:
            shares = row_outputs(model, batch).softmax(-1).tolist()
            scores = [dict(zip(names, row, strict=True)) for row in shares]
            return [Prediction(max(row, key=row.__getitem__), {"probabilities": row}) for row in scores]

        return read_rows(model, encoder, encoder.encode(records).features, read)

    def metrics(self) -> list[str]:
        return ["likelihood_accuracy", "likelihood_macro_f1", *(["auc"] if len(self.labels or []) == 2 else [])]

    def item(self, prediction: Prediction, record: Record) -> Item:
        nats = {label: -math.log(max(share, SMALLEST)) for label, share in prediction.details["probabilities"].items()}
        return Item(prediction.output, (label_name(record.columns["label"]),), label_nats=nats)


@TASKS.register("regression", RegressionSettings)
class RegressionTask(PredictingTask):
    """Give each text, or pair of texts, a number."""

    formats = ("labelled_pair", "labelled_text")

    def __init__(self, settings: RegressionSettings):
        pass

    def kind(self, tokenizer: Any) -> ModelKind:
        entries = {"num_labels": 1, "problem_type": "regression", **padding_entry(tokenizer)}
        return ModelKind("AutoModelForSequenceClassification", "SEQ_CLS", entries)

    def encoder(self, tokenizer: Any, data: DataSettings) -> LabelEncoder:
        from ghosttune.data.labelling import LabelEncoder

        return LabelEncoder(tokenizer, data.max_length, number_of)

    def example_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Half the squared error of each row: nats under a normal distribution of variance 1, up to a constant."""
        values = row_outputs(model, batch)[:, 0]
        return (values - batch["labels"].to(values.dtype)).square() / 2

    def predict(self, model: nn.Module, encoder: LabelEncoder, records: Sequence[Record]) -> list[Prediction]:
        """The number."""

        def read(batch: dict[str, Tensor]) -> list[Prediction]:
            return [Prediction(value) for value in row_outputs(model, batch)[:, 0].tolist()]

        return read_rows(model, encoder, encoder.encode(records).features, read)

    def metrics(self) -> list[str]:
        return ["mae", "rmse", "r2"]

    def item(self, prediction: Prediction, record: Record) -> Item:
        return Item(repr(prediction.output), (repr(number_of(record.columns["label"])),))


def row_outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """[B, C] what the model says of each row, at least float32."""
    from ghosttune.models.prompting import reading_last_token

    with reading_last_token(unwrapped(model), batch["attention_mask"]):
        return precise(model(**model_inputs(model, batch)).logits)
