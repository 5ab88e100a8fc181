"""The images of a row: the columns and parts that name them, and the places in its words where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os.path import normpath
from pathlib import Path
from typing import Any

from ghosttune.data.columns import RowFault
from ghosttune.data.files import Fields, shown
from ghosttune.data.turns import IMAGE_MARK, Turn

IMAGE, IMAGES = "image", "images"
"""Columns that name the images of a row: one, or a list. The second is also the folder where they may lie."""

TALKS = ("messages", "conversations")
SAID = ("content", "value")
NAMED_BY = ("image", "path")
"""Keys of a part that is an image, where the file is named there and not in a column."""


def image_root(file: Path) -> Path:
    """The folder below which a file of rows has its images: `images` beside it, or else its own."""
    folder = file.parent.absolute()
    return folder / IMAGES if (folder / IMAGES).is_dir() else folder


def with_marks(fields: Fields) -> tuple[Fields, list[str]]:
    """(the row without its columns of images and with IMAGE_MARK where a message has an image as a part, the images
    that it names); RowFault for images that are no paths."""
    columns = [name for name in (IMAGE, IMAGES) if fields.get(name) not in (None, [])]
    if len(columns) == 2:
        raise RowFault("has the columns image and images; one of the two must go")
    given = fields[columns[0]] if columns else []
    named = list(given) if isinstance(given, list) else [given]
    row = {name: value for name, value in fields.items() if name not in (IMAGE, IMAGES)}
    inside: list[Any] = []
    for talk in TALKS:
        if isinstance(row.get(talk), list):
            row[talk] = [_marked(message, inside) for message in row[talk]]
    if named and inside:
        raise RowFault(f"names images in the column {columns[0]} and in its messages; one of the two must go")
    for name in (*named, *inside):
        if not isinstance(name, str) or not name.strip():
            column = columns[0] if columns else IMAGE
            raise RowFault(f"{column} must be the path of an image, or a list of paths, is {shown(name)}")
    return row, [*named, *inside]


def _marked(message: Any, named: list[Any]) -> Any:
    """A message with its parts that are images as marks; adds what these name."""
    said = next((key for key in SAID if isinstance(message, dict) and isinstance(message.get(key), list)), None)
    if said is None:
        return message
    parts: list[Any] = []
    for part in message[said]:
        if isinstance(part, dict) and part.get("type") == "image":
            named += [part[key] for key in NAMED_BY if part.get(key) is not None][:1]
            part = {"type": "text", "text": IMAGE_MARK}
        parts.append(part)
    return {**message, said: parts}


def showing(turns: Sequence[Turn], images: Sequence[str]) -> tuple[Turn, ...]:
    """The turns, each with the images that it shows; RowFault unless each has its place where the user speaks."""
    counts = [turn.content.count(IMAGE_MARK) for turn in turns]
    if any(count and turn.role != "user" for count, turn in zip(counts, turns, strict=True)):
        raise RowFault(f"says {IMAGE_MARK} where others than the user speak; only the user shows images")
    if sum(counts) and not images:
        raise RowFault(f"says {IMAGE_MARK} and names no image; name it in a column image, or images for several")
    if sum(counts) != len(images):
        raise RowFault(
            f"names {len(images)} image{'s' * (len(images) != 1)} and says {IMAGE_MARK} {sum(counts)} times; it must "
            "once for each"
        )
    found: list[Turn] = []
    done = 0
    for turn, count in zip(turns, counts, strict=True):
        found.append(replace(turn, images=tuple(images[done : done + count])) if count else turn)
        done += count
    return tuple(found)


def placed(names: Sequence[str], root: Path) -> list[str]:
    """The files that are named below this folder; RowFault for one that is not there."""
    paths = [root / normpath(name) for name in names]
    for name, path in zip(names, paths, strict=True):
        if not path.is_file():
            raise RowFault(f"its image {shown(name)} is not there (looked for below {root})")
    return [str(path) for path in paths]
