"""What a layer must be given to be called again just as it was: its random draws, and the types that autocast chose."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


class Moment:
    """State outside of a layer at the moment it is called.

    Args:
        device: on which the layer computes.
    """

    def __init__(self, device: torch.device):
        self.kind = device.type
        self.devices = [] if self.kind == "cpu" else [device]
        self.random = self._random()
        self.autocast = torch.is_autocast_enabled(self.kind)
        self.type = torch.get_autocast_dtype(self.kind)
        self.drew = False
        """Whether the call drew random numbers; known after it."""

    def _random(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.devices)]

    def over(self) -> None:
        """The call is over."""
        self.drew = any(not torch.equal(then, now) for then, now in zip(self.random, self._random(), strict=True))

    @contextmanager
    def again(self) -> Generator[None]:
        """Inside, a call draws the same numbers and computes in the same types; outside nothing has been drawn."""
        with ExitStack() as stack:
            if self.autocast:
                stack.enter_context(torch.autocast(self.kind, dtype=self.type))
            if self.drew:
                stack.enter_context(torch.random.fork_rng(self.devices))
                torch.set_rng_state(self.random[0])
                for device, state in zip(self.devices, self.random[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            yield


def tensors_in(output: object) -> list[Tensor]:
    """Every tensor of a layer's output, also in nested tuples, lists, mappings and outputs of Transformers."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
