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
after the update, between passes interpolated as if it turned at an even pace: `steadiness` says how much a window
turns it. Positive: the row lowered the guide loss.

    credits = RowCredits(engine.parameters, optimizer, rows_per_step=8)
    for step in ...:
        with engine.observe(credits.observer): ...       # every micro-batch
        credits.add(ids)                                  # after every micro-batch
        ...clip, optimizer.step()...
        credits.update(step, guide, Clip(norm, limit))    # gradients still in place
        settled = credits.close_window(guide, guide_now)  # every k updates
    settled = credits.finish()
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ghostgrad.folding import Folding, Part
from ghostgrad.forms import widen
from ghostgrad.values import updates_of

FADED = 0.01
"""Share of a gradient that is still to move the weights when its rows are let go."""

FEWEST_COMPARED = 4
"""Rows of a step whose values are compared: of two, any are in line."""

TOGETHER = 16
"""Updates whose credits are made at once: kept rows are read once for all of them."""

TABLES = ("rows", "credit", "value")
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
    """A step whose rows are kept: their ids and slots, for each row the clip factor without it over that with it, which
    share of the row it is, and the parameters that were updated with their learning rates."""

    ids: list[str]
    slots: list[int]
    ratios: list[float]
    shares: list[float]
    rates: dict[str, float]

    def joined(self, other: _Step) -> _Step:
        """With the rows that another process had of it."""
        return _Step(
            self.ids + other.ids,
            self.slots + other.slots,
            self.ratios + other.ratios,
            self.shares + other.shares,
            self.rates,
        )


@dataclass(frozen=True)
class _Update:
    """What an update of the window did, for the credits and values that are made of several at once.

    Attributes:
        left: [P] what is left of the momentum of earlier steps.
        begun: [P] what the update used of its own step's gradient.
        rates: [P] lr / (1−β1^t).
        straight: [K] fold of the guide gradient times D: what a movement along the momentum does.
        towards: [K] fold of what a change of this step's gradient does, over the learning rate.
        whole: [K] fold of the step's clipped gradient.
    """

    left: Tensor
    begun: Tensor
    rates: Tensor
    straight: Tensor
    towards: Tensor
    whole: Tensor


@dataclass(frozen=True)
class _Second:
    """What AdamW's second moment says of G parameters of one shape, [G, *P] each."""

    root: Tensor
    """√v̂."""
    inverse: Tensor
    """D = 1 / (√v̂ + ε); 0 in elements whose gradient was 0 so far, where it would be 1/ε."""
    correction: Tensor
    """[G, 1, ...] 1−β2^t."""

    def through(self, first: Tensor, gradient: Tensor, scaled: Tensor, decays: Tensor) -> Tensor:
        """What a change of each gradient does to the guide loss through v̂, over the learning rate.

        Args:
            first: AdamW's first moment, m.
            gradient: that was clipped.
            scaled: the guide gradient times D. m D · u / √v̂ times it: each factor is bounded.
            decays: [G, 1, ...] (1−β2) / (1−β1).
        """
        found = torch.mul(first, self.inverse).mul_(gradient / self.root.clamp_min(1e-30))
        return found.mul_(scaled).mul_(decays / self.correction)


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor:
    """[G, *P] in the dtype of sums; never to be written to, since one tensor is not copied."""
    found = [widen(tensor) for tensor in tensors if tensor is not None]
    return torch.stack(found) if len(found) > 1 else found[0].unsqueeze(0)


def steps_kept(beta: float) -> int:
    """Steps whose rows still move the weights by more than `FADED` of their gradient."""
    return max(1, math.ceil(math.log(FADED) / math.log(beta))) if beta else 1


def bytes_kept(
    parameters: Mapping[str, nn.Parameter], rows_per_step: int, window: int, beta: float, processes: int = 1
) -> int:
    """What `RowCredits` keeps at its peak, on the parameters' device and the host together.

    Args:
        beta: the largest β1.
        window: updates between two guide passes, at most.
    """
    steps = steps_kept(beta) + window
    rows = steps * rows_per_step
    folding = Folding(parameters, rows * processes)
    fold, table = folding.size * folding.dtype.itemsize, len(folding.names) * torch.float64.itemsize
    mixed = (steps + TOGETHER) * fold + min(TOGETHER, window) * steps * table
    return rows * (fold + len(TABLES[1:]) * table) + 3 * window * fold + mixed


def _each(numbers: Sequence[float], like: Tensor) -> Tensor:
    """[G, 1, ...] one number per parameter, to multiply `like` [G, *P] with."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).view(-1, *(1 for _ in like.shape[1:]))


class RowCredits:
    """Credits and values of a run's rows.

    Costs a fold of every row, of the step's gradient and of two directions, and once per window (or `TOGETHER` updates)
    the product of each kept row with a folded direction; memory: at most `folding.NUMBERS` numbers, or 64 per kept row
    and parameter.

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
        self.kept_steps = steps_kept(slowest)
        kept_rows = (self.kept_steps + window) * rows_per_step
        self.folding = Folding(parameters, kept_rows * processes)  # the same folds in however many processes
        self.names = self.folding.names
        self.observer = self.folding.observer()
        self.rows = self.folding.zeros(kept_rows)
        """[slots, K] folds of clipped rows."""
        self.taken = torch.zeros(kept_rows, dtype=torch.bool)
        """[slots]."""
        self.credit, self.value = (torch.zeros(kept_rows, len(self.names), dtype=torch.float64) for _ in TABLES[1:])
        """[slots, P]: the row's credit and value so far."""
        self.steps: dict[int, _Step] = {}
        self.used = torch.zeros(0, len(self.names), dtype=torch.float64)
        """[steps, P] what the last update that is credited used of a gradient of each."""
        self.late = torch.zeros(0, len(self.names), dtype=torch.float64)
        """[steps, P] what the window's updates used, times their rates and how late in the window they were."""
        self.updates: dict[int, _Update] = {}
        """Of the window."""
        self.opened = self.last = self.credited = 0
        """Updates before the window, so far, and those that are credited."""
        self.agreed, self.compared = 0.0, 0
        """Correlations of the values of a step's rows by the guide gradients at both ends of its window, added up; and
        how many there are."""
        self._pending: list[tuple[list[str], Sequence[int], Tensor]] = []

    def add(self, ids: Sequence[str], owners: Sequence[int] | None = None) -> None:
        """Takes the observed micro-batch; `ids` in the order of its rows.

        `owners` says which row each of them is a part of, where rows are several sequences: a row is then taken out as
        a whole, so that the values of its parts add up to its own.
        """
        whose = range(len(ids)) if owners is None else owners
        self._pending.append((list(ids), whose, self.folding.rows(self.observer, len(ids)) / self.processes))

    def update(self, number: int, guide: Mapping[str, Tensor], clip: Clip) -> None:
        """Takes the update that the optimizer has just made; gradients are still in place, as they were clipped.

        Args:
            number: of the update, from 1.
            guide: the last gradient of the guide loss, by parameter.
            clip: of the step's gradient.
        """
        active = [name for name in self.names if self.parameters[name].grad is not None and name in guide]
        counts = updates_of(self.optimizer, {name: self.parameters[name] for name in active})
        straight, towards, whole = (self.folding.zeros() for _ in range(3))
        for part in self.folding.parts(active):
            second, gradient = self._second(part, counts), _stacked([self.parameters[name].grad for name in part.names])
            scaled = second.inverse * _stacked([guide[name] for name in part.names])
            self.folding.enter(straight, part, scaled)
            self.folding.enter(whole, part, gradient)
            if self.valued:
                first = _stacked([self._state(name)["exp_avg"] for name in part.names])
                betas = [self._group(name)["betas"] for name in part.names]
                decays = _each([(1 - second_beta) / (1 - beta) for beta, second_beta in betas], first)
                scaled.sub_(second.through(first, gradient, scaled, decays))
                self.folding.enter(towards, part, scaled)
        beta = {name: self._group(name)["betas"][0] for name in active}
        # a state that begins anew remembers nothing
        left = {name: one if counts[name] > 1 else 0.0 for name, one in beta.items()}
        self.updates[number] = _Update(
            self._by_parameter(left, 1.0),
            self._by_parameter({name: 1 - one for name, one in beta.items()}),
            self._by_parameter({n: float(self._group(n)["lr"]) / (1 - beta[n] ** counts[n]) for n in active}),
            straight,
            towards,
            whole,
        )
        self._keep(number, {name: float(self._group(name)["lr"]) for name in active}, whole, clip)
        self.last = number
        if self.last - self.credited >= TOGETHER:
            self._credit()

    def _group(self, name: str) -> Mapping[str, Any]:
        return self.groups[id(self.parameters[name])]

    def _state(self, name: str) -> Mapping[str, Tensor]:
        return self.optimizer.state[self.parameters[name]]

    def _second(self, part: Part, counts: Mapping[str, float]) -> _Second:
        moments = _stacked([self._state(name)["exp_avg_sq"] for name in part.names])
        groups = [self._group(name) for name in part.names]
        # in double: 1 − 0.999^t is a difference of near numbers
        correction = _each([1 - g["betas"][1] ** counts[n] for n, g in zip(part.names, groups, strict=True)], moments)
        root = (moments / correction).sqrt_()
        inverse = moments.sign().div_(root + _each([group["eps"] for group in groups], moments))
        return _Second(root, inverse, correction)

    def _by_parameter(self, numbers: Mapping[str, float], otherwise: float = 0.0) -> Tensor:
        """[P]."""
        return torch.tensor([numbers.get(name, otherwise) for name in self.names], dtype=torch.float64)

    def _keep(self, number: int, rates: dict[str, float], whole: Tensor, clip: Clip) -> None:
        """Takes the rows of this update."""
        ids = [name for some, _, _ in self._pending for name in some]
        # the last step of an epoch may leave a process without rows
        rows = torch.cat([self.folding.zeros(0), *(rows for _, _, rows in self._pending)]) * clip.factor
        whose = _counted_on([owners for _, owners, _ in self._pending])
        self._pending = []
        slots = self._slots(len(ids))
        self.rows[slots.to(self.rows.device)] = rows
        self.taken[slots] = True
        self.credit[slots] = self.value[slots] = 0
        parts = torch.bincount(whose)
        if len(parts) < len(rows):
            rows = rows.new_zeros(len(parts), self.folding.size).index_add_(0, whose.to(rows.device), rows)
        ratios = clip.without((rows @ whole).double().cpu(), rows.square().sum(1).double().cpu())[whose]
        shares = (1 / parts.double())[whose]
        self.steps[number] = _Step(ids, slots.tolist(), ratios.tolist(), shares.tolist(), rates)

    def _credit(self, turn: Tensor | None = None) -> None:
        """Credits what the updates since the last credits did, by the last guide gradient; at the end of the window
        what the gradient turned in it besides, for all updates of it.

        Args:
            turn: [K] how the guide gradient turned, times D.
        """
        new = [number for number in self.updates if number > self.credited]
        more = self.used.new_zeros(len(new), len(self.names))
        self.used, self.late = (torch.cat([table, more]) for table in (self.used, self.late))
        order = {number: place for place, number in enumerate(self.steps)}
        shares: list[Tensor] = []
        directions: list[Tensor] = []
        for number in new:
            update = self.updates[number]
            self.used *= update.left
            self.used[order[number]] = update.begun
            moved = self.used * update.rates
            self.late += moved * (number - self.opened - 0.5)
            shares.append(moved)
            directions.append(update.straight)
        if turn is not None:
            shares.append(self.late / (self.last - self.opened))
            directions.append(turn)
        mixed = self.folding.mixed(torch.stack(shares, 1), torch.stack(directions))
        for step, direction in zip(self.steps.values(), mixed, strict=True):
            self.credit[step.slots] += self.folding.products(self._rows(step), direction)
        self.credited = self.last

    def _rows(self, step: _Step) -> Tensor:
        """[B, K] folds of a step's rows."""
        slots = step.slots
        if slots and slots == list(range(slots[0], slots[0] + len(slots))):
            return self.rows[slots[0] : slots[0] + len(slots)]
        return self.rows[slots]

    def _value(self, turn: Tensor | None) -> None:
        """What taking out rows of the window's steps does, by the guide gradient after each step."""
        for number, update in self.updates.items():
            step, late = self.steps[number], (number - self.opened) / (self.last - self.opened)
            rows = torch.cat([self._rows(step), update.whole.unsqueeze(0)])
            found = self._taken_out(step, self.folding.products(rows, update.towards))
            if turn is not None:
                turned = self._taken_out(step, self.folding.products(rows, turn))
                self._compare(found.sum(1), turned.sum(1))
                found += late * turned
            self.value[step.slots] = found

    def _taken_out(self, step: _Step, products: Tensor) -> Tensor:
        """[B, P] what a change of the gradient by each row and by the clip factor without it does; the clip factor of a
        row in parts changes by all of them alike.

        Args:
            products: [B + 1, P] what each row's clipped gradient does, and that of all rows, per learning rate.
        """
        ratios, shares = torch.tensor([step.ratios, step.shares], dtype=torch.float64).unsqueeze(2)
        return self._by_parameter(step.rates) * (ratios * products[:-1] - (ratios - 1) * shares * products[-1])

    def _compare(self, values: Tensor, turned: Tensor) -> None:
        """Values [B] of a step by the guide gradient before its window, and how much higher they are by that after."""
        if len(values) >= FEWEST_COMPARED:
            found = float(torch.corrcoef(torch.stack([values, values + turned]))[0, 1])
            if math.isfinite(found):  # not where all rows have the same value
                self.agreed, self.compared = self.agreed + found, self.compared + 1

    def set_values(self, number: int, names: Sequence[str], values: Tensor) -> None:
        """Gives the rows of the last update other values, [B, len(names)]; not a number where there are no names."""
        slots = self.steps[number].slots
        self.value[slots] = 0.0 if names else float("nan")
        for column, name in enumerate(names):
            self.value[slots, self.names.index(name)] = values[:, column]

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
        if self.last == self.opened:
            return []
        self._close(self._turn(before, after))
        old = [number for number in self.steps if self.last - number >= self.kept_steps]
        return [self._settle(number) for number in old]

    def _close(self, turn: Tensor | None) -> None:
        self._credit(turn)
        if self.valued:
            self._value(turn)
        self.late.zero_()
        self.opened, self.updates = self.last, {}

    def _turn(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
        """[K] how the guide gradient turned in the window, times D as it is now."""
        names = {name: None for number in self.updates for name in self.steps[number].rates}
        counts = updates_of(self.optimizer, {name: self.parameters[name] for name in names})
        turn = self.folding.zeros()
        for part in self.folding.parts(names):
            turned = _stacked([after[name] - before[name] for name in part.names])
            self.folding.enter(turn, part, self._second(part, counts).inverse.mul_(turned))
        return turn

    @property
    def steadiness(self) -> float | None:
        """Mean correlation of the values of a step's rows by the guide gradients at both ends of its window: 1 where
        the window does not turn it. None where no step had rows enough."""
        return self.agreed / self.compared if self.compared else None

    def finish(self) -> list[Settled]:
        """All steps that are not settled, with what they did so far; after the last window."""
        if self.updates:  # a window without a guide pass at its end: what turned in it is not known
            self._close(None)
        return [self._settle(number) for number in list(self.steps)]

    def _settle(self, number: int) -> Settled:
        place = list(self.steps).index(number)
        kept = [other for other in range(len(self.used)) if other != place]
        self.used, self.late = self.used[kept], self.late[kept]
        step = self.steps.pop(number)
        places = [self.names.index(name) for name in step.rates]
        self.taken[step.slots] = False
        found = [table[step.slots][:, places] for table in (self.credit, self.value)]
        return Settled(number, step.ids, list(step.rates), *found)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, with `counters`."""
        slots = self.taken.nonzero().squeeze(1)
        tables = {name: table[slots.to(table.device)] for name, table in self._tables().items()}
        updates = {
            f"update|{number}|{part}": tensor
            for number, one in self.updates.items()
            for part, tensor in vars(one).items()
        }
        return {"slots": slots, **tables, "used": self.used, "late": self.late, **updates}

    def counters(self) -> dict[str, Any]:
        """What a checkpoint must hold besides, as JSON."""
        return {
            "slots": len(self.taken),
            "opened": self.opened,
            "last": self.last,
            "credited": self.credited,
            "agreed": self.agreed,
            "compared": self.compared,
            "steps": {str(number): asdict(step) for number, step in self.steps.items()},
        }

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Takes up a saved state: the first as it was, slot by slot; the rows of further ones, of other processes, are
        added to it."""
        saved_slots = tensors["slots"].cpu()
        self.agreed, self.compared = self.agreed + counters["agreed"], self.compared + counters["compared"]
        if not self.steps:
            self._grow(max(0, counters["slots"] - len(self.taken)))
            self.opened, self.last, self.credited = (counters[name] for name in ("opened", "last", "credited"))
            self.used, self.late = tensors["used"].cpu(), tensors["late"].cpu()
            numbers = sorted({int(key.split("|")[1]) for key in tensors if key.startswith("update|")})
            parts = [one.name for one in fields(_Update)]
            self.updates = {n: _Update(*(tensors[f"update|{n}|{part}"] for part in parts)) for n in numbers}
            slots = saved_slots
        else:
            slots = self._slots(len(saved_slots))
        self.taken[slots] = True
        for name, table in self._tables().items():
            table[slots.to(table.device)] = tensors[name].to(table)
        places = dict(zip(saved_slots.tolist(), slots.tolist(), strict=True))
        for number, saved in counters["steps"].items():
            moved: dict[str, Any] = {**saved, "slots": [places[slot] for slot in saved["slots"]]}
            own = _Step(**moved)
            earlier = self.steps.get(int(number))
            self.steps[int(number)] = own if earlier is None else earlier.joined(own)

    def _tables(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in TABLES}


def _counted_on(owners: Sequence[Sequence[int]]) -> Tensor:
    """The rows of micro-batches, each counted from 0, as those of the whole step."""
    found, first = [torch.zeros(0, dtype=torch.long)], 0
    for some in owners:
        found.append(torch.tensor(list(some), dtype=torch.long) + first)
        first += max(some, default=-1) + 1
    return torch.cat(found)
