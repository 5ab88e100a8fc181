"""The engine that shows instruments each row's gradients, and what is done about parameters no rule answers for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn

from ghostgrad import GradientEngine, UnsupportedLayer
from ghosttune.training.processes import any_of
from ghosttune.training.sharding import is_shared_out

Unsupported = Literal["exact", "leave_out", "refuse"]
"""What `measure.unsupported` may be."""

MEASURED: dict[Unsupported, str] = {"exact": "exactly", "leave_out": "as a whole, not by row", "refuse": "not at all"}
"""How parameters without a rule are, in the words of `run.json` and the report."""


def row_engine(model: nn.Module, unsupported: Unsupported, **options: Any) -> GradientEngine:
    """An engine of the trained parameters, or of those that `options` select.

    Raises:
        UnsupportedLayer: under `refuse`, parameters without a rule, by name; under `exact`, those that no module uses.
    """
    if is_shared_out(model):
        options["together"] = partial(any_of, device=next(model.parameters()).device)
    return GradientEngine(model, unsupported="raise" if unsupported == "refuse" else unsupported, **options)


def unsupported_layers(error: UnsupportedLayer) -> str:
    """The first of the layers the engine names, the rest counted; its own advice is for those who write loops."""
    layers = [line.strip() for line in str(error).splitlines() if line.startswith("  ")]
    return f"{layers[0]} and {len(layers) - 1} more" if len(layers) > 1 else layers[0] if layers else str(error)


@dataclass(frozen=True)
class WithoutRule:
    """Trained parameters for which no rule gives the gradients of single rows."""

    names: list[str]
    numbers: int
    """How many they hold together."""
    modules: int
    """How many modules they belong to."""
    largest: int
    """Bytes of those of one module, the largest: their gradients of all rows of a batch stand at once."""

    def recorded(self, unsupported: Unsupported, found: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What `run.json` says of them, and of those whose rule was found wrong for this model: name -> why."""
        return {
            "measured": MEASURED[unsupported],
            "tensors": len(self.names),
            "parameters": self.numbers,
            "names": self.names,
            **({"found_in_the_first_pass": dict(found)} if found else {}),
        }

    def planned(self, unsupported: Unsupported, rows: int) -> dict[str, Any]:
        """What `check` says of them, for batches of so many rows."""
        plan: dict[str, Any] = {"tensors": len(self.names), "parameters": self.numbers, "modules": self.modules}
        if unsupported != "exact":
            return plan | {"rows_values": "left out" if unsupported == "leave_out" else "refused"}
        passes = "one more forward pass of these modules, and a backward pass of each for every row"
        return plan | {"rows_values": "exact", "time": passes, "memory": f"{self.largest * rows / 1e6:.1f} MB"}


def found_wrong(engines: Iterable[GradientEngine]) -> dict[str, str]:
    """Parameters that have a rule which first passes found wrong in this model -> why; they are measured as those that
    have none."""
    found: dict[str, str] = {}
    for engine in engines:
        ruled = {name for name in engine.verification.without_rows if name not in engine.exact}
        found |= {name: why for name, why in engine.verification.without_rows.items() if name in ruled}
    return found


def without_rule(model: nn.Module) -> WithoutRule:
    """The trained parameters of a model that no rule answers for."""
    left_out = GradientEngine(model, unsupported="leave_out").left_out
    sizes: dict[str, int] = {}
    for name, parameter in left_out.items():
        module = _module_of(model, name)
        sizes[module] = sizes.get(module, 0) + parameter.numel() * parameter.element_size()
    return WithoutRule(
        names=list(left_out),
        numbers=sum(parameter.numel() for parameter in left_out.values()),
        modules=len(sizes),
        largest=max(sizes.values(), default=0),
    )


def _module_of(model: nn.Module, name: str) -> str:
    """The module that uses a parameter: containers of parameters do nothing by themselves."""
    path = name.rpartition(".")[0]
    while isinstance(model.get_submodule(path), nn.ParameterDict | nn.ParameterList) and path:
        path = path.rpartition(".")[0]
    return path
