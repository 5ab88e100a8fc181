"""The guided readings name files and functions that exist, and teach each step under the same five headings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
SOURCE = REPOSITORY / "src" / "ghosttune"
GUIDED = sorted((REPOSITORY / "docs" / "reading").glob("*.md"))
HEADINGS = ["What", "Why", "How", "Benefit", "Trade-off"]
NAMED = re.compile(r"`([\w/]+\.py)(?::([\w.]+))?`")


def symbols(file: Path) -> set[str]:
    """Names of the functions and classes of a file, methods behind their class."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found.update(f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef))
    return found


@pytest.mark.parametrize("page", [REPOSITORY / "docs" / "reading.md", *GUIDED], ids=lambda page: page.stem)
def test_every_file_and_symbol_exists(page):
    named = NAMED.findall(page.read_text(encoding="utf-8"))
    assert len(named) >= 6
    missing = [
        (name, symbol)
        for name, symbol in named
        if not (SOURCE / name).is_file() or (symbol and symbol not in symbols(SOURCE / name))
    ]
    assert not missing


@pytest.mark.parametrize("page", GUIDED, ids=lambda page: page.stem)
def test_each_step_teaches_under_five_headings_through_six_files(page):
    text = page.read_text(encoding="utf-8")
    steps = re.split(r"^## \d+\. ", text, flags=re.MULTILINE)[1:]
    assert len(steps) == 6
    for step in steps:
        taught = step.split("\n## ")[0]
        assert re.findall(r"^\*\*([\w-]+)\.\*\* \S", taught, re.MULTILINE) == HEADINGS, taught
        assert NAMED.match(taught), "a step begins with the file it is about"
    assert len({name for name, _ in NAMED.findall(text)}) <= 6


def test_every_command_has_its_reading():
    assert [page.stem for page in GUIDED] == ["chat", "config", "evaluate", "quickstart", "train"]
