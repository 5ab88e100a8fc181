"""An identity on a layer's output whose backward hands over what the layer saw.

The tensors a rule needs are kept with `save_for_backward`, as autograd keeps its own: they share storage with what the
layer saved, a layer called twice has two of them, and activation checkpointing drops and recomputes them like the rest.
Kept as a module attribute, the second call would overwrite the first, and checkpointing would save nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Deliver = Callable[[Tensor, tuple[Tensor, ...]], None]


class Tap(torch.autograd.Function):
    """`Tap.apply(output, deliver, anchor, *kept)` is `output`; in backward it calls `deliver(grad_output, kept)`.

    `anchor` is None, or a tensor that requires a gradient and gets none: with it the output is part of the graph
    whatever else is frozen, and a backward towards the anchor alone passes all taps and makes no weight's gradient.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, deliver: Deliver, anchor: Tensor | None, *kept: Tensor) -> Tensor:
        ctx.deliver = deliver
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept)
        # Detached rather than `output` itself: a returned input becomes a view, on which the next layer's in-place
        # operation (a ReLU after a convolution) would be refused.
        return output.detach()

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_output: Tensor | None
    ) -> tuple[Any, ...]:
        kept = ctx.saved_tensors
        if grad_output is not None:
            ctx.deliver(grad_output, kept)
        return grad_output, None, None, *(None for _ in kept)


class _Rule(threading.local):
    at_work = False


_RULE = _Rule()


@contextmanager
def rule_at_work() -> Generator[None]:
    """Calls of layers inside are a rule's own, and of no concern to any tap, whichever engine's it is."""
    before, _RULE.at_work = _RULE.at_work, True
    try:
        yield
    finally:
        _RULE.at_work = before


def is_rule_at_work() -> bool:
    """True while a rule calls a layer in this thread."""
    return _RULE.at_work


def inside_backward() -> bool:
    """True while autograd runs a backward pass in this thread: a forward is then a checkpoint's recomputation."""
    return backward_number() != -1


def backward_number() -> int:
    """Autograd's number of the backward pass that runs in this thread; -1 outside of any."""
    return torch._C._current_graph_task_id()  # pyright: ignore[reportPrivateUsage]
