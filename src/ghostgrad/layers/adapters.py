"""Rules of PEFT parameters that are not layers of their own: DoRA's magnitude and IA3's scales.

LoRA's A and B, prompt and prefix tables are plain `nn.Linear`, convolutions and `nn.Embedding`; their rules are those
of the layers, whatever the base below holds (8 and 4 bits included), because only inputs and output gradients are used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ghostgrad.forms import Dense, ExampleGradient, widen
from ghostgrad.rules import RULES, LayerIO, UnsupportedLayer


@RULES.register(
    "peft.tuners.lora.dora.DoraLinearLayer",
    "peft.tuners.lora.dora.DoraConv1dLayer",
    "peft.tuners.lora.dora.DoraConv2dLayer",
    keep="arguments",
)
def dora_magnitude(layer: Any, io: LayerIO) -> dict[str, ExampleGradient]:
    """weight: the output is y = m * f - base with f free of m (the norm is detached; DoRA, arXiv 2402.09353, 4.3).

    f = (y(m) - y(0)) / m from two forward passes of the layer. Taken at m itself, where y(m) is small against the
    base, since a difference at m = 1 would cancel digits.
    """
    bias = io.kwargs["base_layer"].bias
    if bias is not None and bias.requires_grad:
        raise UnsupportedLayer("DoRA subtracts the base layer's bias again, outside that layer: freeze the bias")
    magnitude = layer.weight.detach()
    at = torch.where(magnitude == 0, torch.ones_like(magnitude), magnitude)
    difference = _dora_output(layer, at, io) - _dora_output(layer, torch.zeros_like(at), io)
    product = widen(io.grad_output) * widen(difference)
    if magnitude.dim() == 1:
        return {"weight": Dense(io.total(product) / widen(at))}
    positions = io.layout.positions(product.shape[:1])
    sums = product.flatten(2).sum(2)
    return {"weight": Dense(sums.reshape(positions.examples, *magnitude.shape) / widen(at))}


def _dora_output(layer: Any, magnitude: Tensor, io: LayerIO) -> Tensor:
    return torch.func.functional_call(layer, {"weight": magnitude}, io.args, dict(io.kwargs))


@RULES.register("peft.tuners.ia3.layer.Linear", "peft.tuners.ia3.bnb.Linear8bitLt", "peft.tuners.ia3.bnb.Linear4bit")
def ia3(layer: Any, io: LayerIO) -> dict[str, ExampleGradient]:
    """ia3_l.NAME: scales of the input (feed-forward) or of the output; costs one pass of the base layer.

    The base is run again because its result divided by the scale would be lost where a scale is 0.
    """
    names = [name for name in layer.active_adapters if name in layer.ia3_l]
    scales = {name: layer.ia3_l[name].detach().flatten() for name in names}
    if layer.is_feedforward:
        product = widen(io.input) * widen(_input_gradient(layer.base_layer, _scaled(io.input, scales), io.grad_output))
    else:
        product = widen(layer.base_layer(io.input)) * widen(io.grad_output)
    sums = io.total(product)
    gradients: dict[str, ExampleGradient] = {}
    for name in names:
        others = _scaled(sums, {other: scale for other, scale in scales.items() if other != name})
        gradients[f"ia3_l.{name}"] = Dense(others.reshape(len(sums), *layer.ia3_l[name].shape))
    return gradients


def _scaled(values: Tensor, scales: dict[str, Tensor]) -> Tensor:
    for scale in scales.values():
        values = values * scale.to(values.dtype)
    return values


def _input_gradient(layer: Any, given: Tensor, grad_output: Tensor) -> Tensor:
    """Gradient with respect to `given`; works through any base layer, quantised ones included."""
    with torch.enable_grad():
        given = given.detach().requires_grad_()
        return torch.autograd.grad(layer(given), given, grad_output)[0]
