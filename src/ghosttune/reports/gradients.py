"""Gradients by group of modules: over the steps, by layer, and over the layers as the run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ghosttune.registry import FIGURES
from ghosttune.reports.drawing import (
    LIGHT,
    Span,
    colour_of,
    count_steps,
    head_of,
    key,
    panels,
    shade_phases,
    use_logarithm,
)
from ghosttune.reports.figures import Figure, Standing
from ghosttune.reports.reading import Norms, RunNumbers, mean_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

SMOOTHING = 5
"""Measured steps in a moving mean."""

EVOLUTION_STEPS = 7

Measured = Mapping[str, Norms]
"""`effective` and `raw` -> the norms, those that were measured."""


def measured(numbers: RunNumbers) -> Measured:
    """What the run measured."""
    return {name: norms for name, norms in (("effective", numbers.effective), ("raw", numbers.norms)) if norms}


@FIGURES.register("gradient_norms", Standing("moved", 1))
def gradient_norms(numbers: RunNumbers) -> Figure | None:
    """Gradient norm of each group over the run."""
    norms = numbers.norms
    if norms is None:
        return None
    return group_figure(norms.steps, lines_of(norms), numbers.spans)


def lines_of(norms: Norms) -> dict[str, np.ndarray]:
    """Group -> [S] its norm, and `total`, which a CSV may hold already."""
    lines = {group: norms.together(group=group) for group in norms.groups}
    return lines if "total" in lines else lines | {"total": norms.together()}


def group_figure(
    steps: np.ndarray, lines: Mapping[str, np.ndarray], spans: Sequence[Span], smoothing: int = SMOOTHING
) -> Figure:
    """Norms of groups over steps: [S] steps, group -> [S] norms with NaN where it is frozen."""
    rows = [
        (int(step), group, cell(value))
        for group, found in lines.items()
        for step, value in zip(steps, found, strict=True)
    ]
    return Figure(
        "Gradient norm of each group",
        "Raw norm of the complete gradient before clipping, pale as measured, strong as the mean over "
        f"{smoothing} measured steps. A gap is a group that is frozen.",
        ("step", "group", "norm"),
        rows,
        {
            name: partial(_draw_groups, steps, lines, spans, smoothing, name == "logarithmic")
            for name in ("logarithmic", "linear")
        },
    )


def _draw_groups(
    steps: np.ndarray,
    lines: Mapping[str, np.ndarray],
    spans: Sequence[Span],
    smoothing: int,
    logarithmic: bool,
    narrow: bool,
) -> Drawing:
    titles = ["groups", "all together"] if "total" in lines else ["groups"]
    drawing, axes = panels(narrow, titles, head=head_of(len(lines), narrow))
    shown: dict[str, Any] = {}
    for group, norms in lines.items():
        ax = axes[-1] if group == "total" else axes[0]
        ax.plot(steps, norms, color=colour_of(group), linewidth=0.8, alpha=0.4)
        (shown[group],) = ax.plot(steps, smoothed(norms, smoothing), color=colour_of(group))
    for ax in axes:
        if logarithmic:
            use_logarithm(ax)
        else:
            ax.set_ylim(bottom=0)
        count_steps(ax)
        ax.margins(x=0.01)
    shade_phases(axes, spans)
    key(drawing, shown, narrow)
    return drawing


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """[S] the mean over `window` values around each, of those that are known; NaN stays NaN."""
    known = ~np.isnan(values)
    kernel = np.ones(window)
    around = slice((window - 1) // 2, (window - 1) // 2 + len(values))  # "same" would be as long as the window at least
    sums = np.convolve(np.where(known, values, 0.0), kernel)[around]
    counts = np.convolve(known.astype(float), kernel)[around]
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=known)


@FIGURES.register("layer_comparison", Standing("moved", 3))
def layer_comparison(numbers: RunNumbers) -> Figure | None:
    """Mean norm of each layer."""
    return layers_figure(measured(numbers))


def layers_figure(norms: Measured) -> Figure | None:
    """Bars of each layer's mean norm by group; None where no module stands in a layer."""
    means = {name: layer_means(found) for name, found in norms.items() if found.layers}
    if not means:
        return None
    views = {name: partial(_draw_layers, norms[name].layers, found, "linear") for name, found in means.items()}
    views |= {
        f"{name} logarithmic": partial(_draw_layers, norms[name].layers, found, "log") for name, found in means.items()
    }
    views |= {f"{name} stacked": partial(_draw_stacked, norms[name].layers, found) for name, found in means.items()}
    rows = [
        (name, layer, group, cell(value))
        for name, found in means.items()
        for group, values in found.items()
        for layer, value in zip(norms[name].layers, values, strict=True)
    ]
    return Figure(
        "Which layers: mean over the run",
        "Mean over the measured steps; of raw norms, over those at which the layer's group trained. Norms do not add "
        "up, their squares do: stacked bars show each group's part in the square.",
        ("measure", "layer", "group", "mean_norm"),
        rows,
        views,
    )


def layer_means(norms: Norms) -> dict[str, np.ndarray]:
    """Group -> [L] its mean norm by layer; groups that stand in no layer are left to the other figures."""
    means = {group: mean_of(norms.layer_map(group=group)) for group in norms.groups}
    return {group: values for group, values in means.items() if not np.isnan(values).all()}


def _draw_layers(layers: Sequence[int], means: Mapping[str, np.ndarray], scale: str, narrow: bool) -> Drawing:
    drawing, (ax,) = panels(narrow, ["mean norm"], head=head_of(len(means), narrow))
    width = 0.8 / len(means)
    bars = {}
    for place, (group, values) in enumerate(means.items()):
        at = np.arange(len(layers)) + (place - (len(means) - 1) / 2) * width
        bars[group] = ax.bar(at, np.nan_to_num(values), width * 0.94, color=colour_of(group))
    if scale == "log":
        use_logarithm(ax)
    _finish_layers(ax, layers)
    key(drawing, bars, narrow)
    return drawing


def _draw_stacked(layers: Sequence[int], means: Mapping[str, np.ndarray], narrow: bool) -> Drawing:
    drawing, (ax,) = panels(narrow, ["square of the mean norm"], head=head_of(len(means), narrow))
    base = np.zeros(len(layers))
    bars = {}
    for group, values in means.items():
        square = np.nan_to_num(values) ** 2
        bars[group] = ax.bar(range(len(layers)), square, 0.7, bottom=base, color=colour_of(group))
        base = base + square
    _finish_layers(ax, layers)
    key(drawing, bars, narrow)
    return drawing


def _finish_layers(ax: Axes, layers: Sequence[int]) -> None:
    ticks = range(0, len(layers), max(1, len(layers) // 16))
    ax.set_xticks(ticks, [str(layers[tick]) for tick in ticks])
    ax.set_xlabel("layer")
    ax.grid(axis="x", visible=False)


@FIGURES.register("gradient_evolution", Standing("moved", 4))
def gradient_evolution(numbers: RunNumbers) -> Figure | None:
    """Norms by layer at seven steps of the run."""
    return evolution_figure(measured(numbers))


def evolution_figure(norms: Measured) -> Figure | None:
    """Profiles over the layers at seven steps, from the first measured to the last; None without layers."""
    profiles = {name: _profiles(found) for name, found in norms.items() if len(found.layers) > 1}
    if not profiles:
        return None
    rows = [
        (name, step, layer, group, cell(value))
        for name, (steps, found) in profiles.items()
        for group, values in found.items()
        for step, line in zip(steps, values.T, strict=True)
        for layer, value in zip(norms[name].layers, line, strict=True)
    ]
    return Figure(
        "How it changed: layers at seven steps",
        "From early to late as the colours go from violet to yellow. Raw norms have no line where the group was "
        "frozen.",
        ("measure", "step", "layer", "group", "norm"),
        rows,
        {name: partial(_draw_evolution, norms[name].layers, *found) for name, found in profiles.items()},
    )


def _profiles(norms: Norms) -> tuple[list[int], dict[str, np.ndarray]]:
    """(steps, group -> [L, steps])."""
    chosen = np.unique(np.linspace(0, len(norms.steps) - 1, EVOLUTION_STEPS).round().astype(int))
    maps = {group: norms.layer_map(group=group)[:, chosen] for group in norms.groups}
    return [int(step) for step in norms.steps[chosen]], {
        group: values for group, values in maps.items() if not np.isnan(values).all()
    }


def _draw_evolution(
    layers: Sequence[int], steps: Sequence[int], profiles: Mapping[str, np.ndarray], narrow: bool
) -> Drawing:
    drawing, axes = panels(narrow, list(profiles), head=head_of(len(steps), narrow) + (0 if narrow else 18))
    lines: dict[str, Any] = {}
    markers = "osD^v<>"
    for ax, values in zip(axes, profiles.values(), strict=True):
        for place, (step, line) in enumerate(zip(steps, values.T, strict=True)):
            colour = round(place * (EVOLUTION_STEPS - 1) / max(1, len(steps) - 1))
            (lines[f"step {step}"],) = ax.plot(
                layers, line, color=LIGHT[f"early{colour}"], marker=markers[place], markersize=4.5
            )
        use_logarithm(ax)
        ax.set_xticks(layers[:: max(1, len(layers) // 10)])
        ax.set_xlabel("layer")
    key(drawing, lines, narrow)
    return drawing


def cell(value: float) -> float | None:
    """A number of a CSV; NaN is an empty cell."""
    return None if np.isnan(value) else float(value)
