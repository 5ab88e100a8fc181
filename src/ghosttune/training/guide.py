"""The guide loss and its gradient: nats per target over the guide rows, without dropout, in a pass of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ghosttune.data.encoding import RowFeatures
from ghosttune.training.freed import give_back
from ghosttune.training.processes import total
from ghosttune.training.sharding import own_share

Batch = Mapping[str, Any]


class Guide(Protocol):
    """Rows whose mean loss the run is judged by while it trains."""

    def batches(self) -> Iterable[Batch]: ...
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the batch adds to the guide loss: a number, or one per row."""
        ...


class GuideRows:
    """Encoded rows as a guide: the sum of their nats over the number of their targets."""

    def __init__(self, task: Any, collator: Any, rows: Sequence[RowFeatures], batch_size: int, device: Any):
        self.task, self.collator, self.device = task, collator, device
        self.targets = sum(row.targets for row in rows)
        self.rows = rows
        by_length = np.argsort([len(row) for row in rows], kind="stable")
        self.parts = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]

    @property
    def example_ids(self) -> list[str]:
        """Of each row, in the order of the batches; windows of one row share its id."""
        return [self.rows[place].example_id for part in self.parts for place in part]

    def batches(self) -> Iterator[Batch]:
        """One at a time: those with images are large."""
        for part in self.parts:
            batch = self.collator([self.rows[place] for place in part])
            yield {name: tensor.to(self.device) for name, tensor in batch.items()}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.task.example_loss(model, batch) / self.targets


def guide_gradient(
    model: nn.Module, guide: Guide, named: Mapping[str, nn.Parameter]
) -> tuple[float, dict[str, Tensor]]:
    """(guide loss, its gradient by parameter, in float32 or better); one forward and backward of the rows.

    Parameters that are frozen now have one too. Neither `p.grad` nor a random generator is touched. Several processes
    share the rows and add up their parts.
    """
    sums = {name: torch.zeros_like(p, dtype=_precise(p.dtype)) for name, p in named.items()}
    nats = torch.zeros((), dtype=torch.float64, device=next(iter(named.values())).device)
    with evaluating(model), requiring_gradients(named.values()):
        for batch, counts in own_share(guide.batches()):
            loss = guide.loss(model, batch).sum()
            gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for name, gradient in zip(named, gradients, strict=True):
                if gradient is not None and counts:
                    sums[name] += gradient
            nats += loss.detach().double() if counts else 0.0
            del loss, gradients
            give_back()
    for tensor in (*sums.values(), nats):
        total(tensor)
    return float(nats), sums


@torch.no_grad()
def guide_losses(model: nn.Module, guide: Guide) -> Tensor:
    """[N] what each row (or batch) adds to the guide loss, from forward passes of their own, float64 on the host."""
    with evaluating(model):
        return torch.cat([guide.loss(model, batch).double().reshape(-1).cpu() for batch in guide.batches()])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout inside; modules are in training mode again where they were."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def requiring_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Frozen parameters require a gradient inside."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
