"""Credits and values against the real optimizer: sums written out, rows really taken out, an account that closes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from test_in_run_values import data, detached_loss, guide_gradient, loss, network, pearson
from torch import Tensor

from ghostgrad import GradientEngine, folding
from ghostgrad.crediting import Clip, RowCredits, Settled

ROWS = 16


class Run:
    """AdamW on a small network whose rows are credited, with what is needed to do each step again."""

    def __init__(self, window: int = 1, limit: float | None = None, micro: int = 1, **settings: Any):
        self.model, self.window, self.limit, self.micro = network(), window, limit, micro
        options = {"lr": 3e-3, "weight_decay": 0.01, **settings}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **options)
        self.engine = GradientEngine(self.model)
        self.credits = self.credited()
        self.rows, self.guide = data(600, 1, flipped=0.2), data(100, 2)
        self.before = guide_gradient(self.model, self.guide)
        self.settled: list[Settled] = []
        self.number, self.decayed, self.clipped = 0, 0.0, 0

    def credited(self) -> RowCredits:
        return RowCredits(self.engine.parameters, self.optimizer, ROWS, self.window)

    def chosen(self, number: int) -> Tensor:
        return torch.arange((number - 1) * ROWS, number * ROWS) % 600

    def gradients(self) -> None:
        """Of the next step, clipped, in place; the rows' folds in `credits`."""
        chosen = self.chosen(self.number + 1)
        self.optimizer.zero_grad()
        for part in chosen.chunk(self.micro):
            with self.engine.observe(self.credits.observer):
                loss(self.model, (self.rows[0][part], self.rows[1][part]), len(chosen)).backward()
            self.credits.add([str(n) for n in part.tolist()])
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.limit or math.inf))
        self.clip = Clip(norm, self.limit)
        self.clipped += self.clip.factor < 1

    def step(self) -> None:
        self.gradients()
        weights = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.optimizer.step()
        self.number += 1
        self.credits.update(self.number, self.before, self.clip)
        group = self.optimizer.param_groups[0]
        if self.number % self.window == 0:
            self.optimizer.zero_grad()  # a guide pass comes before the next step, when gradients are gone
            after = guide_gradient(self.model, self.guide)
            for name, value in weights.items():
                middle = 0.5 * (self.before[name] + after[name])
                self.decayed += group["lr"] * group["weight_decay"] * float((middle * value).sum())
            self.settled += self.credits.close_window(self.before, after)
            self.before = after

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def loss(self) -> float:
        return float(detached_loss(self.model, self.guide, 100))

    def finish(self) -> dict[int, Settled]:
        return {one.step: one for one in self.settled + self.credits.finish()}


def written_out(run: Run, steps: int) -> dict[int, Tensor]:
    """[rows] the credits of each step, from whole gradients of single rows and no fold, in a run of its own."""
    kept: list[tuple[int, list[list[Tensor]]]] = []
    found: dict[int, Tensor] = {}
    for number in range(1, steps + 1):
        chosen = run.chosen(number)
        parameters = list(run.model.parameters())
        single = [
            torch.autograd.grad(loss(run.model, (run.rows[0][n : n + 1], run.rows[1][n : n + 1]), ROWS), parameters)
            for n in chosen.tolist()
        ]
        before = guide_gradient(run.model, run.guide)
        run.step()
        kept.append((number, [[run.clip.factor * g for g in grads] for grads in single]))
        found[number] = torch.zeros(ROWS, dtype=torch.float64)
        group, middle = run.optimizer.param_groups[0], guide_gradient(run.model, run.guide)
        for place, (name, parameter) in enumerate(run.model.named_parameters()):
            root = (run.optimizer.state[parameter]["exp_avg_sq"] / (1 - 0.999**number)).sqrt()
            towards = 0.5 * (before[name] + middle[name]) / (root + 1e-8) * (root > 0)
            for source, rows in kept:
                part = group["lr"] * 0.1 * 0.9 ** (number - source) / (1 - 0.9**number)
                found[source] += torch.stack([part * (towards * grads[place]).sum() for grads in rows])
    return found


@pytest.mark.parametrize("limit", [None, 0.3])
def test_credits_are_the_written_out_sums(limit: float | None) -> None:
    run = Run(limit=limit)
    expected = written_out(run, 12)
    found = run.finish()
    assert sorted(found) == list(range(1, 13)) and (run.clipped > 6) == (limit is not None)
    for number, rows in expected.items():
        assert found[number].ids == [str(n) for n in run.chosen(number).tolist()]
        torch.testing.assert_close(found[number].credits.sum(1), rows, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("window", "share"), [(1, 0.02), (5, 0.02), (10, 0.02)])
def test_credits_and_decay_add_up_to_the_drop(window: int, share: float) -> None:
    run = Run(window=window, limit=0.3)
    before = run.loss()
    run.run(100)
    rows = sum(float(one.credits.sum()) for one in run.finish().values())
    drop = before - run.loss()
    assert abs(rows + (run.decayed if window == 1 else 0.0) - drop) < share * drop


def without_each(run: Run) -> Tensor:
    """[rows] the guide loss after the next real step without each row, less that with all, over the step's share."""
    chosen = run.chosen(run.number + 1)
    parameters = list(run.model.parameters())
    single = [
        torch.autograd.grad(loss(run.model, (run.rows[0][n : n + 1], run.rows[1][n : n + 1]), ROWS), parameters)
        for n in chosen.tolist()
    ]
    whole = [sum(parts) for parts in zip(*single, strict=True)]

    def after(removed: int | None) -> float:
        model = copy.deepcopy(run.model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
        optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
        for place, parameter in enumerate(model.parameters()):
            parameter.grad = torch.as_tensor(whole[place] - (0 if removed is None else single[removed][place]))
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.limit or math.inf)
        optimizer.step()
        return float(detached_loss(model, run.guide, 100))

    share = 0.1 / (1 - 0.9 ** (run.number + 1))
    return (torch.tensor([after(n) for n in range(ROWS)], dtype=torch.float64) - after(None)) / share


def agreement(found: Tensor, real: Tensor) -> tuple[float, float]:
    """(Pearson r, slope of the real change over the predicted one)."""
    centred = found - found.mean()
    return pearson(found, real), float(centred @ (real - real.mean()) / (centred @ centred))


@pytest.mark.parametrize(("limit", "lr"), [(None, 3e-3), (0.3, 3e-3), (0.1, 1e-2)])
def test_a_value_is_what_taking_the_row_out_of_the_real_step_does(limit: float | None, lr: float) -> None:
    """Clip factor and v̂ as they are without the row; 20 steps after the 50th."""
    run = Run(limit=limit, lr=lr)
    run.run(50)
    real = {}
    for number in range(51, 71):
        real[number] = without_each(run)
        run.step()
    found = run.finish()
    pairs = [agreement(found[number].values.sum(1), rows) for number, rows in real.items()]
    r, slope = torch.tensor(pairs).median(0).values.tolist()
    assert r > 0.98 and 0.9 < slope < 1.1, (r, slope)
    assert run.clipped == (70 if limit else 0) or run.clipped > 50


def test_micro_batches_and_saved_states_change_nothing() -> None:
    whole, parts = Run(window=4, limit=0.3), Run(window=4, limit=0.3, micro=4)
    whole.run(60)
    for number in range(60):
        parts.step()
        if number == 45:  # in the middle of a window
            tensors, counters = parts.credits.tensors(), copy.deepcopy(parts.credits.counters())
            parts.credits = parts.credited()
            parts.credits.restore(tensors, counters)
    left, right = whole.finish(), parts.finish()
    assert sorted(left) == sorted(right) == list(range(1, 61))
    for number, one in left.items():
        for ours, theirs in ((one.credits, right[number].credits), (one.values, right[number].values)):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-13)


def test_a_restored_state_goes_on_bit_by_bit() -> None:
    straight, broken = Run(window=3), Run(window=3)
    straight.run(70)
    for number in range(70):
        broken.step()
        if number in (10, 64):
            tensors, counters = broken.credits.tensors(), copy.deepcopy(broken.credits.counters())
            broken.credits = broken.credited()
            broken.credits.restore({name: tensor.clone() for name, tensor in tensors.items()}, counters)
    left, right = straight.finish(), broken.finish()
    assert all(torch.equal(one.credits, right[n].credits) for n, one in left.items())
    assert all(torch.equal(one.values, right[n].values) for n, one in left.items())


def test_folds_that_are_sketches_are_right_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Run(limit=0.3)
    exact.run(30)
    expected = torch.cat([one.credits.sum(1) for one in exact.finish().values()])
    monkeypatch.setattr(folding, "NUMBERS", 0)
    monkeypatch.setattr(folding.Folding.__init__, "__defaults__", (0,))
    sketched = Run(limit=0.3)
    assert not sketched.credits.folding.exact and sketched.credits.folding.size < 64 * 6
    sketched.run(30)
    found = torch.cat([one.credits.sum(1) for one in sketched.finish().values()])
    assert pearson(expected, found) > 0.9
    assert abs(float(found.sum() / expected.sum()) - 1) < 0.2


def test_what_takes_no_adamw_step_is_refused() -> None:
    model = network()
    for optimizer in (
        torch.optim.SGD(model.parameters(), lr=1.0),
        torch.optim.AdamW(model.parameters(), amsgrad=True),
    ):
        with pytest.raises(ValueError, match="takes no AdamW step"):
            RowCredits(dict(model.named_parameters()), optimizer, 1, 1)


def test_steadiness_compares_values_by_the_guide_gradients_at_both_ends_of_a_window() -> None:
    """Values by either gradient come from runs that know only that one. 0.02: what v̂ moves is taken by the first."""
    ends = [guide_gradient(network(), data(100, 2, flipped=share)) for share in (0.0, 0.4)]

    def last_step(before: dict[str, Tensor], after: dict[str, Tensor]) -> tuple[Tensor, float | None]:
        one = Run(window=300, limit=0.3)
        one.before = ends[0]
        one.run(299)
        one.credits.close_window(ends[0], ends[0])
        assert one.credits.steadiness == pytest.approx(1)
        one.credits.agreed, one.credits.compared, one.before = 0.0, 0, before
        one.gradients()
        one.optimizer.step()
        one.credits.update(300, before, one.clip)
        one.credits.close_window(before, after)
        return one.finish()[300].values.sum(1), one.credits.steadiness

    first, last = (last_step(end, end)[0] for end in ends)
    _, found = last_step(*ends)
    assert pearson(first, last) < 0.9
    assert found == pytest.approx(pearson(first, last), abs=0.02)
    assert Run().credits.steadiness is None
