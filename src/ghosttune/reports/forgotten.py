"""What a run that forgets rows has forgotten, and what it has not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ghosttune.registry import FIGURES
from ghosttune.reports.drawing import LIGHT, panels
from ghosttune.reports.figures import Figure, Standing
from ghosttune.reports.markup import Markup, joined, table, tag
from ghosttune.reports.reading import RunNumbers
from ghosttune.reports.verdict import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

SETS = {
    "forgotten": "rows to forget",
    "paraphrases": "their paraphrases",
    "retained": "other training rows",
    "held_out": "dev rows",
}
"""Sets of rows, in order, in the words of the page."""

ADAPTERS = {"before": "soft", "after": "blue", "retrained": "green"}
"""Adapter -> colour."""

Losses = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Set -> adapter -> value, low, high, n."""


@FIGURES.register("forgetting", Standing("forgetting", 1))
def forgetting(numbers: RunNumbers) -> Figure | None:
    """Loss of each set of rows before, after and of the model trained without them."""
    found = numbers.forgetting
    if found is None:
        return None
    losses = {title: found["rows"][name]["loss"] for name, title in SETS.items() if name in found["rows"]}
    beside = "Retrained is the same recipe without the rows. " if "retrained" in losses[SETS["forgotten"]] else ""
    return Figure(
        "Loss before and after",
        f"Nats per target, with 95 % intervals over rows; each set has its own scale. {beside}"
        f"Rows to forget: {found['verdict']['forgotten']}.",
        ("rows", "adapter", "value", "low", "high", "n"),
        [
            (title, who, one["value"], one["low"], one["high"], one["n"])
            for title, own in losses.items()
            for who, one in own.items()
        ],
        {"linear": partial(_draw, losses)},
    )


def _draw(losses: Losses, narrow: bool) -> Drawing:
    titles = [f"{title} ({next(iter(own.values()))['n']:,})" for title, own in losses.items()]
    most = max(map(len, losses.values()))
    drawing, axes = panels(narrow, titles, height=24 * most + 6, left=88, foot=26)
    for ax, own in zip(axes, losses.values(), strict=True):
        there = {who: own[who] for who in ADAPTERS if who in own}
        for place, (who, one) in enumerate(there.items()):
            colour = LIGHT[ADAPTERS[who]]
            if one["low"] is not None:
                ax.plot([one["low"], one["high"]], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
            ax.plot([one["value"]], [place], color=colour, marker="o", markersize=7)
        ax.set_yticks(range(len(there)), list(there))
        ax.set_ylim(most - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
    return drawing


def changes(numbers: RunNumbers) -> Markup:
    """How the loss of each row changed, in a table; nothing where the run forgets nothing."""
    found = numbers.forgetting
    if found is None:
        return Markup("")
    rows = [
        [title, against, interval(change), change["verdict"]]
        for name, title in SETS.items()
        for against in ("before", "retrained")
        if (change := found["rows"].get(name, {}).get(f"from_{against}")) is not None
    ]
    head = ["rows", "beside", "change (95 % interval)", "verdict"]
    note = (
        "Row by row, after minus the other. Two trainings differ by chance on rows that both saw: other training rows "
        "can be told apart from the retrained model's where nothing was lost, so look at both."
    )
    return joined([tag("h3", "Change of each row's loss"), table(head, rows), tag("p", note, class_="soft")])
