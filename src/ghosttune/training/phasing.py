"""Phases in training: what is frozen computes nothing and does not move, not by a bit.

A tensor that does not train has no gradient (`requires_grad` is off, so that the backward pass stops below the lowest
active layer), and an optimizer passes by what has none: neither momentum nor weight decay acts. The optimizer must
hold the tensors of all phases, so it is built before the first one begins. Under DDP the model must be wrapped then as
well, with `find_unused_parameters`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from ghosttune.config.facts import ParameterFacts
from ghosttune.errors import InputError
from ghosttune.models.upstream import checkpointing_word
from ghosttune.schedules.language import read_selection
from ghosttune.schedules.phases import Phase, Schedule, active_names, names_of
from ghosttune.schedules.rates import phase_rates

Measured = Callable[[str], Mapping[str, float]]
"""The latest value of a signal (`effective`, `ledger`) for each trained tensor that has one."""


class Phasing(TrainerCallback):
    """Lets a Trainer's updates follow a schedule; made before the optimizer, while all tensors of the run train.

    Args:
        model: the model that trains, unwrapped.
        facts: of all tensors that any phase may train.
        schedule: the phases.
        layers: how many the model has.
        seed: of random layers.
        listen: called with {"event": "phase", "step", "phase", "trains", …} when a phase begins.
        measured: asked by phases that are chosen when they begin.

    Raises:
        PlanError: a phase that means nothing in this model.
    """

    def __init__(
        self,
        model: nn.Module,
        facts: Mapping[str, ParameterFacts],
        schedule: Schedule,
        layers: int,
        seed: int,
        listen: Callable[[dict[str, Any]], None] = lambda event: None,
        measured: Measured = lambda signal: {},
    ):
        named = dict(model.named_parameters())
        self.parameters: dict[str, nn.Parameter] = {name: named[name] for name in facts}
        self.model = model
        self.facts, self.schedule, self.layers, self.seed = facts, schedule, layers, seed
        self.listen, self.measured = listen, measured
        self.active = active_names(schedule, facts, layers, seed, zero_factors(self.parameters, facts))
        self.choices: dict[int, tuple[str, str]] = {}
        """Phase -> what it trains and why, for phases that were chosen when they began."""
        self.current: int | None = None

    def name(self, index: int) -> str:
        """What the phase trains."""
        return self.choices[index][0] if index in self.choices else self.schedule.name(index)

    def counters(self) -> dict[str, Any]:
        """State that a checkpoint must hold, as JSON."""
        return {"choices": [[index, *choice] for index, choice in self.choices.items()]}

    def restore(self, counters: Mapping[str, Any]) -> None:
        """Takes up the state of a checkpoint; comes before training."""
        for index, part, reason in counters["choices"]:
            self._choose(index, part, reason)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **_: Any
    ) -> None:
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        _require_union(self.optimizer, self.parameters)
        if (getattr(args, f"{checkpointing_word()}_checkpointing_kwargs") or {}).get("use_reentrant"):
            raise InputError(
                "phases need non-reentrant checkpointing: a reentrant one dies where no input has a gradient"
            )
        let_the_backward_stop(self.model)
        self.enter(state.global_step + 1, announce=state.global_step == 0)
        self.rule_rates(lr_scheduler, args.get_warmup_steps(state.max_steps))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The update is made, and the learning rate of the next one not yet set."""
        self.enter(state.global_step + 2)

    def enter(self, step: int, announce: bool = True) -> None:
        """Makes the model and the optimizer ready for update `step`; a phase that begins with it is announced."""
        index = self.schedule.index(step)
        if index == self.current:
            return
        phase = self.schedule.phases[index]
        if self.active[index] is None:
            self._choose(index, *self._preferred(index))
        names = self.active[index] or frozenset()
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(name in names)
            if name not in names:
                parameter.grad = None
        self.current = index
        if step != phase.start + 1:  # a run that is continued inside the phase
            return
        if phase.entry != "keep":
            for name in self._entering(index):
                self.optimizer.state.pop(self.parameters[name], None)
        if announce:
            self._announce(index, step)

    def _entering(self, index: int) -> frozenset[str]:
        """Tensors that train in this phase and did not in the one before it; none in the first."""
        return (self.active[index] or frozenset()) - (self.active[index - 1] or frozenset()) if index else frozenset()

    def _preferred(self, index: int) -> tuple[str, str]:
        phase = self.schedule.phases[index]
        assert phase.choice is not None
        of_tensor = self.measured(phase.choice.signal)
        values = {}
        for part in phase.choice.order:
            found = [of_tensor[name] for name in self._names(part, phase) if name in of_tensor]
            if found:  # drops of the guide loss add up, norms per weight do not
                values[part] = sum(found) / (1 if phase.choice.signal == "ledger" else len(found))
        return phase.choice.prefer(values, [self.name(before) for before in range(index)])

    def _choose(self, index: int, part: str, reason: str) -> None:
        self.choices[index] = (part, reason)
        self.active[index] = self._names(part, self.schedule.phases[index])

    def _names(self, part: str, phase: Phase) -> frozenset[str]:
        return names_of(read_selection(part), phase, self.facts, self.layers, self.seed)

    def _announce(self, index: int, step: int) -> None:
        chosen = {"reason": self.choices[index][1]} if index in self.choices else {}
        self.listen({"event": "phase", "step": step - 1, "phase": index + 1, "trains": self.name(index), **chosen})

    def table(self, steps: int, peak: float) -> list[dict[str, Any]]:
        """One row per phase of a run that made `steps` updates with this peak learning rate.

        `lr_mass` is the sum of the learning rates of the phase's updates, `parameter_steps` the parameters it trained
        times its updates.
        """
        rows = []
        for index, phase in enumerate(self.schedule.phases):
            names, made = self.active[index] or frozenset(), max(0, min(phase.end, steps) - phase.start)
            size = sum(self.parameters[name].numel() for name in names)
            rows.append(
                {
                    "phase": index + 1,
                    "start": phase.start,
                    "end": phase.end,
                    "trains": self.name(index),
                    "groups": " ".join(sorted({self.facts[name].group for name in names})),
                    "layers": spans(self.facts[name].layer for name in names),
                    "trainable_parameters": size,
                    "lr_mass": peak * sum(self.rate(done) for done in range(phase.start, phase.start + made)),
                    "parameter_steps": size * made,
                    "reason": self.choices[index][1] if index in self.choices else None,
                }
            )
        return rows

    def rule_rates(self, scheduler: Any, warmup: int) -> None:
        """Lets the phases act on the learning rate that a scheduler of Transformers sets."""
        if type(scheduler) is not LambdaLR:
            kind = type(scheduler).__name__
            raise InputError(f"phases act on the learning-rate curves of Transformers, not on a {kind}; choose another")
        curve: Any = scheduler.lr_lambdas[0]
        rates: dict[int, list[float]] = {}

        def rate(done: int) -> float:
            index = self.schedule.index(done + 1)
            if done >= self.schedule.phases[-1].end:
                return curve(done)
            if index not in rates:
                entering = bool(self._entering(index))
                rates[index] = phase_rates(self.schedule, index, curve, warmup, entering)
            return rates[index][done - self.schedule.phases[index].start]

        scheduler.lr_lambdas = [rate] * len(scheduler.lr_lambdas)
        now = [base * rate(scheduler.last_epoch) for base in scheduler.base_lrs]
        for group, value in zip(scheduler.optimizer.param_groups, now, strict=True):
            group["lr"] = value
        scheduler._last_lr = now
        self.rate = rate


def let_the_backward_stop(model: nn.Module) -> None:
    """Takes away the gradient that Transformers gives the inputs of a model with activation checkpointing.

    Reentrant checkpointing needs it; non-reentrant does not, and it carries the backward through everything frozen.
    """
    for module in model.modules():
        if getattr(module, "_require_grads_hooks", None):
            module.disable_input_require_grads()  # type: ignore[operator]


def spans(layers: Iterable[int | None]) -> str:
    """Layer numbers as ranges, such as 0-3 7."""
    runs: list[list[int]] = []
    for layer in sorted({layer for layer in layers if layer is not None}):
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return " ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def zero_factors(parameters: Mapping[str, nn.Parameter], facts: Mapping[str, ParameterFacts]) -> frozenset[str]:
    """Names of the tensors B that are zero: while they are, the A beside them has no gradient."""
    return frozenset(
        name for name, tensor in parameters.items() if facts[name].factor == "B" and not torch.any(tensor.detach())
    )


def _require_union(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing: Sequence[str] = [name for name, parameter in parameters.items() if id(parameter) not in held]
    if missing:
        raise InputError(
            f"the optimizer was built without {len(missing)} tensors that later phases train ({missing[0]}, …): build "
            "it while all of them require a gradient"
        )
