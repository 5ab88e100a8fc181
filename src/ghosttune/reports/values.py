"""Training rows by what they did to the guide loss: how they spread, and by the columns that came with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ghosttune.metrics.intervals import Interval, mean_ratio
from ghosttune.registry import FIGURES
from ghosttune.reports.drawing import LIGHT, head_of, key, label, panels
from ghosttune.reports.figures import Figure, Standing
from ghosttune.reports.reading import RunNumbers
from ghosttune.run.tables import OUR_COLUMNS

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

MOST_KINDS = 20
"""Different contents of a column that one drawing can show."""

MOST_BINS = 48

Rows = Sequence[Mapping[str, Any]]


def scored(numbers: RunNumbers) -> list[dict[str, Any]]:
    """The rows that have a value, the most harmful first."""
    rows = [row for row in numbers.table("values") if row["standing"] is not None]
    return sorted(rows, key=lambda row: row["standing"])


def columns_of(rows: Rows) -> dict[str, list[str]]:
    """The rows' own columns that sort them into 2 to MOST_KINDS kinds -> the kinds, as text."""
    names = [name for name in (rows[0] if rows else ()) if name not in OUR_COLUMNS]
    kinds = {name: sorted({kind_of(row[name]) for row in rows}) for name in names}
    return {name: found for name, found in kinds.items() if 2 <= len(found) <= MOST_KINDS}


def kind_of(content: Any) -> str:
    """What a cell says, as text."""
    return (
        "(empty)"
        if content is None
        else {True: "yes", False: "no"}[content]
        if isinstance(content, bool)
        else str(content)
    )


@FIGURES.register("value_distribution", Standing("rows", 1))
def value_distribution(numbers: RunNumbers) -> Figure | None:
    """How the rows spread from harmful to helpful."""
    rows = scored(numbers)
    if not rows:
        return None
    flags = next((name for name in (numbers.ledger or {}).get("columns", {})), None)
    return Figure(
        "From harmful to helpful",
        "Left of zero raised the loss of the guide rows, right of it lowered it. Standing compares a row with those "
        "of the same updates and is for ranking; value is what it did in nats per target, which says mostly when it "
        "came.",
        ("example_id", "standing", "value", *([flags] if flags else [])),
        [(row["example_id"], row["standing"], row["value"], *([row[flags]] if flags else [])) for row in rows],
        {name: partial(_draw_histogram, rows, name, flags) for name in ("standing", "value")},
    )


def _draw_histogram(rows: Rows, name: str, flags: str | None, narrow: bool) -> Drawing:
    kinds = {"rows": rows}
    if flags:
        kinds = {
            f"{label(flags, 24)}: {text}": [row for row in rows if row[flags] is flag]
            for text, flag in (("no", False), ("yes", True))
        }
    drawing, (ax,) = panels(narrow, [f"rows by {name}"], head=head_of(len(kinds), narrow) if flags else 0)
    every = np.array([row[name] for row in rows])
    edges = np.histogram_bin_edges(every, bins=int(np.clip(np.sqrt(len(every)) * 2, 8, MOST_BINS)))
    base = np.zeros(len(edges) - 1)
    bars = {}
    for (kind, members), colour in zip(kinds.items(), ("blue", "orange"), strict=False):
        counts, _ = np.histogram([row[name] for row in members], edges)
        style = {"color": LIGHT[colour], "align": "edge", "edgecolor": LIGHT["paper"], "linewidth": 0.6}
        bars[kind] = ax.bar(edges[:-1], counts, np.diff(edges), bottom=base, **style)
        base = base + counts
    ax.axvline(0, color=LIGHT["soft"], linewidth=1)
    ax.set_xlabel("standing" if name == "standing" else "nats per target")
    if flags:
        key(drawing, bars, narrow)
    return drawing


@FIGURES.register("values_by_column", Standing("rows", 2))
def values_by_column(numbers: RunNumbers) -> Figure | None:
    """Mean standing of each kind of rows."""
    rows = scored(numbers)
    columns = columns_of(rows)
    if not columns:
        return None
    found = {name: _means(rows, name, kinds) for name, kinds in columns.items()}
    left_out = [name for name in rows[0] if name not in OUR_COLUMNS and name not in columns]
    beyond = f" Left out, with one kind or more than {MOST_KINDS}: {', '.join(left_out)}." if left_out else ""
    return Figure(
        "By the columns that came with the rows",
        "Mean standing of each kind, with its 95 % interval over rows; the model never saw these columns. "
        f"A kind of fewer than six rows says little.{beyond}",
        ("column", "kind", "rows", "mean_standing", "low", "high"),
        [
            (name, kind, mean.n, mean.value, mean.low, mean.high)
            for name, means in found.items()
            for kind, mean in means.items()
        ],
        {name: partial(draw_means, means, "mean standing (rows)", 0.0) for name, means in found.items()},
    )


def _means(rows: Rows, name: str, kinds: Sequence[str]) -> dict[str, Interval]:
    """Kind -> its mean standing, the lowest first."""
    members: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        members[kind_of(row[name])].append(row["standing"])
    means = {kind: mean_ratio(np.array(members[kind]), np.ones(len(members[kind]))) for kind in kinds}
    return dict(sorted(means.items(), key=lambda item: item[1].value))


def draw_means(means: Mapping[str, Interval], title: str, usual: float, narrow: bool) -> Drawing:
    """A point with its interval for each kind, and a line at what is usual."""
    names = [f"{label(kind, 22)} ({mean.n})" for kind, mean in means.items()]
    left = min(26 + 6.4 * max(len(name) for name in names), 190)
    drawing, (ax,) = panels(narrow, [title], height=24 * len(names) + 8, left=left, columns=1)
    for place, mean in enumerate(means.values()):
        ax.plot([mean.low, mean.high], [place, place], color=LIGHT["blue"], linewidth=2.2, solid_capstyle="butt")
        ax.plot([mean.value], [place], color=LIGHT["blue"], marker="o", markersize=7)
    ax.axvline(usual, color=LIGHT["soft"], linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    return drawing
