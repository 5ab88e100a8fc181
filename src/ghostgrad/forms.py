"""One parameter's gradient for each of B examples, in the cheapest form that still holds it exactly.

`OuterProduct` keeps the two factors per position of a matrix parameter, `Rows` the rows an embedding looked up,
`Dense` the gradients themselves (small parameters), `Transposed` another form seen from the other side, `Sum` what
remains when uses of different kinds meet in one parameter (tied embeddings). Nothing here knows layers or engines.

Half-precision inputs are widened to float32 before they are multiplied: sums over thousands of positions would
otherwise lose the digits that a dot product needs. Every loop is over chunks of at most `CHUNK` numbers.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from ghostgrad.positions import Positions

CHUNK = 1 << 22
"""Numbers in the largest temporary tensor of one operation (16 MiB in float32)."""

CACHED = 1 << 18
"""Numbers per temporary of a contraction: small enough to be read back from the cache (1 MiB in float32)."""


class Projects(Protocol):
    """A two-sided random projection of one parameter, P_o G P_iᵀ; see `ghostgrad.sketch.Projection`."""

    left_size: int
    right_size: int

    def left(self, values: Tensor) -> Tensor:
        """`values` [..., O] as [..., k_o]."""
        ...

    def right(self, values: Tensor) -> Tensor:
        """`values` [..., I] as [..., k_i]."""
        ...

    def left_columns(self, index: Tensor) -> Tensor:
        """[N, k_o] of one-hot rows, whose ones are at `index` [N]."""
        ...

    def swapped(self) -> Projects:
        """That of the transposed parameter."""
        ...


class ExampleGradient(Protocol):
    """One parameter's gradient for each of B examples. Results are in float32, or float64 for float64 inputs.

    Attributes:
        shape: *P, the parameter's.
        examples: B.
    """

    shape: tuple[int, ...]
    examples: int

    def square_norm(self) -> Tensor:
        """[B] squared length of each."""
        ...

    def dot(self, direction: Tensor) -> Tensor:
        """[B] inner product of each with `direction` [*P]."""
        ...

    def gram(self, other: ExampleGradient) -> Tensor:
        """[B, C] inner product of each with each of the other's C."""
        ...

    def merge(self, other: ExampleGradient) -> ExampleGradient:
        """The gradient of two uses of the parameter, of which these are those of one each."""
        ...

    def sum(self, weights: Tensor | None = None) -> Tensor:
        """[*P] of all examples, each times its one of `weights` [B]."""
        ...

    def sketch(self, projection: Projects) -> Tensor:
        """[B, k] projected, k = k_o * k_i."""
        ...

    def materialize(self) -> Tensor:
        """[B, *P] the gradients themselves."""
        ...

    def inner(self, other: ExampleGradient) -> Tensor:
        """[B] inner product of each with the same of the other's."""
        ...


def widen(values: Tensor) -> Tensor:
    """`values` in the dtype sums are made in: float32 for half precision, unchanged otherwise."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(O, I) under which a parameter counts as a matrix: a vector is one row, a convolution's kernel is flattened."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def steps(total: int, size: int) -> list[slice]:
    """Slices of at most `size` (at least 1) that cover range(total)."""
    size = max(1, size)
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


class _Form(ExampleGradient):
    """What every form can do through `materialize`; the forms below override what they can do better."""

    def merge(self, other: ExampleGradient) -> ExampleGradient:
        """Both uses of the same parameter as one gradient."""
        joined = None if isinstance(other, Sum) else self._join(other)
        return Sum([self, other]) if joined is None else joined

    def gram(self, other: ExampleGradient) -> Tensor:
        """[B, C] inner products of all pairs with `other`'s C examples, one example of `other` at a time."""
        if isinstance(other, Sum):
            return torch.stack([self.gram(part) for part in other.parts]).sum(0)
        return torch.stack([self.dot(column) for column in other.materialize()], 1)

    def inner(self, other: ExampleGradient) -> Tensor:
        """[B] inner product of each example with the same example of `other`."""
        product = self.materialize() * other.materialize()
        return product.flatten(1).sum(1)

    def _join(self, other: ExampleGradient) -> ExampleGradient | None:
        return None

    def _check(self, direction: Tensor) -> Tensor:
        if tuple(direction.shape) != self.shape:
            raise ValueError(f"direction has shape {list(direction.shape)}, the parameter {list(self.shape)}")
        return widen(direction)


class Dense(_Form):
    """The gradients themselves, `values` [B, *P]: for vectors and other small parameters."""

    def __init__(self, values: Tensor):
        self.values = widen(values)
        self.shape = tuple(values.shape[1:])
        self.examples = len(values)

    def square_norm(self) -> Tensor:
        """[B]; costs one pass."""
        return self.values.flatten(1).square().sum(1)

    def dot(self, direction: Tensor) -> Tensor:
        """[B]; `direction` is [*P]."""
        return self.values.flatten(1) @ self._check(direction).to(self.values.dtype).flatten()

    def gram(self, other: ExampleGradient) -> Tensor:
        """[B, C]; one matrix product when both are dense."""
        if isinstance(other, Dense):
            return self.values.flatten(1) @ other.values.flatten(1).mT
        return super().gram(other)

    def sum(self, weights: Tensor | None = None) -> Tensor:
        """[*P] sum over examples, each times its weight."""
        if weights is None:
            return self.values.sum(0)
        return torch.tensordot(weights.to(self.values.dtype), self.values, 1)

    def sketch(self, projection: Projects) -> Tensor:
        """[B, k]."""
        matrices = self.values.reshape(self.examples, *matrix_shape(self.shape))
        return projection.left(projection.right(matrices).mT).mT.flatten(1)

    def materialize(self) -> Tensor:
        """[B, *P]."""
        return self.values

    def _join(self, other: ExampleGradient) -> ExampleGradient | None:
        return Dense(self.values + other.values) if isinstance(other, Dense) else None


class OuterProduct(_Form):
    """A matrix parameter's gradient, sum over positions of left_t ⊗ right_t.

    Args:
        left: [B, T, O], or [N, O] with `positions`.
        right: [B, T, I], or [N, I] with `positions`.
        shape: the parameter's own shape where it is not [O, I] (a convolution's kernel); has O * I numbers.
    """

    def __init__(
        self, left: Tensor, right: Tensor, positions: Positions | None = None, shape: tuple[int, ...] | None = None
    ):
        if positions is None:
            positions = Positions(left.shape[0], length=left.shape[1])
            left, right = left.flatten(0, 1), right.flatten(0, 1)
        self.left, self.right, self.positions = left, right, positions
        self.rows, self.columns = left.shape[1], right.shape[1]
        self.shape = (self.rows, self.columns) if shape is None else tuple(shape)
        self.examples = positions.examples

    def dot(self, direction: Tensor) -> Tensor:
        """[B] sum over positions of left_tᵀ D right_t; costs N * O * I, as much as one weight gradient."""
        matrix, positions = self._check(direction).reshape(self.rows, self.columns), self.positions
        # The product lands on the narrower side, so that what is written and read again is smallest.
        narrow, wide, matrix = (
            (self.left, self.right, matrix.mT) if self.rows <= self.columns else (self.right, self.left, matrix)
        )
        if not positions.regular:
            parts = steps(len(wide), CACHED // matrix.shape[1])
            sums = [(_times(wide[part], matrix) * widen(narrow[part])).sum(-1) for part in parts]
            return positions.total(torch.cat(sums))
        length = positions.length
        products: list[Tensor] = []
        together = max(1, CACHED // (length * matrix.shape[1]))
        for first in range(0, self.examples, together):
            span = slice(first * length, (first + together) * length)
            some, others = (wide, narrow) if together >= self.examples else (wide[span], narrow[span])
            projected, flat = _times(some, matrix), (len(some) // length, -1)
            products.append(torch.linalg.vecdot(projected.reshape(flat), widen(others).reshape(flat)))
        return products[0] if len(products) == 1 else torch.cat(products)

    def square_norm(self) -> Tensor:
        """[B] squared Frobenius norms.

        Two [T, T] Gram matrices where T * (O + I) <= O * I, else the gradient in slices of rows.
        Source: Goodfellow 2015, arXiv 1510.01799, for one position; Li et al. 2021, arXiv 2110.05679, section 4.
        """
        left, right = self.positions.batched(self.left), self.positions.batched(self.right)
        if left.shape[1] * (self.rows + self.columns) <= self.rows * self.columns:
            return self._pairs(self)
        total: Any = 0.0
        for part in steps(self.rows, CHUNK // (self.examples * self.columns)):
            total = total + (widen(left[..., part]).mT @ widen(right)).square().sum((1, 2))
        return total

    def gram(self, other: ExampleGradient) -> Tensor:
        """[B, C]: over pairs of positions where N * M * (O + I) is less than making both gradients."""
        if not isinstance(other, OuterProduct | Rows):
            return super().gram(other)
        mine, theirs, size = len(self.left), len(other.right), self.rows * self.columns
        over_pairs = mine * theirs * (self.rows + self.columns)
        made = (mine + theirs + self.examples * other.examples) * size
        if over_pairs <= made or isinstance(other, Rows):
            return _position_gram(self, other)
        left, right = self.positions.batched(self.left), widen(self.positions.batched(self.right))
        others, other_right = other.positions.batched(other.left), widen(other.positions.batched(other.right))
        total: Any = 0.0
        for part in steps(self.rows, CHUNK // ((self.examples + other.examples) * self.columns)):
            made_here = (widen(left[..., part]).mT @ right).flatten(1)
            total = total + made_here @ (widen(others[..., part]).mT @ other_right).flatten(1).mT
        return total

    def inner(self, other: ExampleGradient) -> Tensor:
        """[B] over pairs of positions of the same example."""
        return self._pairs(other) if isinstance(other, OuterProduct | Rows) else super().inner(other)

    def sum(self, weights: Tensor | None = None) -> Tensor:
        """[*P]; costs one weight gradient."""
        left = widen(self.left)
        if weights is not None:
            left = left * self.positions.spread(weights.to(left.dtype)).unsqueeze(1)
        elif not self.positions.regular:
            left = left * self.positions.spread(left.new_ones(self.examples)).unsqueeze(1)
        return (left.mT @ widen(self.right)).reshape(self.shape)

    def sketch(self, projection: Projects) -> Tensor:
        """[B, k_o * k_i] of (P_o left)(P_i right)ᵀ; never makes the gradient of two long sides.

        Where one side is short (an adapter's rank), positions are summed before the other side is projected: one
        product with that side, and its projection once per example in place of every position.
        Source: Choe et al. 2024, arXiv 2405.13954 (LoGra).
        """
        positions, left, right = self.positions, widen(self.left), widen(self.right)
        short = min(self.rows, self.columns)
        k_long = projection.right_size if self.rows <= self.columns else projection.left_size
        # Numbers multiplied per position; padding a long side that is irregular would copy it.
        if not positions.regular or k_long * (1 + short / max(self.rows, self.columns)) <= short * (
            1 + k_long / positions.length
        ):
            left, right = positions.batched(projection.left(left)), positions.batched(projection.right(right))
            return (left.mT @ right).flatten(1)
        left, right = positions.batched(left), positions.batched(right)
        if self.rows <= self.columns:
            return projection.left(projection.right(left.mT @ right).mT).mT.flatten(1)
        return projection.right(projection.left(right.mT @ left).mT).flatten(1)

    def materialize(self) -> Tensor:
        """[B, *P]; memory B * O * I."""
        left, right = self.positions.batched(self.left), self.positions.batched(self.right)
        return (widen(left).mT @ widen(right)).reshape(self.examples, *self.shape)

    def _pairs(self, other: OuterProduct | Rows) -> Tensor:
        """[B] sum over position pairs (t, s) of <left_t, left_s> <right_t, right_s>."""
        left, right = self.positions.batched(self.left), self.positions.batched(self.right)
        others = other.positions.batched(other.left if isinstance(other, OuterProduct) else other.ids)
        other_right = other.positions.batched(other.right)
        length = left.shape[1]
        sums: list[Tensor] = []
        for part in steps(self.examples, CHUNK // (length * other_right.shape[1])):
            total: Any = 0.0
            # One example longer than the chunk is cut over its own positions too.
            for span in steps(length, CHUNK // other_right.shape[1]):
                rights = widen(right[part, span]) @ widen(other_right[part]).mT
                lefts = _left_products(widen(left[part, span]), others[part])
                total = total + (lefts * rights).sum((1, 2))
            sums.append(total)
        return torch.cat(sums)

    def _join(self, other: ExampleGradient) -> ExampleGradient | None:
        if not isinstance(other, OuterProduct) or other.shape != self.shape:
            return None
        join = self.positions.join
        return OuterProduct(
            join(other.positions, self.left, other.left),
            join(other.positions, self.right, other.right),
            self.positions.joined(other.positions),
            self.shape,
        )


class Rows(_Form):
    """An embedding table's gradient: row ids[n] receives right[n]; an `OuterProduct` whose left factor is one-hot.

    Args:
        ids: [N] row of the table.
        right: [N, d] gradient of the looked-up vector.
        count: number of rows of the table.
    """

    def __init__(self, ids: Tensor, right: Tensor, positions: Positions, count: int):
        self.ids, self.right, self.positions = ids, right, positions
        self.rows, self.columns = count, right.shape[1]
        self.shape = (count, self.columns)
        self.examples = positions.examples

    def dot(self, direction: Tensor) -> Tensor:
        """[B]; reads N rows of `direction`, never the whole table."""
        table = self._check(direction)
        parts = [
            (table[self.ids[part]].to(widen(self.right[:0]).dtype) * widen(self.right[part])).sum(-1)
            for part in steps(len(self.ids), CACHED // self.columns)
        ]
        return self.positions.total(torch.cat(parts))

    def square_norm(self) -> Tensor:
        """[B]; a row looked up twice by one example is summed first. One sort, no loop over tokens."""
        owner, combined = self._combined()
        sums = combined.new_zeros(self.examples + 1)
        return sums.index_add_(0, owner, combined.square().sum(1))[:-1]

    def gram(self, other: ExampleGradient) -> Tensor:
        """[B, C] on the rows that occur in either, in slices of rows."""
        if isinstance(other, OuterProduct):
            return other.gram(self).mT
        if not isinstance(other, Rows):
            return super().gram(other)
        used, places = torch.unique(torch.cat([self.ids, other.ids]), return_inverse=True)
        mine, theirs = places[: len(self.ids)], places[len(self.ids) :]
        total: Any = 0.0
        for part in steps(len(used), CHUNK // ((self.examples + other.examples) * self.columns)):
            total = total + self._table(mine, part) @ other._table(theirs, part).mT
        return total

    def inner(self, other: ExampleGradient) -> Tensor:
        """[B] with the same example of `other`."""
        return other.inner(self) if isinstance(other, OuterProduct) else super().inner(other)

    def sum(self, weights: Tensor | None = None) -> Tensor:
        """[count, d]."""
        right = widen(self.right)
        weights = right.new_ones(self.examples) if weights is None else weights.to(right.dtype)
        right = right * self.positions.spread(weights).unsqueeze(1)
        return right.new_zeros(self.shape).index_add_(0, self.ids, right)

    def sketch(self, projection: Projects) -> Tensor:
        """[B, k_o * k_i]; the left factor of a position is one column of P_o."""
        right = projection.right(widen(self.right))
        left = self.positions.batched(projection.left_columns(self.ids).to(right.dtype))
        return (left.mT @ self.positions.batched(right)).flatten(1)

    def materialize(self) -> Tensor:
        """[B, count, d]; memory B * count * d."""
        return self._table(self.ids, slice(0, self.rows)).view(self.examples, *self.shape)

    def _combined(self) -> tuple[Tensor, Tensor]:
        """Example and summed gradient of each (example, row) pair that occurs."""
        owner = self.positions.owner(self.ids)
        keys, places = torch.unique(owner * self.rows + self.ids, return_inverse=True)
        right = widen(self.right)
        return keys // self.rows, right.new_zeros(len(keys), self.columns).index_add_(0, places, right)

    def _table(self, places: Tensor, part: slice) -> Tensor:
        """[B, rows in `part` * d]: every example's gradient of the rows whose place lies in `part`."""
        inside = (places >= part.start) & (places < part.stop)
        right, width = widen(self.right[inside]), part.stop - part.start
        owner = self.positions.owner(places)
        table = right.new_zeros((self.examples + 1) * width, self.columns)
        table.index_add_(0, owner[inside] * width + places[inside] - part.start, right)
        return table.view(self.examples + 1, -1)[:-1]

    def _join(self, other: ExampleGradient) -> ExampleGradient | None:
        if not isinstance(other, Rows) or other.shape != self.shape:
            return None
        join = self.positions.join
        ids, right = join(other.positions, self.ids, other.ids), join(other.positions, self.right, other.right)
        return Rows(ids, right, self.positions.joined(other.positions), self.rows)


class Transposed(_Form):
    """Another form's gradient, transposed: a table stored as [d, count], as PEFT keeps an embedding's lora_A."""

    def __init__(self, form: ExampleGradient):
        self.form = form
        self.shape = (form.shape[1], form.shape[0])
        self.examples = form.examples

    def square_norm(self) -> Tensor:
        """[B]."""
        return self.form.square_norm()

    def dot(self, direction: Tensor) -> Tensor:
        """[B]."""
        return self.form.dot(self._check(direction).mT)

    def gram(self, other: ExampleGradient) -> Tensor:
        """[B, C]."""
        return self.form.gram(other.form) if isinstance(other, Transposed) else super().gram(other)

    def sum(self, weights: Tensor | None = None) -> Tensor:
        """[*P]."""
        return self.form.sum(weights).mT

    def sketch(self, projection: Projects) -> Tensor:
        """[B, k]; the same numbers as the materialised gradient's."""
        swapped = self.form.sketch(projection.swapped())
        # The inner form fills [k_i, k_o]; sketches are stored with k_o first.
        return swapped.unflatten(1, (projection.right_size, projection.left_size)).mT.flatten(1)

    def materialize(self) -> Tensor:
        """[B, *P]."""
        return self.form.materialize().mT

    def _join(self, other: ExampleGradient) -> ExampleGradient | None:
        return Transposed(self.form.merge(other.form)) if isinstance(other, Transposed) else None


class Sum(_Form):
    """Several uses of one parameter that share no form: a tied table is looked up and also multiplied with."""

    def __init__(self, parts: list[ExampleGradient]):
        self.parts = parts
        self.shape, self.examples = parts[0].shape, parts[0].examples

    def square_norm(self) -> Tensor:
        """[B], with the cross terms between uses, without which a tied table's norm is wrong."""
        total = torch.stack([part.square_norm() for part in self.parts]).sum(0)
        for place, part in enumerate(self.parts):
            for later in self.parts[place + 1 :]:
                total = total + 2 * part.inner(later)
        return total

    def dot(self, direction: Tensor) -> Tensor:
        """[B]."""
        return torch.stack([part.dot(direction) for part in self.parts]).sum(0)

    def gram(self, other: ExampleGradient) -> Tensor:
        """[B, C]."""
        return torch.stack([part.gram(other) for part in self.parts]).sum(0)

    def merge(self, other: ExampleGradient) -> ExampleGradient:
        """The parts of both; a part joins its like."""
        if isinstance(other, Sum):
            whole: ExampleGradient = self
            for part in other.parts:
                whole = whole.merge(part)
            return whole
        for place, part in enumerate(self.parts):
            joined = part._join(other) if isinstance(part, _Form) else None
            if joined is not None:
                return Sum([*self.parts[:place], joined, *self.parts[place + 1 :]])
        return Sum([*self.parts, other])

    def sum(self, weights: Tensor | None = None) -> Tensor:
        """[*P]."""
        return torch.stack([part.sum(weights) for part in self.parts]).sum(0)

    def sketch(self, projection: Projects) -> Tensor:
        """[B, k]; sketches are linear."""
        return torch.stack([part.sketch(projection) for part in self.parts]).sum(0)

    def materialize(self) -> Tensor:
        """[B, *P]."""
        return torch.stack([part.materialize() for part in self.parts]).sum(0)


def _times(values: Tensor, matrix: Tensor) -> Tensor:
    """values [N, wide] @ matrix [wide, narrow] in the dtype of sums."""
    values = widen(values)
    matrix = matrix.to(values.dtype)
    if matrix.shape[1] <= 32:
        # A factor of LoRA: libraries are up to three times faster with the long side as columns of the result.
        return (matrix.mT @ values.mT).mT
    return values @ matrix


def _left_products(left: Tensor, other: Tensor) -> Tensor:
    """[B, T, S] inner products of left factors [B, T, O] with `other`: [B, S, O], or row ids [B, S]."""
    if other.dim() == 2:
        return left.gather(2, other.unsqueeze(1).expand(-1, left.shape[1], -1))
    return left @ widen(other).mT


def _position_gram(mine: OuterProduct, theirs: OuterProduct | Rows) -> Tensor:
    """[B, C] from all pairs of positions, in slices of `mine`'s positions."""
    others = theirs.left if isinstance(theirs, OuterProduct) else theirs.ids
    other_right = widen(theirs.right)
    parts: list[Tensor] = []
    for part in steps(len(mine.left), CHUNK // max(1, len(other_right))):
        left = widen(mine.left[part])
        lefts = left[:, others] if others.dim() == 1 else left @ widen(others).mT
        pairs = lefts * (widen(mine.right[part]) @ other_right.mT)
        parts.append(theirs.positions.total(pairs.mT).mT)
    return mine.positions.total(torch.cat(parts))
