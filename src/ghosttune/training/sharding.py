"""The frozen base shared out over the processes: each keeps a part of every block, and all gather the one they compute.

Adapters, embeddings and the output layer stay whole in every process, so that their gradients, the optimizer, the
instruments and the checkpoints are those of processes that share rows alone (DDP). Zhao et al. 2023 (arXiv 2304.11277),
by PyTorch's `fully_shard`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ghosttune.training.processes import meet, processes, rank

if TYPE_CHECKING:
    import torch
    from torch import nn

Batch = TypeVar("Batch")


def share_out(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Leaves to this process its part of what is frozen in `blocks`, on `device`; nothing with one process.

    Every forward and backward is then one of all processes together. Costs two gatherings of each block per step, and
    in memory the base's blocks divided by the number of processes, and one or two of them whole.
    """
    if processes() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    meet(device.type == "cpu")
    mesh = init_device_mesh(device.type, (processes(),))
    for block in blocks:
        trained = {parameter for parameter in block.parameters() if parameter.requires_grad}
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    frozen = [name for name, parameter in model.named_parameters() if hasattr(parameter, "device_mesh")]
    ddp: Any = model
    ddp._ddp_params_and_buffers_to_ignore = frozen  # DDP's own name for what it neither sends nor reduces


def is_shared_out(model: nn.Module) -> bool:
    """Whether `share_out` left this process parts of it."""
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


def own_share(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """This process's batches and True, as many in every process.

    Who has fewer gets the first of all again, and False: it does not count, but a base that is shared out is computed
    by all processes together, or not at all.
    """
    first, count = None, 0
    for batch in batches:
        first = batch if first is None else first
        if count % processes() == rank():
            yield batch, True
        count += 1
    if first is not None and 0 < count % processes() <= rank():
        yield first, False
