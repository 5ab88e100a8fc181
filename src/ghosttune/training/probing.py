"""One forward and backward pass of a few real rows before training: what it reaches, and what it keeps in memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ghosttune.config.facts import ParameterFacts

ROUTED = "experts"
"""In the names of modules that two rows need not come by."""


@dataclass(frozen=True)
class Probe:
    """What a pass of a few rows showed."""

    losses: list[float]
    """Nats of each row."""
    unreached: list[str]
    """Modules none of whose trained parameters has a gradient other than zero."""
    kept_bytes: int
    """What the forward pass keeps for the backward pass, parameters not counted."""
    largest_bytes: int
    """The largest tensor among it, whose gradient stands beside it."""


def probe(
    task: Any, model: Any, facts: Mapping[str, ParameterFacts], batch: dict[str, Tensor], checkpointing: bool
) -> Probe:
    """Runs the batch as a training step would, and leaves model and random generators as they were."""
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng(), _checkpointing(model, checkpointing):
            with _keeping(model) as kept:
                losses = task.example_loss(model, batch)
            if losses.requires_grad:  # still checkpointing: T5's layers are computed again as they were
                losses.sum().backward()
        unreached = _unreached(model, facts)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    return Probe(losses.tolist(), unreached, sum(kept.values()), max(kept.values(), default=0))


def _unreached(model: nn.Module, facts: Mapping[str, ParameterFacts]) -> list[str]:
    """By module: a factor alone may rightly have no gradient, as LoRA's A while B is zero."""
    reached: dict[str, bool] = defaultdict(bool)
    for name, parameter in model.named_parameters():
        if name in facts and ROUTED not in name:
            gradient = parameter.grad
            is_table = facts[name].group == "embedding"  # of which a few rows touch a few entries
            reached[facts[name].module] |= gradient is not None and (is_table or bool(gradient.any()))
    return [module for module, is_reached in reached.items() if not is_reached]


@contextmanager
def _keeping(model: nn.Module) -> Iterator[dict[int, int]]:
    """Address -> bytes of every storage that autograd keeps inside, but those of the model itself."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        for part in _stored(tensor):
            storage = part.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _stored(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold its numbers: a sparse one has none of its own."""
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    return [tensor]


@contextmanager
def _checkpointing(model: Any, wanted: bool) -> Iterator[None]:
    """As the Trainer switches it on."""
    if not wanted:
        yield
        return
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        model.activation_checkpointing_disable()
