"""Whether rows packed into one sequence are to a model what they are alone: asked of the model itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ghosttune.data.encoding import Collator, Features
from ghosttune.data.packing import PackingCollator
from ghosttune.errors import GhosttuneError
from ghosttune.models.sizing import width_of
from ghosttune.training.guide import evaluating

ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""How far a row's nats may differ, relative to them, between two ways to lay out a batch: sums in another order."""

LOOKED_AT = 50
"""Micro-batches whose padding stands for that of the run."""

WIDTHS_REACHED = {"sdpa": 6.0, "flex_attention": 6.0}
"""Attention -> length of a sequence, in widths of the model, at which it costs as much as the rest of a layer: 4 T d
multiplications of a position beside 24 d^2 in projections and mlp."""

KEEPING_WEIGHTS = 0.25
"""The same for attention that keeps its weights for the backward pass: 2 T numbers for each head of a position, beside
some 16 d of all else; a head is d / 32 wide in large models."""


def packing_of(collator: Collator, model: Any) -> PackingCollator:
    """Packs rows as is cheapest for the model's attention."""
    attention = str(model.config._attn_implementation)
    if "flash" in attention:
        return PackingCollator(collator.pad_token_id, None)
    return PackingCollator(collator.pad_token_id, WIDTHS_REACHED.get(attention, KEEPING_WEIGHTS) * width_of(model))


def padding_shares(packing: PackingCollator, lengths: Sequence[int], batches: Iterable[list[int]]) -> dict[str, float]:
    """Share of the positions of some micro-batches that is padding: with a sequence for each row, and packed."""
    tokens, padded, packed = 0, 0, 0
    for batch in islice(batches, LOOKED_AT):
        own = [lengths[place] for place in batch]
        sequences = packing.sequences(own)
        tokens += sum(own)
        padded += len(own) * max(own)
        packed += len(sequences) * max(sum(own[place] for place in sequence) for sequence in sequences)
    return {"padded": round(1 - tokens / padded, 3), "packed": round(1 - tokens / packed, 3)}


def why_not_packed(task: Any, model: Any, collator: Collator, rows: Sequence[Features]) -> str | None:
    """Why these rows (two, or one for both) cannot be packed for this model; None where they can.

    Two proofs, in a pass of two sequences of two rows each. That no row sees another: the gradient of a row's loss by
    what the model reads at another row's positions is 0, every bit of it, whatever the weights. That a row is read as
    it is alone: it has the same loss, up to rounding. Leaves the model as it was.
    """
    first, last = rows[0], rows[-1]
    packing = packing_of(collator, model)
    sequences = [[0, 1, 2, 3]] if packing.reach is None else [[0, 1], [2, 3]]
    device = next(model.parameters()).device
    packed = _on(device, packing.laid_out([first, last, first, last], sequences))
    try:
        with evaluating(model), torch.enable_grad():
            losses, reading = _losses_and_reading(task, model, packed)
            seen = _seen_by_the_last(losses, reading, packed["row_of_position"])
        with evaluating(model), torch.no_grad():
            alone = [task.example_loss(model, _on(device, collator([row]))) for row in (first, last)]
    except (GhosttuneError, MemoryError):
        raise
    except Exception as error:  # the code of a model that knows nothing of positions
        if "out of memory" in str(error):
            raise
        return f"its code fails on them with {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if seen is None:
        return "what a row sees cannot be told from its gradient"
    if seen:
        return "a row would see those before it in its sequence"
    expected = torch.cat([*alone, *alone]).double()
    off = ((losses.detach().double() - expected).abs() / expected.abs().clamp(min=1e-6)).max()
    if not off <= ROUNDING[_dtype(model)]:
        return f"a row behind another has another loss than alone, {float(off):.1e} of it off"
    return None


def _losses_and_reading(task: Any, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """([B] losses, [R, T, d] the embedded tokens, to be differentiated by)."""
    read: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        read.append(output if output.requires_grad else output.requires_grad_())

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        return task.example_loss(model, batch), read[0]
    finally:
        handle.remove()


def _seen_by_the_last(losses: Tensor, reading: Tensor, row_of_position: Tensor) -> bool | None:
    """Whether the last row of any sequence sees another one; None where the gradient does not show what it sees."""
    last = _last_rows(row_of_position)
    (gradient,) = torch.autograd.grad(losses[last].sum(), reading, allow_unused=True)
    if gradient is None or gradient.shape[:2] != row_of_position.shape:
        return None
    own = torch.isin(row_of_position, last)
    if not gradient[own].any():
        return None
    return bool(gradient[~own].any())


def _last_rows(row_of_position: Tensor) -> Tensor:
    """[R] the row that stands last in each sequence."""
    ends = (row_of_position >= 0).sum(1) - 1
    return row_of_position.gather(1, ends[:, None])[:, 0]


def _dtype(model: Any) -> torch.dtype:
    """The coarsest that the model computes in."""
    return max((p.dtype for p in model.parameters() if p.is_floating_point()), key=lambda dtype: torch.finfo(dtype).eps)


def _on(device: torch.device, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
