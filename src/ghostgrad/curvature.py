"""Queries times a damped inverse of the curvature that the stored rows show, as influence functions ask for.

The curvature is F, the mean outer product of the rows (the empirical Fisher matrix), block by parameter. Fewer rows
than numbers say nothing of most directions of a block, and of the others mostly that each row has its own, so that the
inverse would take from every row what only it has. So the block of a matrix is taken to be diagonal in a basis of outer
products u vᵀ, u an eigenvector of the mean G Gᵀ over the rows' gradients G and v one of the mean Gᵀ G, with the rows'
own mean squares along them as eigenvalues: EK-FAC's (George et al. 2018, arXiv 1806.03884) on Shampoo's factors (Gupta
et al. 2018, arXiv 1802.09568). For a vector this is F itself.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ghostgrad.store import GradientStore

BLOCK_NUMBERS = 1 << 20
"""Numbers of the rows that are read at once: enough for their products to cost more than the calls."""

LONGEST_SIDE = 4096
"""A longer side of a parameter keeps its own coordinates: the eigenvectors of 4096 take 128 MiB and half a minute."""


def preconditioned(
    store: GradientStore, queries: Tensor, damping: float, shapes: Sequence[tuple[int, int]] | None = None
) -> Tensor:
    """`queries` [q, size] times (F + λ)⁻¹, F as above, λ `damping` times the mean eigenvalue of F, over all parameters.

    The inner product of the result with a row is the damped influence of the row (Koh and Liang 2017, arXiv
    1703.04730). Finite for any number of rows because λ > 0. One λ for all parameters: a parameter that the rows hardly
    bend has hardly a say, where a λ of its own would make its noise as loud as any other's signal.

    Args:
        shapes: (outer, inner) of the parameters that a row consists of, one behind the other, each row by row; one
            vector when not given.

    Reads the store twice, at O I (O + I) products per row and parameter; memory is O² + I² + O I in float64.

    Raises:
        ValueError: damping that is not above 0, shapes that do not cover a row, or rows that are all 0.
    """
    if not damping > 0:
        raise ValueError(f"damping is {damping}; it must be above 0, since rows show no curvature in most directions")
    blocks = [_Block(shape) for shape in shapes or [(1, store.size)]]
    if sum(block.numbers for block in blocks) != store.size:
        raise ValueError(f"the shapes {shapes} do not cover rows of {store.size} numbers")
    for rows in _rows(store):
        for block, own in zip(blocks, _parts(rows, blocks), strict=True):
            block.see(own)
    for block in blocks:
        block.turn()
    for rows in _rows(store):
        for block, own in zip(blocks, _parts(rows, blocks), strict=True):
            block.weigh(own)
    trace = sum(float(block.squares.sum()) for block in blocks) / len(store)
    if trace == 0:
        raise ValueError(f"{store.folder} holds no row other than 0")
    found = [
        block.solved(own.double(), damping * trace / store.size, len(store))
        for block, own in zip(blocks, _parts(queries.detach().cpu(), blocks), strict=True)
    ]
    return torch.cat([own.flatten(1) for own in found], 1).to(queries.dtype)


class _Block:
    """The curvature of one parameter [O, I]."""

    def __init__(self, shape: tuple[int, int]):
        self.shape, self.numbers = shape, shape[0] * shape[1]
        self.sides = [_Side(length) for length in shape]
        self.squares = torch.zeros(shape, dtype=torch.float64)

    def see(self, rows: Tensor) -> None:
        outer, inner = self.sides
        outer.add(rows.transpose(0, 1).flatten(1).mT)
        inner.add(rows.flatten(0, 1))

    def turn(self) -> None:
        """The basis, once all rows are seen."""
        for side in self.sides:
            side.turn()

    def weigh(self, rows: Tensor) -> None:
        self.squares += self._into(rows).square().sum(0, dtype=torch.float64)

    def solved(self, queries: Tensor, added: float, rows: int) -> Tensor:
        outer, inner = self.sides
        turned = self._into(queries) / (self.squares / rows + added)
        return inner.times(outer.times(turned.mT, back=True).mT, back=True)

    def _into(self, rows: Tensor) -> Tensor:
        """[n, O, I] in the basis."""
        outer, inner = self.sides
        return inner.times(outer.times(rows.mT).mT)


class _Side:
    """The eigenvectors of one side's mean outer product; its own coordinates where there is nothing to turn."""

    def __init__(self, length: int):
        turns = 1 < length <= LONGEST_SIDE
        self.products = torch.zeros(length, length, dtype=torch.float64) if turns else None
        self.basis: Tensor | None = None

    def add(self, columns: Tensor) -> None:
        if self.products is not None:
            self.products += columns.mT @ columns

    def turn(self) -> None:
        if self.products is not None:
            self.basis, self.products = torch.linalg.eigh(self.products).eigenvectors, None

    def times(self, values: Tensor, back: bool = False) -> Tensor:
        """[..., length] in the basis, or back out of it."""
        if self.basis is None:
            return values
        basis = self.basis.to(values.dtype)
        return values @ (basis.mT if back else basis)


def _rows(store: GradientStore) -> Iterator[Tensor]:
    for _, rows in store.blocks(max(1, BLOCK_NUMBERS // store.size)):
        yield rows.float()


def _parts(rows: Tensor, blocks: Sequence[_Block]) -> Iterator[Tensor]:
    """[n, O, I] of each parameter."""
    parts = rows.split([block.numbers for block in blocks], 1)
    return (part.unflatten(1, block.shape) for part, block in zip(parts, blocks, strict=True))
