"""The ledger's modules: what each did to the guide loss, when, and how far the account closes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ghosttune.metrics.intervals import FEWEST_ROWS
from ghosttune.metrics.ranking import spearman
from ghosttune.registry import FIGURES
from ghosttune.reports.drawing import (
    LIGHT,
    SCALE_HEAD,
    Span,
    colour_bar,
    colour_of,
    count_steps,
    head_of,
    in_order,
    key,
    label,
    panels,
    shade_phases,
)
from ghosttune.reports.figures import Figure, Standing
from ghosttune.reports.reading import Place, RunNumbers, mean_of, role_of, roles_of
from ghosttune.run.tables import ROW_TERMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

MOST_BARS = 32
"""Modules in one drawing of bars; the CSV has all."""

EARLY_STEPS = 100
"""Updates of a probe."""

LOSS_MAP = "PuOr_r"
"""Diverging and safe for the colour-blind: orange lowered the loss, purple raised it."""


class Bar(NamedTuple):
    """Nats per target under a name."""

    name: str
    value: float
    colour: str
    error: float = 0.0
    """Half of its 95 % interval; 0 where it has none."""


TERM_COLOURS = {"rows": "green", "rows_left_out": "blue", "carried_momentum": "purple", "weight_decay": "gold"}


@FIGURES.register("ledger_account", Standing("helped", 1))
def ledger_account(numbers: RunNumbers) -> Figure | None:
    """How the measured drop of the guide loss is made up."""
    account = numbers.ledger
    if account is None:
        return None
    drop = account["guide_loss_start"] - account["guide_loss_end"]
    groups: dict[str, float] = defaultdict(float)
    for (_, group, _), fell in module_drops(numbers).items():
        groups[group] += fell
    by_group = [Bar(group, groups[group], colour_of(group)) for group in in_order(groups)]
    views = {"by group": [*by_group, Bar("residual", account["modules_residual"], LIGHT["soft"])]}
    if account["rows"] is not None:  # of earlier versions, some have no account of rows
        terms = [(title, account[name], name) for name, title in ROW_TERMS.items() if name in account]
        views["by rows"] = [
            *(Bar(title, value, LIGHT[TERM_COLOURS[name]]) for title, value, name in terms),
            Bar("residual", account["residual"], LIGHT["soft"]),
        ]
    measured = Bar("measured drop", drop, LIGHT["ink"])
    return Figure(
        "The account of the guide loss",
        "Nats per target by which the loss of the guide rows fell; to the left of zero, rose. Each bar is computed "
        "on its own, the residual is what they do not explain, and the measured drop comes from forward passes that "
        "the ledger does not share. Where the residual is as large as the terms, trust the ranking and the groups, "
        "not the terms.",
        ("account", "term", "guide_loss_drop"),
        [(view, bar.name, bar.value) for view, bars in views.items() for bar in [*bars, measured]],
        {view: partial(_draw_bars, [*bars, measured], "nats per target") for view, bars in views.items()},
    )


def module_drops(numbers: RunNumbers) -> dict[tuple[int | None, str, str], float]:
    """(layer, group, module) -> by how much it lowered the guide loss, over all windows."""
    drops: dict[tuple[int | None, str, str], float] = defaultdict(float)
    for row in numbers.table("module_steps", ["layer", "group", "module", "guide_loss_drop"]):
        drops[row["layer"], row["group"], row["module"]] += row["guide_loss_drop"]
    return dict(drops)


@FIGURES.register("ledger_modules", Standing("helped", 2))
def ledger_modules(numbers: RunNumbers) -> Figure | None:
    """By how much each module lowered the guide loss."""
    drops = module_drops(numbers)
    if not drops:
        return None
    ranked = sorted(drops.items(), key=lambda item: -item[1])
    errors = {
        row["module"]: float(row["standard_error"]) for row in numbers.export("modules") if "standard_error" in row
    }
    bars = [
        Bar(_named(role_of(module, layer), layer), fell, colour_of(group), 1.96 * errors.get(module, 0.0))
        for (layer, group, module), fell in ranked
    ]
    shown = bars if len(bars) <= MOST_BARS else [*bars[: MOST_BARS // 2], *bars[-MOST_BARS // 2 :]]
    views = {"ranked": partial(_draw_bars, shown, "nats per target")}
    inside = {
        Place(layer, g, role_of(name, layer)): fell for (layer, g, name), fell in drops.items() if layer is not None
    }
    if inside:
        views = {"map": partial(_draw_map, inside)} | views
    cut = "" if shown is bars else f" Ranked: the first and the last {MOST_BARS // 2} of {len(bars)}; the CSV has all."
    whiskers = " Whiskers: 95 % intervals over subsets of the guide rows." if errors else ""
    return Figure(
        "Which modules lowered the guide loss",
        "What each module's own updates did to the guide loss, momentum, decay and clipping included: together with "
        f"the others, not what it would have done alone. Above zero lowered it.{cut}{whiskers}",
        ("module", "layer", "group", "guide_loss_drop", *(["standard_error"] if errors else [])),
        [
            (module, layer, group, fell, *([errors[module]] if errors else []))
            for (layer, group, module), fell in ranked
        ],
        views,
    )


def _named(role: str, layer: int | None) -> str:
    return role if layer is None else f"{layer} {role}"


def _draw_bars(bars: Sequence[Bar], unit: str, narrow: bool) -> Drawing:
    """Horizontal bars with their numbers written beside them, the first on top."""
    longest = max(len(bar.name) for bar in bars)
    left = min(26 + 6.4 * longest, 170 if narrow else 260)
    drawing, (ax,) = panels(narrow, [unit], height=24 * len(bars), left=left, columns=1)
    names, values, colours, errors = zip(*bars, strict=True)
    ax.barh(range(len(bars)), values, 0.72, color=colours)
    for place, bar in enumerate(bars):
        if bar.error:
            ends = [bar.value - bar.error, bar.value + bar.error]
            ax.plot(ends, [place, place], color=LIGHT["ink"], linewidth=1.2)
    ax.set_yticks(range(len(bars)), [label(name, 26 if narrow else 40) for name in names])
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.axvline(0, color=LIGHT["soft"], linewidth=0.8)
    ax.margins(x=0.24 if narrow else 0.1)
    ax.grid(axis="y", visible=False)
    for place, (value, error) in enumerate(zip(values, errors, strict=True)):
        where = {"va": "center", "ha": "left" if value >= 0 else "right", "fontsize": 10, "color": LIGHT["ink"]}
        ax.annotate(
            f"{value:+.4f}" if abs(value) >= 0.001 else f"{value:+.1e}" if value else "0",
            (value + error if value >= 0 else value - error, place),
            xytext=(4 if value >= 0 else -4, 0),
            textcoords="offset points",
            **where,
        )
    return drawing


def _draw_map(drops: Mapping[Place, float], narrow: bool) -> Drawing:
    """Layers below each other, roles beside each other; every place is in a layer."""
    from matplotlib import colormaps
    from matplotlib.colors import TwoSlopeNorm

    layers, roles = sorted({place.layer or 0 for place in drops}), roles_of(drops)
    values = np.full((len(layers), len(roles)), np.nan)
    for place, fell in drops.items():
        values[layers.index(place.layer or 0), roles.index(place.role)] = fell
    height = float(np.clip(26 * len(layers), 80, 640))
    left = 64  # the first label slants out to the left
    foot = 30 + 5.2 * max(len(label(role, 24)) for role in roles)
    drawing, (ax,) = panels(
        narrow, ["nats per target"], height=height, left=left, foot=foot, head=SCALE_HEAD, columns=1
    )
    most = float(np.nanmax(np.abs(values))) or 1.0
    scale = TwoSlopeNorm(0, -most, most)
    mesh = ax.pcolormesh(np.ma.masked_invalid(values), norm=scale, cmap=colormaps[LOSS_MAP], rasterized=True)
    ax.invert_yaxis()
    step = max(1, len(layers) // 20)
    ax.set_yticks(np.arange(len(layers))[::step] + 0.5, [str(layer) for layer in layers[::step]])
    ax.set_xticks(np.arange(len(roles)) + 0.5, [label(role, 24) for role in roles], rotation=40, ha="right")
    ax.set_ylabel("layer")
    ax.grid(False)
    if not narrow and len(layers) * len(roles) <= 400:
        for (row, column), value in np.ndenumerate(values):
            colour = "#ffffff" if abs(value) > 0.62 * most else "#20242b"
            ax.text(column + 0.5, row + 0.5, _short(value), ha="center", va="center", fontsize=9.5, color=colour)
    colour_bar(drawing, mesh, left)
    return drawing


def _short(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.0e}"


@FIGURES.register("early_sensitivity", Standing("helped", 4))
def early_sensitivity(numbers: RunNumbers) -> Figure | None:
    """Whether effective norms of the first updates told which modules would lower the guide loss."""
    norms, drops = numbers.effective, module_drops(numbers)
    if norms is None or not drops:
        return None
    early = mean_of(norms.values[:, norms.steps <= EARLY_STEPS])
    fell = {Place(layer, group, role_of(name, layer)): value for (layer, group, name), value in drops.items()}
    points = [
        (place, float(norm), fell[place])
        for place, norm in zip(norms.places, early, strict=True)
        if place in fell and not np.isnan(norm)
    ]
    if len(points) < FEWEST_ROWS:
        return None
    _, found, drop = zip(*points, strict=True)
    agreement = spearman(np.array(found), np.array(drop))
    return Figure(
        "Did the first updates tell?",
        f"Each dot is a module: its mean effective norm in updates 1 to {EARLY_STEPS}, and what it did to the guide "
        f"loss over the whole run. Rank correlation {agreement.value:+.2f} (95 % interval {agreement.low:+.2f} to "
        f"{agreement.high:+.2f}, {agreement.n} modules). It says whether a short probe would have ranked the modules "
        "of this run alike, not that training the first ones alone would do as well.",
        ("layer", "group", "role", "early_effective_norm", "guide_loss_drop"),
        [(place.layer, place.group, place.role, norm, value) for place, norm, value in points],
        {"linear": partial(_draw_points, points)},
    )


def _draw_points(points: Sequence[tuple[Place, float, float]], narrow: bool) -> Drawing:
    groups = in_order({place.group for place, _, _ in points})
    drawing, (ax,) = panels(narrow, ["nats per target"], height=250, head=head_of(len(groups), narrow))
    shown = {}
    for group, marker in zip(groups, "osD^v<>" * len(groups), strict=False):
        found = [(norm, fell) for place, norm, fell in points if place.group == group]
        (shown[group],) = ax.plot(*zip(*found, strict=True), marker, color=colour_of(group), markersize=6, alpha=0.85)
    ax.axhline(0, color=LIGHT["soft"], linewidth=0.8)
    ax.set_xlabel(f"mean effective norm, updates 1 to {EARLY_STEPS}")
    key(drawing, shown, narrow)
    return drawing


@FIGURES.register("ledger_steps", Standing("helped", 3))
def ledger_steps(numbers: RunNumbers) -> Figure | None:
    """What each group did to the guide loss, added up over the run."""
    sums: dict[tuple[str, int], float] = defaultdict(float)
    for row in numbers.table("module_steps", ["step", "group", "guide_loss_drop"]):
        sums[row["group"], row["step"]] += row["guide_loss_drop"]
    if not sums:
        return None
    steps = sorted({step for _, step in sums})
    lines = {
        group: np.cumsum([sums.get((group, step), 0.0) for step in steps])
        for group in in_order({group for group, _ in sums})
    }
    return Figure(
        "When it was lowered",
        "The sum up to each step of what the group did to the guide loss. Flat: frozen, or without effect.",
        ("step", "group", "guide_loss_drop_so_far"),
        [(step, group, float(v)) for group, line in lines.items() for step, v in zip(steps, line, strict=True)],
        {"linear": partial(_draw_sums, steps, lines, numbers.spans)},
    )


def _draw_sums(steps: Sequence[int], lines: Mapping[str, np.ndarray], spans: Sequence[Span], narrow: bool) -> Drawing:
    drawing, (ax,) = panels(narrow, ["nats per target, summed"], head=head_of(len(lines), narrow))
    shown = {}
    for group, line in lines.items():
        (shown[group],) = ax.plot([0, *steps], [0, *line], color=colour_of(group))
    ax.axhline(0, color=LIGHT["soft"], linewidth=0.8)
    count_steps(ax)
    ax.margins(x=0.01)
    shade_phases([ax], spans)
    key(drawing, shown, narrow)
    return drawing
