"""What is printed: text of rows, models, files and configurations, without what a terminal would obey."""

from __future__ import annotations

import re

import typer

OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and line feed, delete, C1: escape sequences, titles, the clipboard
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of what follows
    "\u2028\u2029\ufeff]"  # line ends that are none, and a byte order mark
)


def visible(text: str) -> str:
    """The text with `\\u001b` in place of each control character but tab and line feed, and of marks of direction.

    Printed JSON stays what it is: there these characters stand in strings, which take the same notation.
    """
    return OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def on_one_line(value: object) -> str:
    """The value as visible text that cannot begin a line of its own: ids, names of columns and what stands in them."""
    return visible(str(value)).replace("\n", "\\u000a").replace("\t", "\\u0009")


def say(text: str = "", err: bool = False, end: str = "\n") -> None:
    """Prints visible text at once: with `display.Display`, the only way in which a command prints."""
    typer.echo(visible(text) + end, err=err, nl=False)
