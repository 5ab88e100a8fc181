"""`measure`: the instruments that watch a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ghosttune.config.setting import Count, Section, setting


class NormsSettings(Section):
    every: Count | None = setting(
        1,
        unit="optimizer updates",
        why="a gradient's norm tells a vanishing, an exploding and a frozen module apart",
        benefit="curves for every module of every run, without having asked beforehand",
        cost="under 2 % of a step; null for off",
    )
    """Record the gradient's norms, complete and before clipping, at the first update and every so many after it."""
    layers: bool = setting(
        True,
        why="groups of modules can hide what a single layer does",
        benefit="maps of layer by step, and the CSV file with a column per layer",
        cost="a row per module and step on disk instead of one per group",
    )
    """One norm per module and factor (and the file of norms per layer); else one per group."""
    effective: Count | None = setting(
        10,
        unit="optimizer updates",
        why="the adapter's own norms change with r and alpha, these do not",
        benefit="modules, ranks and methods can be compared by how much the loss asks of them",
        cost="one weight gradient per adapted module on measured steps, in time and memory; null for off",
    )
    """Interval of effective norms: the gradient norm of each adapted weight itself."""


class LedgerSettings(Section):
    guide_every: Count | None = setting(
        10,
        unit="optimizer updates",
        why="what a row or module did is judged by the gradient of the guide rows",
        benefit="1 makes the account exact to second order; larger values approximate curvature",
        cost="one forward and backward pass over the guide rows each; null for off",
    )
    """Take the held-out gradient anew every so many updates."""
    guide_subset: Annotated[int, Field(ge=4)] | None = setting(
        None,
        unit="rows",
        why="a guide pass need not see all rows to be right on average",
        benefit="many guide rows at the price of few, and a standard error for every module",
        cost="one more copy of the trained parameters; each guide gradient is noisier",
    )
    """Guide passes see at most this many guide rows each, in subsets that take turns."""
    values: Literal["removal", "adamw", "sgd"] = setting(
        "removal",
        why="without a row the clip factor and the optimizer's v̂ are others too, which changes what all other rows do",
        benefit="`removal` is what the guide loss would have been after the step without the row",
        cost="`adamw` holds clip factor and v̂ fixed, and `sgd`, which others publish, knows neither",
    )
    """What a row's value is of: the real step without the row, AdamW's step with all else fixed, or a plain gradient
    step. A row's credit, by which the account closes, does not depend on it."""


class MeasureSettings(Section):
    norms: NormsSettings = NormsSettings()
    """Gradient norms; null for off."""
    ledger: LedgerSettings = LedgerSettings()
    """Which modules and which rows lowered the guide loss; null for off."""
    unsupported: Literal["exact", "leave_out", "refuse"] = setting(
        "exact",
        why="a row's gradient costs next to nothing where a rule for the layer gives it, and not every layer has one",
        benefit="`exact` measures any layer, and `leave_out` keeps the speed of those that have a rule",
        cost="`exact`: such layers run once more, backward once per row; `leave_out`: no row is credited with them",
    )
    """What is done with trained parameters whose layer has no rule for the gradients of single rows: measure them
    exactly, leave them out (counted and named), or refuse the run. `ghosttune check` says which they are."""
