"""Numbers that would be wrong are found in the first pass, whatever way in, and can be had the exact way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from silent import SILENT, UNRULED, inputs, made, row_losses
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ghostgrad import GradientEngine, Kept, Norms, NotFinite, UnsupportedLayer, WeightedSum, verifying
from ghostgrad.testing import compare, one_backward_per_example
from ghostgrad.tiny import Switches, losses, padded, tiny


def seen(engine: GradientEngine, probing: bool, losses: Callable[[], Tensor]) -> dict[str, Tensor]:
    """[B, *P] of every parameter, by a probe or in a training step."""
    kept = Kept()
    if probing:
        with engine.probe(kept) as backward:
            backward(losses().sum())
    else:
        with engine.observe(kept):
            losses().sum().backward()
    return {name: gradient.materialize() for name, gradient in kept.values.items()}


@pytest.mark.parametrize("probing", [False, True], ids=["observe", "probe"])
@pytest.mark.parametrize("name", SILENT)
def test_what_would_be_silently_wrong_is_refused_by_name(name: str, probing: bool) -> None:
    model = made(name)
    with pytest.raises(UnsupportedLayer, match=r'(?s)(conv|table|inner|bias|experts).*"exact"'):
        seen(GradientEngine(model), probing, lambda: row_losses(model, inputs()))


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("name", [*SILENT, *UNRULED])
def test_the_exact_way_is_right_for_each(name: str, frozen: bool) -> None:
    model, values = made(name), inputs()
    reference = one_backward_per_example(row_losses(model, values), model.named_parameters())
    model.requires_grad_(not frozen)
    engine = GradientEngine(model, unsupported="exact", select=list(reference))
    for _ in range(3):
        found = seen(engine, True, lambda: row_losses(model, values))
        for parameter, rows in reference.items():
            torch.testing.assert_close(found[parameter], rows, rtol=1e-10, atol=1e-12)
    assert all(p.grad is None and p.requires_grad is not frozen for p in model.parameters())


@pytest.mark.parametrize("name", [*SILENT, *UNRULED])
def test_every_operation_is_exact_in_a_training_step(name: str) -> None:
    values = inputs()
    compare(made(name), lambda model: row_losses(model, values), unsupported="exact")


def test_what_is_wrong_only_in_a_later_batch_is_found_there() -> None:
    """[positions, examples] is refused for its shape until both are as many."""

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, values: Tensor) -> Tensor:
            square = values.shape[0] == values.shape[1]
            return self.inner(values.transpose(0, 1)).transpose(0, 1) if square else self.inner(values)

    model = Sometimes().double()
    engine = GradientEngine(model)
    for examples in (2, 3, 1):
        seen(engine, False, lambda examples=examples: row_losses(model, inputs(examples)))
    with pytest.raises(UnsupportedLayer, match="single rows are not those"):
        seen(engine, False, lambda: row_losses(model, inputs(4)))


def backward_passes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What grows by one with every inner backward pass."""
    passes: list[Any] = []
    inner = verifying.inner_backward
    monkeypatch.setattr(verifying, "inner_backward", lambda *given, **named: passes.append(1) or inner(*given, **named))
    return passes


@pytest.mark.parametrize("probing", [False, True], ids=["observe", "probe"])
def test_a_form_of_batch_is_verified_once(probing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = tiny(), backward_passes(monkeypatch)
    engine = GradientEngine(model)
    # Other lengths and numbers of examples are the same form; one example, or as many as positions, are not.
    shapes = [(3, 7), (4, 7), (5, 9), (3, 8), (1, 6), (1, 7), (6, 6), (5, 5), (3, 7)]
    counts = []
    for examples, longest in shapes:
        seen(engine, probing, lambda e=examples, n=longest: losses(model, padded(e, longest=n), e))
        counts.append(len(passes))
    assert counts == [1, 1, 1, 1, 2, 2, 3, 3, 3]


def test_flattened_positions_of_any_length_are_verified_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learned prompt makes them longer than the input is."""

    class Longer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, values: Tensor) -> Tensor:
            longer = torch.cat([values, values[:, :2]], 1)
            return self.inner(longer.flatten(0, 1)).unflatten(0, longer.shape[:2])

    model, passes = Longer().double(), backward_passes(monkeypatch)
    engine = GradientEngine(model)
    counts = []
    for length in (5, 5, 6, 7, 8, 9):
        values = torch.randn(3, length, 6, dtype=torch.float64)
        seen(engine, False, lambda values=values: row_losses(model, values))
        counts.append(len(passes))
    assert counts == [1, 1, 2, 2, 2, 2]


def test_reentrant_checkpoints_are_refused_by_name() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, values: Tensor) -> Tensor:
            return checkpoint(self.inner, values, use_reentrant=True)

    model = Checkpointed().double()
    with pytest.raises(UnsupportedLayer, match="use_reentrant=False"):
        seen(GradientEngine(model), False, lambda: row_losses(model, inputs().requires_grad_()))


def test_a_gradient_that_was_zero_is_verified_when_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoRA A has none before B has moved: passes 2, 3, 30, 300… look again."""
    model, passes = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 6)).double(), backward_passes(monkeypatch)
    nn.init.zeros_(model[1].weight)
    engine = GradientEngine(model)
    counts = []
    for step in range(32):
        seen(engine, False, lambda: row_losses(model, inputs()))
        counts.append(len(passes))
        if step == 20:
            nn.init.ones_(model[1].weight)
    assert counts == [1, 2, *[3] * 27, *[4] * 3]


@pytest.mark.parametrize("way", ["alias", "two outputs", "in place"])
def test_outputs_of_other_kinds(way: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, values: Tensor) -> Any:
            found = self.inner(values)
            return {"alias": [found], "two outputs": {"a": found, "b": (found.square(), 3)}, "in place": found}[way]

    model, values = Model().double(), inputs()

    def total() -> Tensor:
        found = model(values)
        if way == "two outputs":
            return (found["a"].exp() + found["b"][0]).flatten(1).sum(1)
        return (found[0] if way == "alias" else found.mul_(3)).square().flatten(1).sum(1)

    reference = one_backward_per_example(total(), model.named_parameters())
    for probing in (False, True):
        found = seen(GradientEngine(model), probing, total)
        for name, rows in reference.items():
            torch.testing.assert_close(found[name], rows)


class Inside(nn.Module):
    """Makes its loss itself, and gives the logits too if it is asked to."""

    def __init__(self, inner: nn.Module, logits: bool):
        super().__init__()
        self.inner, self.logits = inner, logits

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        found = self.inner(values)
        loss = F.cross_entropy(found.mT, torch.zeros(found.shape[:2], dtype=torch.long))
        return (loss, found) if self.logits else (loss,)


def test_a_loss_made_inside_the_model_is_verified_from_its_logits() -> None:
    wrong = Inside(made("rows in another order"), logits=True)
    with pytest.raises(UnsupportedLayer, match="single rows"):
        seen(GradientEngine(wrong), False, lambda: wrong(inputs())[0])
    right = Inside(nn.Linear(6, 6).double(), logits=True)
    engine = GradientEngine(right)
    seen(engine, False, lambda: right(inputs())[0])
    assert not engine.verification.notes


def test_where_rows_cannot_be_told_sums_are_verified_and_it_is_said() -> None:
    model = Inside(nn.Linear(6, 6).double(), logits=False)
    engine = GradientEngine(model)
    seen(engine, False, lambda: model(inputs())[0])
    assert engine.verification.notes == {"rows of the model's output": 1}
    outside = Inside(made("weight used outside its module"), logits=False)
    with pytest.raises(UnsupportedLayer, match=r"conv\.weight"):
        seen(GradientEngine(outside), False, lambda: outside(inputs())[0])
    with pytest.raises(UnsupportedLayer, match="compute the loss outside"):
        only = Inside(made("LSTM and GRU"), logits=False)
        seen(GradientEngine(only, unsupported="exact"), False, lambda: only(inputs())[0])


@pytest.mark.parametrize("unsupported", ["raise", "exact"])
def test_verifying_leaves_training_and_other_engines_as_they_are(unsupported: str) -> None:
    """Two engines, each verifying in a pass that the other sees; dropout, checkpoints, and hooks of one's own."""

    def trained(observed: bool) -> tuple[list[Tensor], list[Tensor], Tensor]:
        torch.manual_seed(0)
        model = tiny(Switches(tied=True, reused=True, checkpointed=True), dtype=torch.float32)
        model.blocks[0].up = nn.Sequential(model.blocks[0].up, nn.Dropout(0.3))
        optimizer, hooked = torch.optim.AdamW(model.parameters(), lr=1e-2), []
        model.places.weight.register_hook(lambda grad: hooked.append(grad.clone()))
        first, second = (GradientEngine(model, unsupported=unsupported, select=s) for s in (["*"], ["*.weight"]))
        if unsupported == "exact":
            second.verification.take_out({"blocks.0.out.weight": "tried", "head.weight": "tried"})
        for step, examples in enumerate((4, 1, 7, 4)):
            norms, others = Norms(), Norms()
            batch = padded(examples, seed=step)
            with first.observe(*[norms] * observed), second.observe(*[others] * observed):
                losses(model, batch, examples).sum().backward()
            if observed:
                for name in ("blocks.0.out.weight", "blocks.0.down.weight", "places.weight"):
                    torch.testing.assert_close(norms.values[name], others.values[name], rtol=1e-4, atol=1e-9)
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach().clone() for p in model.parameters()], hooked, torch.get_rng_state()

    (plain, hooks, state), (seen, seen_hooks, seen_state) = trained(False), trained(True)
    assert all(map(torch.equal, plain, seen)) and torch.equal(state, seen_state)
    assert len(hooks) == len(seen_hooks) and all(map(torch.equal, hooks, seen_hooks))


@pytest.mark.parametrize("level", [True, "sums"])
def test_frozen_weights_are_verified_in_a_training_step_and_keep_no_gradient(level: Any) -> None:
    model = made("weight used inside and outside")
    model = nn.Sequential(model, nn.Linear(6, 6)).double()
    model[0].requires_grad_(False)
    before = torch.zeros(6, 6)
    model[0].table.weight.grad = before.double()
    held = model[0].table.weight.grad
    engine = GradientEngine(model, select=["0.*"], verify=level)
    with pytest.raises(UnsupportedLayer, match=r"table\.weight"), engine.observe(Norms(), frozen=True):
        row_losses(model, inputs()).sum().backward()
    assert model[0].table.weight.grad is held and not held.any() and not model[0].table.weight.requires_grad
    assert model[0].table.weight._post_accumulate_grad_hooks in (None, {})


@pytest.mark.parametrize("name", ["positions first", "rows in another order", "experts by value", "expanded later"])
def test_for_sums_it_does_not_matter_whose_a_position_is(name: str) -> None:
    """The sums of weights below adapters, in a family that has its positions first."""
    model, values, total = made(name), inputs(3), WeightedSum()
    row_losses(model, values).sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    first = nn.Linear(6, 6).double()
    nn.init.eye_(first.weight)
    nn.init.zeros_(first.bias)
    model = nn.Sequential(first, model)
    with GradientEngine(model, select=["1.*"], verify="sums").observe(total, frozen=True):
        row_losses(model, values).sum().backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(total.values[f"1.{name}"], gradient)


@pytest.mark.parametrize("selected", [["*"], ["head.*"], ["words.*", "blocks.0.mix.weight"]])
def test_a_row_whose_loss_is_not_a_number_is_named(selected: list[str]) -> None:
    model = tiny()
    factor = torch.tensor([1.0, float("nan"), float("inf"), 1.0], dtype=torch.float64)
    engine = GradientEngine(model, select=selected)
    for _ in range(2):
        with pytest.raises(NotFinite, match=r"rows 1, 2 of the batch") as caught, engine.probe(Norms()) as backward:
            backward((losses(model, padded(4), 4) * factor).sum())
        assert caught.value.rows == [1, 2]
