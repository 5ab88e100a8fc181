"""What training again without some rows said of the values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ghosttune.registry import FIGURES
from ghosttune.reports.drawing import LIGHT, panels
from ghosttune.reports.figures import Figure, Standing
from ghosttune.reports.reading import RunNumbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Point = tuple[str, float, float]


@FIGURES.register("validation", Standing("rows", 5))
def validation(numbers: RunNumbers) -> Figure | None:
    """Random halves of the rows: what their values add up to, and what the guide loss did when they were trained."""
    found = numbers.validation
    if found is None:
        return None
    points = [(name, half["predicted"], float(np.mean(half["measured"]))) for name, half in found["halves"].items()]
    return Figure(
        "Did training again agree?",
        " ".join([_agreement(found), _dropped(found)]),
        ("half", "predicted_drop", "measured_drop"),
        points,
        {"linear": partial(_draw, points)},
    )


def _agreement(found: dict[str, Any]) -> str:
    value = found["scores"]["value"]
    rank, slope = value["rank"], value["slope"]
    said = (
        f"Each dot is a random half of the rows, trained anew. Rank correlation of the values' sum with the measured "
        f"drop {rank['value']:+.2f} (95 % interval {rank['low']:+.2f} to {rank['high']:+.2f}, {rank['n']} halves)"
    )
    if slope is not None:
        said += f"; measured over predicted {slope['value']:.2f} ({slope['low']:.2f} to {slope['high']:.2f})"
    if found["ceiling"] is not None:
        said += f"; other seeds leave {found['ceiling']:.2f} to be reached"
    others = ", ".join(
        f"{name} {score['rank']['value']:+.2f}" for name, score in found["scores"].items() if name != "value"
    )
    return f"{said}. Others: {others}."


def _dropped(found: dict[str, Any]) -> str:
    dropped = found["dropped"]
    changes = ", ".join(
        f"{kind} {dropped[kind]['change']['value']:+.4f} ({dropped[kind]['verdict']})"
        for kind in ("lowest", "highest", "random")
    )
    return (
        f"Without {dropped['share']:.0%} of the rows, by standing or at random, the guide loss changed by: {changes}."
    )


def _draw(points: Sequence[Point], narrow: bool) -> Drawing:
    drawing, (ax,) = panels(narrow, ["measured drop, nats per target"], height=250)
    ax.plot([point[1] for point in points], [point[2] for point in points], "o", color=LIGHT["ink"], alpha=0.8)
    ax.set_xlabel("predicted drop, nats per target")
    return drawing
