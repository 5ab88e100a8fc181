"""The loss while the run went on, and the learning rate it was given."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ghosttune.registry import FIGURES
from ghosttune.reports.drawing import LIGHT, Span, count_steps, head_of, key, panels, shade_phases, use_logarithm
from ghosttune.reports.figures import Figure, Standing
from ghosttune.reports.reading import RunNumbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Loss = tuple[int, str, float]
"""(step, `train` or the split, nats per target)."""

WIDE_RANGE = 30
"""Highest over lowest loss from which the logarithmic view comes first."""

SPLIT_COLOURS = ("orange", "purple", "green")
"""Of the evaluated splits, in the order of their appearance."""


@FIGURES.register("training_loss", Standing("loss", 1))
def training_loss(numbers: RunNumbers) -> Figure | None:
    """Loss of the training rows and of the dev rows; not where rewards train and choose."""
    return loss_figure(numbers.losses, numbers.spans) if numbers.losses and not numbers.rewards else None


def loss_figure(losses: Sequence[Loss], spans: Sequence[Span]) -> Figure:
    """Losses over steps, the best evaluation marked."""
    found = [loss for _, _, loss in losses]
    views = {"linear": False, "logarithmic": True} if min(found) > 0 else {"linear": False}
    if min(found) * WIDE_RANGE < max(found):
        views = dict(reversed(views.items()))
    return Figure(
        "Loss over the run",
        "Nats per target; lower is better. Train: the rows of the updates since the last point, with dropout where "
        "it is on. Dev: held-out rows; step 0 is the untouched base, the ring the best, which became the adapter."
        + (" Bands are phases, named after what trains in them." if len(spans) > 1 else ""),
        ("step", "split", "loss"),
        losses,
        {name: partial(_draw_losses, losses, spans, logarithmic) for name, logarithmic in views.items()},
    )


def _draw_losses(losses: Sequence[Loss], spans: Sequence[Span], logarithmic: bool, narrow: bool) -> Drawing:
    splits = [split for split in dict.fromkeys(split for _, split, _ in losses) if split != "train"]
    drawing, (ax,) = panels(narrow, ["nats per target"], height=260, head=head_of(len(splits) + 1, narrow))
    lines: dict[str, Any] = {}
    if train := [(step, loss) for step, split, loss in losses if split == "train"]:
        (lines["train"],) = ax.plot(*zip(*train, strict=True), color=LIGHT["blue"], linewidth=1.4)
    for split, name in zip(splits, SPLIT_COLOURS * len(splits), strict=False):
        steps, found = zip(*((step, loss) for step, other, loss in losses if other == split), strict=True)
        (lines[split],) = ax.plot(steps, found, color=LIGHT[name], marker="o", markersize=4.5)
        best = int(np.argmin(found))
        ring = {"marker": "o", "markersize": 11, "fillstyle": "none", "linestyle": "none"}
        ax.plot(steps[best], found[best], color=LIGHT[name], **ring)
        where = {"textcoords": "offset points", "xytext": (0, 12), "ha": "center", "color": LIGHT["ink"]}
        share = (steps[best] - min(steps)) / max(1, max(steps) - min(steps))
        where |= {"ha": "right"} if share > 0.8 else {"ha": "left"} if share < 0.2 else {}
        ax.annotate(f"best {split} {found[best]:.4g} at {steps[best]}", (steps[best], found[best]), **where)
    if logarithmic:
        use_logarithm(ax)
    else:
        ax.set_ylim(bottom=min(0, *(loss for _, _, loss in losses)))
    count_steps(ax)
    ax.margins(x=0.01)
    shade_phases([ax], spans)
    key(drawing, lines, narrow)
    return drawing


@FIGURES.register("learning_rate", Standing("loss", 2))
def learning_rate(numbers: RunNumbers) -> Figure | None:
    """Learning rate of the logged updates."""
    rates = [
        (event["step"], event["learning_rate"])
        for event in numbers.events
        if event["event"] == "log" and event.get("learning_rate") is not None
    ]
    return (
        Figure(
            "Learning rate",
            "What a phase could do depends on it: the later phases of a falling curve are given less. "
            "Its sum over each phase is in the table of phases.",
            ("step", "learning_rate"),
            rates,
            {"linear": partial(_draw_rates, rates, numbers.spans)},
        )
        if rates
        else None
    )


def _draw_rates(rates: Sequence[tuple[int, float]], spans: Sequence[Span], narrow: bool) -> Drawing:
    drawing, (ax,) = panels(narrow, ["learning rate"], height=120, left=74)
    ax.plot(*zip(*rates, strict=True), color=LIGHT["blue"])
    ax.set_ylim(bottom=0)
    count_steps(ax)
    ax.margins(x=0.01)
    shade_phases([ax], spans)
    return drawing
