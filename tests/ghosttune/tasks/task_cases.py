"""For each task: rows, the families that have it, and the loss of one row as Transformers itself computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

GOOD, BAD = ["great", "lovely", "warm"], ["awful", "dull", "cold"]


def texts(count: int) -> list[dict[str, Any]]:
    rows = []
    for n in range(count):
        word = (GOOD if n % 2 else BAD)[n % 3]
        rows.append({"text": f"the film {n} was {'really ' * (n % 4)}{word}", "label": "good" if n % 2 else "bad"})
    return rows


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {
            "premise": f"anna number {n} lives in {'paris' if n % 3 else 'rome'} {'near the river ' * (n % 3)}",
            "hypothesis": f"anna {n} is {'not ' * (n % 3)}in paris",
            "label": n % 3,
        }
        for n in range(count)
    ]


def numbers(count: int) -> list[dict[str, Any]]:
    return [{**row, "label": 0.5 * (n % 5) - 1} for n, row in enumerate(texts(count))]


def tagged(count: int) -> list[dict[str, Any]]:
    rows = []
    for n in range(count):
        name, town = ["anna", "ben"][n % 2], ["paris", "london", "rome"][n % 3]
        tokens = [name, "really" if n % 2 else "was", f"{n}th", "in", town, *["."] * (n % 3)]
        tags = ["PERSON", "O", "O", "O", "PLACE", *["O"] * (n % 3)]
        rows.append({"tokens": tokens, "tags": tags})
    return rows


def questions(count: int) -> list[dict[str, Any]]:
    """Every third text is longer than a window."""
    rows = []
    for n in range(count):
        name, town = ["anna", "ben"][n % 2], ["paris", "london", "rome"][n % 3]
        context = (
            f"number {n} , " + "the river was cold . " * (5 * (n % 3 == 0)) + f"{name} lives in {town} near a museum ."
        )
        where = {"text": [town], "answer_start": [context.index(town)]}
        rows.append({"question": f"where lives {name} ?", "context": context, "answers": where})
    return rows


def rewritten(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"colour of number {n} {'really ' * (n % 4)}", "completion": ["red", "green river", "blue"][n % 3]}
        for n in range(count)
    ]


@dataclass(frozen=True)
class TaskCase:
    """One task on its rows."""

    task: str
    rows: Callable[[int], list[dict[str, Any]]]
    own_loss: Callable[[Any, dict[str, Tensor], int], Tensor]
    """(model, batch of one row, its targets) -> its summed nats, by the model's own loss function."""
    families: tuple[str, ...] = ("bert", "llama")
    settings: dict[str, Any] = field(default_factory=dict)
    rate: float = 0.01
    """At which four rows are learned in 80 steps."""


def inputs(batch: dict[str, Tensor], *others: str) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask", *others)}


def label_loss(model: Any, batch: dict[str, Tensor], targets: int) -> Tensor:
    return model(**inputs(batch, "labels")).loss


def segmented_loss(model: Any, batch: dict[str, Tensor], targets: int) -> Tensor:
    names = ("labels", "token_type_ids") if model.config.model_type == "bert" else ("labels",)
    return model(**inputs(batch, *names)).loss


def mean_loss(model: Any, batch: dict[str, Tensor], targets: int) -> Tensor:
    return model(**inputs(batch, "labels")).loss * targets


def span_loss(model: Any, batch: dict[str, Tensor], targets: int) -> Tensor:
    """Transformers averages the loss of the first token and that of the last."""
    names = ("token_type_ids",) if model.config.model_type == "bert" else ()
    places = {"start_positions": batch["spans"][:, 0], "end_positions": batch["spans"][:, 1]}
    return 2 * model(**inputs(batch, *names), **places).loss


def squared_loss(model: Any, batch: dict[str, Tensor], targets: int) -> Tensor:
    return model(**{**inputs(batch), "labels": batch["labels"].float()}).loss / 2


CASES = {
    "texts": TaskCase("sequence_classification", texts, label_loss, ("bert", "distilbert", "llama")),
    "pairs": TaskCase("sequence_classification", pairs, segmented_loss, settings={"labels": ["0", "1", "2"]}),
    "tags": TaskCase("token_classification", tagged, mean_loss, ("bert", "llama")),
    "questions": TaskCase("question_answering", questions, span_loss, ("bert", "distilbert"), {"stride": 8}),
    "rewriting": TaskCase("seq2seq_lm", rewritten, mean_loss, ("t5", "bart"), rate=0.01),
    "regression": TaskCase("regression", numbers, squared_loss),
}

MATRIX = [(name, family) for name, case in CASES.items() for family in case.families]
