"""The ledger: which modules and which rows lowered the guide loss, step by step, adding up to the measured change.

Module entry: −½⟨∇L(before) + ∇L(after), Δθ_module⟩ with the real Δθ of the window between two guide passes (the
trapezoid form of loss change allocation, Lan et al. 2019, arXiv 1909.01440). Row entries: `ghostgrad.crediting`, which
takes the same Δθ apart by the rows whose gradients it is a mixture of. The account of a run is

    measured drop = credits of all rows + weight decay + residual

with each term computed by itself; the residual holds the curvature between two guide passes and what is left of folds
that are sketches. What rows did to parameters that are left out of their entries is a term of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ghostgrad import Observer
from ghostgrad.crediting import Clip, RowCredits, Settled
from ghostgrad.values import InRunValues, StepValues
from ghosttune.config.facts import ParameterFacts
from ghosttune.errors import RunError
from ghosttune.metrics.intervals import mean_ratio, verdict
from ghosttune.run.tables import Table
from ghosttune.training.engines import Unsupported, row_engine
from ghosttune.training.guide import Guide, guide_gradient, guide_losses
from ghosttune.training.instruments import Instrument, MicroBatch, StepGradient
from ghosttune.training.processes import gathered, processes, rank
from ghosttune.training.rotation import Rotation

ROW_COLUMNS = {
    "step": "int64",
    "example_id": "string",
    "group": "string",
    "layer": "int64",
    "value": "float64",
    "credit": "float64",
}
PART_COLUMNS = ROW_COLUMNS | {"part": "string"}
"""Where rows are several sequences: which of them an entry is of."""

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

Values = Literal["removal", "adamw", "sgd"]
"""What a row's value is of: the real step without the row, AdamW's at a fixed clip factor and v̂, or a plain step."""

SAVED = (
    "loss_before", "path", "modules", "rows", "left_out", "decay", "unscored_rows", "window_start", "steps_done",
    "latest", "active", "decays",
)  # fmt: skip


class Ledger(Instrument):
    """Keeps the account of rows and modules.

    Costs a pass over the guide rows every `guide_every` updates, two copies of the trained parameters, and what
    `ghostgrad.crediting` does; a row's entries come when no more of its gradient moves the weights.

    Args:
        model: the model that trains, unwrapped.
        facts: of the trained parameters.
        guide: the guide rows.
        rows: table of ROW_COLUMNS; one entry per consumed row, group and layer.
        modules: table of MODULE_COLUMNS; one entry per window and parameter.
        guide_every: updates between two guide passes.
        values: what a row's value is of.
        rows_per_step: rows that this process trains in an update.
        boundaries: updates after which other parameters train; no window reaches across them.
        rotation: guide passes see subsets of the guide rows in turn; None for all rows every time.
        unsupported: what is done with trained parameters without a rule; those left out are no row's, and their part
            of the rows' account is a term of its own.
        parts: what rows consist of, where they are several sequences; `rows` then has PART_COLUMNS and an entry for
            each part.
        at_once: whether what rows do to first order is asked for after each update, whatever their values are of.

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
        values: Values,
        rows_per_step: int,
        boundaries: Collection[int] = (),
        rotation: Rotation | None = None,
        unsupported: Unsupported = "exact",
        parts: Sequence[str] = (),
        at_once: bool = False,
    ):
        self.boundaries, self.rotation, self.parts = boundaries, rotation, parts
        self.engine = row_engine(model, unsupported)
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if name in facts}
        self.model, self.facts, self.guide = model, facts, guide
        self.row_table, self.module_table = rows, modules
        self.tables = (rows, modules, *([rotation.table] if rotation else []))
        self.guide_every = guide_every
        self.kind, self.rows_per_step = values, rows_per_step * max(1, len(parts))
        self.at_once = at_once or values != "removal"
        self.scored: StepValues | None = None
        """To first order, of this process's rows of the last update; None unless they are asked for at once."""
        self.gradient: dict[str, Tensor] = {}
        """Of the guide loss, at the last guide pass."""
        self.reference: dict[str, Tensor] = {}
        """Trained parameters at the last guide pass."""
        self.start: dict[str, Tensor] = {}
        """`losses`: what each guide row added to the guide loss before the first step."""
        self.end: Tensor | None = None
        self.steadiness: float | None = None
        """Of the values (`RowCredits.steadiness`), once the run has ended; None where there are none to compare."""
        self.loss_before = self.path = self.modules = self.rows = self.left_out = self.decay = 0.0
        self.unscored_rows = self.window_start = self.steps_done = 0
        self.decays: dict[str, float] = {}
        """Learning rate times weight decay, by parameter, over the updates since the last guide pass."""
        self.credits: RowCredits | None = None
        """None where every trained parameter is left out."""
        self.saved_credits: Sequence[tuple[Mapping[str, Tensor], Any]] = []
        self.ids: list[str] = []
        """Of the rows of the step under way."""
        self.active: list[str] = []
        """Parameters that train in the step under way."""
        self.latest: dict[str, float] = {}
        """Drop of the guide loss per update, by parameter, over the last window in which it trained."""

    def open(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.engine.parameters:
            window = max(1, self.guide_every)
            self.credits = RowCredits(
                self.engine.parameters, optimizer, self.rows_per_step, window, processes(), self.kind == "removal"
            )
            for saved in self.saved_credits:
                self.credits.restore(*saved)
            self.saved_credits = []
        self.optimizer = optimizer
        self.values = InRunValues(self.parameters, optimizer, "sgd" if self.kind == "sgd" else "adamw")
        if not self.start:
            self.start = {"losses": guide_losses(model, self.guide)}

    def before_step(self, step: int) -> None:
        due = step - 1 - self.window_start >= self.guide_every or step - 1 in self.boundaries
        if not self.gradient or (due and step - 1 > self.window_start):
            self._guide_pass(step - 1)
        self.active = [name for name in self.gradient if self.parameters[name].requires_grad]
        self.observers: list[Observer] = [self.credits.observer] if self.credits else []
        if self.at_once:
            self.observers.append(self.values.open_step(self._towards()))

    def _towards(self) -> dict[str, Tensor]:
        """The guide gradient of what trains in the step under way and is shown row by row."""
        return {name: self.gradient[name] for name in self.active if name not in self.engine.unseen}

    @property
    def direction(self) -> Mapping[str, Tensor]:
        """What a row's gradient is multiplied with for what AdamW's next step makes of it; empty before it has a v̂."""
        return self.values.directions(self._towards())

    @contextmanager
    def observing(self, batch: MicroBatch) -> Iterator[None]:
        with self.engine.observe(*self.observers, examples=batch.row_of_position, selected=batch.selected(self.engine)):
            yield
        self.ids += batch.names
        if self.credits:
            self.credits.add(batch.names, None if batch.owners is None else batch.owners.tolist())
        if self.at_once:
            self.values.add(batch.names)

    def after_backward(self, gradient: StepGradient) -> None:
        self.clip = Clip(float(gradient.length), gradient.limit)

    def after_update(self, step: int) -> None:
        self.steps_done = step
        groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        for name in self.active:
            group = groups[id(self.parameters[name])]
            self.decays[name] = self.decays.get(name, 0.0) + group["lr"] * group["weight_decay"]
        if self.credits:
            self.credits.update(step, self._towards(), self.clip)
        if self.at_once:
            self.scored = self.values.close_step(self.clip.factor)
            if self.credits and self.kind != "removal":
                self.credits.set_values(step, self.scored.names, self.scored.values.double() / processes())
        if not self.credits:
            nothing = torch.full((len(self.ids), len(self.active)), float("nan"), dtype=torch.float64)
            self._append_rows(step, [Settled(step, self.ids, self.active, nothing, nothing)])
        self.ids = []

    def _append_rows(self, now: int, settled: Sequence[Settled]) -> None:
        """Entries of rows of which every process has settled some; `now` is the update after which they are known."""
        for parts in zip(*gathered(list(settled)), strict=True):
            ids, names = [name for one in parts for name in one.ids], parts[0].names
            credits, values = (torch.cat([getattr(one, kind) for one in parts]) for kind in ("credits", "values"))
            keys, belongs = self._groups_and_layers(names)
            self.rows += float(credits.nansum())
            self.unscored_rows += int(values.isnan().all(1).sum())
            count = len(ids)
            columns = {"example_id": ids}
            if self.parts:
                named = [name.split(":", 1) for name in ids]
                columns = {"part": [part for part, _ in named], "example_id": [name for _, name in named]}
            self.row_table.append(
                now,
                {
                    "step": [parts[0].step] * (count * len(keys)),
                    **{name: [cell for cell in cells for _ in keys] for name, cells in columns.items()},
                    "group": [group for group, _ in keys] * count,
                    "layer": [layer for _, layer in keys] * count,
                    "value": _cells(values @ belongs),
                    "credit": _cells(credits @ belongs),
                },
            )

    def _groups_and_layers(self, names: Sequence[str]) -> tuple[list[tuple[str, int | None]], Tensor]:
        """The groups and layers of these parameters, and [parameters, groups and layers] which belongs to which."""
        own = [(self.facts[name].group, self.facts[name].layer) for name in names]
        keys = list(dict.fromkeys(own))
        belongs = torch.zeros(len(names), len(keys), dtype=torch.float64)
        for row, key in enumerate(own):
            belongs[row, keys.index(key)] = 1
        return keys, belongs

    def _guide_pass(self, step: int) -> None:
        """Takes the guide gradient after `step` updates and enters what the window before it changed."""
        loss, gradient = self._guide_gradient(step)
        now = {name: self.parameters[name].detach() for name in gradient}
        if self.gradient:
            mean = {name: 0.5 * (self.gradient[name] + gradient[name]).double() for name in gradient}
            moved = [-(mean[name] * (now[name] - self.reference[name])).sum() for name in gradient]
            entries = torch.stack(moved).tolist()
            decays = self._decayed(mean, now)
            self.decay += sum(decays.values())
            drops = dict(zip(gradient, entries, strict=True))
            self.left_out += sum(drops[name] - decays.get(name, 0.0) for name in self.engine.unseen if name in drops)
            self.path += abs(loss - self.loss_before)
            self.modules += sum(entries)
            self._append_modules(step, list(gradient), entries)
            if self.rotation is not None:
                self.rotation.enter(step, {name: now[name] - self.reference[name] for name in gradient})
            self.latest |= {name: drops[name] / (step - self.window_start) for name in self.active}
            if self.credits:
                self._append_rows(step, self.credits.close_window(self.gradient, gradient))
        self.gradient, self.loss_before, self.window_start, self.decays = gradient, loss, step, {}
        self.reference = {name: parameter.clone() for name, parameter in now.items()}

    def _decayed(self, mean: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, float]:
        """What weight decay did in the window, by parameter: it moved each towards 0, by a share of where it was."""
        decays = {name: rate for name, rate in self.decays.items() if rate}
        halfway = {name: 0.5 * (now[name] + self.reference[name]).double() for name in decays}
        return {name: rate * float((mean[name] * halfway[name]).sum()) for name, rate in decays.items()}

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
            | {
                f"ledger.credits|{process}|{name}": tensor
                for process, tensors in enumerate(gathered(self.credits.tensors()) if self.credits else [])
                for name, tensor in tensors.items()
            }
            | {f"ledger.start|{name}": losses for name, losses in self.start.items()}
            | (
                {f"ledger.contrast|{n}": tensor for n, tensor in self.rotation.contrast.items()}
                if self.rotation
                else {}
            )
        )

    @property
    def totals(self) -> dict[str, float]:
        """What the account holds so far, in nats per target; `guide_loss` is of the last guide pass."""
        found = {"modules": self.modules, "rows": self.rows, "weight_decay": self.decay}
        return found | {"guide_loss": self.loss_before}

    def counters(self) -> dict[str, Any]:
        rotation = {"rotation": self.rotation.totals} if self.rotation else {}
        credits = gathered(self.credits.counters()) if self.credits else []
        return {"ledger": {name: getattr(self, name) for name in SAVED} | {"credits": credits}} | rotation

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        credits = counters["ledger"].get("credits")
        if credits is None or any("credited" not in own for own in credits):
            raise RunError(
                "this checkpoint is of an earlier version, whose ledger kept rows in another way: finish the run with "
                "that version, or start it again"
            )
        for name in SAVED:
            setattr(self, name, counters["ledger"][name])
        parts = {}
        order = {name: place for place, name in enumerate([*self.facts, "losses"])}
        for part in ("gradient", "reference", "start", "contrast"):
            own = _below(tensors, f"ledger.{part}|")
            parts[part] = {name: own[name] for name in sorted(own, key=order.__getitem__)}
        self.gradient, self.reference, self.start, contrast = parts.values()
        kept = [(_below(tensors, f"ledger.credits|{process}|"), own) for process, own in enumerate(credits)]
        self.saved_credits = kept[rank() :: processes()]
        if self.rotation is not None:
            self.rotation.restore(contrast, self.window_start, counters["rotation"])

    def close(self, model: nn.Module) -> None:
        """Closes the last window and measures the guide loss at the end."""
        if self.steps_done > self.window_start:
            self._guide_pass(self.steps_done)
        if self.credits:
            self._append_rows(self.steps_done, self.credits.finish())
            found = [one for one in gathered(self.credits.steadiness) if one is not None]
            self.steadiness = sum(found) / len(found) if found else None
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
            "values_steady": self.steadiness,
        }
        if self.rotation is not None:
            account |= self.rotation.account()
        return account | {
            "rows": self.rows,
            **({"rows_left_out": self.left_out} if self.engine.unseen else {}),
            "weight_decay": self.decay,
            "residual": drop - self.rows - self.left_out - self.decay,
        }


def _cells(table: Tensor) -> list[float | None]:
    """Row by row, null for what is not a number."""
    return [None if number != number else number for number in table.flatten().tolist()]


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
