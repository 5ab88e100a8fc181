"""In-run values: how much each example's gradient lowers the guide loss through the step it takes part in.

The value of row i at step t is  lr_t · c_t · ⟨∇L_guide / (√v̂_{t−1} + ε), g_i⟩  for AdamW and
lr_t · c_t · ⟨∇L_guide, g_i⟩  for SGD: g_i the row's contribution to the step's gradient, c_t the step's clip factor,
v̂ the optimizer's own second moment before the update. First order in the learning rate (Wang et al. 2024,
arXiv 2406.11011, equation 3); unit momentum weight: a row is credited with all the movement its gradient will cause.
Positive lowered the guide loss.

    values = InRunValues(engine.parameters, optimizer, "adamw")
    dots = values.open_step(guide)
    with engine.observe(dots): ...           # every micro-batch
    values.add(ids)                          # after every micro-batch
    ...clip, optimizer.step()...
    step = values.close_step(clip_factor)
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# torch exports its _foreach_ operations, which optimizers of other packages use, but does not list them.
# pyright: reportPrivateImportUsage=false, reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ghostgrad.forms import CHUNK, widen
from ghostgrad.observers import Dots


@dataclass(frozen=True)
class StepValues:
    """The values of one step's rows.

    Attributes:
        ids: of the rows, in the order they came.
        names: of the scored parameters.
        values: [rows, parameters] on the host; rows sum to the row's value, columns to the parameter's.
        unscored: parameters of the guide that had no second moment yet (their first update); their share is unknown.
    """

    ids: list[str]
    names: list[str]
    values: Tensor
    unscored: list[str]

    def by_row(self) -> list[float | None]:
        """The value of each row, None where no parameter could be scored."""
        return self.values.sum(1).tolist() if self.names else [None] * len(self.ids)


@dataclass
class RowTotal:
    """What one row gained over a run: sum of its values, and the steps it was scored and seen in."""

    value: float = 0.0
    steps_scored: int = 0
    steps_seen: int = 0


@dataclass
class InRunValues:
    """Values of every row of a run, step by step and in total.

    Args:
        parameters: name to parameter, those the engine observes.
        optimizer: the run's own; read, never changed.
        kind: "adamw" reads the optimizer's second moments; "sgd" scores a plain step.

    Raises:
        ValueError: an unknown kind, or an optimizer whose step the kind does not describe.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    kind: Literal["adamw", "sgd"]
    totals: dict[str, RowTotal] = field(default_factory=dict[str, RowTotal])

    def __post_init__(self) -> None:
        if self.kind not in ("adamw", "sgd"):
            raise ValueError(f"kind is {self.kind!r}; accepted are adamw, sgd")
        needed = {"lr", "betas", "eps"} if self.kind == "adamw" else {"lr"}
        for group in self.optimizer.param_groups:
            if not needed <= set(group) or group.get("maximize"):
                raise ValueError(f"{type(self.optimizer).__name__} takes no {self.kind} step: needs {sorted(needed)}")
        self._dots: Dots | None = None
        self._rows: list[tuple[list[str], dict[str, Tensor]]] = []
        self._unscored: list[str] = []
        self._groups: dict[int, Mapping[str, Any]] = {}
        self.updates: dict[str, float] = {}
        """How many updates each parameter had had when the step was opened; without those that had none. AdamW only."""

    def open_step(self, guide: Mapping[str, Tensor]) -> Dots:
        """The observer of this step's micro-batches; call before the optimizer's update.

        Args:
            guide: parameter name to the gradient of the guide loss.
        """
        if self._rows:
            raise RuntimeError("the step before was not closed")
        self._dots = Dots(self.directions(guide))
        return self._dots

    def directions(self, guide: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a row's gradient is multiplied with for its value, by parameter; without those that have no v̂ yet."""
        self._groups = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        for name in guide:
            if id(self.parameters[name]) not in self._groups:
                raise ValueError(f"the optimizer does not train {name}")
        named = {name: self.parameters[name] for name in guide}
        self.updates = updates_of(self.optimizer, named) if self.kind == "adamw" else {}
        scored = [name for name in guide if self.kind == "sgd" or name in self.updates]
        self._unscored = [name for name in guide if name not in set(scored)]
        return {name: one for part in together(scored, guide) for name, one in self._directions(part, guide)}

    def group(self, name: str) -> Mapping[str, Any]:
        """The optimizer's settings for a parameter, in the open step."""
        return self._groups[id(self.parameters[name])]

    def _directions(self, names: list[str], guide: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Guide gradient times lr / (√v̂ + ε), 0 where v̂ is. One call for all: of many small ones each would cost."""
        gradients, groups = [guide[name] for name in names], [self.group(name) for name in names]
        rates = [float(group["lr"]) for group in groups]
        if self.kind == "sgd":
            return zip(names, torch._foreach_mul(gradients, rates), strict=True)
        second = [widen(self._second(name)) for name in names]
        # lr / (√(v/c) + ε) is lr·√c / (√v + ε·√c)
        roots = [(1 - g["betas"][1] ** self.updates[name]) ** 0.5 for name, g in zip(names, groups, strict=True)]
        below = torch._foreach_sqrt(second)
        torch._foreach_add_(below, [group["eps"] * root for group, root in zip(groups, roots, strict=True)])
        # An element whose gradients were all zero so far (a LoRA A while B is 0) has had no first update either; over
        # ε alone its share would be 1e8 times too large. Elsewhere the sign is 1.
        scales = torch._foreach_sign(second)
        torch._foreach_mul_(scales, [rate * root for rate, root in zip(rates, roots, strict=True)])
        torch._foreach_div_(scales, below)
        return zip(names, torch._foreach_mul(gradients, scales), strict=True)

    def _second(self, name: str) -> Tensor:
        state = self.optimizer.state[self.parameters[name]]
        return state["max_exp_avg_sq"] if self.group(name).get("amsgrad") else state["exp_avg_sq"]

    def add(self, ids: Sequence[str]) -> None:
        """Takes the observed micro-batch; `ids` in the order of its rows. Nothing is copied to the host yet."""
        if self._dots is None:
            raise RuntimeError("open_step() comes before add()")
        self._rows.append((list(ids), dict(self._dots.values)))

    def close_step(self, clip_factor: float | Tensor = 1.0) -> StepValues:
        """The step's values, added to `totals`; one copy to the host.

        Args:
            clip_factor: what the gradient was multiplied with, min(1, max_norm / norm); 1 without clipping.
        """
        if self._dots is None:
            raise RuntimeError("open_step() comes before close_step()")
        names = [name for name in self._dots.directions[0] if any(name in values for _, values in self._rows)]
        ids = [name for some, _ in self._rows for name in some]
        parts: list[Tensor] = []
        for some, values in self._rows:
            columns = [values.get(name) for name in names]
            zero = next((torch.zeros_like(c) for c in columns if c is not None), torch.zeros(len(some)))
            parts.append(
                torch.stack([zero if c is None else c for c in columns], 1) if names else zero.unsqueeze(1)[:, :0]
            )
        table = (torch.cat(parts) * clip_factor).cpu() if parts else torch.zeros(0, len(names))
        if len(table) != len(ids):
            raise ValueError(f"{len(ids)} ids for {len(table)} observed rows")
        step = StepValues(ids, names, table, list(self._unscored))
        for name, value in zip(ids, step.by_row(), strict=True):
            total = self.totals.setdefault(name, RowTotal())
            total.steps_seen += 1
            if value is not None:
                total.value += value
                total.steps_scored += 1
        self._dots, self._rows = None, []
        return step


def updates_of(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """How many updates each parameter has had; without those that had none.

    Raises:
        ValueError: an optimizer that does not keep AdamW's states.
    """
    counts: dict[str, Any] = {}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter, {})
        if not state:
            continue
        if missing := {"exp_avg_sq", "step"} - set(state):
            raise ValueError(f"{type(optimizer).__name__} keeps no {sorted(missing)}: its step is not AdamW's")
        counts[name] = state["step"]
    if not counts:
        return {}
    device = getattr(next(iter(counts.values())), "device", None)
    together = torch.stack([torch.as_tensor(count, dtype=torch.float32, device=device) for count in counts.values()])
    return dict(zip(counts, together.tolist(), strict=True))  # the one copy to the host


def together(names: Sequence[str], tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """The names in parts of at most `CHUNK` numbers, or one tensor: what one call for all may hold at once."""
    part: list[str] = []
    size = 0
    for name in names:
        size += tensors[name].numel()
        if part and size > CHUNK:
            yield part
            part, size = [], tensors[name].numel()
        part.append(name)
    if part:
        yield part


def inner_products(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """[N] of each tensor of `left` with the one of the same name, float64, left on their device."""
    sums: list[Tensor] = []
    for part in together(list(left), left):
        products = torch._foreach_mul([left[name] for name in part], [right[name] for name in part])
        sums += [product.sum() for product in products]
    return torch.stack(sums).double()
