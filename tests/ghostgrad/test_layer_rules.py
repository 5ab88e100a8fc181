"""Every rule that needs only torch, for 1, 2, 4 and 8 examples; a wrong rule; what has no rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ghostgrad import RULES, Dense, GradientEngine, LayerIO, Norms, OuterProduct, UnsupportedLayer
from ghostgrad.cases import LAYERS
from ghostgrad.testing import check_rule, compare, one_backward_per_example

X = torch.randn


@pytest.mark.parametrize("examples", [1, 2, 4, 8])
@pytest.mark.parametrize("case", list(LAYERS))
def test_rule(case: str, examples: int) -> None:
    torch.manual_seed(0)
    make, given = LAYERS[case]
    check_rule(make(), given(examples))


@pytest.mark.parametrize("case", ["linear", "linear without bias", "layer norm", "conv1d", "conv2d"])
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_one_of_two_parameters_frozen(case: str, frozen: str) -> None:
    torch.manual_seed(0)
    make, given = LAYERS[case]
    layer, values = make().double(), given(3).double()
    if getattr(layer, frozen) is None or getattr(layer, "bias", None) is None:
        pytest.skip("has only one parameter")
    getattr(layer, frozen).requires_grad_(False)
    compare(layer, lambda layer: layer(values).square().flatten(1).sum(1))


def test_a_rule_for_a_layer_of_ones_own() -> None:
    class Scale(nn.Module):
        def __init__(self, features: int):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(features))

        def forward(self, values: Tensor) -> Tensor:
            return values * self.weight

    rules = RULES.copy()

    @rules.register(Scale)
    def scale(module: Scale, io: LayerIO) -> dict[str, Dense]:
        return {"weight": Dense(io.total(io.grad_output * io.input))}

    check_rule(Scale(8), X(4, 5, 8), rules=rules)
    with pytest.raises(UnsupportedLayer, match="Scale"):
        GradientEngine(Scale(8))


WRONG = {
    "sums before multiplying": lambda m, io: {
        "weight": OuterProduct(io.grad_output.sum(1, keepdim=True), io.input.sum(1, keepdim=True))
    },
    "swaps the examples": lambda m, io: {"weight": OuterProduct(io.grad_output.flip(0), io.input.flip(0))},
    "halves": lambda m, io: {"weight": OuterProduct(io.grad_output / 2, io.input)},
    "forgets the parameter": lambda m, io: {},
    "shifts one position": lambda m, io: {"weight": OuterProduct(io.grad_output.roll(1, 1), io.input)},
}


@pytest.mark.parametrize("mistake", list(WRONG))
def test_a_wrong_rule_fails(mistake: str) -> None:
    rules = RULES.copy()
    rules.register(nn.Linear)(WRONG[mistake])
    layer = nn.Linear(5, 5, bias=False)
    with pytest.raises((AssertionError, UnsupportedLayer)):
        check_rule(layer, X(4, 6, 5), rules=rules)


@pytest.mark.parametrize("probing", [False, True])
@pytest.mark.parametrize("mistake", list(WRONG))
def test_verification_names_the_layer_of_a_wrong_rule(mistake: str, probing: bool) -> None:
    """Swapped examples have the right sum: only other weights on them find them."""
    rules = RULES.copy()
    rules.register(nn.Linear)(WRONG[mistake])
    model = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 5, bias=False))
    engine = GradientEngine(model, rules=rules)
    with pytest.raises(UnsupportedLayer, match=r"not right for 1 parameters:\n  1: .*Linear \(1\.weight\)"):
        if probing:
            with engine.probe(Norms()) as backward:
                backward(model(X(4, 6, 5)).square().sum())
        else:
            with engine.observe(Norms()):
                model(X(4, 6, 5)).square().sum().backward()


def test_all_layers_without_a_rule_are_named_together() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Bilinear(4, 4, 4), nn.GRU(4, 4))
    with pytest.raises(UnsupportedLayer) as caught:
        GradientEngine(model)
    text = str(caught.value)
    assert "3 layers" in text and all(word in text for word in ("1: ", "PReLU", "Bilinear", "GRU", "weight_ih_l0"))
    GradientEngine(model, select=["0.*"])
    model[1:].requires_grad_(False)
    GradientEngine(model)


def test_a_subclass_with_its_own_forward_has_no_rule() -> None:
    class Doubling(nn.Linear):
        def forward(self, values: Tensor) -> Tensor:
            return 2 * super().forward(values)

    class Renamed(nn.Linear):
        pass

    with pytest.raises(UnsupportedLayer, match="Doubling"):
        GradientEngine(Doubling(3, 3))
    check_rule(Renamed(3, 3), X(4, 3))


@pytest.mark.parametrize("examples", [1, 2, 8])
@pytest.mark.parametrize("make", [nn.PReLU, lambda: nn.GroupNorm(2, 6), lambda: nn.Conv3d(6, 2, 1)])
def test_any_layer_through_the_exact_fallback(make: Callable[[], nn.Module], examples: int) -> None:
    torch.manual_seed(0)
    layer = make().double()
    shape = (examples, 6, 2, 2, 2) if isinstance(layer, nn.Conv3d) else (examples, 6, 3)
    values = X(*shape).double()
    compare(layer, lambda layer: layer(values).square().flatten(1).sum(1), unsupported="exact")


def test_parameters_in_dicts_and_lists_belong_to_their_owner() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scales = nn.ParameterDict({"a": nn.Parameter(torch.randn(4)), "b": nn.Parameter(torch.randn(4))})
            self.shifts = nn.ParameterList([nn.Parameter(torch.randn(4))])

        def forward(self, values: Tensor) -> Tensor:
            return values * self.scales["a"] * self.scales["b"] + self.shifts[0]

    values = X(4, 3, 4).double()
    with pytest.raises(UnsupportedLayer, match=r"scales\.a, scales\.b, shifts\.0"):
        GradientEngine(Mixture())
    compare(Mixture().double(), lambda m: m(values).square().flatten(1).sum(1), unsupported="exact")


class Noisy(nn.Module):
    """Dropout, an operation in place, and an autograd function without a vectorised form."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: Tensor) -> Tensor:
            ctx.save_for_backward(values)
            return values**3

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 3 * ctx.saved_tensors[0] ** 2 * grad

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, values: Tensor) -> Tensor:
        scaled = values * self.Cube.apply(self.scale)
        return torch.nn.functional.dropout(scaled.add_(self.scale), 0.4)


class Several(nn.Module):
    """Outputs in a tuple, arguments in a mapping, positions that look at each other, and a leading size of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, given: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
        values = given["values"]
        looked = torch.tril(values @ values.mT) @ (values * self.scale) * mask
        return looked, {"shared": self.shift[None, None] ** 2, "none": None, "count": torch.ones(3, dtype=torch.long)}


def parametrized() -> nn.Module:
    return torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


def once_normed() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return torch.nn.utils.weight_norm(nn.Linear(4, 4))


@pytest.mark.parametrize("make", [Noisy, parametrized, once_normed])
def test_layers_whose_call_cannot_be_vectorised_are_exact(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    layer, values = make().double(), X(3, 3, 4).double()

    def losses(layer: nn.Module) -> Tensor:
        torch.manual_seed(5)
        return layer(values).square().flatten(1).sum(1)

    compare(layer, losses, unsupported="exact")
    state = torch.get_rng_state()
    losses(layer)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UnsupportedLayer, match="have no per-example gradient rule"):
        GradientEngine(layer)


def test_a_layer_with_several_outputs_is_exact() -> None:
    torch.manual_seed(0)
    layer, values, mask = Several().double(), X(3, 3, 4).double(), X(3, 1).double()

    def losses(layer: nn.Module) -> Tensor:
        looked, others = layer({"values": values}, mask=mask)
        return (looked + others["shared"]).square().flatten(1).sum(1)

    compare(layer, losses, unsupported="exact", examples=3)


def test_packed_and_selected_positions_are_exact() -> None:
    torch.manual_seed(0)
    layer, values = nn.PReLU(4).double(), X(2, 4, 5).double()
    index = torch.tensor([[0, 0, 1, 1, -1], [2, 2, 2, 1, 1]])

    def losses(layer: nn.Module) -> Tensor:
        each = layer(values).square().sum(1)
        return torch.zeros(4).double().index_add_(0, index.flatten() % 4, each.flatten())[:3]

    index_of_prelu = index[:, None].expand(2, 4, 5)  # features stand in the middle here
    compare(layer, losses, unsupported="exact", examples=index_of_prelu)


def test_two_engines_do_not_see_what_a_rule_runs_again() -> None:
    torch.manual_seed(0)
    model, values = nn.Sequential(nn.Linear(4, 4), nn.PReLU(4)).double(), X(3, 4).double()
    norms, others = Norms(), Norms()
    with (
        GradientEngine(model, unsupported="exact").observe(norms),
        GradientEngine(model, unsupported="exact").observe(others),
    ):
        model(values).square().sum().backward()
    reference = one_backward_per_example(model(values).square().sum(1), model.named_parameters())
    expected = sum(gradient.flatten(1).square().sum(1) for gradient in reference.values()) ** 0.5
    torch.testing.assert_close(norms.total(), expected)
    torch.testing.assert_close(others.total(), expected)


def test_what_is_left_out_is_named_and_not_shown() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU(4))
    engine, norms = GradientEngine(model, unsupported="leave_out"), Norms()
    assert list(engine.left_out) == ["1.weight"] and set(engine.parameters) == {"0.weight", "0.bias"}
    with engine.observe(norms):
        model(X(3, 4)).sum().backward()
    assert set(norms.values) == {"0.weight", "0.bias"}
    assert GradientEngine(model, unsupported="exact").exact == ["1.weight"]


@pytest.mark.parametrize("settings", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_embeddings_that_mix_examples_are_refused(settings: dict[str, object]) -> None:
    table = nn.Embedding(6, 4, **settings)
    engine = GradientEngine(table, verify=False)
    with pytest.raises(UnsupportedLayer, match="mixes the examples"), engine.observe(Norms()):
        table(torch.randint(0, 6, (3, 5))).sum().backward()


def test_a_pattern_that_matches_nothing_and_unknown_choices_are_errors() -> None:
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"match no parameter.*gate_proj"):
        GradientEngine(layer, select=["weight", "gate_proj*"])
    with pytest.raises(ValueError, match="accepted are"):
        GradientEngine(layer, unsupported="skip")
    with pytest.raises(ValueError, match="accepted are"):
        RULES.register(nn.Linear, keep="everything")
