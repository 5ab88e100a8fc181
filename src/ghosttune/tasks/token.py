"""One tag per word, such as the kind of a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ghosttune.config.facts import ModelKind
from ghosttune.config.sections.data import DataSettings
from ghosttune.config.setting import Names, TaskSettings, setting, task_name
from ghosttune.data.records import Record
from ghosttune.metrics.scoring import Item
from ghosttune.registry import TASKS
from ghosttune.tasks.labels import found_labels, label_entries, padding_entry, place_of
from ghosttune.tasks.protocol import PredictingTask, Prediction, model_inputs, precise, read_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ghosttune.data.tagging import TagEncoder


CUT_OFF = "?"
"""Stands for the tag of a word that `data.max_length` cut off; never right."""


class TokenSettings(TaskSettings):
    type: Literal["token_classification"] = task_name("token_classification")
    """The task (`ghosttune show tasks`)."""
    labels: Names | None = setting(
        None,
        why="outputs are numbers; this says which tag each of them is",
        benefit="the same numbers mean the same tags in every run",
        cost="tags that are missing here are refused, not mapped to another",
    )
    """The tags; unset: those of the training rows, in order."""


@TASKS.register("token_classification", TokenSettings)
class TokenTask(PredictingTask):
    """Give each word of a row a tag."""

    formats = ("tagged_tokens",)

    def __init__(self, settings: TokenSettings):
        self.labels = settings.labels

    def derived(self, records: Sequence[Record]) -> dict[str, Any]:
        """The tags that the training rows have; DataError when all have the same."""
        tags = (tag for record in records for tag in record.columns["tags"])
        return {} if self.labels else {"labels": found_labels(tags)}

    def kind(self, tokenizer: Any) -> ModelKind:
        entries = {**label_entries(self.labels or []), **padding_entry(tokenizer)}
        return ModelKind("AutoModelForTokenClassification", "TOKEN_CLS", entries)

    def encoder(self, tokenizer: Any, data: DataSettings) -> TagEncoder:
        from ghosttune.data.tagging import TagEncoder

        labels = self.labels or []
        return TagEncoder(tokenizer, data.max_length, lambda tag: place_of(tag, labels), labels)

    def example_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Summed negative log-likelihood of each row's tags, in nats: [B], at least float32."""
        from torch.nn.functional import cross_entropy

        from ghosttune.data.encoding import IGNORED

        logits = precise(token_outputs(model, batch))
        losses = cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none", ignore_index=IGNORED)
        return losses.sum(1)

    def predict(self, model: nn.Module, encoder: TagEncoder, records: Sequence[Record]) -> list[Prediction]:
        """The most probable tag of each word; None for words that `data.max_length` cut off."""
        names = self.labels or []
        features: Any = encoder.encode(records).features

        def read(batch: dict[str, Tensor]) -> list[list[int]]:
            return token_outputs(model, batch).argmax(-1).tolist()

        predictions = []
        for record, row, places in zip(records, features, read_rows(model, encoder, features, read), strict=True):
            tags = [names[places[position]] for position in row.first_tokens]
            predictions.append(Prediction(tags + [None] * (len(record.columns["tokens"]) - len(tags))))
        return predictions

    def metrics(self) -> list[str]:
        """Entities are counted where the tags say where one begins and ends."""
        entities = all(re.fullmatch(r"O|[BIES]-\S+", label) for label in self.labels or [])
        return ["tag_accuracy", "exact_match", *(["entity_f1"] if entities else [])]

    def item(self, prediction: Prediction, record: Record) -> Item:
        return Item(" ".join(tag or CUT_OFF for tag in prediction.output), (" ".join(record.columns["tags"]),))


def token_outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """[B, T, C] what the model says of each token; learned prompts stand in front and are left out."""
    return model(**model_inputs(model, batch)).logits[:, -batch["input_ids"].shape[1] :]
