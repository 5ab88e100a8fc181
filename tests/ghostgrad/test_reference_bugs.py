"""The bugs of the engine this one replaces (register R-004), each as the behaviour being absent."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ghostgrad import GradientEngine, Gram, Kept, Norms, RuleRegistry, Sketcher, Sketches, SketchOptions
from ghostgrad.cases import compare_products
from ghostgrad.sketch import draw
from ghostgrad.testing import one_backward_per_example
from ghostgrad.tiny import Switches, losses, padded, tiny


@pytest.mark.parametrize("guides", [1, 2, 4, 8])
def test_004_01_several_guide_rows(guides: int) -> None:
    """Was 60 to 660 % wrong from two guide rows on: activations were summed before they were multiplied."""
    compare_products(tiny(), guides)


def test_004_01_convolutions_with_several_guide_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 2)).double()
    engine, kept = GradientEngine(model), Kept()
    guide, batch = torch.randn(4, 2, 5, 5).double(), torch.randn(3, 2, 5, 5).double()
    with engine.observe(kept):
        model(guide).square().sum().backward()
    gram = Gram(kept)
    with engine.observe(gram):
        model(batch).square().sum().backward()
    one, two = (one_backward_per_example(model(v).square().sum(1), model.named_parameters()) for v in (batch, guide))
    exact = sum(one[name].flatten(1) @ two[name].flatten(1).mT for name in one)
    torch.testing.assert_close(gram.total(), exact, rtol=1e-10, atol=1e-10)


def test_004_02_tied_weights() -> None:
    """Was overwritten by the other use, without cross terms: the correlation was -0.49."""
    compare_products(tiny(Switches(tied=True)), 2)


def test_004_03_the_training_gradient_needs_no_recovery() -> None:
    """Was 0.6 times the true one with short rows: here `p.grad` is autograd's own."""
    model, batch = tiny(), padded(4)
    losses(model, batch, 4).sum().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with GradientEngine(model).observe(Norms()):
        losses(model, batch, 4).sum().backward()
    assert all(torch.equal(p.grad, plain[name]) for name, p in model.named_parameters())


def test_004_04_requires_grad_is_untouched() -> None:
    model = tiny()
    for place, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(place % 2 == 0)
    flags = [p.requires_grad for p in model.parameters()]
    engine = GradientEngine(model)
    assert [p.requires_grad for p in model.parameters()] == flags
    with engine.observe(Norms()):
        assert [p.requires_grad for p in model.parameters()] == flags
        losses(model, padded(3), 3).sum().backward()
    assert [p.requires_grad for p in model.parameters()] == flags


def test_004_05_rms_norm() -> None:
    """Llama-type models could not run: see also families/."""
    norms, model = Norms(), tiny()
    with GradientEngine(model).observe(norms):
        losses(model, padded(3), 3).sum().backward()
    assert "blocks.0.between.weight" in norms.values


def test_004_07_attach_again_and_unknown_choices() -> None:
    model, batch, norms = tiny(), padded(3), Norms()
    engine = GradientEngine(model)
    results = []
    for _ in range(3):
        with engine.observe(norms):
            losses(model, batch, 3).sum().backward()
        with torch.no_grad():
            model(batch)  # an evaluation in between
        results.append(norms.total())
    assert torch.equal(results[0], results[2])
    with pytest.raises(ValueError, match="accepted are"):
        GradientEngine(model, unsupported="ignore")
    with pytest.raises(ValueError, match="accepted are"):
        RuleRegistry().register(nn.Linear, keep="all")


class Multimodal(nn.Module):
    """Keys of any name, nested, with extra entries that are not tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = nn.Embedding(7, 4), nn.Linear(3, 4)

    def forward(self, *, meta: dict[str, object], inputs: dict[str, list[Tensor]]) -> Tensor:
        pixels, words = inputs["pixels"][0], inputs["words"][0]
        return (self.text(words).sum(1) * self.image(pixels)).sum(1)


def test_004_08_inputs_are_dicts_of_any_keys() -> None:
    torch.manual_seed(0)
    model, norms = Multimodal().double(), Norms()
    batch = {"pixels": [torch.randn(5, 3).double()], "words": [torch.randint(0, 7, (5, 6))]}
    with GradientEngine(model).observe(norms):
        model(meta={"source": "x", "scale": torch.tensor(2.0)}, inputs=batch).square().sum().backward()
    reference = one_backward_per_example(model(meta={}, inputs=batch).square(), model.named_parameters())
    expected = sum(value.flatten(1).square().sum(1) for value in reference.values()).sqrt()
    torch.testing.assert_close(norms.total(), expected, rtol=1e-10, atol=0)


def test_004_12_ranks_reduce_as_without_the_engine() -> None:
    """Covered with two processes in test_engine_lifecycle; here: the engine adds no parameter hook that returns."""
    model = tiny()
    parameter = model.head.weight
    seen: list[Tensor] = []
    with GradientEngine(model).observe(Norms()):
        handle = parameter.register_hook(seen.append)
        losses(model, padded(3), 3).sum().backward()
        handle.remove()
    assert torch.equal(seen[0], parameter.grad)


def test_004_14_orthonormal_projections_keep_inner_products() -> None:
    """Were shrunk to 0.001 … 0.16 of the truth, differently for each layer."""
    for n in (8, 64, 512):
        projection = draw("orthonormal", 0, "layer", 4, n).double()
        assert float((projection @ projection.mT).diagonal().mean()) == pytest.approx(n / 4, rel=1e-5)


def test_004_14_all_layers_are_on_one_scale() -> None:
    """Dense layers were multiplied by the batch size, embeddings not: a doubled batch doubles no row here."""
    model, once = tiny(), padded(3)
    twice = {name: torch.cat([value, value]) for name, value in once.items()}
    twice["document"][3:] = torch.where(twice["document"][3:] >= 0, twice["document"][3:] + 3, -1)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    options = SketchOptions(9, 1, ("*",), True, "rademacher", "even", 0, torch.float32)
    sketches, engine = Sketches(Sketcher(shapes, options, frozenset())), GradientEngine(model)
    with engine.observe(sketches):
        losses(model, once, 3, divisor=10).sum().backward()
    rows = sketches.rows()
    with engine.observe(sketches):
        losses(model, twice, 6, divisor=10).sum().backward()
    torch.testing.assert_close(sketches.rows(), torch.cat([rows, rows]), rtol=1e-4, atol=1e-7)


def test_004_15_the_algorithm_follows_the_length_of_the_batch() -> None:
    """Was decided once per layer and kept when the length changed."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 6).double()
    engine, norms = GradientEngine(layer), Norms()
    for length in (1, 50, 2, 200, 3):
        values = torch.randn(3, length, 6).double()
        with engine.observe(norms):
            layer(values).square().sum().backward()
        reference = one_backward_per_example(layer(values).square().sum((1, 2)), layer.named_parameters())
        for name, value in reference.items():
            torch.testing.assert_close(norms.values[name], value.flatten(1).square().sum(1), rtol=1e-10, atol=0)
