"""A figure: what it says, the numbers behind it, and its drawings. One function per figure, entered in FIGURES.

A function takes RunNumbers and returns a Figure, or None where the run does not have the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghosttune.reports.drawing import View, as_png
from ghosttune.run.directory import write_csv, write_file

SECTIONS = {
    "loss": "Loss",
    "moved": "What moved: gradients by module",
    "helped": "What lowered the held-out loss",
    "rows": "Which training rows helped, which hurt",
    "evaluation": "Evaluation",
}
"""Sections of the page that hold figures, in order, with their headings."""

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


def write_figure(folder: Path, name: str, figure: Figure) -> list[Path]:
    """NAME.csv, and a PNG per view: NAME.png for the first, NAME-VIEW.png for the others. Returns their paths."""
    table = folder / f"{name}.csv"
    write_csv(table, figure.columns, figure.rows)
    pictures = [folder / picture_name(name, figure, view) for view in figure.views]
    for path, view in zip(pictures, figure.views.values(), strict=True):
        write_picture(path, view)
    return [table, *pictures]


def write_picture(path: Path, view: View) -> None:
    """The PNG of one view."""
    content = as_png(view)
    write_file(path, lambda partial: _fill(partial, content))


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def picture_name(name: str, figure: Figure, view: str) -> str:
    """File name of a view's PNG."""
    return f"{name}.png" if view == next(iter(figure.views)) else f"{name}-{view.replace(' ', '-')}.png"
