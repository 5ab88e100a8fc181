"""The untouched base below a model that trains, for what is measured against it while training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def as_reference(model: Any) -> Iterator[None]:
    """The untouched base in place of the model, without dropout and gradients; afterwards all is as it was.

    No second copy, but for methods on the model's own parameters, whose base is loaded and held inside.
    """
    import torch

    trains = {parameter: parameter.requires_grad for parameter in model.parameters()}
    drops_out = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            yield
    finally:
        for parameter, flag in trains.items():  # PEFT lets all of an adapter train that it switches on again
            parameter.requires_grad_(flag)
        for module in drops_out:
            module.training = True
