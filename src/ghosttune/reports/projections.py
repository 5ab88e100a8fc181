"""How far sketched gradients are from exact ones, by the numbers kept: what benchmarks/projection_error.py measures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.errors import RunError
from ghosttune.reports.drawing import LIGHT, head_of, key, label, panels, write_plainly
from ghosttune.reports.figures import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

Line = dict[str, Any]

QUANTITIES = {
    "relative": "relative error of inner products",
    "rmse": "RMSE of inner products",
    "cosine": "RMSE of cosines",
}
"""Column -> what it is; each is a view."""

COLUMNS = ("run", "kind", "split", "size", "numbers", *QUANTITIES)
"""What every line holds."""

COLOURS = {"gaussian": "blue", "rademacher": "orange", "orthonormal": "green"}
DASHES = {"even": "-", "cheap": "--"}
PREDICTED: dict[str, Any] = {"color": LIGHT["ink"], "linestyle": "none", "marker": "+", "markersize": 8}
IDEAL: dict[str, Any] = {"color": LIGHT["frozen"], "linewidth": 3, "zorder": 1}
AS_PREDICTED: dict[str, Callable[[Line], float]] = {
    "rmse": lambda line: 1.0,
    "relative": lambda line: line["relative"] / line["rmse"],
}
"""Quantity -> what a prediction, which is an RMSE, is multiplied with."""


def lines_of(path: Path) -> list[Line]:
    """The measured lines of a JSON file; RunError where it holds none."""
    try:
        lines = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(lines, list) or not lines or not all(_is_line(line) for line in lines):
        raise RunError(f"{path} holds no errors of projections: expected a list of objects with {', '.join(COLUMNS)}")
    return lines


def _is_line(line: object) -> bool:
    return (
        isinstance(line, dict)
        and set(COLUMNS) <= line.keys()
        and all(isinstance(line[name], int | float) for name in COLUMNS[3:])
    )


def projection_figure(lines: Sequence[Line]) -> Figure:
    """Error by numbers per row, a panel for each run."""
    return Figure(
        "How far sketches are from whole gradients",
        "Over pairs of rows and several seeds. An unstructured projection's error falls as one over the root of the "
        "numbers (grey, from the first measured point); one of both sides of a matrix falls slower where gradients "
        "have a low rank. A point that is missing is exact.",
        COLUMNS,
        [[line[name] for name in COLUMNS] for line in lines],
        {name: partial(_draw, lines, name) for name in QUANTITIES},
    )


def _draw(lines: Sequence[Line], quantity: str, narrow: bool) -> Drawing:
    runs = list(dict.fromkeys(line["run"] for line in lines))
    names = [label(run) for run in runs]
    entries = _entries(lines, quantity)
    columns = 1 if narrow else 3
    drawing, axes = panels(narrow, names, columns=columns, left=70, head=head_of(len(entries), narrow))
    for ax, run in zip(axes, runs, strict=True):
        own = sorted((line for line in lines if line["run"] == run), key=lambda line: line["numbers"])
        _draw_run(ax, [line for line in own if line[quantity] > 0], quantity)
        ax.set_ylabel(QUANTITIES[quantity])
    for ax in axes[-columns:]:
        ax.set_xlabel("numbers per row")
    key(drawing, entries, narrow)
    return drawing


def _draw_run(ax: Axes, lines: Sequence[Line], quantity: str) -> None:
    """What one run measured, from few numbers to many."""
    if not lines:
        return
    for kind, split in dict.fromkeys((line["kind"], line["split"]) for line in lines):
        points = [line for line in lines if (line["kind"], line["split"]) == (kind, split)]
        style: dict[str, Any] = {"color": _colour(kind), "linestyle": _dashes(split)}
        ax.plot(_of(points, "numbers"), _of(points, quantity), marker="o", markersize=3.5, **style)
        predicted = [line for line in points if quantity in AS_PREDICTED and "predicted" in line]
        values = [line["predicted"] * AS_PREDICTED[quantity](line) for line in predicted]
        ax.plot(_of(predicted, "numbers"), values, zorder=3, **PREDICTED)
    numbers, first = _of(lines, "numbers"), lines[0]
    ax.plot(numbers, [first[quantity] * math.sqrt(first["numbers"] / number) for number in numbers], **IDEAL)
    ax.set_xscale("log")
    ax.set_yscale("log")
    write_plainly(ax.xaxis, min(numbers), max(numbers))
    write_plainly(ax.yaxis, *ax.get_ylim())


def _entries(lines: Sequence[Line], quantity: str) -> dict[str, Any]:
    """Of the legend: a colour for each kind, dashes for each split."""
    from matplotlib.lines import Line2D

    styles: dict[str, Any] = {line["kind"]: {"color": _colour(line["kind"])} for line in lines}
    styles |= {f"{line['split']} split": {"color": LIGHT["ink"], "linestyle": _dashes(line["split"])} for line in lines}
    if quantity in AS_PREDICTED and any("predicted" in line for line in lines):
        styles["gaussian, predicted"] = PREDICTED
    styles["as 1 / √numbers"] = IDEAL
    return {name: Line2D([], [], **style) for name, style in styles.items()}


def _colour(kind: str) -> str:
    return LIGHT[COLOURS.get(kind, "purple")]


def _dashes(split: str) -> str:
    return DASHES.get(split, ":")


def _of(lines: Sequence[Line], column: str) -> list[float]:
    return [line[column] for line in lines]
