"""The forms by themselves: every operation against the materialised gradient, in every dtype, in any chunk size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostgrad import forms
from ghostgrad.forms import Dense, ExampleGradient, OuterProduct, Rows, Transposed
from ghostgrad.positions import Positions
from ghostgrad.sketch import Projection, draw


def positions(examples: int, length: int, regular: bool, random: torch.Generator) -> Positions:
    if regular:
        return Positions(examples, length=length)
    return Positions(examples, index=torch.randint(-1, examples, (examples * length,), generator=random))


def made(kind: str, examples: int, length: int, shape: tuple[int, int], regular: bool, seed: int) -> ExampleGradient:
    """A random form of a parameter of `shape`."""
    random = torch.Generator().manual_seed(seed)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=random, dtype=torch.float64)

    where, count = positions(examples, length, regular, random), examples * length
    if kind == "outer":
        return OuterProduct(noise(count, shape[0]), noise(count, shape[1]), where)
    if kind == "rows":
        return Rows(torch.randint(0, shape[0], (count,), generator=random), noise(count, shape[1]), where, shape[0])
    if kind == "transposed":
        ids = torch.randint(0, shape[1], (count,), generator=random)
        return Transposed(Rows(ids, noise(count, shape[0]), where, shape[1]))
    if kind == "dense":
        return Dense(noise(examples, *shape))
    parts = [
        made(part, examples, length, shape, regular, seed + n) for n, part in enumerate(("outer", "rows", "outer"))
    ]
    return parts[0].merge(parts[1]).merge(parts[2])


KINDS = ("outer", "rows", "transposed", "dense", "sum")
FORMS = {
    "kind": st.sampled_from(KINDS),
    "other": st.sampled_from(KINDS),
    "examples": st.integers(1, 5),
    "length": st.integers(1, 6),
    "shape": st.tuples(st.integers(1, 7), st.integers(1, 7)),
    "regular": st.booleans(),
    "chunk": st.sampled_from([1, 7, 64, forms.CHUNK]),
    "seed": st.integers(0, 9999),
}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(**FORMS)
def test_every_operation_equals_the_materialised_gradient(
    kind: str, other: str, examples: int, length: int, shape: tuple[int, int], regular: bool, chunk: int, seed: int
) -> None:
    one, two = made(kind, examples, length, shape, regular, seed), made(other, 3, 2, shape, True, seed + 50)
    twin = made(other, examples, length, shape, regular, seed + 90)
    full, full_two = one.materialize().flatten(1), two.materialize().flatten(1)
    direction, weights = torch.randn(shape, dtype=torch.float64), torch.randn(examples, dtype=torch.float64)
    projection = Projection(draw("gaussian", 0, "a", 3, shape[0]), draw("gaussian", 0, "b", 2, shape[1]), shape)
    flat = torch.kron(projection.outer.double(), projection.inner.double())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "CHUNK", chunk)
        patch.setattr(forms, "CACHED", chunk)
        results = {
            "square_norm": (one.square_norm(), full.square().sum(1)),
            "dot": (one.dot(direction), full @ direction.flatten()),
            "gram": (one.gram(two), full @ full_two.mT),
            "own gram": (one.gram(one), full @ full.mT),
            "sum": (one.sum(), full.sum(0).view(shape)),
            "weighted sum": (one.sum(weights), (weights @ full).view(shape)),
            "sketch": (one.sketch(projection), full @ flat.mT),
            "merge": (one.merge(twin).materialize(), one.materialize() + twin.materialize()),
            "merged norm": (one.merge(twin).square_norm(), (full + twin.materialize().flatten(1)).square().sum(1)),
        }
    for name, (found, expected) in results.items():
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("length,rows,columns", [(4, 64, 64), (64, 4, 4), (1, 50, 3)])
def test_norm_and_gram_agree_whichever_way_is_cheaper(length: int, rows: int, columns: int) -> None:
    one = made("outer", 3, length, (rows, columns), True, 0)
    full = one.materialize().flatten(1)
    torch.testing.assert_close(one.square_norm(), full.square().sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(one.gram(one), full @ full.mT, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("shape", [(64, 64), (4, 64), (64, 4)])
@pytest.mark.parametrize("regular", [True, False])
def test_sketches_agree_whichever_side_is_summed_first(shape: tuple[int, int], regular: bool) -> None:
    """A short side is kept as it is, as an adapter's rank is."""
    one = made("outer", 3, 20, shape, regular, 0)
    outer, inner = (None if n < 16 else draw("rademacher", 0, side, 16, n) for n, side in zip(shape, "oi", strict=True))
    both = [torch.eye(n) if drawn is None else drawn for n, drawn in zip(shape, (outer, inner), strict=True)]
    expected = one.materialize().flatten(1) @ torch.kron(*both).double().mT
    torch.testing.assert_close(one.sketch(Projection(outer, inner, shape)), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["outer", "rows", "dense"])
def test_error_budget_against_float64(kind: str, dtype: torch.dtype) -> None:
    """Inputs are exact in `dtype`, so that all error is the form's own.

    Sums in float32 over 512 positions: 1e-5 of the largest possible result, for half-precision inputs too, because
    these are widened before they are multiplied (summed in bfloat16 the error would be 1e-2).
    """
    random = torch.Generator().manual_seed(0)
    left, right = torch.randn(2 * 512, 24, generator=random), torch.randn(2 * 512, 32, generator=random)
    ids, where = torch.randint(0, 24, (2 * 512,), generator=random), Positions(2, length=512)
    direction = torch.randn(24, 32, generator=random)

    def form(to: torch.dtype) -> ExampleGradient:
        a, b = left.to(dtype).to(to), right.to(dtype).to(to)
        if kind == "dense":
            return Dense(a[: 2 * 24 * 32 // 24].reshape(2, 24, 32))
        return OuterProduct(a, b, where) if kind == "outer" else Rows(ids, b, where, 24)

    low, exact = form(dtype), form(torch.float64)
    norms = exact.square_norm()
    assert low.square_norm().dtype == torch.float32
    assert ((low.square_norm() - norms).abs() / norms).max() < 1e-5
    error = (low.dot(direction) - exact.dot(direction.double())).abs() / (norms.sqrt() * direction.norm())
    assert error.max() < 1e-5
    assert ((low.gram(low) - exact.gram(exact)).abs() / norms.max()).max() < 1e-5


def test_memory_stays_within_the_chunk() -> None:
    """A norm whose Gram matrices or gradients would take 64 MiB, in temporaries of at most a few chunks."""
    largest = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result._base is None:
                largest.append(result.numel())
            return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "CHUNK", 1 << 14)
        for length, size in ((2048, 300), (1024, 256)):  # one over pairs of positions, one over rows
            left, right = torch.randn(4 * length, size), torch.randn(4 * length, size)
            form = OuterProduct(left, right, Positions(4, length=length))
            with Watch():
                form.square_norm()
    assert max(largest) <= 1 << 14


def test_a_direction_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[3, 2\].*\[2, 3\]"):
        made("outer", 2, 2, (2, 3), True, 0).dot(torch.zeros(3, 2))


def test_positions_need_exactly_one_description() -> None:
    with pytest.raises(ValueError, match="not both"):
        Positions(2)
    with pytest.raises(ValueError, match="cannot join"):
        Positions(2, length=1).joined(Positions(3, length=1))
