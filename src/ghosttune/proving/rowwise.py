"""Per-row numbers of any model with an adapter, compared with one backward pass per row of the same forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ghostgrad import Dots, Norms, WeightedSum
from ghostgrad.testing import one_backward_per_example
from ghosttune.config.facts import ModelKind
from ghosttune.config.schema import section_class
from ghosttune.data.encoding import IGNORED
from ghosttune.models.loading import add_adapter
from ghosttune.registry import TASKS
from ghosttune.training.engines import row_engine
from ghosttune.training.instruments import MicroBatch

LENGTHS = (8, 6, 7, 3)
"""Of the rows that are compared; padded on the right to the longest."""

FLOOR = 1e-4
"""Of the model's largest gradient: a gradient that is zero by symmetry holds rounding of larger ones only."""

LABELS = ("no", "yes")


def task_of(name: str) -> Any:
    """The task with its usual settings; two labels where it needs some."""
    settings = {"labels": list(LABELS)} if name in ("sequence_classification", "token_classification") else {}
    return TASKS[name].build(section_class("task", name)(**settings))


def batch_of(task: str, vocabulary: int, seed: int = 1) -> dict[str, Tensor]:
    """Rows of unequal length with random tokens from 3 to `vocabulary`, as the task's collator makes them."""
    random = torch.Generator().manual_seed(seed)
    longest = max(LENGTHS)
    ids = torch.randint(3, vocabulary, (len(LENGTHS), longest), generator=random)
    mask = (torch.arange(longest) < torch.tensor(LENGTHS)[:, None]).long()
    answers = ids.masked_fill(mask == 0, IGNORED)
    labels = torch.arange(len(LENGTHS)) % len(LABELS) if task == "sequence_classification" else answers
    return {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask, "labels": labels}


def adapted(model: Any, method: Any, kind: ModelKind) -> Any:
    """The model with the method's adapter, all of it away from zero so that nothing is hidden; in evaluation mode."""
    found = add_adapter(model, method, 0, kind).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
                parameter.add_(noise.to(parameter.dtype) * 0.1)
    return found


def micro_batch(task: Any, model: Any, batch: dict[str, Tensor]) -> MicroBatch:
    """The rows of a batch, and where the output layer sees chosen positions only."""
    return MicroBatch.of(task, model, batch, [str(row) for row in range(len(LENGTHS))])


def largest_errors(model: Any, task: Any, batch: dict[str, Tensor], verify: bool = True) -> dict[str, float]:
    """What the engine says of each row, and how far it is from one backward pass per row at most.

    Norms and products with a direction are relative to the parameter's largest, sums to autograd's own gradient. `nan`
    counts as infinitely far. `verify` as the engine takes it.
    """
    reference = one_backward_per_example(task.example_loss(model, batch), model.named_parameters())
    flat = {name: rows.flatten(1).double() for name, rows in reference.items()}
    random = torch.Generator().manual_seed(0)
    direction = {
        name: torch.randn(rows.shape[1:], generator=random, dtype=torch.float64).to(rows.dtype)
        for name, rows in reference.items()
    }
    norms, dots, sums = Norms(), Dots(direction), WeightedSum()
    engine = row_engine(model, "exact", verify=verify)
    with engine.observe(norms, dots, sums, selected=micro_batch(task, model, batch).selected(engine)):
        task.example_loss(model, batch).sum().backward()
    model.zero_grad(set_to_none=True)
    largest = {name: rows.norm(dim=1).max() for name, rows in flat.items()}
    floor = FLOOR * max(float(length) for length in largest.values())
    found = {"norms": 0.0, "products": 0.0, "sums": 0.0}

    def compare(what: str, seen: Tensor | None, wanted: Tensor, scale: Tensor) -> None:
        seen = torch.zeros_like(wanted) if seen is None else seen.double().flatten()
        error = float(((seen - wanted.flatten()).abs() / scale.clamp_min(1e-300)).max())
        found[what] = max(found[what], error if error == error else float("inf"))

    for name, rows in flat.items():
        length, towards = largest[name].clamp_min(floor), direction[name].double().flatten()
        seen = norms.values.get(name)
        compare("norms", None if seen is None else seen.sqrt(), rows.norm(dim=1), length)
        compare("products", dots.values.get(name), rows @ towards, length * towards.norm())
        compare("sums", sums.values.get(name), rows.sum(0), length * len(rows))
    return found
