"""Values against the real optimizer: derivatives, leaving a row out, and the account of a run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ghostgrad import GradientEngine
from ghostgrad.values import InRunValues


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def data(count: int, seed: int, flipped: float = 0.0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=random, dtype=torch.float64)
    labels = (inputs[:, :3] + 0.5 * inputs[:, 3:]).argmax(1)
    noisy = torch.rand(count, generator=random) < flipped
    return inputs, torch.where(noisy, (labels + 1) % 3, labels)


def loss(model: nn.Module, rows: tuple[Tensor, Tensor], divisor: int) -> Tensor:
    return nn.functional.cross_entropy(model(rows[0]), rows[1], reduction="sum") / divisor


def detached_loss(model: nn.Module, rows: tuple[Tensor, Tensor], divisor: int) -> Tensor:
    with torch.no_grad():
        return loss(model, rows, divisor)


def guide_gradient(model: nn.Module, guide: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    grads = torch.autograd.grad(loss(model, guide, len(guide[0])), list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), grads, strict=True))


def optimizer_of(kind: str, model: nn.Module, **settings: object) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **settings})
    return torch.optim.AdamW(model.parameters(), **{"lr": 3e-3, "weight_decay": 0.01, **settings})


class Run:
    """A small training run that scores its rows."""

    def __init__(self, kind: str, micro_batches: int = 1, max_norm: float | None = None, **settings: object):
        self.model, self.max_norm, self.micro = network(), max_norm, micro_batches
        self.optimizer = optimizer_of(kind, self.model, **settings)
        self.engine = GradientEngine(self.model)
        self.values = InRunValues(self.engine.parameters, self.optimizer, kind)
        self.rows, self.guide = data(600, 1, flipped=0.2), data(100, 2)

    def step(self, chosen: Tensor) -> object:
        dots = self.values.open_step(guide_gradient(self.model, self.guide))
        for part in chosen.chunk(self.micro):
            with self.engine.observe(dots):
                loss(self.model, (self.rows[0][part], self.rows[1][part]), len(chosen)).backward()
            self.values.add([f"row-{n}" for n in part.tolist()])
        factor = 1.0
        if self.max_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
            factor = min(1.0, self.max_norm / (float(norm) + 1e-6))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.values.close_step(factor)

    def warm(self, steps: int, examples: int = 16) -> None:
        for step in range(steps):
            self.step(torch.arange(step * examples, (step + 1) * examples) % 600)


def row(run: Run, n: Tensor) -> tuple[Tensor, Tensor]:
    return run.rows[0][n].unsqueeze(0), run.rows[1][n].unsqueeze(0)


def true_changes(run: Run, chosen: Tensor) -> Tensor:
    """How much higher the guide loss is after the real step without each row: the row's share of the drop."""
    grads = [
        torch.autograd.grad(loss(run.model, row(run, n), len(chosen)), list(run.model.parameters())) for n in chosen
    ]
    total = [sum(parts) for parts in zip(*grads, strict=True)]

    def after(removed: int | None) -> float:
        model = copy.deepcopy(run.model)
        optimizer = type(run.optimizer)(model.parameters(), lr=1.0)
        optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
        for place, parameter in enumerate(model.parameters()):
            parameter.grad = total[place] - (0 if removed is None else grads[removed][place])
        optimizer.step()
        return float(detached_loss(model, run.guide, len(run.guide[0])))

    whole = after(None)
    return torch.tensor([after(n) - whole for n in range(len(chosen))])


def pearson(one: Tensor, two: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.double(), two.double()]))[0, 1])


def test_adamw_values_match_leaving_one_row_out_of_the_real_step() -> None:
    """Proof 4 of the design: the median over 20 steps after step 50, 24 rows each, clipping off."""
    run, aware, plain = Run("adamw"), [], []
    run.warm(50)
    for step in range(20):
        chosen = torch.arange(step * 24, step * 24 + 24)
        changes = true_changes(run, chosen)
        guide = guide_gradient(run.model, run.guide)
        sgd = InRunValues(run.engine.parameters, run.optimizer, "sgd")
        dots = sgd.open_step(guide)
        with run.engine.observe(dots):
            loss(run.model, (run.rows[0][chosen], run.rows[1][chosen]), 24).backward()
        run.optimizer.zero_grad()
        plain.append(pearson(dots.total(), changes))
        aware.append(pearson(run.step(chosen).values.sum(1), changes))
    assert torch.tensor(aware).median() >= 0.98
    assert torch.tensor(aware).median() > torch.tensor(plain).median()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_value_is_the_derivative_of_the_guide_loss_in_the_rows_weight(kind: str) -> None:
    """One real step at a vanishing learning rate, the row's weight moved by a little: sign, and within 2 % (SGD) or
    5 % (AdamW, whose second moment moves too).

    A row's movement is (1 - β1) of what it will cause in all, once the optimizer has forgotten its start.
    """
    run = Run(kind, **({"lr": 1e-5, "betas": (0.9, 0.9999)} if kind == "adamw" else {"lr": 1e-5}))
    if kind == "adamw":
        run.warm(600)
    chosen = torch.arange(100, 116)
    pieces = [torch.autograd.grad(loss(run.model, row(run, n), 16), list(run.model.parameters())) for n in chosen]
    before, optimizer_before = copy.deepcopy(run.model), copy.deepcopy(run.optimizer.state_dict())
    found = run.step(chosen).values.sum(1)

    def after(place_of_row: int, weight: float) -> float:
        model = copy.deepcopy(before)
        optimizer = optimizer_of(kind, model)
        optimizer.load_state_dict(copy.deepcopy(optimizer_before))
        for place, parameter in enumerate(model.parameters()):
            parameter.grad = sum(piece[place] for piece in pieces) + weight * pieces[place_of_row][place]
        optimizer.step()
        return float(detached_loss(model, run.guide, 100))

    largest = found.abs().argsort(descending=True)[:6].tolist()
    for n in largest:
        derivative = after(n, -0.5) - after(n, 0.5)
        # The optimizer's bias correction makes the present share (1 - β1) / (1 - β1^t).
        share = 1.0 if kind == "sgd" else (1 - 0.9) / (1 - 0.9**601)
        assert derivative == pytest.approx(share * float(found[n]), rel=0.02 if kind == "sgd" else 0.05)


def test_sgd_values_add_up_to_the_drop_of_the_guide_loss() -> None:
    """Over 50 steps, first order: the residual falls with the learning rate (half the rate, half the residual)."""
    residuals = []
    for rate, steps in ((0.02, 50), (0.01, 100)):
        run = Run("sgd", lr=rate)
        start = float(detached_loss(run.model, run.guide, 100))
        run.warm(steps, examples=64)
        drop = start - float(detached_loss(run.model, run.guide, 100))
        total = sum(total.value for total in run.values.totals.values())
        residuals.append(abs(total - drop) / drop)
    assert residuals[0] < 0.05 and residuals[1] < 0.7 * residuals[0]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_accumulation_and_clipping(kind: str) -> None:
    whole, parts = Run(kind, max_norm=0.05), Run(kind, micro_batches=3, max_norm=0.05)
    for run in (whole, parts):
        run.warm(3)
    for name, total in whole.values.totals.items():
        assert parts.values.totals[name].value == pytest.approx(total.value, rel=1e-8, abs=1e-12)
        assert parts.values.totals[name].steps_seen == 1


def test_the_first_update_has_no_second_moment_and_is_counted() -> None:
    run = Run("adamw")
    first = run.step(torch.arange(8))
    assert first.by_row() == [None] * 8 and sorted(first.unscored) == sorted(run.engine.parameters)
    second = run.step(torch.arange(8))
    assert None not in second.by_row() and second.unscored == []
    total = run.values.totals["row-0"]
    assert (total.steps_seen, total.steps_scored) == (2, 1) and total.value == second.by_row()[0]


def test_frozen_and_partly_trained_parameters() -> None:
    run = Run("adamw")
    run.warm(2)
    guide = guide_gradient(run.model, run.guide)
    dots = run.values.open_step({"4.weight": guide["4.weight"]})
    with run.engine.observe(dots):
        loss(run.model, (run.rows[0][:4], run.rows[1][:4]), 4).backward()
    run.values.add(list("abcd"))
    step = run.values.close_step(torch.tensor(0.5))
    assert step.names == ["4.weight"] and step.values.shape == (4, 1)


def test_misuse() -> None:
    run = Run("adamw")
    with pytest.raises(RuntimeError, match="open_step"):
        run.values.add(["a"])
    with pytest.raises(RuntimeError, match="open_step"):
        run.values.close_step()
    with pytest.raises(ValueError, match="accepted are"):
        InRunValues(run.engine.parameters, run.optimizer, "lion")
    with pytest.raises(ValueError, match="SGD takes no adamw"):
        InRunValues(run.engine.parameters, torch.optim.SGD(run.model.parameters(), lr=1.0), "adamw")
    other = torch.optim.AdamW(network().parameters())
    with pytest.raises(ValueError, match="does not train"):
        InRunValues(run.engine.parameters, other, "adamw").open_step(guide_gradient(run.model, run.guide))
