"""Passes of a few real rows before training: what they reach, what they keep in memory, how long they take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from ghosttune.config.facts import ParameterFacts
from ghosttune.data.encoding import Features
from ghosttune.models.upstream import checkpoint_activations, keep_activations

ROUTED = "experts"
"""In the names of modules that two rows need not come by."""

PART = 128
"""Tokens of a row that show whether gradients arrive, where whole rows may take minutes."""

SOON = 1.0
"""Seconds: a pass that takes less is repeated, because the first one also loads what it needs."""


@dataclass(frozen=True)
class Probe:
    """What a pass of a few rows showed."""

    losses: list[float]
    """Nats of each row."""
    unreached: list[str]
    """Modules none of whose trained parameters has a gradient other than zero."""
    forward: float = 0.0
    """Seconds."""
    backward: float = 0.0
    """Seconds, with what checkpointing computes again."""


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps for the backward pass, parameters not counted."""

    whole: int
    largest: int
    """Of the largest tensor, whose gradient stands beside it."""


def probe(
    task: Any, model: Any, facts: Mapping[str, ParameterFacts], batch: dict[str, Tensor], checkpointing: bool
) -> Probe:
    """Runs the batch as a training step would, and leaves model and random generators as they were."""
    found = _probed(task, model, facts, batch, checkpointing)
    return found if found.forward + found.backward > SOON else _probed(task, model, facts, batch, checkpointing)


def _probed(
    task: Any, model: Any, facts: Mapping[str, ParameterFacts], batch: dict[str, Tensor], checkpointing: bool
) -> Probe:
    with _as_in_training(model, checkpointing):
        began = _now()
        losses = task.example_loss(model, batch)
        read = _now()
        if losses.requires_grad:  # still checkpointing: T5's layers are computed again as they were
            losses.sum().backward()
        ended = _now()
        unreached = _unreached(model, facts)
    return Probe(losses.tolist(), unreached, read - began, ended - read)


def _now() -> float:
    """Seconds, with everything done that a GPU was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def kept(task: Any, model: Any, batch: dict[str, Tensor], checkpointing: bool) -> Kept:
    """What the forward pass of the batch keeps; model and random generators are left as they were.

    Products with weights are not computed, which are nearly all of the time: what they keep is known without.
    """
    with _as_in_training(model, checkpointing), _keeping() as held, _WithoutProducts():
        losses = task.example_loss(model, batch)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found = {storage.data_ptr(): storage.nbytes() for one in held for storage in one.storages}
    sizes = [size for address, size in found.items() if address not in own]
    del losses  # with which autograd forgets what is counted here
    return Kept(sum(sizes), max(sizes, default=0))


def last_trained(row: Any, tokens: int) -> Any:
    """The part of a row of text that ends with its last trained token, of at most so many; other rows as they are."""
    if not isinstance(row, Features) or len(row) <= tokens:
        return row
    end = int(np.flatnonzero(row.trained)[-1]) + 1
    part = slice(max(0, end - tokens), end)
    trained = row.trained[part].copy()
    trained[0] = False
    return replace(row, input_ids=row.input_ids[part], trained=trained)


def _unreached(model: nn.Module, facts: Mapping[str, ParameterFacts]) -> list[str]:
    """By module: a factor alone may rightly have no gradient, as LoRA's A while B is zero."""
    reached: dict[str, bool] = defaultdict(bool)
    for name, parameter in model.named_parameters():
        if name in facts and ROUTED not in name:
            gradient = parameter.grad
            is_table = facts[name].group == "embedding"  # of which a few rows touch a few entries
            reached[facts[name].module] |= gradient is not None and (is_table or bool(gradient.any()))
    return [module for module, is_reached in reached.items() if not is_reached]


class _WithoutProducts(TorchFunctionMode):
    """Linear layers give zeros while it is on."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_zeros if func is linear else func)(*args, **(kwargs or {}))


def _zeros(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # as torch names them
    return _Zeros.apply(input, weight)  # type: ignore[no-any-return]


class _Zeros(torch.autograd.Function):
    """In place of x Wᵀ + b: keeps what that keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(x)
        return x.new_zeros(*x.shape[:-1], weight.shape[0])


@contextmanager
def _as_in_training(model: Any, checkpointing: bool) -> Iterator[None]:
    """In training mode, and afterwards as before: without gradients, with the same random numbers to come."""
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng(), _checkpointing(model, checkpointing):
            yield
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)


class _Held:
    """What autograd keeps in place of a tensor."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    @property
    def storages(self) -> list[Any]:
        """What holds its numbers: a sparse tensor has nothing of its own."""
        sparse = self.tensor.layout == torch.sparse_coo
        parts = [self.tensor._indices(), self.tensor._values()] if sparse else [self.tensor]
        return [part.untyped_storage() for part in parts]


@contextmanager
def _keeping() -> Iterator[WeakSet[_Held]]:
    """Everything that autograd keeps inside, as long as it does."""
    held = WeakSet[_Held]()

    def pack(tensor: Tensor) -> _Held:
        one = _Held(tensor)
        held.add(one)
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        yield held


@contextmanager
def _checkpointing(model: Any, wanted: bool) -> Iterator[None]:
    """As the Trainer switches it on."""
    if not wanted:
        yield
        return
    checkpoint_activations(model)
    try:
        yield
    finally:
        keep_activations(model)
