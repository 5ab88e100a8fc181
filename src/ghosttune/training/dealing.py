"""Sketches of rows that several processes share.

Batches are formed as one process forms them and then dealt out, so that a row's sketch does not depend on how many
processes there are. Process 0 has every N-th batch itself and is sent the others one at a time: a process that is ahead
waits with one batch in its hands. An error in any of them reaches process 0 in place of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

import torch
import torch.distributed as dist
from torch import Tensor

from ghosttune.data.encoding import RowFeatures
from ghosttune.errors import GhosttuneError
from ghosttune.training.processes import processes, rank
from ghosttune.training.sketching import Batch, RowGradients


def dealt_sketches(
    gradients: RowGradients, rows: Sequence[RowFeatures], wanted: AbstractSet[str] | None = None
) -> Iterator[tuple[list[str], Tensor]]:
    """What `RowGradients.sketches` gives and in its order, in process 0, which asks for the other processes' batches.

    Of some wanted rows: the batches that hold any of them, as a whole, because beside other rows, or padded to another
    length, a row's gradient is rounded in another way. GhosttuneError when another process failed or ended.
    """
    batches = _batches(gradients, rows, wanted)
    own = gradients.batch_sketches(batches[:: processes()])
    for place, batch in enumerate(batches):
        other = place % processes()
        yield (list(batch), _received(gradients, len(batch), other)) if other else next(own)


def send_sketches(gradients: RowGradients, rows: Sequence[RowFeatures], wanted: AbstractSet[str] | None = None) -> None:
    """This process's batches of the same rows to process 0, or why they cannot be made."""
    try:
        for _, sketches in gradients.batch_sketches(_batches(gradients, rows, wanted)[rank() :: processes()]):
            dist.send(torch.zeros(1, dtype=torch.long, device=gradients.device), 0)
            dist.send(sketches.contiguous(), 0)
    except Exception as error:
        said = torch.tensor(list(f"{type(error).__name__}: {error}".encode()), dtype=torch.uint8)
        dist.send(torch.tensor([len(said)], device=gradients.device), 0)
        dist.send(said.to(gradients.device), 0)
        raise


def _batches(gradients: RowGradients, rows: Sequence[RowFeatures], wanted: AbstractSet[str] | None) -> list[Batch]:
    return [batch for batch in gradients.batches(rows) if wanted is None or wanted & batch.keys()]


def _received(gradients: RowGradients, rows: int, other: int) -> Tensor:
    try:
        said = torch.zeros(1, dtype=torch.long, device=gradients.device)
        dist.recv(said, other)
        if not said:
            sketcher = gradients.sketcher
            sketches = torch.empty(rows, sketcher.size, dtype=sketcher.options.dtype, device=gradients.device)
            dist.recv(sketches, other)
            return sketches
        message = torch.empty(int(said), dtype=torch.uint8, device=gradients.device)
        dist.recv(message, other)
    except RuntimeError as error:
        raise GhosttuneError(
            f"process {other} ended before its rows came; what is stored stays, index again"
        ) from error
    raise GhosttuneError(f"process {other} failed: {bytes(message.tolist()).decode()}")
