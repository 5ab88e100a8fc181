"""Guide rows that take turns, and how sure the module entries are that come of it.

A guide pass sees one subset of the guide rows, in two halves of equal size. The subset's gradient is that of both
together; their contrast √(w₁w₂)·(g₁ − g₂), with w the share of the targets, is as large as chance makes the gradient
differ from that of all rows there could be. What a contrast would enter into the ledger is kept per subset, since the
same rows err in the same direction every time; squares add up over subsets, which err independently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from ghostgrad.values import inner_products
from ghosttune.config.facts import ParameterFacts
from ghosttune.run.tables import Table
from ghosttune.training.guide import Guide, guide_gradient

CONTRAST_COLUMNS = {
    "step": "int64",
    "subset": "int64",
    "layer": "int64",
    "group": "string",
    "module": "string",
    "factor": "string",
    "contrast": "float64",
}
"""`step` ends a window; each of its two guide passes has an entry, with the subset it saw."""

FEWEST_GUIDE_ROWS = 4
"""Of a subset: also when rows do not divide evenly, both halves of each then hold one at least."""


class CountedGuide(Guide, Protocol):
    """A guide that knows what its loss was divided by."""

    targets: Any


class Rotation:
    """Guide gradients of subsets in turn.

    Args:
        rows: all guide rows.
        size: the most rows of a subset.
        every: updates between two guide passes.
        seed: which rows are together.
        guide: makes a guide of some of the rows.
        table: of CONTRAST_COLUMNS.
        facts: of the parameters.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        size: int,
        every: int,
        seed: int,
        guide: Callable[[Sequence[Any]], CountedGuide],
        table: Table,
        facts: Mapping[str, ParameterFacts],
    ):
        self.every, self.table, self.facts = every, table, facts
        self.halves = [
            tuple(guide([rows[place] for place in half]) for half in np.array_split(subset, 2))
            for subset in subsets(len(rows), size, seed)
        ]
        self.size = -(-len(rows) // len(self.halves))
        self.contrast: dict[str, Tensor] = {}
        """Of the last guide pass."""
        self.before: dict[str, Tensor] = {}
        """Of the one before it."""
        self.step = self.step_before = 0
        """Updates before these two passes."""
        self.totals = [0.0] * len(self.halves)
        """What the contrasts of each subset entered, over all parameters."""

    def subset(self, step: int) -> int:
        """The subset whose turn it is after `step` updates."""
        return -(-step // self.every) % len(self.halves)

    def gradient(
        self, model: nn.Module, named: Mapping[str, nn.Parameter], step: int
    ) -> tuple[float, dict[str, Tensor]]:
        """(loss, gradient) of the subset's rows, as `guide_gradient` gives it for all; keeps their contrast."""
        first, second = self.halves[self.subset(step)]
        share = float(first.targets / (first.targets + second.targets))
        (loss, gradient), (other_loss, other) = (guide_gradient(model, half, named) for half in (first, second))
        self.before, self.step_before = self.contrast, self.step
        spread = (share * (1 - share)) ** 0.5
        self.contrast = {name: spread * (own - other[name]) for name, own in gradient.items()}
        self.step = step
        mean = {name: share * own + (1 - share) * other[name] for name, own in gradient.items()}
        return share * loss + (1 - share) * other_loss, mean

    def enter(self, step: int, moved: Mapping[str, Tensor]) -> None:
        """What the contrasts at both ends of the window say of how the parameters `moved` in it."""
        for at, contrast in ((self.step_before, self.before), (self.step, self.contrast)):
            entries = (-0.5 * inner_products(moved, contrast)).tolist()
            subset, facts = self.subset(at), [self.facts[name] for name in moved]
            self.totals[subset] += sum(entries)
            self.table.append(
                step,
                {
                    "step": [step] * len(facts),
                    "subset": [subset] * len(facts),
                    "layer": [fact.layer for fact in facts],
                    "group": [fact.group for fact in facts],
                    "module": [fact.module for fact in facts],
                    "factor": [fact.factor for fact in facts],
                    "contrast": entries,
                },
            )

    def restore(self, contrast: dict[str, Tensor], step: int, totals: list[float]) -> None:
        """Takes up the state after the guide pass at `step`."""
        self.contrast, self.step, self.totals = contrast, step, totals

    def account(self) -> dict[str, Any]:
        """What the account of a run says of its guide passes."""
        return {
            "guide_loss_path": None,  # of losses of different rows
            "guide_rows_per_pass": self.size,
            "guide_subsets": len(self.halves),
            "modules_standard_error": sum(total**2 for total in self.totals) ** 0.5,
        }


def subsets(rows: int, size: int, seed: int) -> list[np.ndarray]:
    """Places of the rows of each subset: all rows, each once, in as few subsets of at most `size` as can be."""
    order = np.random.default_rng([seed, 0x6D1DE]).permutation(rows)
    return np.array_split(order, -(-rows // size))


def standard_errors(entries: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """The standard error of each module's part in the ledger, from a table of CONTRAST_COLUMNS."""
    sums: dict[tuple[str, int], float] = {}
    for module, subset, contrast in zip(entries["module"], entries["subset"], entries["contrast"], strict=True):
        sums[module, subset] = sums.get((module, subset), 0.0) + contrast
    squares: dict[str, float] = {}
    for (module, _), total in sums.items():
        squares[module] = squares.get(module, 0.0) + total**2
    return {module: square**0.5 for module, square in squares.items()}
