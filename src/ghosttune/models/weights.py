"""Weights on their way to the disk, and the weights that a loaded model has."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def errors_of_the_disk() -> Iterator[None]:
    """safetensors reports a full disk in words only; the caller wants the error the system gave."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def digest(model: Any) -> str:
    """sha256 of every weight and its name, base and adapter, wherever they came from: a second per GB or two."""
    import torch

    said = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        said.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        said.update(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return said.hexdigest()
