"""Scores of the answered rows, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ghosttune.own_code import short_name
from ghosttune.registry import FIGURES
from ghosttune.reports.drawing import LIGHT, label, panels
from ghosttune.reports.figures import Figure, Standing
from ghosttune.reports.reading import RunNumbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Score = Mapping[str, Any]
"""value, low, high, n."""

SYSTEM_COLOURS = {"adapter": "blue", "base": "soft"}
"""Who answered -> the colour; any other is `purple`."""


def splits_of(numbers: RunNumbers) -> dict[str, dict[str, dict[str, Score]]]:
    """Split -> who answered -> metric -> score; what has no value, such as the AUC of one class, is left out."""
    found = {}
    for split, contents in numbers.evaluation.items():
        systems = {who: _scores(scores) for who, scores in (contents if isinstance(contents, dict) else {}).items()}
        systems = {who: scores for who, scores in systems.items() if scores}
        if systems:
            found[split] = systems
    return found


def _scores(scores: Any) -> dict[str, Score]:
    entries = scores.items() if isinstance(scores, dict) else ()
    return {name: score for name, score in entries if isinstance(score, dict) and score.get("value") is not None}


@FIGURES.register("evaluation", Standing("evaluation", 1))
def evaluation(numbers: RunNumbers) -> Figure | None:
    """Every metric of the adapter, the untouched base and others, with intervals."""
    splits = splits_of(numbers)
    if not splits:
        return None
    return Figure(
        "Scores with their intervals",
        "Dots are scores, bars their 95 % intervals over the answered rows; each metric has its own scale.",
        ("split", "system", "metric", "value", "low", "high", "n"),
        [
            (split, who, name, score["value"], score["low"], score["high"], score["n"])
            for split, systems in splits.items()
            for who, scores in systems.items()
            for name, score in scores.items()
        ],
        {split: partial(_draw_scores, systems) for split, systems in splits.items()},
    )


def _draw_scores(systems: Mapping[str, Mapping[str, Score]], narrow: bool) -> Drawing:
    metrics = list(dict.fromkeys(name for scores in systems.values() for name in scores))
    height = 24 * len(systems) + 6
    drawing, axes = panels(
        narrow,
        [short_name(metric) for metric in metrics],
        height=height,
        left=30 + 6.4 * max(map(len, systems)),
        foot=26,
    )
    for ax, metric in zip(axes, metrics, strict=True):
        for place, (who, scores) in enumerate(systems.items()):
            if metric in scores:
                _draw_score(ax, place, scores[metric], LIGHT[SYSTEM_COLOURS.get(who, "purple")])
        ax.set_yticks(range(len(systems)), [label(who) for who in systems])
        ax.set_ylim(len(systems) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
        if all(0 <= score <= 1 for scores in systems.values() if metric in scores for score in _ends(scores[metric])):
            ax.set_xlim(-0.03, 1.03)
    return drawing


def _draw_score(ax: Any, place: int, score: Score, colour: str) -> None:
    ax.plot(_ends(score), [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
    ax.plot([score["value"]], [place], color=colour, marker="o", markersize=7)


def _ends(score: Score) -> list[float]:
    return [score["value"] if score[end] is None else score[end] for end in ("low", "high")]
