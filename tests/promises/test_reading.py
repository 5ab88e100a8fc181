"""The guided readings name files and functions that exist, and teach each step under the same five headings."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
SOURCE = REPOSITORY / "src" / "ghosttune"
GUIDED = sorted((REPOSITORY / "docs" / "reading").glob("*.md"))
OTHERS = [REPOSITORY / "docs" / "reading.md", REPOSITORY / "docs" / "architecture.md"]
HEADINGS = ["What", "Why", "How", "Benefit", "Trade-off"]
NAMED = re.compile(r"`([\w/]+\.py)(?::([\w.]+))?`")


def symbols(file: Path) -> set[str]:
    """Names of the functions and classes of a file, methods behind their class."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found.update(f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef))
    return found


def file_of(name: str) -> Path:
    """A page names files of the application, and those of ghostgrad with the package in front."""
    return (SOURCE.parent if name.startswith("ghostgrad/") else SOURCE) / name


@pytest.mark.parametrize("page", [*OTHERS, *GUIDED], ids=lambda page: page.stem)
def test_every_file_and_symbol_exists(page):
    named = NAMED.findall(page.read_text(encoding="utf-8"))
    assert len(named) >= 6
    missing = [
        (name, symbol)
        for name, symbol in named
        if not file_of(name).is_file() or (symbol and symbol not in symbols(file_of(name)))
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


def test_the_picture_of_the_rooms_is_that_of_the_imports():
    command = [sys.executable, str(REPOSITORY / "scripts" / "draw_architecture.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_has_its_reading():
    assert [page.stem for page in GUIDED] == ["attribute", "chat", "config", "evaluate", "quickstart", "train", "why"]


PACKAGES = sorted(file.parent for file in (REPOSITORY / "src").rglob("__init__.py") if file.parent != SOURCE)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_names_its_files_in_reading_order(package):
    told = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    order = " ".join(told.partition("In reading order: ")[2].split()).rstrip(".")
    named = [name.strip() for part in order.split(";") for name in part.split(":")[-1].split(",")]
    inner = {file.parent.name for file in package.glob("*/__init__.py")}  # may be named, as they name their own
    files = sorted(file.stem for file in package.glob("*.py") if file.stem != "__init__")
    assert sorted(name for name in named if name not in inner) == files
