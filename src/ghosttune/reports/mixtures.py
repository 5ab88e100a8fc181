"""What became of each source of a mixture, and of each dev set: loss and learnt weight over the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ghosttune.registry import FIGURES
from ghosttune.reports.drawing import LIGHT, count_steps, head_of, key, label, panels
from ghosttune.reports.figures import Figure, Standing
from ghosttune.reports.reading import RunNumbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

COLOURS = ("blue", "orange", "green", "purple", "gold", "soft")
"""Of the sources, in their order."""

SIGNALS = {
    "guide": "what its targets did to the guide loss (value per target)",
    "odm": "its training loss per target",
    "doremi": "how far its training loss per target is above the reference's",
}

Lines = Mapping[str, Sequence[tuple[int, float]]]
"""Source -> (step, number)."""


@FIGURES.register("dev_loss_by_set", Standing("loss", 3))
def dev_loss_by_set(numbers: RunNumbers) -> Figure | None:
    """The dev loss of each source of a mixture, or of each dev set."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for event in numbers.events:
        for name, loss in event.get("sources", {}).items() if event["event"] == "eval" else ():
            lines.setdefault(name, []).append((event["step"], loss))
    return _figure(
        "Dev loss of each set",
        "Nats per target of the dev rows of each source or dev set; step 0 is the untouched base. The loss of all of "
        "them together chose the adapter.",
        "loss",
        lines,
        "nats per target",
    )


@FIGURES.register("mixture_weights", Standing("loss", 4))
def mixture_weights(numbers: RunNumbers) -> Figure | None:
    """The learnt weight of each source."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in numbers.table("mixture", ["step", "source", "weight"]):
        lines.setdefault(row["source"], []).append((row["step"], row["weight"]))
    by = numbers.record.get("mixture", {}).get("by")
    learnt = f", learnt from {SIGNALS[by]}" if by in SIGNALS else ""
    return _figure(
        "Learnt weights of the sources",
        f"The share of rows that each source has from an update on{learnt}. tables/mixture holds what they follow.",
        "weight",
        lines,
        "share of rows",
        until=max((event["step"] for event in numbers.events), default=0),
    )


def _figure(title: str, caption: str, column: str, lines: Lines, unit: str, until: int | None = None) -> Figure | None:
    """`until`: the step to which each number holds on after its own; None where they are points of a curve."""
    if not lines:
        return None
    rows = [(step, name, number) for name, own in lines.items() for step, number in own]
    return Figure(title, caption, ("step", "source", column), rows, {"linear": partial(_draw, lines, unit, until)})


def _draw(lines: Lines, unit: str, until: int | None, narrow: bool) -> Drawing:
    drawing, (ax,) = panels(narrow, [unit], height=200, head=head_of(len(lines), narrow))
    drawn = {}
    for place, (name, own) in enumerate(lines.items()):
        colour, dashes = LIGHT[COLOURS[place % len(COLOURS)]], ("-", "--", ":")[place // len(COLOURS) % 3]
        style: dict[str, Any] = {"marker": "o", "markersize": 4.5}
        if until is not None:
            own, style = [*own, (until, own[-1][1])], {"drawstyle": "steps-post"}
        (drawn[label(name, 24)],) = ax.plot(*zip(*own, strict=True), color=colour, linestyle=dashes, **style)
    ax.set_ylim(bottom=0)
    count_steps(ax)
    ax.margins(x=0.01)
    key(drawing, drawn, narrow)
    return drawing
