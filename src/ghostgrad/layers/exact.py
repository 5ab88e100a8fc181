"""A rule for any layer: the layer is called again, and autograd differentiates that call once per example.

Exact and general, at the price of one more forward pass of the layer, one backward pass of it per example, and
gradients of full size, [B, *P]. A loop rather than `torch.func.vmap`, which layers with autograd functions of their own
and with operations in place refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ghostgrad.forms import Dense, ExampleGradient
from ghostgrad.replay import tensors_in
from ghostgrad.rules import Entry, LayerIO, own_parameters


def exact(module: nn.Module, io: LayerIO) -> dict[str, ExampleGradient]:
    """Every wanted parameter of `module` itself; the module must not mix the examples of its input."""
    # The parameters themselves and not stand-ins for them: an LSTM, say, holds its own in a list of its own.
    parameters = {name: p for name, p in own_parameters(module) if name in io.wanted}
    found = {name: p.new_zeros(io.layout.examples, *p.shape) for name, p in parameters.items()}
    wanted = list(parameters.values())
    with torch.enable_grad(), _differentiable(wanted):
        for row, output, grad_output in _calls(module, io):
            if not output.requires_grad:
                continue  # a call that left its parameters out, as a dropout of whole modules does
            gradients = torch.autograd.grad(output, wanted, grad_output, retain_graph=True, allow_unused=True)
            for own, gradient in zip(found.values(), gradients, strict=True):
                if gradient is not None:  # pyright: ignore[reportUnnecessaryComparison] (which torch's types deny)
                    own[row] = gradient
    return {name: Dense(gradient) for name, gradient in found.items()}


@contextmanager
def _differentiable(parameters: Sequence[Tensor]) -> Generator[None]:
    """Inside, parameters require a gradient, and nobody hears of it when one is made."""
    with ExitStack() as stack:
        for parameter in parameters:
            stack.callback(setattr, parameter, "_backward_hooks", parameter._backward_hooks)
            parameter._backward_hooks = None
            if not parameter.requires_grad:
                parameter.requires_grad_()
                stack.callback(parameter.requires_grad_, False)
        yield


def _calls(module: nn.Module, io: LayerIO) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(example, output of a call that it takes part in, that output's gradient of this example alone)."""

    def call(*args: Any) -> Tensor:
        args, kwargs = tree_map_only(Tensor, Tensor.detach, (args, dict(io.kwargs)))
        with io.moment.again():
            return tensors_in(module(*args, **kwargs))[io.place]

    if _is_by_row(io):
        (values,) = io.args
        for row in range(io.layout.examples):
            yield row, call(values[row : row + 1]), io.grad_output[row : row + 1]
        return
    yield from _masked(io, call)


def _is_by_row(io: LayerIO) -> bool:
    """Whether the call can be made for one example alone, which costs as much for all of them as one call.

    Only where nothing else could be meant: one tensor and no other argument, one row per example, nothing drawn at
    random in the call.
    """
    rows = io.layout.examples
    return (
        io.layout.index is None
        and len(io.args) == 1
        and not io.kwargs
        and isinstance(io.args[0], Tensor)
        and io.args[0].shape[:1] == io.grad_output.shape[:1] == (rows,)
        and not io.moment.drew
    )


def _masked(io: LayerIO, call: Callable[..., Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """One call of all rows as it was, whose output's gradient is that of one example's positions at a time."""
    axes = 1 if io.layout.index is None else io.layout.index.dim()
    shape = io.grad_output.shape
    owner = io.layout.positions(shape[:axes]).owner(io.grad_output)
    owner = owner.reshape(*shape[:axes], *(1 for _ in shape[axes:]))
    output = call(*io.args)
    if output.shape != shape:  # one row that stood for all examples
        output = output.expand(shape)
    for row in range(io.layout.examples):
        yield row, output, torch.where(owner == row, io.grad_output, 0)


ENTRY = Entry(exact, lambda wanted: "arguments", again=True)
