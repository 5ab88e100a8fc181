"""Folds: rows' gradients kept in few numbers, until the directions that they are to be multiplied with are known.

A fold is a sketch (`ghostgrad.sketch`) as wide as the memory allows: the gradient itself where that fits, else a random
projection of it, whose inner products are unbiased. The memory is bounded by `NUMBERS`, whatever the model's size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ghostgrad.forms import Dense, matrix_shape, widen
from ghostgrad.observers import Sketches
from ghostgrad.sketch import Sketcher, SketchOptions, sides

NUMBERS = 1 << 24
"""Of all rows kept at once: 64 MiB in float32."""

SIZES = [1 << power for power in range(30, 5, -1)]
"""Numbers per parameter that are tried, from all to the fewest."""


class Folding:
    """How the gradients of some parameters are folded.

    Args:
        parameters: name to parameter.
        rows: how many are kept at once.
        numbers: all that may be kept at once. Never fewer than 64 of a parameter are.

    Attributes:
        size: numbers per row, K.
        exact: whether each fold is the gradient itself.
    """

    def __init__(self, parameters: Mapping[str, Tensor], rows: int, numbers: int = NUMBERS):
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        matrices = [matrix_shape(shape) for shape in shapes.values()]
        options = [SketchOptions(size, 1, ("*",), True, "rademacher", "even", 42, torch.float32) for size in SIZES]
        fitting = (one for one in options if sum(math.prod(sides(m, one)) for m in matrices) * rows <= numbers)
        self.sketcher = Sketcher(shapes, next(fitting, options[-1]), frozenset())
        self.names = list(self.sketcher)
        ends, self.places = 0, dict[str, slice]()
        for name in self.names:
            self.places[name] = slice(ends, ends := ends + self.sketcher.width(name))
        self.size = ends
        self.exact = self.size == sum(map(math.prod, matrices))
        some = next(iter(parameters.values()))
        self.device, self.dtype = some.device, widen(some[:0].detach()).dtype

    def observer(self) -> Sketches:
        """Folds the rows of a micro-batch."""
        return Sketches(self.sketcher)

    def rows(self, observed: Sketches, count: int) -> Tensor:
        """[count, K] of an observed micro-batch; 0 for parameters that were not seen."""
        found = torch.zeros(count, self.size, dtype=self.dtype, device=self.device)
        for name, values in observed.values.items():
            found[:, self.places[name]] = values
        return found

    def direction(self, tensors: Iterable[tuple[str, Tensor]], into: Tensor | None = None) -> Tensor:
        """[K]: the fold of one tensor per named parameter, in the parameter's shape; others stay as `into` has them,
        by default 0. Asks for one tensor at a time."""
        if into is None:
            into = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for name, values in tensors:
            sketch = Dense(widen(values).unsqueeze(0)).sketch(self.sketcher.on(name, self.device))
            into[self.places[name]] = sketch.squeeze(0)
        return into

    def products(self, rows: Tensor, directions: Tensor) -> Tensor:
        """[N, P, D] float64 on the host: rows [N, K] times directions [K, D], parameter by parameter."""
        parts = [rows[:, place] @ directions[place] for place in self.places.values()]
        return torch.stack(parts, 1).double().cpu()
