"""The engine against one float64 backward per example, under every switch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ghostgrad import GradientEngine, Gram, Kept, Norms, WeightedSum
from ghostgrad.cases import SWITCHES, compare_parts
from ghostgrad.testing import compare, one_backward_per_example
from ghostgrad.tiny import Switches, losses, packed, padded, tiny


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("examples", [1, 2, 4, 8])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows(switches: Switches, examples: int, side: str) -> None:
    batch = padded(examples, side)
    compare(tiny(switches), lambda model: losses(model, batch, examples))


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("examples", [2, 4, 8])
def test_packed_rows(switches: Switches, examples: int) -> None:
    batch = packed(examples)
    compare(tiny(switches), lambda model: losses(model, batch, examples), examples=batch["document"])


def test_a_packed_document_has_the_gradient_of_the_unpacked_row() -> None:
    model, examples = tiny(Switches(tied=True)), 4
    rows, documents = padded(examples), packed(examples)
    apart = one_backward_per_example(losses(model, rows, examples), model.named_parameters())
    together = one_backward_per_example(losses(model, documents, examples), model.named_parameters())
    for name, value in apart.items():
        torch.testing.assert_close(together[name], value, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_rows_do_not_depend_on_the_micro_batch(parts: int) -> None:
    compare_parts(parts)


class SelectingLM(nn.Module):
    """Runs the head on the positions with a target only, as a trainer does to save the logits of the others."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        model.head.register_forward_pre_hook(lambda module, args: (args[0][self.chosen],))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        document = batch["document"]
        target = (document[:, 1:] >= 0) & (document[:, 1:] == document[:, :-1])
        self.chosen = nn.functional.pad(target, (0, 1))
        return nn.functional.cross_entropy(self.model(batch), batch["ids"][:, 1:][target], reduction="none")


@pytest.mark.parametrize("tied", [False, True])
def test_positions_selected_before_the_head(tied: bool) -> None:
    examples, batch = 4, padded(4)
    model = SelectingLM(tiny(Switches(tied=tied)))
    target = batch["document"][:, 1:] >= 0
    index = torch.arange(examples).unsqueeze(1).expand_as(target)[target]

    def contributions(model: nn.Module) -> Tensor:
        each = model(batch)
        return each.new_zeros(examples).index_add(0, index, each) / len(each)

    compare(model, contributions, selected={"model.head": index})


def test_gram_with_the_rows_of_another_batch() -> None:
    model = tiny(Switches(tied=True))
    engine, guide, batch = GradientEngine(model), padded(3, seed=1), padded(5, seed=2)
    kept = Kept()
    with engine.observe(kept):
        losses(model, guide, 3).sum().backward()
    gram = Gram(kept)
    with engine.observe(gram):
        losses(model, batch, 5).sum().backward()
    rows = one_backward_per_example(losses(model, batch, 5), model.named_parameters())
    others = one_backward_per_example(losses(model, guide, 3), model.named_parameters())
    expected = sum(rows[name].flatten(1) @ others[name].flatten(1).mT for name in rows)
    torch.testing.assert_close(gram.total(), expected, rtol=1e-10, atol=1e-12)


def test_two_forwards_before_one_backward_are_one_use_each() -> None:
    """A preference loss runs the model on chosen and rejected rows and differentiates both together."""
    first, second = padded(4, seed=1), padded(4, seed=2)
    compare(tiny(Switches(tied=True)), lambda model: losses(model, first, 4) - 2 * losses(model, second, 4))


def test_observers_share_taps_and_do_not_disturb_each_other() -> None:
    model, batch = tiny(Switches(tied=True)), padded(4)
    engine = GradientEngine(model)
    together = Norms(), WeightedSum(torch.arange(4.0))
    with engine.observe(*together):
        losses(model, batch, 4).sum().backward()
    for observer, alone in zip(together, (Norms(), WeightedSum(torch.arange(4.0))), strict=True):
        with engine.observe(alone):
            losses(model, batch, 4).sum().backward()
        assert all(torch.equal(alone.values[name], value) for name, value in observer.values.items())


def test_frozen_parts_and_patterns() -> None:
    model, batch = tiny(), padded(3)
    model.blocks[0].requires_grad_(False)
    engine = GradientEngine(model, select=["blocks.*.up.weight", "head.weight"])
    norms = Norms()
    with engine.observe(norms):
        losses(model, batch, 3).sum().backward()
    assert set(norms.values) == {"blocks.1.up.weight", "head.weight"}
    model.requires_grad_(True)
    reference = one_backward_per_example(losses(model, batch, 3), model.named_parameters())
    for name, value in norms.values.items():
        torch.testing.assert_close(value, reference[name].flatten(1).square().sum(1), rtol=1e-10, atol=0)


def test_the_scale_is_the_callers() -> None:
    model, batch = tiny(), padded(4)
    engine, norms = GradientEngine(model), Norms()
    totals = []
    for factor in (1.0, 8.0):
        with engine.observe(norms):
            (losses(model, batch, 4).sum() * factor).backward()
        totals.append(norms.total())
    torch.testing.assert_close(totals[1], 8 * totals[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_frozen_parameters_can_be_observed_in_a_training_step(switches: Switches) -> None:
    """As for the gradient of the weight below an adapter; what trains gets the same gradient, bit for bit."""
    model, batch = tiny(switches), padded(4)
    reference = one_backward_per_example(losses(model, batch, 4), model.named_parameters())
    model.requires_grad_(False)
    model.blocks[0].up.requires_grad_(True)
    losses(model, batch, 4).sum().backward()
    plain = model.blocks[0].up.weight.grad.clone()
    model.zero_grad()
    norms, total = Norms(), WeightedSum()
    with GradientEngine(model, select=["*"]).observe(norms, total, frozen=True):
        losses(model, batch, 4).sum().backward()
    for name, value in reference.items():
        torch.testing.assert_close(norms.values[name], value.flatten(1).square().sum(1), rtol=1e-10, atol=1e-20)
        torch.testing.assert_close(total.values[name], value.sum(0), rtol=1e-10, atol=1e-14)
    assert torch.equal(model.blocks[0].up.weight.grad, plain)
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "blocks.0.up.weight",
        "blocks.0.up.bias",
    ]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_probe_sees_what_a_training_step_sees(switches: Switches, frozen: bool) -> None:
    model, batch = tiny(switches), padded(4)
    trained, probed = (Norms(), WeightedSum()), (Norms(), WeightedSum())
    with GradientEngine(model).observe(*trained):
        losses(model, batch, 4).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    model.requires_grad_(not frozen).zero_grad()
    with GradientEngine(model, select=["*"]).probe(*probed) as backward:
        backward(losses(model, batch, 4).sum())
    assert all(p.grad is None and p.requires_grad is not frozen for p in model.parameters())
    for name, grad in grads.items():
        torch.testing.assert_close(probed[0].values[name], trained[0].values[name], rtol=1e-12, atol=0)
        torch.testing.assert_close(probed[1].values[name], grad, rtol=1e-10, atol=1e-14)


LAYERS = {
    "linear": lambda width: nn.Linear(width, width),
    "plain": lambda width: nn.Linear(width, width, bias=False),
    "norm": lambda width: nn.LayerNorm(width),
    "rms": lambda width: nn.RMSNorm(width),
}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kinds=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=4),
    repeats=st.integers(1, 3),
    width=st.integers(2, 6),
    examples=st.integers(1, 5),
    length=st.integers(1, 7),
    tied=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_random_architectures(
    kinds: list[str], repeats: int, width: int, examples: int, length: int, tied: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    table, head = nn.Embedding(7, width), nn.Linear(width, 7, bias=False)
    if tied:
        head.weight = table.weight
    layers = nn.ModuleList([LAYERS[kind](width) for kind in kinds])
    model = nn.ModuleDict({"table": table, "layers": layers, "head": head}).double()
    ids = torch.randint(0, 7, (examples, length))

    def contributions(model: nn.Module) -> Tensor:
        hidden = model["table"](ids)
        for layer in [*model["layers"]] * repeats:
            hidden = torch.tanh(layer(hidden))
        return model["head"](hidden).square().flatten(1).mean(1)

    # A ModuleDict has no forward of its own: the number of examples must be said.
    compare(model, contributions, examples=examples)
