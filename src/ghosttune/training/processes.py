"""Several processes that train one run: who this one is, and what all of them must agree on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

RANK, PROCESSES = "RANK", "WORLD_SIZE"
"""Environment variables by which torch.distributed's launchers tell a process its place."""


def rank() -> int:
    """0 in the only process, or in the one that writes the run."""
    return int(os.environ.get(RANK, "0"))


def processes() -> int:
    return int(os.environ.get(PROCESSES, "1"))


def meet(on_cpu: bool = False) -> None:
    """Waits until every process is here; nothing with one process. `on_cpu`: they exchange tensors of the host only."""
    if processes() == 1:
        return
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=on_cpu or not torch.cuda.is_available())
    dist.barrier()


def agreed(value: Any) -> Any:
    """Process 0's value, in every process."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def total(tensor: Tensor) -> Tensor:
    """The sum over processes, in place."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def any_of(flag: bool, device: Any) -> bool:
    """Whether the flag is set in any process."""
    import torch
    import torch.distributed as dist

    return bool(total(torch.tensor(float(flag), device=device))) if dist.is_initialized() else flag


def gathered(value: Any) -> list[Any]:
    """Every process's value, in the order of their ranks."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
