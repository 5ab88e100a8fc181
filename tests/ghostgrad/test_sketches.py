"""Sketches: unbiased, the same everywhere, equal to projecting the whole gradient, with honest error bars."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ghostgrad import PROFILES, GradientEngine, Gram, Sketcher, Sketches, SketchOptions
from ghostgrad.sketch import ErrorBar, draw, error_bar, sides
from ghostgrad.testing import one_backward_per_example
from ghostgrad.tiny import Switches, losses, padded, tiny

TABLES = frozenset({"words.weight", "places.weight"})


def options(**changes: Any) -> SketchOptions:
    settings = {
        "size": 16,
        "side": 2,
        "layers": ("*",),
        "embeddings": True,
        "kind": "gaussian",
        "split": "even",
        "seed": 1,
        "dtype": torch.float32,
    }
    return SketchOptions(**{**settings, **changes})


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_rows_equal_projecting_the_whole_gradient() -> None:
    model, batch = tiny(Switches(tied=True)), padded(4)
    sketcher = Sketcher(shapes(model), options(), TABLES)
    sketches = Sketches(sketcher)
    with GradientEngine(model).observe(sketches):
        losses(model, batch, 4).sum().backward()
    reference = one_backward_per_example(losses(model, batch, 4), model.named_parameters())
    columns: Any = sketcher.manifest()["columns"]
    for name, value in reference.items():
        projection = sketcher[name]
        whole = value.view(4, *projection.shape)
        expected = projection.left(projection.right(whole).mT).mT.flatten(1)
        start, end = columns[name]
        torch.testing.assert_close(sketches.rows()[:, start:end].double(), expected, rtol=1e-5, atol=1e-8)
    assert sketches.rows().shape == (4, sketcher.size)


def test_batch_size_does_not_change_a_row() -> None:
    model, batch = tiny(), padded(4)
    sketches = Sketches(Sketcher(shapes(model), options(), TABLES))
    engine = GradientEngine(model)
    with engine.observe(sketches):
        losses(model, batch, 4, divisor=10).sum().backward()
    together = sketches.rows()
    for row in range(4):
        alone = {"ids": batch["ids"][row : row + 1], "document": batch["document"][row : row + 1].clamp(max=0)}
        with engine.observe(sketches):
            losses(model, alone, 1, divisor=10).sum().backward()
        torch.testing.assert_close(sketches.rows()[0], together[row], rtol=1e-5, atol=1e-8)


def test_matrices_are_pinned() -> None:
    """These numbers mean stored rows stay readable: change them only with a new format."""
    assert (draw("rademacher", 7, "layer/o", 2, 4) * 2**0.5).round().int().tolist() == PINNED
    torch.testing.assert_close(draw("gaussian", 7, "layer/o", 1, 3), torch.tensor([PINNED_NORMAL]), rtol=1e-6, atol=0)


PINNED = [[1, -1, 1, 1], [-1, 1, 1, -1]]
PINNED_NORMAL = [-1.317956805229187, 0.14221271872520447, -0.12399646639823914]


def test_a_matrix_depends_on_the_name_and_not_on_the_order() -> None:
    one = Sketcher({"a": (9, 9), "b": (9, 9)}, options(), frozenset())
    two = Sketcher({"b": (9, 9)}, options(), frozenset())
    first, second, again = one["a"], one["b"], two["b"]
    assert first.outer is not None and first.inner is not None and second.outer is not None and again.outer is not None
    assert torch.equal(second.outer, again.outer)
    assert not torch.equal(first.outer, second.outer)
    assert not torch.equal(first.outer, first.inner)


def test_short_sides_are_kept_exactly() -> None:
    """An adapter's factor [8, 512] keeps its 8 rows; a whole small parameter is stored as it is."""
    assert sides((8, 512), options(size=256, side=8)) == (8, 32)
    assert sides((1, 10), options(size=256, side=8)) == (1, 10)
    assert sides((4, 4), options(size=256, side=8)) == (4, 4)
    sketcher = Sketcher({"small": (4, 4)}, options(size=256, side=8), frozenset())
    assert sketcher["small"].outer is None and sketcher["small"].inner is None


@pytest.mark.parametrize("split,expected", [("even", (16, 16)), ("cheap", (8, 32))])
def test_splits(split: str, expected: tuple[int, int]) -> None:
    assert sides((3072, 768), options(size=256, side=8, split=split)) == expected


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"size": 8, "side": 3}, "square"),
        ({"kind": "normal"}, "accepted are gaussian"),
        ({"split": "best"}, "accepted are even"),
        ({"dtype": torch.float64}, "accepted are float32"),
    ],
)
def test_options_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(**changes)


def test_every_option_is_required() -> None:
    with pytest.raises(TypeError, match="seed"):
        SketchOptions(16, 2, ("*",), True, "gaussian", "even", dtype=torch.float32)  # type: ignore[reportCallIssue]


def test_layers_and_embeddings() -> None:
    model = tiny()
    some = Sketcher(shapes(model), options(layers=("blocks.0.*", "words.weight"), embeddings=False), TABLES)
    assert list(some) and all(name.startswith("blocks.0.") for name in some)
    with pytest.raises(ValueError, match="gate_proj"):
        Sketcher(shapes(model), options(layers=("*gate_proj*",)), TABLES)
    with pytest.raises(ValueError, match="switched off"):
        Sketcher(shapes(model), options(layers=("words.*",), embeddings=False), TABLES)
    other = Sketches(Sketcher({"x": (3, 3)}, options(), frozenset()))
    with pytest.raises(ValueError, match=r"not observed.*\['x'\]"), GradientEngine(model).observe(other):
        pass


def test_error_bars_cover_the_error() -> None:
    """Calibrated on 12 rows, the bar is within a factor of two of the error on 30 others."""
    model, engine = tiny(), None
    engine = GradientEngine(model)
    sketcher = Sketcher(shapes(model), options(size=36, side=2), TABLES)

    def measured(examples: int, seed: int) -> ErrorBar:
        gram, sketches = Gram(), Sketches(sketcher)
        with engine.observe(gram, sketches):
            losses(model, padded(examples, seed=seed, longest=9), examples).sum().backward()
        rows = [n for n in range(examples) if gram.total()[n, n] > 0]  # a row without targets has no direction
        return error_bar(gram.total()[rows][:, rows], sketches.rows()[rows])

    few, many = measured(12, 1), measured(30, 2)
    assert 0.5 < few.cosine / many.cosine < 2
    assert abs(few.bias) < 0.5 and few.pairs > 40


@pytest.mark.parametrize("name", list(PROFILES))
def test_profiles_are_valid_and_write_json(name: str) -> None:
    assert PROFILES[name].as_json()["size"] == PROFILES[name].size >= 64


def test_the_sketch_of_a_direction_is_that_of_a_gradient() -> None:
    """And under exact@1 it is the direction itself, so that inner products are exact."""
    model, batch = tiny(Switches(tied=True)), padded(4)
    reference = one_backward_per_example(losses(model, batch, 4), model.named_parameters())
    first = {name: value[0] for name, value in reference.items()}
    for chosen in (options(), PROFILES["exact@1"]):
        sketcher = Sketcher(shapes(model), chosen, TABLES)
        sketches = Sketches(sketcher)
        with GradientEngine(model).observe(sketches):
            losses(model, batch, 4).sum().backward()
        torch.testing.assert_close(sketcher.row(first).float(), sketches.rows()[0].float(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(sketcher.row(first), sketches.unrounded()[0], rtol=1e-10, atol=1e-12)
    whole = torch.cat([first[name].flatten() for name in sketcher])
    torch.testing.assert_close(sketcher.row(first), whole, rtol=0, atol=0)
    with pytest.raises(ValueError, match="not observed"):
        sketcher.row({})


def test_options_come_back_from_json() -> None:
    for chosen in PROFILES.values():
        assert SketchOptions.from_json(chosen.as_json()) == chosen
