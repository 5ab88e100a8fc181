"""Where in the model the gradients are: a map of layers by steps for every role and group of modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ghosttune.registry import FIGURES
from ghosttune.reports.drawing import (
    LIGHT,
    MAP,
    SCALE_HEAD,
    Span,
    View,
    colour_bar,
    count_steps,
    label,
    panels,
    write_plainly,
)
from ghosttune.reports.figures import Figure, Standing
from ghosttune.reports.gradients import Measured, cell, measured
from ghosttune.reports.reading import MOST_STEPS, Norms, RunNumbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

OUTSIDE = ", no layer"
"""Behind the group of modules that stand in none."""

Stretch = tuple[int, float, float]
"""(row of the map, before the first step, last step)."""

BINNED = f" More than {MOST_STEPS} measured steps are averaged in as many bins."


@FIGURES.register("layer_heatmap", Standing("moved", 2))
def layer_heatmap(numbers: RunNumbers) -> Figure | None:
    """Norm of each role by layer and step."""
    return heatmap_figure(measured(numbers), numbers.spans)


def heatmap_figure(norms: Measured, spans: Sequence[Span]) -> Figure | None:
    """Layer by step, a map for each role, and for each group; None where no module stands in a layer."""
    thin = {name: found.thinned() for name, found in norms.items() if found.layers}
    if not thin:
        return None
    views: dict[str, View] = {}
    for kind, suffix in (("role", ""), ("group", " by group")):
        for name, found in thin.items():
            if kind == "role" or found.roles != found.groups:
                frozen = frozen_in(norms["raw"], found.layers, kind) if "raw" in norms else {}
                views[name + suffix] = partial(_draw_maps, maps_of(found, kind), found, spans, frozen)
    rows = [
        (name, int(step), place.layer, place.group, place.role, cell(value))
        for name, found in thin.items()
        for place, line in zip(found.places, found.values, strict=True)
        for step, value in zip(found.steps, line, strict=True)
    ]
    return Figure(
        "Where in the model: layer by step",
        "Hatched: frozen (the effective norm is measured all the same). One logarithmic colour scale for all maps of "
        "a view." + (BINNED if any(len(found.steps) > MOST_STEPS for found in norms.values()) else ""),
        ("measure", "step", "layer", "group", "role", "norm"),
        rows,
        views,
    )


def maps_of(norms: Norms, kind: str) -> dict[str, np.ndarray]:
    """Role or group -> [L, S]; what stands in no layer is a map of one row, by group."""
    inside = {place.group for place in norms.places if place.layer is not None}
    names = norms.roles if kind == "role" else [group for group in norms.groups if group in inside]
    maps = {name: norms.layer_map(**{kind: name}) for name in names}
    outside = {place.group for place in norms.places if place.layer is None}
    return maps | {group + OUTSIDE: norms.together(group=group, layer=None)[None] for group in sorted(outside)}


def frozen_in(norms: Norms, layers: Sequence[int], kind: str) -> dict[str, list[Stretch]]:
    """Role or group -> where it is frozen, in the rows of a map of these layers."""
    stretches: dict[str, list[Stretch]] = {}
    edges = np.concatenate([[norms.steps[0] - 1], norms.steps])
    for name, values in maps_of(norms, kind).items():
        rows = [0] if name.endswith(OUTSIDE) else [layers.index(x) if x in layers else None for x in norms.layers]
        for row, line in zip(rows, np.isnan(values), strict=True):
            changes = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]]).astype(int)))
            found = [] if row is None else zip(edges[changes[::2]], edges[changes[1::2]], strict=True)
            stretches.setdefault(name, []).extend((row or 0, float(begin), float(end)) for begin, end in found)
    return stretches


def _draw_maps(
    maps: Mapping[str, np.ndarray],
    norms: Norms,
    spans: Sequence[Span],
    frozen: Mapping[str, Sequence[Stretch]],
    narrow: bool,
) -> Drawing:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    height = float(np.clip(14 * len(norms.layers), 56, 260))
    titles = [label(name) for name in maps]
    drawing, axes = panels(narrow, titles, height=height, left=44, head=SCALE_HEAD)
    positive = np.concatenate([values[values > 0] for values in maps.values()])
    low, high = (positive.min(), positive.max()) if len(positive) else (0.1, 1.0)
    steps = np.concatenate([[norms.steps[0] - 1], norms.steps])
    for ax, (name, values) in zip(axes, maps.items(), strict=True):
        rows = [""] if name.endswith(OUTSIDE) else [str(layer) for layer in norms.layers]
        shown = np.ma.masked_invalid(np.where(values == 0, low, values))  # the scale has no zero; empty is frozen
        style = {"norm": LogNorm(low, high), "cmap": colormaps[MAP], "rasterized": True}
        mesh = ax.pcolormesh(steps, np.arange(len(rows) + 1) - 0.5, shown, **style)
        _hatch(ax, frozen.get(name, ()))
        ticks = range(0, len(rows), max(1, len(rows) // 8))
        ax.set_yticks(ticks, [rows[tick] for tick in ticks])
        ax.set_ylabel("layer")
        ax.set_xlim(steps[0], steps[-1])
        ax.grid(False)
        for span in spans[1:]:
            ax.axvline(span.start, color=LIGHT["paper"], linewidth=1.6)
        count_steps(ax)
        ax.set_xlabel("step" if ax in axes[-1 if narrow else -2 :] else "")
    write_plainly(colour_bar(drawing, mesh, 44).xaxis, low, high)
    return drawing


def _hatch(ax: Axes, stretches: Sequence[Stretch]) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    boxes = [Rectangle((begin, row - 0.5), end - begin, 1) for row, begin, end in stretches]
    style = {"facecolor": "none", "edgecolor": LIGHT["frozen"], "linewidth": 0, "hatch": "////"}
    ax.add_collection(PatchCollection(boxes, rasterized=True, **style))
