"""Groups of stored rows that point the same way: spherical k-means, streaming over the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ghostgrad.influence import lengths
from ghostgrad.reading import parts
from ghostgrad.store import GradientStore

PASSES = 100
"""Most readings of the store; a few dozen are usual."""

NOWHERE = -1
"""Label of a row that is all 0 and points nowhere."""


@dataclass(frozen=True)
class Clusters:
    """Which group each row is in, in the order of the store's rows.

    Attributes:
        labels: [n] index of the row's centre, NOWHERE for rows that are all 0.
        cosines: [n] of the row with its centre.
        centres: [k, size] unit vectors, each the direction of the sum of its rows' directions.
    """

    labels: Tensor
    cosines: Tensor
    centres: Tensor


def spherical_clusters(
    store: GradientStore, centres: Tensor, tell: Callable[[int, int], None] | None = None
) -> Clusters:
    """Every row with the centre it is nearest to by cosine, centres and rows in turn until no row moves.

    Each pass reads the store once and raises the sum of the cosines, so that it ends (Dhillon and Modha 2001, Machine
    Learning 42, spherical k-means). Memory is two [k, size] matrices, one block per thread and twelve bytes per row.

    Args:
        centres: [k, size] directions to start from; one that loses all its rows stays where it was.
        tell: called after each pass, with its number from 1 and how many rows moved.

    Raises:
        ValueError: centres of another size.
    """
    if centres.dim() != 2 or centres.shape[1] != store.size:
        raise ValueError(f"centres have shape {list(centres.shape)}; expected [k, {store.size}]")
    centres = torch.nn.functional.normalize(centres.float(), dim=1)
    labels, cosines = torch.full((len(store),), NOWHERE), torch.zeros(len(store))
    for number in range(1, PASSES + 1):
        before = labels
        labels, cosines, sums = _assigned(store, centres)
        if tell is not None:
            tell(number, int((labels != before).sum()))
        if torch.equal(labels, before):
            break
        used = sums.any(1)
        centres[used] = torch.nn.functional.normalize(sums[used], dim=1)
    return Clusters(labels, cosines, centres)


def _assigned(store: GradientStore, centres: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(labels [n], cosines [n], sums [k, size] of the directions of each centre's rows)."""

    def assigned(blocks: Iterator[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        labels: list[Tensor] = []
        cosines: list[Tensor] = []
        sums = torch.zeros_like(centres)
        for rows in blocks:
            own = lengths(rows)
            directions = rows.div_(own.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1))
            best, nearest = (directions @ centres.mT).max(1)
            sums.index_add_(0, nearest, directions)
            nearest[own == 0] = NOWHERE
            labels.append(nearest)
            cosines.append(best)
        return torch.cat(labels), torch.cat(cosines), sums

    labels, cosines = torch.empty(len(store), dtype=torch.long), torch.empty(len(store))
    sums = torch.zeros_like(centres)
    for first, (own, to_centre, added) in parts(store, assigned):
        labels[first : first + len(own)], cosines[first : first + len(own)] = own, to_centre
        sums += added
    return labels, cosines, sums
