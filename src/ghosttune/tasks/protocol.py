"""What a task is, and what all tasks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ghosttune.data.encoding import SHOWN

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ghosttune.config.facts import ModelKind
    from ghosttune.config.sections.data import DataSettings
    from ghosttune.data.encoding import RowEncoder, RowFeatures
    from ghosttune.data.records import Record
    from ghosttune.metrics.scoring import Item

ROWS_AT_ONCE = 32
"""Rows of one batch when a model predicts."""


class Task(Protocol):
    """What the rows are, which model reads them, and what its loss is."""

    formats: Sequence[str]
    """Row formats it reads, in the order in which they are tried."""
    renders: bool
    """Whether it renders rows through a template."""
    parts: Sequence[str]
    """What a row consists of, where it is several sequences; empty where it is one."""

    def derived(self, records: Sequence[Record]) -> dict[str, Any]:
        """Settings of the task that follow from the training rows, such as the labels."""
        ...

    def kind(self, tokenizer: Any) -> ModelKind: ...
    def encoder(self, tokenizer: Any, data: DataSettings) -> RowEncoder: ...
    def example_loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Summed nats of each row's targets: [B], at least float32."""
        ...

    def head_positions(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[str | None, Tensor | None]:
        """(name of the output layer, [N] the sequence of each position it sees) where it sees chosen positions only."""
        ...

    def sequences(self, batch: Mapping[str, Tensor]) -> tuple[Tensor | None, Sequence[str]]:
        """([S] the row of each sequence that the model reads, [S] its part of it); (None, ()) where each is a row."""
        ...


@dataclass(frozen=True)
class Prediction:
    """What a model says of a row."""

    output: Any
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else is known, such as the probability of every label."""


class PredictingTask:
    """A task whose answers are read off the model's outputs: what such tasks share."""

    renders = False
    parts: Sequence[str] = ()

    def derived(self, records: Sequence[Record]) -> dict[str, Any]:
        return {}

    def head_positions(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[str | None, Tensor | None]:
        return None, None

    def sequences(self, batch: Mapping[str, Tensor]) -> tuple[Tensor | None, Sequence[str]]:
        return None, ()

    def briefly(self) -> PredictingTask:
        """The same task with predictions as short as they can be while all of the model's code is used."""
        return self

    def predict(self, model: nn.Module, encoder: Any, records: Sequence[Record]) -> list[Prediction]:
        """What the model says of each record, in order, without dropout."""
        raise NotImplementedError

    def metrics(self) -> list[str]:
        """What `evaluate.metrics: auto` takes."""
        raise NotImplementedError

    def item(self, prediction: Prediction, record: Record) -> Item:
        """A prediction beside what is right, as metrics read it."""
        raise NotImplementedError


def model_inputs(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a batch that the model reads, what its processor makes of images among them.

    Segments only where it has learned to tell them apart. Packed rows are told apart by their positions, which
    Transformers looks at where there is no mask.
    """
    rows = "position_ids" if "position_ids" in batch else "attention_mask"
    names = ["input_ids", rows]
    if "token_type_ids" in batch and getattr(unwrapped(model).config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    shown = {name.removeprefix(SHOWN): batch[name] for name in batch if name.startswith(SHOWN)}
    return {name: batch[name] for name in names} | shown


def unwrapped(model: Any) -> Any:
    """The model below a distributed wrapper."""
    return model.module if hasattr(model, "module") and not hasattr(model, "get_output_embeddings") else model


def precise(logits: Tensor) -> Tensor:
    """At least float32."""
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def read_rows(
    model: Any,
    encoder: RowEncoder,
    features: Sequence[RowFeatures],
    read: Callable[[dict[str, Tensor]], Sequence[Any]],
) -> list[Any]:
    """What `read` makes of the batch of each row, in order: without dropout and gradients, like lengths together."""
    import torch

    collate, device = encoder.collator(), next(model.parameters()).device
    by_length = sorted(range(len(features)), key=lambda position: len(features[position]))
    found: dict[int, Any] = {}
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(by_length), ROWS_AT_ONCE):
            positions = by_length[start : start + ROWS_AT_ONCE]
            batch = collate([features[position] for position in positions])
            answers = read({name: tensor.to(device) for name, tensor in batch.items()})
            found |= zip(positions, answers, strict=True)
    model.train(was_training)
    return [found[position] for position in range(len(features))]


def row_nats(task: Any, model: Any, encoder: RowEncoder, features: Sequence[RowFeatures]) -> list[float]:
    """The summed nats of each row's targets, in order, without dropout; one forward pass."""

    def read(batch: dict[str, Tensor]) -> list[float]:
        return task.example_loss(model, batch).double().tolist()

    return read_rows(model, encoder, features, read)
