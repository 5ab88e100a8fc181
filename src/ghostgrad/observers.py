"""What to compute from the per-example gradients of one observed step.

An observer gets `begin(parameters)`, then `see(name, gradient)` during backward, and holds its result afterwards, on
the model's device: nothing is copied to the host before it is asked for. `whole` says that a parameter's uses must be
merged before it is seen (norms, inner products between examples); a linear observer sees each use as it comes and adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ghostgrad.forms import ExampleGradient
from ghostgrad.sketch import Sketcher


class Observer(Protocol):
    """Anything with these three can observe."""

    whole: bool

    def begin(self, parameters: Mapping[str, Tensor]) -> None:
        """A pass begins; `parameters` by name, each [*P]. What was found before is forgotten."""
        ...

    def see(self, name: str, gradient: ExampleGradient) -> None:
        """The gradient of a parameter, or of one use of it."""
        ...


class _PerParameter:
    """Results by parameter name; `total` adds them."""

    whole = False

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def begin(self, parameters: Mapping[str, Tensor]) -> None:
        self.values = {}

    def _add(self, name: str, value: Tensor) -> None:
        earlier = self.values.get(name)
        self.values[name] = value if earlier is None else earlier + value

    def total(self) -> Tensor:
        """The `values` of all parameters added up: [B], or whatever shape they have ([B, C], [B, K]).

        Raises ValueError where nothing was seen.
        """
        if not self.values:
            raise ValueError("no parameter was seen: observe a backward pass first")
        first, *others = {value.device for value in self.values.values()}
        values = [value.to(first) for value in self.values.values()] if others else list(self.values.values())
        return torch.stack(values).sum(0)


class Norms(_PerParameter):
    """`values[name]` [B] squared norms; `total()` [B] the norm of the whole gradient of each example."""

    whole = True

    def see(self, name: str, gradient: ExampleGradient) -> None:
        self._add(name, gradient.square_norm())

    def total(self) -> Tensor:
        """[B] norms (not squared)."""
        return super().total().sqrt()


class Dots(_PerParameter):
    """Inner products with a direction: `values[name]` and `total()` are [B], or [B, K] for K directions.

    Args:
        direction: parameter name to a tensor [*P]; parameters left out are not scored.
        directions: several at once, each a tensor [*P] by name; results get a last axis in their order.
    """

    def __init__(
        self,
        direction: Mapping[str, Tensor] | None = None,
        *,
        directions: Sequence[Mapping[str, Tensor]] | None = None,
    ):
        super().__init__()
        if (direction is None) == (directions is None):
            raise ValueError("give either one direction or several")
        self.directions: list[Mapping[str, Tensor]] = list(directions or [])
        if direction is not None:
            self.directions.append(direction)
        self.single = directions is None

    def begin(self, parameters: Mapping[str, Tensor]) -> None:
        """Raises ValueError for directions of unknown parameters or of another shape."""
        super().begin(parameters)
        for direction in self.directions:
            wrong = [n for n, d in direction.items() if n not in parameters or d.shape != parameters[n].shape]
            if wrong:
                raise ValueError(f"directions for parameters the engine does not have, or of another shape: {wrong}")

    def see(self, name: str, gradient: ExampleGradient) -> None:
        found = [direction.get(name) for direction in self.directions]
        if all(one is None for one in found):
            return
        if self.single:
            self._add(name, gradient.dot(self.directions[0][name]))
            return
        dots = [None if one is None else gradient.dot(one) for one in found]
        like = next(dot for dot in dots if dot is not None)
        self._add(name, torch.stack([torch.zeros_like(like) if dot is None else dot for dot in dots], 1))


class Kept(_PerParameter):
    """The gradients themselves, factored: for inner products with another batch, or to look at by hand.

    Memory: the activations and output gradients of every selected layer, until this observer is dropped.
    """

    whole = True

    def see(self, name: str, gradient: ExampleGradient) -> None:
        self.values[name] = gradient


class Gram(_PerParameter):
    """Inner products between examples: `total()` [B, B], or [B, C] with the examples another observer kept."""

    whole = True

    def __init__(self, others: Kept | None = None):
        super().__init__()
        self.others = others

    def see(self, name: str, gradient: ExampleGradient) -> None:
        other = gradient if self.others is None else self.others.values.get(name)
        if other is not None:
            self._add(name, gradient.gram(other))


class WeightedSum(_PerParameter):
    """`values[name]` [*P]: the gradients of the examples, each times its one of `weights` [B]; the batch gradient where
    there are none."""

    def __init__(self, weights: Tensor | None = None):
        super().__init__()
        self.weights = weights

    def see(self, name: str, gradient: ExampleGradient) -> None:
        self._add(name, gradient.sum(self.weights))


class Sketches(_PerParameter):
    """`values[name]` [B, k_name] random projections; `rows()` [B, k] all of them side by side.

    Args:
        sketcher: the projections; see `ghostgrad.sketch.Sketcher`.
    """

    def __init__(self, sketcher: Sketcher):
        super().__init__()
        self.sketcher = sketcher
        self.devices: dict[str, torch.device] = {}

    def begin(self, parameters: Mapping[str, Tensor]) -> None:
        super().begin(parameters)
        self.sketcher.check(parameters)
        self.devices = {name: parameters[name].device for name in self.sketcher}

    def see(self, name: str, gradient: ExampleGradient) -> None:
        if name in self.devices:
            self._add(name, gradient.sketch(self.sketcher.on(name, self.devices[name])))

    def rows(self) -> Tensor:
        """[B, k] in the sketcher's order of parameters and in its dtype; zeros for a parameter that was not used."""
        return self.unrounded().to(self.sketcher.options.dtype)

    def unrounded(self) -> Tensor:
        """[B, k] in the dtype sums were made in, so that rows of parts add up to the row of the whole."""
        like = next(iter(self.values.values()))
        unused = {n: like.new_zeros(len(like), self.sketcher.width(n)) for n in self.sketcher if n not in self.values}
        found = self.values | unused
        return torch.cat([found[name] for name in self.sketcher], 1)
