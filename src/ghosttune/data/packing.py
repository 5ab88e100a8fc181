"""Several rows in one sequence, none of which sees the others: the same batch with less padding.

Transformers tells such rows apart by their positions, which begin again at 0, where no attention mask is given: it then
masks what lies outside a token's own row, and FlashAttention gets the rows' lengths.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ghosttune.data.encoding import IGNORED, Features, padded

if TYPE_CHECKING:
    from torch import Tensor

NOBODY = -1
"""The row of a position that is padding."""


def dealt(lengths: Sequence[int], count: int) -> list[list[int]]:
    """The places of the rows of each of `count` sequences: the longest row first, each to the shortest sequence.

    The longest sequence is at most 4/3 of what is possible (Graham 1969, longest processing time first).
    """
    sequences: list[list[int]] = [[] for _ in range(count)]
    shortest = [(0, n) for n in range(count)]
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        length, n = heapq.heappop(shortest)
        sequences[n].append(place)
        heapq.heappush(shortest, (length + lengths[place], n))
    return sequences


def cheapest(lengths: Sequence[int], reach: float) -> list[list[int]]:
    """The places of the rows of each sequence, in as many sequences as cost least; one for each row costs no less.

    A position costs what layers do with it alone, and its attention to the others of its sequence, which is as much
    where the sequence is `reach` long.
    """

    def cost(sequences: list[list[int]]) -> float:
        longest = max(sum(lengths[place] for place in sequence) for sequence in sequences)
        return len(sequences) * longest * (longest + reach)

    return min((dealt(lengths, count) for count in range(1, len(lengths) + 1)), key=cost)


class PackingCollator:
    """Batches of features, several rows in one sequence.

    Args:
        pad_token_id: any token; what is padding is known by its position.
        reach: length of a sequence at which attention costs as much as all else; None for attention that is told the
            rows' lengths and looks at nothing else (FlashAttention; Transformers tells it for one sequence only): all
            rows are in one then.
    """

    def __init__(self, pad_token_id: int, reach: float | None):
        self.pad_token_id, self.reach = pad_token_id, reach

    def __call__(self, rows: Sequence[Features]) -> dict[str, Tensor]:
        """What `laid_out` gives, in as many sequences as cost least."""
        return self.laid_out(rows, self.sequences([len(row) for row in rows]))

    def sequences(self, lengths: Sequence[int]) -> list[list[int]]:
        """The places of the rows of each sequence."""
        return dealt(lengths, 1) if self.reach is None else cheapest(lengths, self.reach)

    def laid_out(self, rows: Sequence[Features], sequences: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """input_ids, position_ids, labels and row_of_position (each [R, T]), and example_index [B].

        `sequences` are places in `rows`, and row_of_position is the place of each position's row, NOBODY for padding.
        """
        import torch

        columns = {
            "input_ids": ([row.input_ids for row in rows], self.pad_token_id),
            "position_ids": ([np.arange(len(row)) for row in rows], 0),
            "labels": ([np.where(row.trained, row.input_ids, IGNORED) for row in rows], IGNORED),
            "row_of_position": ([np.full(len(row), place) for place, row in enumerate(rows)], NOBODY),
        }
        batch = {
            name: padded([np.concatenate([parts[place] for place in sequence]) for sequence in sequences], fill)
            for name, (parts, fill) in columns.items()
        }
        batch["example_index"] = np.array([row.index for row in rows], np.int64)
        return {name: torch.from_numpy(array) for name, array in batch.items()}
