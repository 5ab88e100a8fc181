"""The picture of docs/architecture.md, from the packages as they are and what each imports.

    python scripts/draw_architecture.py [--check]

A room is a package; it says what its docstring says, and which rooms below it knows. Two ways are drawn through them:
that of a row of data, and that of a setting. `--check` writes nothing and ends with 1 where the picture is another.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PICTURE = ROOT / "docs" / "images" / "architecture.svg"

FLOORS = (
    ("cli", "studio"),
    ("proving",),
    ("workflows",),
    ("judging", "choosing"),
    ("stages",),
    ("training", "inference", "reports", "exporting"),
    ("tasks",),
    ("models", "methods", "data", "metrics", "schedules"),
    ("config",),
    ("run",),
    ("ghostgrad",),
)
"""From the top; a room knows rooms of floors below its own, which tests/ghosttune/test_layers.py holds it to."""

ROW = ("data", "tasks", "training", "ghostgrad", "run", "reports")
"""The rooms that a row of data comes through, from its file to its place in the report."""
SETTING = ("cli", "config", "workflows", "stages", "methods", "training", "run")
"""The rooms that a setting comes through, from the command to the record of the run."""

WIDTH, MARGIN, GAP, LINE, HEAD = 1180, 20, 16, 15, 34
LETTER = 6.7
"""Width of a letter of the small text."""


def rooms() -> list[list[str]]:
    """The floors with the rooms that there are."""
    return [[name for name in floor if folder(name).is_dir()] for floor in FLOORS]


def folder(name: str) -> Path:
    return SOURCE / name if name == "ghostgrad" else SOURCE / "ghosttune" / name


def purpose(name: str) -> str:
    """The first sentence of the package's docstring."""
    told = ast.get_docstring(ast.parse((folder(name) / "__init__.py").read_text(encoding="utf-8"))) or ""
    return told.splitlines()[0].partition(". ")[0].rstrip(".")


def known(name: str) -> list[str]:
    """The rooms that files of this one import, from the top."""
    found = {other for path in folder(name).rglob("*.py") for other in _imported(path)}
    return [other for floor in rooms() for other in floor if other in found - {name}]


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            parts = name.split(".")
            if parts[0] == "ghostgrad":
                yield "ghostgrad"
            elif parts[0] == "ghosttune" and len(parts) > 1:
                yield parts[1]


def drawn() -> str:
    """The picture as SVG, legible on light and dark pages."""
    parts: list[str] = []
    top = MARGIN
    for floor in rooms():
        width = (WIDTH - 2 * MARGIN - GAP * (len(floor) - 1)) / len(floor)
        texts = {name: _lines(name, width) for name in floor}
        height = HEAD + LINE * max(map(len, texts.values())) + 8
        for place, name in enumerate(floor):
            parts += _room(name, texts[name], MARGIN + place * (width + GAP), top, width, height)
        top += height + GAP
    return "\n".join([*_opening(top), *parts, *_legend(top), "</svg>", ""])


def _lines(name: str, width: float) -> list[tuple[str, str]]:
    """(class, text) of what stands in a room."""
    letters = int((width - 24) / LETTER)
    knows = known(name)
    below = f"knows {', '.join(knows)}" if knows else "knows no other room"
    told = [("told", line) for line in textwrap.wrap(purpose(name), letters)]
    return told + [("knows", line) for line in textwrap.wrap(below, letters)]


def _room(
    name: str, lines: list[tuple[str, str]], left: float, top: float, width: float, height: float
) -> Iterator[str]:
    yield f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6" class="room"/>'
    yield f'<text x="{left + 12:.0f}" y="{top + 22:.0f}" class="name">{name}</text>'
    place = left + width - 22
    for kind, way in (("setting", SETTING), ("row", ROW)):
        if name in way:
            yield f'<circle cx="{place:.0f}" cy="{top + 17:.0f}" r="10" class="{kind}"/>'
            number = way.index(name) + 1
            yield f'<text x="{place:.0f}" y="{top + 21:.0f}" class="number">{number}</text>'
            place -= 26
    for count, (kind, line) in enumerate(lines):
        yield f'<text x="{left + 12:.0f}" y="{top + HEAD + 6 + LINE * count:.0f}" class="{kind}">{escape(line)}</text>'


def _opening(top: float) -> list[str]:
    height = top + 44
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img" aria-label="The rooms of ghosttune, from the command down to the engine">',
        "<style>",
        "text{font-family:system-ui,sans-serif;fill:#1f2328;font-size:12px}",
        ".name{font-size:15px;font-weight:600}.knows{fill:#57606a}",
        ".number{fill:#fff;text-anchor:middle;font-size:11px;font-weight:600}",
        ".room{fill:#f6f8fa;stroke:#8c959f}.page{fill:#fff}.row{fill:#0969da}.setting{fill:#bc4c00}",
        "@media (prefers-color-scheme:dark){text{fill:#e6edf3}.knows{fill:#9198a1}.room{fill:#161b22;stroke:#656c76}",
        ".page{fill:#0d1117}.number{fill:#fff}}",
        "</style>",
        f'<rect width="{WIDTH}" height="{height:.0f}" class="page"/>',
    ]


def _legend(top: float) -> Iterator[str]:
    for place, kind, text in (
        (MARGIN + 10, "row", "the way of a row of data: from its file to its place in the report"),
        (MARGIN + 560, "setting", "the way of a setting: from the command to the record of the run"),
    ):
        yield f'<circle cx="{place}" cy="{top + 14:.0f}" r="8" class="{kind}"/>'
        yield f'<text x="{place + 16}" y="{top + 18:.0f}">{text}</text>'


def main(arguments: list[str]) -> int:
    picture = drawn()
    if arguments == ["--check"]:
        same = PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == picture
        print("the picture is that of the packages" if same else "draw it anew: python scripts/draw_architecture.py")
        return 0 if same else 1
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
