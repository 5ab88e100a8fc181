"""Norms of the gradient, of the update and of the weights, of every trained parameter; and effective norms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ghostgrad import WeightedSum
from ghostgrad.crediting import Clip
from ghostgrad.forms import ExampleGradient
from ghostgrad.layers.linear import linear
from ghostgrad.rules import RULES, LayerIO, Rule, RuleRegistry
from ghosttune.config.facts import ParameterFacts
from ghosttune.models.quantizing import plain_weight
from ghosttune.run.tables import Table
from ghosttune.training.engines import Unsupported, row_engine
from ghosttune.training.instruments import Instrument, MicroBatch, StepGradient, lengths
from ghosttune.training.processes import processes, total

NORM_COLUMNS = {
    "step": "int64",
    "layer": "int64",
    "group": "string",
    "module": "string",
    "factor": "string",
    "norm": "float64",
    "norm_after_clip": "float64",
    "state": "string",
    "update_norm": "float64",
    "weight_norm": "float64",
}
EFFECTIVE_COLUMNS = {
    "step": "int64",
    "layer": "int64",
    "group": "string",
    "module": "string",
    "effective_norm": "float64",
    "relative_norm": "float64",
}


DIRECT = ("weight", "bias")
"""Factors that are parameters of the model itself: their effective norm is the raw one."""


def is_due(step: int, every: int) -> bool:
    """Whether step 1, 1 + every, 1 + 2·every, … is this one."""
    return (step - 1) % every == 0


class Norms(Instrument):
    """Complete gradient norms before and after clipping, update norms and weight norms, one row per parameter.

    Costs one pass over the trained parameters and a copy of them on measured steps, and one copy to the host.

    Args:
        model: whose trained parameters are measured.
        facts: where each parameter belongs.
        table: what the rows go to, with NORM_COLUMNS.
        every: measure step 1 and every so many steps after it.
        by_module: one row per parameter; else one per group, with the norm over all its parameters.
    """

    def __init__(
        self, model: nn.Module, facts: Mapping[str, ParameterFacts], table: Table, every: int, by_module: bool
    ):
        self.parameters = {name: p for name, p in model.named_parameters() if name in facts}
        self.facts, self.table, self.every, self.by_module = facts, table, every, by_module
        self.tables = (table,)
        self.before: list[Tensor] = []
        self.latest: dict[str, float] = {}
        """The newest norm of each group that trains, before clipping."""

    def after_backward(self, gradient: StepGradient) -> None:
        if is_due(gradient.step, self.every):
            self.gradient = gradient
            self.before = [parameter.detach().clone() for parameter in self.parameters.values()]

    def after_update(self, step: int) -> None:
        if not is_due(step, self.every):
            return
        now = [parameter.detach() for parameter in self.parameters.values()]
        moved = [after - before for after, before in zip(now, self.before, strict=True)]
        zero = now[0].new_zeros(())
        norms = [self.gradient.norms.get(name, zero) for name in self.parameters]
        stacked = torch.stack([*norms, *lengths(moved), *lengths(now), self.gradient.length])
        *values, length = stacked.tolist()  # the only copy to the host
        count = len(now)
        rows = [
            (self.facts[name], parameter.requires_grad, *values[place::count])
            for place, (name, parameter) in enumerate(self.parameters.items())
        ]
        self._append(step, rows if self.by_module else _by_group(rows), Clip(length, self.gradient.limit).factor)
        self.latest = {row[0].group: row[2] for row in _by_group(rows) if row[1]}
        self.before = []

    def _append(self, step: int, rows: list[Any], clip: float) -> None:
        facts = [row[0] for row in rows]
        norms = [norm if active else None for _, active, norm, _, _ in rows]
        self.table.append(
            step,
            {
                "step": [step] * len(rows),
                "layer": [fact.layer for fact in facts],
                "group": [fact.group for fact in facts],
                "module": [fact.module or None for fact in facts],
                "factor": [fact.factor or None for fact in facts],
                "norm": norms,
                "norm_after_clip": [None if norm is None else norm * clip for norm in norms],
                "state": ["active" if active else "frozen" for _, active, *_ in rows],
                "update_norm": [moved for *_, moved, _ in rows],
                "weight_norm": [weight for *_, weight in rows],
            },
        )


def _by_group(rows: list[Any]) -> list[Any]:
    """One row per group: the norm of all its parameters together, active where any of them is."""
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(row[0].group, []).append(row)
    return [
        (
            ParameterFacts("", "", None, group, ""),
            any(row[1] for row in members),
            *(sum(row[place] ** 2 for row in members) ** 0.5 for place in (2, 3, 4)),
        )
        for group, members in groups.items()
    ]


class EffectiveNorms(Instrument):
    """‖∂L/∂W‖_F of every adapted weight W: how much the loss asks this module to move, whatever r and alpha are.

    The gradient of W is Σ_t ∂L/∂y_t x_tᵀ with x and y the wrapped module's input and output, the adapter included,
    summed over micro-batches and ranks. On measured steps this costs one weight gradient per adapted module, in time
    and memory.
    Trained weights (full training, norms, biases) have their raw norm; adapters that adapt no weight have none.

    Args:
        model: with its adapter.
        facts: of the trained parameters.
        table: what the rows go to, with EFFECTIVE_COLUMNS.
        every: measure step 1 and every so many steps after it.
        unsupported: what is done with adapted layers of a kind without a rule; an exact measurement of them is at the
            layer's own input and output.

    Raises:
        UnsupportedLayer: an adapted module of a kind without a gradient rule, where that is refused.
    """

    def __init__(
        self,
        model: nn.Module,
        facts: Mapping[str, ParameterFacts],
        table: Table,
        every: int,
        unsupported: Unsupported = "exact",
    ):
        self.table, self.every, self.facts = table, every, facts
        self.tables = (table,)
        names = dict(model.named_parameters())
        self.adapted = {
            weight: fact
            for name, fact in facts.items()
            if fact.factor not in DIRECT
            and (weight := _weight_below(name, fact)) in names
            and not names[weight].requires_grad
        }
        self.trained = {name: fact for name, fact in facts.items() if fact.factor in DIRECT}
        self.weights = {name: names[name] for name in self.trained}
        self.base_norms = {name: _base_norm(model, name) for name in self.adapted}
        """Norms of the adapted weights, which do not move."""
        options: dict[str, Any] = {"select": list(self.adapted), "rules": WRAPPED, "verify": "sums"}
        self.engine = row_engine(model, unsupported, **options) if self.adapted else None
        self.sums: dict[str, Tensor] = {}
        self.latest: dict[str, float] = {}
        """Relative norm of each weight, by its name, at the last measured step."""

    def before_step(self, step: int) -> None:
        self.step = step
        self.sums = {}

    @contextmanager
    def observing(self, batch: MicroBatch) -> Iterator[None]:
        if self.engine is None or not is_due(self.step, self.every):
            yield
            return
        observer = WeightedSum()
        with self.engine.observe(
            observer, examples=batch.row_of_position, selected=batch.selected(self.engine), frozen=True
        ):
            yield
        for name, gradient in observer.values.items():
            earlier = self.sums.get(name)
            self.sums[name] = gradient if earlier is None else earlier.add_(gradient)

    def after_backward(self, gradient: StepGradient) -> None:
        if not is_due(gradient.step, self.every) or not self.adapted | self.trained:
            return
        for gradient_sum in self.sums.values():
            total(gradient_sum).div_(processes())
        raw = [gradient.norms[name] for name in self.trained if name in gradient.norms]
        norms = [*lengths(list(self.sums.values())), *raw] if self.sums else raw
        names = [*self.sums, *(name for name in self.trained if name in gradient.norms)]
        weights = [
            self.base_norms[name] if name in self.base_norms else self.weights[name].detach().float().norm()
            for name in names
        ]
        values = torch.stack([*norms, *weights]).tolist()
        self.sums = {}
        facts = [(self.adapted | self.trained)[name] for name in names]
        relative = [
            norm / weight if weight else None for norm, weight in zip(values, values[len(names) :], strict=False)
        ]
        self.latest |= {name: value for name, value in zip(names, relative, strict=True) if value is not None}
        self.table.append(
            gradient.step,
            {
                "step": [gradient.step] * len(names),
                "layer": [fact.layer for fact in facts],
                "group": [fact.group for fact in facts],
                "module": [fact.module for fact in facts],
                "effective_norm": values[: len(names)],
                "relative_norm": relative,
            },
        )

    def of_tensors(self) -> dict[str, float]:
        """The latest relative norm of the weight that each trained tensor adapts or is."""
        by_place = {(fact.module, fact.layer): self.latest.get(name) for name, fact in self._of_weights().items()}
        found = {name: by_place.get((fact.module, fact.layer)) for name, fact in self.facts.items()}
        return {name: value for name, value in found.items() if value is not None}

    def _of_weights(self) -> dict[str, ParameterFacts]:
        return self.adapted | {name: fact for name, fact in self.trained.items() if fact.factor == "weight"}

    def counters(self) -> dict[str, Any]:
        return {"effective": self.latest}

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        self.latest = dict(counters["effective"])


WRAPPED = RuleRegistry()
"""The rule of a weight below an adapter, at the adapter's own input and output: below it, DoRA's and IA3's scales and
OFT's rotation would be in the gradient."""


def _adds(layer: Any) -> bool:
    """Whether the adapter is added to what the base gives, so that the base's own gradient is that of the whole."""
    return bool(getattr(layer, "lora_A", None)) and not getattr(layer, "lora_variant", None)


def _rule_below(module: nn.Module) -> Rule | None:
    """Of the weight of the layer that an adapter wraps; an 8-bit or 4-bit linear layer counts as linear."""
    base = getattr(module, "base_layer", None)
    if not isinstance(base, nn.Module) or not hasattr(base, "weight"):
        return None
    entry = RULES.find(base)
    return linear if isinstance(base, nn.Linear) else None if entry is None else entry.rule


@WRAPPED.register_family(
    lambda module: _rule_below(module) is not None,
    owns=lambda module: ("base_layer.weight",),
    like_autograd=_adds,
)
def weight_below(layer: Any, io: LayerIO) -> dict[str, ExampleGradient]:
    """base_layer.weight, by the rule of the base's kind."""
    rule: Any = _rule_below(layer)
    return {"base_layer.weight": rule(layer.base_layer, io)["weight"]}


def _base_norm(model: nn.Module, name: str) -> Tensor:
    """Norm of the weight called `name`, as it multiplies."""
    return plain_weight(model.get_submodule(name.removesuffix(".weight"))).float().norm()


def _weight_below(name: str, fact: ParameterFacts) -> str:
    """The name of the weight that this adapter parameter's module adapts."""
    return f"{name[: name.rfind(fact.module) + len(fact.module)]}.base_layer.weight"
