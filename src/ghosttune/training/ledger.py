"""The ledger: which modules and which rows lowered the guide loss, step by step, adding up to the measured change.

Module entry: −½⟨∇L(before) + ∇L(after), Δθ_module⟩ with the real Δθ of the window between two guide passes (the
trapezoid form of loss change allocation, Lan et al. 2019, arXiv 1909.01440). Row entry (value): `ghostgrad.InRunValues`
with the last guide gradient. The account of a run is

    measured drop = rows · (1−β1)/(1−β1^t), summed + carried momentum + weight decay + residual

with each term computed by itself; the residual holds curvature, the drift of v̂, and first updates, which have no v̂.
What rows did to parameters that are left out of their values is a term of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ghostgrad.values import InRunValues, inner_products
from ghosttune.config.facts import ParameterFacts
from ghosttune.metrics.intervals import mean_ratio, verdict
from ghosttune.run.tables import Table
from ghosttune.training.engines import Unsupported, row_engine
from ghosttune.training.guide import Guide, guide_gradient, guide_losses
from ghosttune.training.instruments import Instrument, MicroBatch, StepGradient
from ghosttune.training.processes import gathered, processes
from ghosttune.training.rotation import Rotation

ROW_COLUMNS = {"step": "int64", "example_id": "string", "group": "string", "layer": "int64", "value": "float64"}
MODULE_COLUMNS = {
    "step": "int64",
    "steps": "int64",
    "layer": "int64",
    "group": "string",
    "module": "string",
    "factor": "string",
    "guide_loss_drop": "float64",
}
"""`step` ends the window, `steps` is how many updates it spans."""

TERMS = ("momentum", "decay", "left_out")
"""Of the rows' account, kept on the device; the last is what rows did to parameters that none is credited with."""

SAVED = ("loss_before", "path", "modules", "rows", "unscored_rows", "window_start", "steps_done", "latest", "active")


class Ledger(Instrument):
    """Keeps the account of rows and modules.

    Costs a pass over the guide rows every `guide_every` updates, two copies of the trained parameters, and on every
    step one inner product per row and parameter.

    Args:
        model: the model that trains, unwrapped.
        facts: of the trained parameters.
        guide: the guide rows.
        rows: table of ROW_COLUMNS; one entry per consumed row, group and layer.
        modules: table of MODULE_COLUMNS; one entry per window and parameter.
        guide_every: updates between two guide passes.
        values: `adamw` scores the step that AdamW makes, `sgd` a plain gradient step.
        boundaries: updates after which other parameters train; no window reaches across them.
        rotation: guide passes see subsets of the guide rows in turn; None for all rows every time.
        unsupported: what is done with trained parameters without a rule; those left out are no row's, and their part
            of the rows' account is a term of its own.

    Raises:
        UnsupportedLayer: a trained parameter whose per-row gradient is not known, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        facts: Mapping[str, ParameterFacts],
        guide: Guide,
        rows: Table,
        modules: Table,
        guide_every: int,
        values: Literal["adamw", "sgd"],
        boundaries: Collection[int] = (),
        rotation: Rotation | None = None,
        unsupported: Unsupported = "exact",
    ):
        self.boundaries, self.rotation = boundaries, rotation
        self.engine = row_engine(model, unsupported)
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if name in facts}
        self.model, self.facts, self.guide = model, facts, guide
        self.row_table, self.module_table = rows, modules
        self.tables = (rows, modules, *([rotation.table] if rotation else []))
        self.guide_every = guide_every
        self.kind: Literal["adamw", "sgd"] = values
        self.gradient: dict[str, Tensor] = {}
        """Of the guide loss, at the last guide pass."""
        self.reference: dict[str, Tensor] = {}
        """Trained parameters at the last guide pass."""
        self.start: dict[str, Tensor] = {}
        """`losses`: what each guide row added to the guide loss before the first step."""
        self.end: Tensor | None = None
        self.loss_before = self.path = self.modules = self.rows = 0.0
        self.unscored_rows = self.window_start = self.steps_done = 0
        self.carried = {name: torch.zeros((), dtype=torch.float64) for name in TERMS}
        self.active: list[str] = []
        """Parameters that train in the step under way."""
        self.latest: dict[str, float] = {}
        """Drop of the guide loss per update, by parameter, over the last window in which it trained."""

    def open(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.values = InRunValues(self.parameters, optimizer, self.kind)
        device = next(iter(self.parameters.values())).device
        self.carried = {name: total.to(device) for name, total in self.carried.items()}
        if not self.start:
            self.start = {"losses": guide_losses(model, self.guide)}

    def before_step(self, step: int) -> None:
        due = step - 1 - self.window_start >= self.guide_every or step - 1 in self.boundaries
        if not self.gradient or (due and step - 1 > self.window_start):
            self._guide_pass(step - 1)
        self.active = [name for name in self.gradient if self.parameters[name].requires_grad]
        self.dots = self.values.open_step({name: self.gradient[name] for name in self.active}, self.engine.unseen)
        self._add_carried()

    @contextmanager
    def observing(self, batch: MicroBatch) -> Iterator[None]:
        with self.engine.observe(self.dots, selected=batch.selected(self.engine)):
            yield
        self.values.add(batch.example_ids)

    def after_backward(self, gradient: StepGradient) -> None:
        self.clip = gradient.clip
        self.shares = {name: self._share(name) for name in self.active}
        if apart := self.values.apart:  # the sum over all rows is the step's own gradient
            gradients = {name: self.parameters[name].grad for name in apart}
            present = {name: gradient for name, gradient in gradients.items() if gradient is not None}
            factors = [self.shares[name] for name in present]
            if present:
                products = inner_products({name: apart[name] for name in present}, present)
                self.carried["left_out"] += self.clip * (products @ products.new_tensor(factors))

    def after_update(self, step: int) -> None:
        self.steps_done = step
        scored = self.values.close_step(self.clip)
        parts = gathered((scored.ids, scored.values.double() / processes()))
        ids = [name for own, _ in parts for name in own]
        table = torch.cat([values for _, values in parts])
        if self.kind == "adamw":
            self.rows += float((table.sum(0) * torch.tensor([self.shares[name] for name in scored.names])).sum())
        keys, per_key = self._by_group_and_layer(scored.names, table)
        self.unscored_rows += 0 if scored.names else len(ids)
        count = len(ids)
        self.row_table.append(
            step,
            {
                "step": [step] * (count * len(keys)),
                "example_id": [name for name in ids for _ in keys],
                "group": [group for group, _ in keys] * count,
                "layer": [layer for _, layer in keys] * count,
                "value": per_key.flatten().tolist() if scored.names else [None] * (count * len(keys)),
            },
        )

    def _by_group_and_layer(self, names: list[str], table: Tensor) -> tuple[list[tuple[str, int | None]], Tensor]:
        """The groups and layers, and [rows, groups and layers] the sums over their parameters."""
        places = {(fact.group, fact.layer): None for fact in (self.facts[name] for name in self.active)}
        keys = list(places)
        belongs = torch.zeros(len(names), len(keys), dtype=table.dtype)
        for row, name in enumerate(names):
            belongs[row, keys.index((self.facts[name].group, self.facts[name].layer))] = 1
        return keys, table @ belongs

    @property
    def direction(self) -> Mapping[str, Tensor]:
        """What a row's gradient is multiplied with for its value in the step under way; empty before AdamW has a v̂."""
        return self.dots.directions[0]

    def _share(self, name: str) -> float:
        """(1−β1)/(1−β1^t): the part of a step's gradient that this update uses; the rest comes as momentum."""
        if self.kind == "sgd":
            return 1.0
        beta = self.values.group(name)["betas"][0]
        return (1 - beta) / (1 - beta ** (self.values.updates.get(name, 0.0) + 1))

    def _add_carried(self) -> None:
        """What momentum of earlier steps and weight decay will do to the guide loss in this update; no copy to host."""
        if self.kind == "sgd":
            return
        parameters = self.parameters
        if directions := {**self.direction, **self.values.apart}:
            moments = {name: self.optimizer.state[parameters[name]]["exp_avg"] for name in directions}
            betas = {name: self.values.group(name)["betas"][0] for name in directions}
            self._carry("momentum", directions, moments, [b / (1 - b) * self._share(n) for n, b in betas.items()])
        groups = [self.values.group(name) for name in self.active]
        decays = [group["lr"] * group["weight_decay"] for group in groups]
        if any(decays):
            weights = {name: parameters[name].detach() for name in self.active}
            self._carry("decay", weights, self.gradient, decays)

    def _carry(self, term: str, left: Mapping[str, Tensor], right: Mapping[str, Tensor], factors: list[float]) -> None:
        products = inner_products(left, right)
        self.carried[term] += products @ products.new_tensor(factors)

    def _guide_pass(self, step: int) -> None:
        """Takes the guide gradient after `step` updates and enters what the window before it changed."""
        loss, gradient = self._guide_gradient(step)
        now = {name: self.parameters[name].detach() for name in gradient}
        if self.gradient:
            entries = torch.stack(
                [
                    -0.5 * ((self.gradient[name] + gradient[name]).double() * (now[name] - self.reference[name])).sum()
                    for name in gradient
                ]
            ).tolist()
            self.path += abs(loss - self.loss_before)
            self.modules += sum(entries)
            self._append_modules(step, list(gradient), entries)
            if self.rotation is not None:
                self.rotation.enter(step, {name: now[name] - self.reference[name] for name in gradient})
            drops = dict(zip(gradient, entries, strict=True))
            self.latest |= {name: drops[name] / (step - self.window_start) for name in self.active}
        self.gradient, self.loss_before, self.window_start = gradient, loss, step
        self.reference = {name: parameter.clone() for name, parameter in now.items()}

    def _guide_gradient(self, step: int) -> tuple[float, dict[str, Tensor]]:
        if self.rotation is None:
            return guide_gradient(self.model, self.guide, self.parameters)
        return self.rotation.gradient(self.model, self.parameters, step)

    def _append_modules(self, step: int, names: list[str], entries: list[float]) -> None:
        facts = [self.facts[name] for name in names]
        self.module_table.append(
            step,
            {
                "step": [step] * len(facts),
                "steps": [step - self.window_start] * len(facts),
                "layer": [fact.layer for fact in facts],
                "group": [fact.group for fact in facts],
                "module": [fact.module for fact in facts],
                "factor": [fact.factor for fact in facts],
                "guide_loss_drop": entries,
            },
        )

    def tensors(self) -> dict[str, Tensor]:
        return (
            {f"ledger.gradient|{name}": tensor for name, tensor in self.gradient.items()}
            | {f"ledger.reference|{name}": tensor for name, tensor in self.reference.items()}
            | {f"ledger.carried|{name}": total for name, total in self.carried.items()}
            | {f"ledger.start|{name}": losses for name, losses in self.start.items()}
            | (
                {f"ledger.contrast|{n}": tensor for n, tensor in self.rotation.contrast.items()}
                if self.rotation
                else {}
            )
        )

    def counters(self) -> dict[str, Any]:
        rotation = {"rotation": self.rotation.totals} if self.rotation else {}
        return {"ledger": {name: getattr(self, name) for name in SAVED}} | rotation

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        for name, value in counters["ledger"].items():
            setattr(self, name, value)
        order = {name: place for place, name in enumerate([*self.facts, *TERMS, "losses"])}
        parts = {}
        for part in ("gradient", "reference", "carried", "start", "contrast"):
            prefix = f"ledger.{part}|"
            own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            parts[part] = {name: own[name] for name in sorted(own, key=order.__getitem__)}
        self.gradient, self.reference, self.carried, self.start, contrast = parts.values()
        if self.rotation is not None:
            self.rotation.restore(contrast, self.window_start, counters["rotation"])

    def close(self, model: nn.Module) -> None:
        """Closes the last window and measures the guide loss at the end."""
        if self.steps_done > self.window_start:
            self._guide_pass(self.steps_done)
        self.end = guide_losses(model, self.guide)

    def account(self) -> dict[str, Any]:
        """The closed account, in nats per target of the guide rows; positive lowered the loss."""
        if self.end is None:
            raise RuntimeError("the account is open: close() comes first")
        start, end = self.start["losses"].cpu(), self.end
        drop = float((start - end).sum())
        change = mean_ratio(((end - start) * len(end)).numpy(), np.ones(len(end)))
        account: dict[str, Any] = {
            "guide_loss_start": float(start.sum()),
            "guide_loss_end": float(end.sum()),
            "change": change.as_dict(),
            "verdict": verdict(change, of=float(start.sum())),
            "guide_loss_path": self.path,
            "modules": self.modules,
            "modules_residual": drop - self.modules,
            "unscored_rows": self.unscored_rows,
        }
        if self.rotation is not None:
            account |= self.rotation.account()
        if self.kind == "sgd":  # what a plain gradient step would have done says nothing of this optimizer's
            return account | dict.fromkeys(("rows", "carried_momentum", "weight_decay", "residual"))
        momentum, decay, left_out = (float(self.carried[name]) for name in TERMS)
        return account | {
            "rows": self.rows,
            **({"rows_left_out": left_out} if self.engine.unseen else {}),
            "carried_momentum": momentum,
            "weight_decay": decay,
            "residual": drop - self.rows - left_out - momentum - decay,
        }
