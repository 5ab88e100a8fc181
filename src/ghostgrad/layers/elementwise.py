"""Rules of layers that scale features one by one: LayerNorm and the RMSNorm families."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostgrad.forms import Dense, ExampleGradient
from ghostgrad.layers.linear import input_for_the_weight
from ghostgrad.rules import RULES, LayerIO


def _over_features(io: LayerIO, values: Tensor, shape: tuple[int, ...]) -> Dense:
    """Sum over positions, features kept: [B, *P]. Summing features too would give one number, not a gradient."""
    flat = values.flatten(-len(shape))
    positions = io.positions(feature_axes=len(shape))
    return Dense(positions.total(io.per_position(flat)).reshape(positions.examples, *shape))


@RULES.register(nn.LayerNorm, keep=input_for_the_weight)
def layer_norm(layer: nn.LayerNorm, io: LayerIO) -> dict[str, ExampleGradient]:
    """weight and bias [*P]; the normalised input is computed again, as cheap as keeping it."""
    shape, grad = tuple(layer.normalized_shape), io.grad_output
    sums = torch.float64 if grad.dtype == torch.float64 else torch.float32
    gradients: dict[str, ExampleGradient] = {}
    if io.input is not None:
        normal = F.layer_norm(io.input.to(sums), shape, eps=layer.eps)
        gradients["weight"] = _over_features(io, normal.mul_(grad), shape)
    if "bias" in io.wanted:
        gradients["bias"] = _over_features(io, grad.to(sums), shape)
    return gradients


def _scales_features(layer: Any) -> bool:
    """True for a norm whose only parameter is a vector that scales features one by one, y = (c + w) * f(x).

    Tried out on two rows of numbers, not believed for its name: 181 classes of Transformers end in RMSNorm or are
    T5LayerNorm, some with 1 + w, some with gates.
    """
    if not type(layer).__name__.endswith(("RMSNorm", "T5LayerNorm")):
        return False
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or len(list(layer.parameters())) != 1:
        return False
    features = weight.shape[0]
    given = torch.linspace(-1, 2, 2 * features, device=weight.device, dtype=torch.float32).view(2, features)
    with torch.no_grad():
        try:
            slope = _slope(layer, given)
            two = _with_weight(layer, 2 + torch.arange(features, device=weight.device), given)
            none = _with_weight(layer, torch.zeros_like(weight), given)
        except (TypeError, RuntimeError):
            return False
    expected = none + slope * (2 + torch.arange(features, device=weight.device))
    return slope.shape == given.shape and torch.allclose(two.float(), expected.float(), rtol=2e-2, atol=1e-3)


@RULES.register(nn.RMSNorm)
@RULES.register_family(_scales_features)
def rms_norm(layer: Any, io: LayerIO) -> dict[str, ExampleGradient]:
    """weight [*P]; f(x) is what the layer itself computes with weight 1 less what it computes with weight 0.

    So each family's own casts and its 1 + w are kept. Costs two forward passes of the layer.
    """
    slope = _slope(layer, io.input)
    grad = io.grad_output.to(torch.promote_types(slope.dtype, torch.float32))
    return {"weight": _over_features(io, grad * slope, tuple(layer.weight.shape))}


def _slope(layer: Any, given: Tensor) -> Tensor:
    ones = torch.ones_like(layer.weight)
    return _with_weight(layer, ones, given) - _with_weight(layer, torch.zeros_like(ones), given)


def _with_weight(layer: Any, weight: Tensor, given: Tensor) -> Tensor:
    return torch.func.functional_call(layer, {"weight": weight.to(layer.weight.dtype)}, (given,))
