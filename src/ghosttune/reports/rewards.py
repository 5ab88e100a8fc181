"""What answers earned while the run went on, where a check rewards them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ghosttune.registry import FIGURES
from ghosttune.reports.drawing import LIGHT, Span, count_steps, head_of, key, panels, shade_phases
from ghosttune.reports.figures import Figure, Standing
from ghosttune.reports.reading import RunNumbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Reward = tuple[int, str, float, float]
"""(step, `drawn` or the split, reward, share of successes)."""


@FIGURES.register("rewards", Standing("rewards", 1))
def rewards(numbers: RunNumbers) -> Figure | None:
    """Reward of the drawn answers and of greedy answers to dev prompts."""
    found = numbers.rewards
    if not found:
        return None
    return Figure(
        "Reward over the run",
        "Mean reward; higher is better. Drawn: the answers that trained since the last point. Dev: greedy answers to "
        "held-out prompts; step 0 is the untouched base, and the highest became the adapter.",
        ("step", "answers", "reward", "success"),
        found,
        {"linear": partial(_draw, found, numbers.spans)},
    )


def _draw(found: Sequence[Reward], spans: Sequence[Span], narrow: bool) -> Drawing:
    kinds = list(dict.fromkeys(kind for _, kind, _, _ in found))
    drawing, (ax,) = panels(narrow, ["reward"], height=260, head=head_of(len(kinds), narrow))
    lines: dict[str, Any] = {}
    for kind in kinds:
        steps, values = zip(*((step, value) for step, own, value, _ in found if own == kind), strict=True)
        colour, marker = ("blue", "") if kind == "drawn" else ("orange", "o")
        (lines[kind],) = ax.plot(steps, values, color=LIGHT[colour], marker=marker)
    values = [value for _, _, value, _ in found]
    ax.set_ylim(bottom=min(0, *values))
    if not any(values):
        ax.set_ylim(-0.05, 1)  # nothing was earned: a line on the edge of an axis of hundredths would not say so
    count_steps(ax)
    ax.margins(x=0.01)
    shade_phases([ax], spans)
    key(drawing, lines, narrow)
    return drawing
