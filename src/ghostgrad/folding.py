"""Folds: rows' gradients kept in few numbers, until the directions that they are to be multiplied with are known.

A fold is a sketch (`ghostgrad.sketch`) as wide as the memory allows: the gradient itself where that fits, else a random
projection of it, whose inner products are unbiased. The memory is bounded by `NUMBERS`, whatever the model's size.

Parameters of one shape lie side by side in a fold and are worked on at once: an adapter has hundreds of small ones, of
which each would cost more in calls than in numbers.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ghostgrad.forms import CHUNK, Dense, matrix_shape, widen
from ghostgrad.observers import Sketches
from ghostgrad.sketch import Sketcher, SketchOptions, sides

NUMBERS = 1 << 24
"""Of all rows kept at once: 64 MiB in float32."""

SIZES = [1 << power for power in range(30, 5, -1)]
"""Numbers per parameter that are tried, from all to the fewest."""


@dataclass(frozen=True)
class Block:
    """Parameters of one shape on one device, with their places in a fold."""

    names: list[str]
    device: torch.device
    start: int
    width: int
    """Numbers of each."""

    def of(self, folds: Tensor) -> Tensor:
        """[..., parameters, width]: the block's part of folds [..., K], a view."""
        return folds[..., self.start : self.start + len(self.names) * self.width].unflatten(-1, (-1, self.width))


@dataclass(frozen=True)
class Part:
    """Some parameters of a block."""

    block: Block
    chosen: slice | list[int]

    @property
    def names(self) -> list[str]:
        """In the order in which `Folding.enter` takes them."""
        names = self.block.names
        return names[self.chosen] if isinstance(self.chosen, slice) else [names[place] for place in self.chosen]


class Folding:
    """How the gradients of some parameters are folded.

    Args:
        parameters: name to parameter.
        rows: how many are kept at once.
        numbers: all that may be kept at once. Never fewer than 64 of a parameter are.

    Attributes:
        names: of the parameters, in the order of their places.
        size: numbers per row, K.
        exact: whether each fold is the gradient itself.
    """

    def __init__(self, parameters: Mapping[str, Tensor], rows: int, numbers: int = NUMBERS):
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        matrices = [matrix_shape(shape) for shape in shapes.values()]
        options = [SketchOptions(size, 1, ("*",), True, "rademacher", "even", 42, torch.float32) for size in SIZES]
        fitting = (one for one in options if sum(math.prod(sides(m, one)) for m in matrices) * rows <= numbers)
        self.sketcher = Sketcher(shapes, next(fitting, options[-1]), frozenset())
        alike: dict[tuple[tuple[int, ...], torch.device], list[str]] = {}
        for name in self.sketcher:
            alike.setdefault((shapes[name], parameters[name].device), []).append(name)
        self.size, self.blocks = 0, list[Block]()
        for (_, device), names in alike.items():
            self.blocks.append(Block(names, device, self.size, self.sketcher.width(names[0])))
            self.size += len(names) * self.blocks[-1].width
        self.names = [name for block in self.blocks for name in block.names]
        self.exact = self.size == sum(map(math.prod, matrices))
        some = next(iter(parameters.values()))
        self.device, self.dtype = some.device, widen(some[:0].detach()).dtype

    def observer(self) -> Sketches:
        """Folds the rows of a micro-batch."""
        return Sketches(self.sketcher)

    def rows(self, observed: Sketches, count: int) -> Tensor:
        """[count, K] of an observed micro-batch; 0 for parameters that were not seen."""
        found: list[Tensor] = []
        for block in self.blocks:
            unseen = torch.zeros(count, block.width, dtype=self.dtype, device=self.device)
            found += [observed.values.get(name, unseen).to(unseen) for name in block.names]
        return torch.cat(found, 1)

    def parts(self, names: Collection[str]) -> Iterator[Part]:
        """These parameters block by block, at most `CHUNK` numbers at once, or one parameter."""
        wanted = set(names)
        for block in self.blocks:
            places = [place for place, name in enumerate(block.names) if name in wanted]
            together = max(1, CHUNK // math.prod(self.sketcher.shapes[block.names[0]]))
            for first in range(0, len(places), together):
                some = places[first : first + together]
                consecutive = some[-1] - some[0] == len(some) - 1
                yield Part(block, slice(some[0], some[-1] + 1) if consecutive else some)

    def enter(self, into: Tensor, part: Part, values: Tensor) -> None:
        """Writes the folds of `values`, one tensor per parameter of the part, to their places in `into` [K]."""
        block = part.block
        projection = self.sketcher.together(block.names, block.device)
        chosen = projection if _all(part) else projection.chosen(part.chosen)
        part.block.of(into)[part.chosen] = Dense(widen(values)).sketch(chosen).to(into)

    def zeros(self, *leading: int) -> Tensor:
        """[*leading, K] folds of nothing."""
        return torch.zeros(*leading, self.size, dtype=self.dtype, device=self.device)

    def products(self, rows: Tensor, directions: Tensor) -> Tensor:
        """[N, P] float64 on the host: rows [N, K] times a direction [K], or each times its own [N, K], parameter by
        parameter."""
        parts = [torch.linalg.vecdot(block.of(rows), block.of(directions)) for block in self.blocks]
        return torch.cat(parts, 1).double().cpu()

    def mixed(self, shares: Tensor, directions: Tensor) -> Tensor:
        """[S, K]: for each of S, directions [D, K] times its share of each and of every parameter, [S, D, P]."""
        shares = shares.to(directions.dtype).to(directions.device)
        found, start = directions.new_empty(len(shares), self.size), 0
        for block in self.blocks:
            own = shares[..., start : (start := start + len(block.names))]
            block.of(found)[:] = torch.einsum("sdp,dpw->spw", own, block.of(directions))
        return found


def _all(part: Part) -> bool:
    return part.chosen == slice(0, len(part.block.names))
