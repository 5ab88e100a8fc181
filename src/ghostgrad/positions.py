"""Which example each position of a layer's activations belongs to.

A position is one row of a layer's input: a token, a pixel of a convolution, the single vector of an MLP's example.
Activations are kept flat, [N, d] with N positions; `Positions` sums over them, pads them and spreads weights to them.

Shape letters used in this package: B examples, C other examples, N positions in all, T positions of one example,
O and I the two sides of a matrix parameter, k sketch size, *P the shape of a parameter.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import torch
from torch import Tensor


class Positions:
    """N positions of B examples: either T consecutive ones for each example, or any assignment given by an index.

    Args:
        examples: B.
        length: T, where every example has the same number of consecutive positions; N is then B * T.
        index: [N] example of each position, -1 for a position that belongs to none; takes the place of `length`.
    """

    def __init__(self, examples: int, *, length: int | None = None, index: Tensor | None = None):
        if (length is None) == (index is None):
            raise ValueError("give either the length of every example or an index, not both and not neither")
        self.examples = examples
        self.length: int = -1 if length is None else length  # of regular positions only
        self._owner: Tensor | None = None if index is None else torch.where(index < 0, examples, index)
        self._slots: tuple[Tensor, Tensor, int] | None = None

    @property
    def regular(self) -> bool:
        """True where position n belongs to example n // length."""
        return self._owner is None

    def owner(self, like: Tensor) -> Tensor:
        """[N] example of each position, B for none, on the device of `like`."""
        if self._owner is not None:
            return self._owner
        return torch.arange(self.examples, device=like.device).repeat_interleave(self.length)

    def total(self, values: Tensor) -> Tensor:
        """Sum of `values` [N, ...] over the positions of each example: [B, ...]."""
        if self._owner is None:
            return values if self.length == 1 else self.batched(values).sum(1)
        sums = values.new_zeros(self.examples + 1, *values.shape[1:])
        return sums.index_add_(0, self._owner, values)[:-1]

    def spread(self, weights: Tensor) -> Tensor:
        """[N] weight of each position's example, 0 where it has none; `weights` is [B]."""
        if self._owner is None:
            return weights.repeat_interleave(self.length)
        return torch.cat([weights, weights.new_zeros(1)])[self._owner]

    def batched(self, values: Tensor, fill: float = 0) -> Tensor:
        """`values` [N, ...] as [B, T, ...], T the longest example; missing positions hold `fill`."""
        if self._owner is None:
            return values.view(self.examples, self.length, *values.shape[1:])
        order, slots, longest = self._padding(self._owner)
        padded = values.new_full((self.examples * longest, *values.shape[1:]), fill)
        padded[slots] = values[order]
        return padded.view(self.examples, longest, *values.shape[1:])

    def _padding(self, owner: Tensor) -> tuple[Tensor, Tensor, int]:
        """Order that sorts positions by example, their places in a padded [B * T] table, and T."""
        if self._slots is None:
            order = torch.argsort(owner, stable=True)
            counts = torch.bincount(owner, minlength=self.examples + 1)
            order = order[: int(counts[:-1].sum())]
            first = counts.cumsum(0) - counts
            longest = max(1, int(counts[:-1].max())) if self.examples else 1
            rank = torch.arange(len(order), device=owner.device) - first[owner[order]]
            self._slots = (order, owner[order] * longest + rank, longest)
        return self._slots

    def joined(self, other: Positions) -> Positions:
        """Positions of both, `other` after this; for values joined with `join`."""
        if self.examples != other.examples:
            raise ValueError(f"cannot join positions of {self.examples} and {other.examples} examples")
        if self.regular and other.regular:
            return Positions(self.examples, length=self.length + other.length)
        # An owner of B (none) stays one: B is past the last example, and the index given here says so with -1.
        like = other._owner if self._owner is None else self._owner
        assert like is not None
        owners = torch.cat([self.owner(like), other.owner(like)])
        return Positions(self.examples, index=torch.where(owners == self.examples, -1, owners))

    def join(self, other: Positions, mine: Tensor, theirs: Tensor) -> Tensor:
        """Values of both in the order of `joined(other)`."""
        if self.regular and other.regular:
            return torch.cat([self.batched(mine), other.batched(theirs)], 1).flatten(0, 1)
        return torch.cat([mine, theirs])


class Layout:
    """How a layer's leading dimensions map to examples, for one observed forward pass.

    Args:
        examples: B.
        index: None where the leading dimension is the example; else a tensor with the shape of the leading dimensions
            that holds the example of each position (packed rows, or positions selected before the layer), -1 for none.
        axes: dimensions of the model's own input, where examples were counted on it.
        length: its second dimension.
        only_sums: whether examples are added up whatever they are: positions that cannot be assigned go to the first.
    """

    def __init__(
        self,
        examples: int,
        index: Tensor | None = None,
        axes: int | None = None,
        length: int | None = None,
        only_sums: bool = False,
    ):
        self.examples = examples
        self.index = index
        self.axes = axes
        self.length = length
        self.only_sums = only_sums
        self.leading = examples if index is None else index.shape[0]
        self._known: dict[tuple[int, ...], Positions] = {}

    def positions(self, shape: tuple[int, ...]) -> Positions:
        """Positions of activations whose leading dimensions (all but the feature axis) are `shape`.

        Raises:
            ValueError: the dimensions do not say which example a position belongs to.
        """
        shape = tuple(shape)
        if shape not in self._known:
            try:
                self._known[shape] = self._resolve(shape)
            except ValueError:
                if not self.only_sums:
                    raise
                nobodys = torch.zeros(torch.Size(shape).numel(), dtype=torch.long)
                self._known[shape] = Positions(self.examples, index=nobodys)
        return self._known[shape]

    def _resolve(self, shape: tuple[int, ...]) -> Positions:
        if self.index is None:
            # [B * T, ...] are the examples one after the other; in another order verification finds them.
            if not shape or not self.examples or shape[0] == 0 or shape[0] % self.examples:
                raise ValueError(f"leading dimensions {list(shape)} do not start with the {self.examples} examples")
            return Positions(self.examples, length=int(torch.Size(shape).numel()) // self.examples)
        known = tuple(self.index.shape)
        if shape[:1] == (self.index.numel(),):
            return Positions(
                self.examples, index=self.index.reshape(-1).repeat_interleave(torch.Size(shape[1:]).numel())
            )
        if shape[:1] + shape[2:3] == known and shape[: len(known)] != known:
            heads = self.index.unsqueeze(1).expand(-1, shape[1], -1)
            return Positions(self.examples, index=heads.reshape(-1).repeat_interleave(torch.Size(shape[3:]).numel()))
        if shape[: len(known)] != known:
            raise ValueError(f"leading dimensions {list(shape)} do not start with the index's {list(known)}")
        each = int(torch.Size(shape[len(known) :]).numel())
        return Positions(self.examples, index=self.index.reshape(-1).repeat_interleave(each))
