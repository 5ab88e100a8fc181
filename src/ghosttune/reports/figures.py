"""A figure: what it says, the numbers behind it, and its drawings. One function per figure, entered in FIGURES.

A function takes RunNumbers and returns a Figure, or None where the run does not have the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ghosttune.reports.drawing import Pictures, View, pictures_of
from ghosttune.run.directory import write_csv, write_file

SECTIONS = {
    "forgetting": "Forgetting",
    "rewards": "Rewards",
    "loss": "Loss",
    "moved": "What moved: gradients by module",
    "helped": "What lowered the held-out loss",
    "rows": "Which training rows helped, which hurt",
    "samples": "How the answers changed",
    "evaluation": "Evaluation",
}
"""Sections of the page that say what the run did, in order, with their headings."""

INTRODUCTIONS = {
    "moved": "Effective norms are those of the gradients of the adapted weights: how much the loss asks a module to "
    "move. They compare across modules and adapters. Raw norms are those of the adapter's own gradients and change "
    "with r and lora_alpha. Neither says that moving a module helps: that is the next section.",
    "helped": "The guide rows are trained on by nobody and choose nothing. What each update did to their loss is "
    "divided among the modules that moved.",
    "rows": "By what each row's gradient did to the loss of the guide rows. A low standing is a question to ask of a "
    "row, not a proof against it: a hard but right row can stand low too.",
}
"""What the reader of a section has to know for all of its figures."""


@dataclass(frozen=True)
class Standing:
    """Where a figure stands on the page."""

    section: str
    position: int


@dataclass(frozen=True)
class Figure:
    """A figure with the numbers it draws."""

    title: str
    caption: str
    """What it shows and how to read it, in plain sentences."""
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    """The numbers that are drawn; None is an empty cell."""
    views: Mapping[str, View]
    """What a reader can switch between; the first is shown."""


def draw(name: str, figure: Figure) -> dict[str, Pictures]:
    """View -> its pictures."""
    return {view: pictures_of(made, f"{name}-{place}") for place, (view, made) in enumerate(figure.views.items())}


def write_figure(folder: Path, name: str, figure: Figure, drawn: Mapping[str, Pictures]) -> None:
    """NAME.csv, and a PNG per view: NAME.png for the first, NAME-VIEW.png for the others."""
    write_csv(folder / f"{name}.csv", figure.columns, figure.rows)
    for view, pictures in drawn.items():
        write_file(folder / picture_name(name, figure, view), partial(_fill, pictures.png))


def _fill(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def picture_name(name: str, figure: Figure, view: str) -> str:
    """File name of a view's PNG."""
    return f"{name}.png" if view == next(iter(figure.views)) else f"{name}-{view.replace(' ', '-')}.png"
