"""Rules of layers that multiply with a matrix: Linear, GPT-2's transposed Conv1D, convolutions."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostgrad.forms import Dense, ExampleGradient, OuterProduct, widen
from ghostgrad.rules import RULES, LayerIO, UnsupportedLayer


def input_for_the_weight(wanted: Collection[str]) -> str:
    """A bias needs no input: layers of which only the bias trains keep no activation alive."""
    return "input" if "weight" in wanted else "nothing"


def _matrix(io: LayerIO, transposed: bool) -> dict[str, ExampleGradient]:
    grad, positions = io.per_position(io.grad_output), io.positions()
    gradients: dict[str, ExampleGradient] = {}
    if io.input is not None:
        # Under autocast the layer multiplied with an input of the output's dtype, so its gradient did too.
        given = io.per_position(io.input).to(grad.dtype)
        gradients["weight"] = (
            OuterProduct(given, grad, positions) if transposed else OuterProduct(grad, given, positions)
        )
    if "bias" in io.wanted:
        gradients["bias"] = Dense(positions.total(widen(grad)))
    return gradients


@RULES.register(nn.Linear, keep=input_for_the_weight)
def linear(layer: nn.Linear, io: LayerIO) -> dict[str, ExampleGradient]:
    """weight [O, I]: left is the output's gradient, right the input."""
    return _matrix(io, transposed=False)


@RULES.register("transformers.pytorch_utils.Conv1D", keep=input_for_the_weight)
def conv1d_of_gpt2(layer: nn.Module, io: LayerIO) -> dict[str, ExampleGradient]:
    """weight [I, O]: left is the input, right the output's gradient."""
    return _matrix(io, transposed=True)


@RULES.register(nn.Conv1d, nn.Conv2d, keep=input_for_the_weight)
def convolution(layer: nn.Conv1d | nn.Conv2d, io: LayerIO) -> dict[str, ExampleGradient]:
    """weight [O, I / groups, *kernel]: a position is one output pixel, its input the patch under the kernel.

    Memory: the patches, kernel-size times the input. With groups the gradients are made, [B, *P].
    """
    if io.layout.index is not None:
        raise UnsupportedLayer("a convolution mixes neighbouring positions: packed rows have no gradient of their own")
    grad = io.grad_output.flatten(2).mT
    positions = io.layout.positions(grad.shape[:2])
    gradients: dict[str, ExampleGradient] = {}
    if io.input is not None:
        patches = _patches(layer, io.input.to(grad.dtype))
        patches = patches.expand(len(grad), -1, -1)
        if layer.groups == 1:
            gradients["weight"] = OuterProduct(
                grad.flatten(0, 1), patches.flatten(0, 1), positions, tuple(layer.weight.shape)
            )
        else:
            grouped = (widen(values).unflatten(2, (layer.groups, -1)) for values in (grad, patches))
            made = torch.einsum("btgo,btgi->bgoi", *grouped)
            gradients["weight"] = Dense(made.reshape(len(grad), *layer.weight.shape))
    if "bias" in io.wanted:
        gradients["bias"] = Dense(widen(grad).sum(1))
    return gradients


def _patches(layer: nn.Conv1d | nn.Conv2d, given: Tensor) -> Tensor:
    """[B, T, I * kernel] input under the kernel at every output pixel."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        # torch keeps the explicit padding of these modes here, last dimension first.
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        given = F.pad(given, layer._reversed_padding_repeated_twice, mode=mode)  # pyright: ignore[reportPrivateUsage]
        padding: tuple[int, ...] = (0,) * len(layer.kernel_size)
    else:
        padding = layer.padding
    flat = () if given.dim() == 4 else (1,)
    if flat:
        given = given.unsqueeze(2)
    return F.unfold(
        given,
        kernel_size=(*flat, *layer.kernel_size),
        dilation=(*flat, *layer.dilation),
        padding=(*(0 for _ in flat), *padding),
        stride=(*flat, *layer.stride),
    ).mT
