"""A rule for any layer: `torch.func` differentiates the layer itself, vectorised over examples.

Exact and general, at the price of one more forward and backward of the layer and of gradients of full size, [B, *P].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ghostgrad.forms import Dense, ExampleGradient
from ghostgrad.rules import Entry, LayerIO, UnsupportedLayer, own_parameters


def exact(module: nn.Module, io: LayerIO) -> dict[str, ExampleGradient]:
    """Every wanted parameter of `module` itself; the module must treat the rows of its input separately."""
    if io.layout.index is not None:
        raise UnsupportedLayer('unsupported="exact" needs one row per example, not packed or selected positions')
    parameters = {name: p.detach() for name, p in own_parameters(module) if name in io.wanted}
    examples = io.layout.examples
    values = [*io.args, *io.kwargs.values()]
    rowwise = [isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == examples for value in values]

    def gradient(grad_output: Tensor, *rows: Tensor) -> dict[str, Tensor]:
        given = iter(rows)
        filled: list[Any] = [next(given)[None] if own else v for own, v in zip(rowwise, values, strict=True)]
        args, kwargs = filled[: len(io.args)], dict(zip(io.kwargs, filled[len(io.args) :], strict=True))

        def output(parameters: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(module, parameters, tuple(args), kwargs)

        return torch.func.vjp(output, parameters)[1](grad_output[None])[0]

    rows = [value for own, value in zip(rowwise, values, strict=True) if own]
    with torch.enable_grad():
        gradients = torch.func.vmap(gradient)(io.grad_output, *rows)
    return {name: Dense(value.detach()) for name, value in gradients.items()}


ENTRY = Entry(exact, lambda wanted: "arguments")
