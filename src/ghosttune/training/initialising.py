"""How LoRA begins where training rows decide it: EVA, CorDA and LoRA-GA.

Rows are read one at a time, so that every position a layer sees is one of theirs and none is padding. What is kept of
them is a matrix per layer, for as many layers at once as `HELD` allows; the rest have the rows read once more. PEFT's
own functions would keep all layers' at once, need rows without padding too, or go on until something converges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ghosttune.errors import GhosttuneError
from ghosttune.models.quantizing import plain_weight
from ghosttune.models.starting import take_back
from ghosttune.training.guide import evaluating, requiring_gradients

HELD = 2**31
"""Bytes of what is summed over the rows at a time."""

DAMPING = 0.01
"""CorDA's, of the mean square of an input: what the rows never show has an inverse too."""

GAMMA = 16
"""LoRA-GA's: how small its factors begin, which have d_out^(1/4) / √γ as their singular values."""


@dataclass
class Inputs:
    """What a layer has seen: how often, the mean, and the summed products around it (Chan et al. 1979)."""

    count: int
    mean: Tensor
    """[d_in]."""
    scatter: Tensor
    """[d_in, d_in]."""

    @classmethod
    def none(cls, layer: Any) -> Inputs:
        weight = next(layer.base_layer.parameters())
        dtype = torch.promote_types(layer.lora_A["default"].weight.dtype, torch.float32)
        zeros = partial(torch.zeros, dtype=dtype, device=weight.device)
        return cls(0, zeros(layer.in_features), zeros(layer.in_features, layer.in_features))

    def add(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A hook before the layer's forward pass."""
        rows = inputs[0].detach().reshape(-1, len(self.mean)).to(self.mean.dtype)
        if not len(rows):
            return
        mean = rows.mean(0)
        apart, total = mean - self.mean, self.count + len(rows)
        centred = rows - mean
        self.scatter += centred.T @ centred
        self.scatter += torch.outer(apart, apart) * (self.count * len(rows) / total)
        self.mean += apart * (len(rows) / total)
        self.count = total


def seen_inputs(losses: Callable[[], Iterator[Tensor]], layers: Mapping[str, Any]) -> dict[str, Inputs]:
    """Of each layer, all rows together; a forward pass of each."""
    seen = {name: Inputs.none(layer) for name, layer in layers.items()}
    handles = [layer.base_layer.register_forward_pre_hook(seen[name].add) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for _ in losses():
                pass
    finally:
        for handle in handles:
            handle.remove()
    for name, inputs in seen.items():
        if not (inputs.count > layers[name].r["default"] and inputs.scatter.trace() > 0):
            raise GhosttuneError(
                f"method.init_lora_weights cannot be had for {name}: of the rows it looks at, the layer sees "
                f"{inputs.count} positions, which are too few or all alike; raise method.init_rows, or take the layer "
                "out of method.target_modules"
            )
    return seen


def summed_gradients(losses: Callable[[], Iterator[Tensor]], layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """[d_out, d_in] of each layer's weight, all rows together; a forward and a backward pass of each."""
    weights = [layer.base_layer.weight for layer in layers.values()]
    sums = [torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in weights]
    with requiring_gradients(weights):
        for loss in losses():
            for total, gradient in zip(sums, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
                if gradient is not None:
                    total += gradient
    found = {name: s.T if layers[name].fan_in_fan_out else s for name, s in zip(layers, sums, strict=True)}
    for name, gradient in found.items():
        if not gradient.any():
            raise GhosttuneError(
                f"method.init_lora_weights cannot be had for {name}: the loss of the rows it looks at does not reach "
                "the layer; raise method.init_rows, or take the layer out of method.target_modules"
            )
    return found


def eva(inputs: Inputs, layer: Any) -> tuple[Tensor, Tensor]:
    """(A, B): the directions in which the inputs differ most, and zero (arXiv 2410.07170)."""
    _, _, directions = leading(inputs.scatter, layer.r["default"])
    return directions.T, torch.zeros_like(layer.lora_B["default"].weight)


def corda(inputs: Inputs, layer: Any) -> tuple[Tensor, Tensor]:
    """(A, B): the part of the weight that does most to such inputs (arXiv 2406.05223, its mode for a task).

    With C the mean of x xᵀ, damped: W C = U S Vᵀ, and the part is U S Vᵀ C⁻¹ of rank r.
    """
    moments = inputs.scatter / inputs.count + torch.outer(inputs.mean, inputs.mean)
    moments.diagonal().add_(DAMPING * moments.diagonal().mean())
    weight = plain_weight(layer.base_layer)
    weight = (weight.T if layer.fan_in_fan_out else weight).to(moments.dtype)
    left, size, right = leading(weight @ moments, layer.r["default"])
    right = torch.linalg.solve(moments.double(), right.double()).to(right.dtype)
    root = (size / layer.scaling["default"]).sqrt()
    return (right * root).T, left * root


def lora_ga(gradient: Tensor, layer: Any) -> tuple[Tensor, Tensor]:
    """(A, B): leading directions of the gradient, right ones in A, the next left ones in B (arXiv 2407.05000).

    So that the first step of B and A together is the gradient's own best approximation of rank 2 r.
    """
    rank = layer.r["default"]
    left, _, right = leading(gradient, 2 * rank)
    size = len(gradient) ** 0.25 / GAMMA**0.5
    return right[:, :rank].T * size, left[:, rank:] * size


def leading(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(left [m, count], sizes [count], right [n, count]): the leading singular vectors, the same at every call.

    By subspace iteration with four times as many (Halko et al. 2011), as PEFT has it for gradients.
    """
    devices = [matrix.device] if matrix.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        left, sizes, right = torch.svd_lowrank(matrix, q=min(4 * count, *matrix.shape), niter=4)
    return left[:, :count], sizes[:count], right[:, :count]


@dataclass(frozen=True)
class Way:
    """An initialisation: what is summed over the rows, its numbers in a layer, and what follows from it."""

    summed: Callable[[Callable[[], Iterator[Tensor]], Mapping[str, Any]], dict[str, Any]]
    numbers: Callable[[Any], int]
    factors: Callable[[Any, Any], tuple[Tensor, Tensor]]


def _squared(layer: Any) -> int:
    return layer.in_features**2


def _weight(layer: Any) -> int:
    return layer.in_features * layer.out_features


WAYS = {
    "eva": Way(seen_inputs, _squared, eva),
    "corda": Way(seen_inputs, _squared, corda),
    "lora_ga": Way(summed_gradients, _weight, lora_ga),
}


class Initialisation:
    """One that training rows decide, of a model whose adapter changes nothing yet.

    Args:
        name: of `WAYS`.
        model: with its adapter.
        task: whose loss it is.
        collator: of its rows.
        rows: those to look at, features in their order.
        device: of the model.
    """

    def __init__(self, name: str, model: nn.Module, task: Any, collator: Any, rows: Sequence[Any], device: Any):
        self.name, self.way = name, WAYS[name]
        self.model, self.task, self.collator, self.rows, self.device = model, task, collator, rows, device
        self.layers: dict[str, Any] = {path: layer for path, layer in model.named_modules() if hasattr(layer, "lora_A")}
        self.parts = list(_parts(self.layers, self.way.numbers))

    @property
    def least(self) -> int:
        """Positions below which rows cannot tell so many directions apart."""
        return max((2 if self.name == "lora_ga" else 1) * layer.r["default"] for layer in self.layers.values()) + 1

    @property
    def held(self) -> int:
        """Bytes of what is summed, at most at a time."""
        return max(sum(4 * self.way.numbers(layer) for layer in part.values()) for part in self.parts)

    @property
    def needed(self) -> int:
        """Bytes at its peak, beside the model: twice what is summed while a row is added, and the largest layer's work.

        CorDA's is the most: its matrix five times over, in float64 where it is inverted.
        """
        return 2 * self.held + 24 * max(self.way.numbers(layer) for layer in self.layers.values())

    @property
    def positions(self) -> int:
        return sum(row.positions for row in self.rows)

    def described(self) -> dict[str, Any]:
        """What `check` predicts and run.json records; a pass reads all the rows."""
        backward = self.way.summed is summed_gradients
        return {
            "method": self.name,
            "rows": len(self.rows),
            "positions": self.positions,
            "passes": len(self.parts),
            "of": "forward and backward" if backward else "forward",
            "held_bytes": self.held,
        }

    def apply(self) -> None:
        """Writes A and B of every layer, and what takes them back beside it; GhosttuneError where rows do not tell."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        with evaluating(self.model):
            for part in self.parts:
                summed = self.way.summed(self._losses, part)
                found |= {name: self.way.factors(summed.pop(name), layer) for name, layer in part.items()}
        for name, factors in found.items():  # all at last: every pass is the base's own, to the bit
            _write(name, self.layers[name], *factors)

    def _losses(self) -> Iterator[Tensor]:
        for row in self.rows:
            batch = {name: tensor.to(self.device) for name, tensor in self.collator([row]).items()}
            yield self.task.example_loss(self.model, batch).sum()


@torch.no_grad()
def _write(name: str, layer: Any, first: Tensor, second: Tensor) -> None:
    if not (first.isfinite().all() and second.isfinite().all()):
        raise GhosttuneError(
            f"method.init_lora_weights gives {name} factors that are not numbers; load the weights in float32 "
            "(model.dtype), or look at the first rows with `ghosttune preview`"
        )
    layer.lora_A["default"].weight.copy_(first)
    layer.lora_B["default"].weight.copy_(second)
    take_back(layer)


def _parts(layers: Mapping[str, Any], numbers: Callable[[Any], int]) -> Iterator[dict[str, Any]]:
    """The layers in their order, as many together as may be held; at least one."""
    part: dict[str, Any] = {}
    held = 0
    for name, layer in layers.items():
        size = 4 * numbers(layer)
        if part and held + size > HELD:
            yield part
            part, held = {}, 0
        part[name] = layer
        held += size
    if part:
        yield part
