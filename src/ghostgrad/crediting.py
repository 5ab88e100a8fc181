"""What rows did to the guide loss through AdamW's real steps: credits that add up, and values of taking a row out.

AdamW's update t moves a parameter by −lr_t/(1−β1^t) · D_t · m_t, with D_t = 1/(√v̂_t + ε) and m_t the mixture
(1−β1) Σ_s β1^(t−s) u_s of the clipped gradients u_s = c_s Σ_i g_si of all steps s so far. So

    credit of row i of step s  =  Σ_{t≥s} lr_t (1−β1) β1^(t−s) / (1−β1^t) · ⟨ G_t ⊙ D_t, c_s g_si ⟩

with G_t the gradient of the guide loss halfway through update t. Credits of all rows and what weight decay did are the
path integral of the guide loss along the run: they add up to its drop but for the curvature between two guide passes
(Lan et al. 2019, arXiv 1909.01440, take the same integral apart by weights). Between passes G_t is interpolated; what a
pass adds to the gradient before it is multiplied with the D_t of the window's end. What less than `FADED` of a gradient
moves is left to the residual.

    value of row i of step s  =  the guide loss after update s without the row, less that with it, over the share
                                 (1−β1)/(1−β1^s) of the gradient that this update uses

to first order in the weights: u_s changes by the row's gradient and by the clip factor, which is recomputed without the
row in closed form; v̂_s by the derivative −½ m̂ D² / √v̂ · dv̂, dv̂ = 2 (1−β2) u · du / (1−β2^s). The guide gradient is that
after the update. Positive: the row lowered the guide loss.

    credits = RowCredits(engine.parameters, optimizer, rows_per_step=8)
    for step in ...:
        with engine.observe(credits.observer): ...       # every micro-batch
        credits.add(ids)                                  # after every micro-batch
        ...clip, optimizer.step()...
        credits.update(step, guide, Clip(norm, limit))    # gradients still in place
        settled = credits.close_window(guide, guide_now)  # every k updates
    settled = credits.finish()
"""

# torch exports its _foreach_ operations, which optimizers of other packages use, but does not list them.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ghostgrad.folding import Folding
from ghostgrad.forms import widen
from ghostgrad.values import together, updates_of

FADED = 0.01
"""Share of a gradient that is still to move the weights when its rows are let go."""

TABLES = ("rows", "weight", "late", "credit", "value")
"""What is kept of each row, one row of each table per slot."""


@dataclass(frozen=True)
class Clip:
    """How the gradient of a step was clipped: its length before, and the length allowed (None: any)."""

    norm: float
    limit: float | None

    @property
    def factor(self) -> float:
        """What it was multiplied with."""
        return 1.0 if self.limit is None else min(1.0, self.limit / (self.norm + 1e-6))

    def without(self, towards: Tensor, squares: Tensor) -> Tensor:
        """[B] the factor without each row, over the factor with it.

        Args:
            towards: inner product of each clipped row with the clipped gradient.
            squares: squared length of each clipped row.
        """
        if self.limit is None:
            return torch.ones_like(towards)
        lengths = (self.norm**2 + (squares - 2 * towards) / self.factor**2).clamp_min(0).sqrt()
        return (self.limit / (lengths + 1e-6)).clamp_max(1.0) / self.factor


@dataclass(frozen=True)
class Settled:
    """The rows of one step, when no more of their gradient will move the weights.

    Attributes:
        step: in which they trained.
        ids: of the rows, in the order they came.
        names: of the parameters that trained in the step and have rows.
        credits: [rows, parameters], float64 on the host.
        values: [rows, parameters], float64 on the host.
    """

    step: int
    ids: list[str]
    names: list[str]
    credits: Tensor
    values: Tensor


@dataclass(frozen=True)
class _Step:
    """A step whose rows are kept: their ids and slots, for each row the clip factor without it over that with it, and
    the parameters that were updated with their learning rates."""

    ids: list[str]
    slots: list[int]
    ratios: list[float]
    rates: dict[str, float]

    def joined(self, other: _Step) -> _Step:
        """With the rows that another process had of it."""
        return _Step(self.ids + other.ids, self.slots + other.slots, self.ratios + other.ratios, self.rates)


@dataclass(frozen=True)
class _Updated:
    """A parameter that has just been updated, and what AdamW keeps of it."""

    gradient: Any
    first: Tensor
    second: Tensor
    count: float
    lr: float
    beta: float
    second_beta: float
    eps: float

    @property
    def rate(self) -> float:
        """lr / (1−β1^t)."""
        return self.lr / (1 - self.beta**self.count)

    @property
    def correction(self) -> float:
        """1−β2^t."""
        return 1 - self.second_beta**self.count


def _roots(parameters: Sequence[_Updated]) -> list[Tensor]:
    """√v̂ of each."""
    second = [one.second for one in parameters]
    return list(torch._foreach_sqrt(torch._foreach_div(second, [one.correction for one in parameters])))


def _inverses(parameters: Sequence[_Updated], roots: list[Tensor]) -> list[Tensor]:
    """D = 1 / (√v̂ + ε) of each; 0 in elements whose gradient was 0 so far, where it would be 1/ε."""
    found = torch._foreach_sign([one.second for one in parameters])
    torch._foreach_div_(found, torch._foreach_add(roots, [one.eps for one in parameters]))
    return list(found)


def _through_v(
    parameters: Sequence[_Updated], roots: list[Tensor], inverses: list[Tensor], scaled: list[Tensor]
) -> list[Tensor]:
    """What a change of each gradient does to the guide loss through v̂, over the learning rate.

    Args:
        roots: √v̂.
        inverses: D.
        scaled: the guide gradient times D. m D · u / √v̂ times it: each factor is bounded.
    """
    found = torch._foreach_mul([one.first for one in parameters], inverses)
    above_zero = torch._foreach_maximum(roots, 1e-30)
    torch._foreach_mul_(found, torch._foreach_div([one.gradient for one in parameters], above_zero))
    torch._foreach_mul_(found, scaled)
    torch._foreach_mul_(found, [(1 - one.second_beta) / (1 - one.beta) / one.correction for one in parameters])
    return list(found)


class RowCredits:
    """Credits and values of a run's rows.

    Costs a fold of every row, of the step's gradient and of two directions, and once per update and once per window the
    product of the kept rows with a folded direction; memory: at most `folding.NUMBERS` numbers, or 64 per kept row and
    parameter.

    Args:
        parameters: name to parameter, those the engine shows.
        optimizer: the run's own, AdamW or what keeps its states; read, never changed.
        rows_per_step: rows that this process sees in a step.
        window: updates between two guide passes, at most.
        processes: how many share a step's rows; the gradient is then the mean of theirs.
        valued: whether the values of rows are made; else `set_values` may give others.

    Raises:
        ValueError: an optimizer that does not step as AdamW does.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        rows_per_step: int,
        window: int,
        processes: int = 1,
        valued: bool = True,
    ):
        for group in optimizer.param_groups:
            if not {"lr", "betas", "eps"} <= set(group) or group.get("maximize") or group.get("amsgrad"):
                raise ValueError(f"{type(optimizer).__name__} takes no AdamW step: needs betas, eps and no amsgrad")
        self.parameters, self.optimizer, self.processes, self.valued = parameters, optimizer, processes, valued
        self.groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        slowest = max((group["betas"][0] for group in optimizer.param_groups), default=0.0)
        self.kept_steps = max(1, math.ceil(math.log(FADED) / math.log(slowest))) if slowest else 1
        kept_rows = (self.kept_steps + window) * rows_per_step
        self.folding = Folding(parameters, kept_rows * processes)  # the same folds in however many processes
        self.names = self.folding.names
        self.observer = self.folding.observer()
        self.rows = torch.zeros(kept_rows, self.folding.size, dtype=self.folding.dtype, device=self.folding.device)
        """[slots, K] folds of clipped rows."""
        self.taken = torch.zeros(kept_rows, dtype=torch.bool)
        """[slots]."""
        empty = [torch.zeros(kept_rows, len(self.names), dtype=torch.float64) for _ in TABLES[1:]]
        self.weight, self.late, self.credit, self.value = empty
        """[slots, P]: what the last update used of the row; what the window's updates used, times their rates and how
        late in the window they were; the row's credit and value so far."""
        self.steps: dict[int, _Step] = {}
        self.opened = self.last = 0
        """Updates before the window, and so far."""
        self.wholes: dict[int, Tensor] = {}
        """[K] fold of the clipped gradient of the window's steps."""
        self._pending: list[tuple[list[str], Tensor]] = []

    def add(self, ids: Sequence[str]) -> None:
        """Takes the observed micro-batch; `ids` in the order of its rows."""
        self._pending.append((list(ids), self.folding.rows(self.observer, len(ids)) / self.processes))

    def update(self, number: int, guide: Mapping[str, Tensor], clip: Clip) -> None:
        """Takes the update that the optimizer has just made; gradients are still in place, as they were clipped.

        Args:
            number: of the update, from 1.
            guide: the last gradient of the guide loss, by parameter.
            clip: of the step's gradient.
        """
        active = [name for name in self.names if self.parameters[name].grad is not None and name in guide]
        counts = updates_of(self.optimizer, {name: self.parameters[name] for name in active})
        now = {name: self._updated(name, counts[name]) for name in active}
        straight, turned = self.folding.direction(()), self.folding.direction(())
        for part in together(active, guide):
            own, gradients = [now[name] for name in part], [guide[name] for name in part]
            roots = _roots(own)
            inverses = _inverses(own, roots)
            scaled = list(torch._foreach_mul(inverses, gradients))
            self.folding.direction(zip(part, scaled, strict=True), into=straight)
            if self.valued:
                through = _through_v(own, roots, inverses, scaled)
                self.folding.direction(zip(part, through, strict=True), into=turned)
        self._fade(now)
        slots = self._keep(number, now, clip)
        self._move(number, now, straight)
        if self.valued:
            self._value(number, slots, torch.stack([straight, turned], 1))
        self.last = number

    def _updated(self, name: str, count: float) -> _Updated:
        parameter = self.parameters[name]
        state, group = self.optimizer.state[parameter], self.groups[id(parameter)]
        moments = widen(state["exp_avg"]), widen(state["exp_avg_sq"])
        beta, second_beta = group["betas"]
        return _Updated(parameter.grad, *moments, count, float(group["lr"]), beta, second_beta, group["eps"])

    def _fade(self, now: Mapping[str, _Updated]) -> None:
        """Momentum of the rows of earlier steps goes on to fade where a parameter was updated."""
        # a state that begins anew remembers nothing
        left = {name: one.beta if one.count > 1 else 0.0 for name, one in now.items()}
        self.weight *= self._by_parameter(left, 1.0)

    def _by_parameter(self, numbers: Mapping[str, float], otherwise: float = 0.0) -> Tensor:
        """[P]."""
        return torch.tensor([numbers.get(name, otherwise) for name in self.names], dtype=torch.float64)

    def _move(self, number: int, now: Mapping[str, _Updated], straight: Tensor) -> None:
        """Credits this update by the last guide gradient, and notes how much of it a later one is to correct."""
        moved = self.weight * self._by_parameter({name: one.rate for name, one in now.items()})
        self.credit += moved * self.folding.products(self.rows, straight.unsqueeze(1))[..., 0]
        self.late += moved * (number - self.opened - 0.5)

    def _keep(self, number: int, now: Mapping[str, _Updated], clip: Clip) -> Tensor:
        """The slots of this update's rows, with their part of it."""
        whole = self.folding.direction((name, one.gradient) for name, one in now.items())
        ids = [name for some, _ in self._pending for name in some]
        none = self.rows.new_zeros(0, self.folding.size)  # the last step of an epoch may leave a process without rows
        rows = torch.cat([none, *(rows for _, rows in self._pending)]) * clip.factor
        self._pending = []
        slots = self._slots(len(ids))
        self.rows[slots.to(self.rows.device)] = rows
        self.taken[slots] = True
        self.late[slots] = self.credit[slots] = 0
        self.weight[slots] = self._by_parameter({name: 1 - one.beta for name, one in now.items()})
        ratios = clip.without((rows @ whole).double().cpu(), rows.square().sum(1).double().cpu())
        self.wholes[number] = whole
        self.steps[number] = _Step(ids, slots.tolist(), ratios.tolist(), {name: one.lr for name, one in now.items()})
        return slots

    def _value(self, number: int, slots: Tensor, directions: Tensor) -> None:
        """What taking rows out does, by the last guide gradient."""
        rows = torch.cat([self.rows[slots.to(self.rows.device)], self.wholes[number].unsqueeze(0)])
        straight, turned = self.folding.products(rows, directions).unbind(2)
        self.value[slots] = self._taken_out(number, (straight - turned)[:-1], (straight - turned)[-1])

    def set_values(self, number: int, names: Sequence[str], values: Tensor) -> None:
        """Gives the rows of the last update other values, [B, len(names)]; not a number where there are no names."""
        slots = self.steps[number].slots
        self.value[slots] = 0.0 if names else float("nan")
        for column, name in enumerate(names):
            self.value[slots, self.names.index(name)] = values[:, column]

    def _taken_out(self, number: int, own: Tensor, whole: Tensor) -> Tensor:
        """[B, P] what a change of the gradient by each row and by the clip factor without it does.

        Args:
            own: [B, P] what the row's clipped gradient does, per learning rate.
            whole: [P] what that of all rows does.
        """
        step = self.steps[number]
        ratios = torch.tensor(step.ratios, dtype=torch.float64).unsqueeze(1)
        return self._by_parameter(step.rates) * (ratios * own - (ratios - 1) * whole)

    def _slots(self, count: int) -> Tensor:
        """[count] free places; more are made where there are not enough."""
        free = int((~self.taken).sum())
        if count > free:
            self._grow(max(count - free, len(self.taken) // 2))
        return (~self.taken).nonzero().squeeze(1)[:count]

    def _grow(self, more: int) -> None:
        self.taken = torch.cat([self.taken, self.taken.new_zeros(more)])
        for name in TABLES:
            table = getattr(self, name)
            setattr(self, name, torch.cat([table, table.new_zeros(more, table.shape[1])]))

    def close_window(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Settled]:
        """Credits what the updates since the last guide pass did; the steps that are settled with it.

        Args:
            before: gradient of the guide loss at the last pass, by parameter.
            after: that of the pass now.
        """
        length = self.last - self.opened
        if not length:
            return []
        turn = self._turn(before, after).unsqueeze(1)
        products = self.folding.products(self.rows, turn)[..., 0]
        self.credit += products * self.late / length
        self.late.zero_()
        for number, whole in self.wholes.items() if self.valued else ():
            slots, at = self.steps[number].slots, (number - self.opened) / length
            total = self.folding.products(whole.unsqueeze(0), turn)[0, :, 0]
            self.value[slots] += at * self._taken_out(number, products[slots], total)
        self.opened, self.wholes = self.last, {}
        return [self._settle(number) for number in list(self.steps) if self.last - number >= self.kept_steps]

    def _turn(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
        """[K] how the guide gradient turned in the window, times D as it is now."""
        moved = {name: None for number in self.wholes for name in self.steps[number].rates}
        counts = updates_of(self.optimizer, {name: self.parameters[name] for name in moved})
        turn = self.folding.direction(())
        for part in together(list(moved), after):
            own = [self._updated(name, counts[name]) for name in part]
            found = _inverses(own, _roots(own))
            torch._foreach_mul_(found, [after[name] - before[name] for name in part])
            self.folding.direction(zip(part, found, strict=True), into=turn)
        return turn

    def finish(self) -> list[Settled]:
        """All steps that are not settled, with what they did so far; after the last window."""
        return [self._settle(number) for number in list(self.steps)]

    def _settle(self, number: int) -> Settled:
        step = self.steps.pop(number)
        places = [self.names.index(name) for name in step.rates]
        self.taken[step.slots] = False
        self.weight[step.slots] = 0
        found = [table[step.slots][:, places] for table in (self.credit, self.value)]
        return Settled(number, step.ids, list(step.rates), *found)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, with `counters`."""
        used = self.taken.nonzero().squeeze(1)
        tables = {name: table[used.to(table.device)] for name, table in self._tables().items()}
        wholes = {f"whole|{number}": whole for number, whole in self.wholes.items()}
        return {"used": used, **tables, **wholes}

    def counters(self) -> dict[str, Any]:
        """What a checkpoint must hold besides, as JSON."""
        return {
            "slots": len(self.taken),
            "opened": self.opened,
            "last": self.last,
            "steps": {str(number): asdict(step) for number, step in self.steps.items()},
        }

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Takes up a saved state: the first as it was, slot by slot; the rows of further ones, of other processes, are
        added to it."""
        used = tensors["used"].cpu()
        if not self.steps:
            self._grow(max(0, counters["slots"] - len(self.taken)))
            self.opened, self.last = counters["opened"], counters["last"]
            wholes = [key.partition("|")[2] for key in tensors if key.startswith("whole|")]
            self.wholes = {int(number): tensors[f"whole|{number}"] for number in sorted(wholes, key=int)}
            slots = used
        else:
            slots = self._slots(len(used))
        self.taken[slots] = True
        for name, table in self._tables().items():
            table[slots.to(table.device)] = tensors[name].to(table)
        places = dict(zip(used.tolist(), slots.tolist(), strict=True))
        for number, saved in counters["steps"].items():
            own = _Step(**{**saved, "slots": [places[slot] for slot in saved["slots"]]})
            earlier = self.steps.get(int(number))
            self.steps[int(number)] = own if earlier is None else earlier.joined(own)

    def _tables(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in TABLES}
