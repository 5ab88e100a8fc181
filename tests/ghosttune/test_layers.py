"""Imports point down only, siblings do not import each other, and some libraries have one home.

    cli > proving, studio > workflows > judging, choosing > stages > training, inference, reports, exporting > tasks
        > models, methods, data, metrics, schedules > config > registry, run > foreign, own_code > errors, version
        > ghostgrad

An import inside a function counts like any other; one under TYPE_CHECKING too, because a name is a dependency.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"

LAYERS = [
    ("__main__", "__init__"),
    ("cli",),
    ("proving", "studio"),
    ("workflows",),
    ("judging", "choosing"),
    ("stages",),
    ("training", "inference", "reports", "exporting"),
    ("tasks",),
    ("models", "methods", "data", "metrics", "schedules"),
    ("config",),
    ("registry", "run"),
    ("foreign", "own_code"),
    ("errors", "version"),
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

Import = tuple[str, int]
"""(dotted name, line)."""


def imports(tree: ast.AST, package: str) -> Iterator[Import]:
    """Everything the module imports; relative names are made absolute, and `from a import b` may mean a or a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{home}.{alias.name}", node.lineno) for alias in node.names)


def part_of(name: str) -> str | None:
    """The part of ghosttune that a dotted name belongs to; None for other packages."""
    package, _, rest = name.partition(".")
    if package != "ghosttune":
        return None
    part = rest.partition(".")[0]
    return part if part in LEVEL else "__init__"


def faults(text: str, module: str) -> list[str]:
    """What the module imports against the rules."""
    own, package = part_of(module), module.rpartition(".")[0]
    found = []
    for name, line in imports(ast.parse(text), package):
        top, other = name.partition(".")[0], part_of(name)
        if top == "rich" and module != "ghosttune.cli.display":
            found.append(f"{module}:{line} imports rich; only cli/display.py may")
        if module.startswith("ghostgrad") and top not in {"ghostgrad", "torch", "numpy", *sys.stdlib_module_names}:
            found.append(f"{module}:{line} imports {name}; ghostgrad may import torch and numpy only")
        if own is None or other is None or own == other:
            continue
        if other == "__init__" and name.startswith("ghosttune._"):
            continue  # ghosttune.__version__
        if LEVEL[other] <= LEVEL[own]:
            found.append(f"{module}:{line} imports {name}: {own} stands {_standing(own, other)} {other}")
    return found


def _standing(own: str, other: str) -> str:
    return "beside" if LEVEL[own] == LEVEL[other] else "below"


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found.append((".".join(parts), path))
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_imports_only_what_stands_below_it(module, path):
    assert faults(path.read_text(encoding="utf-8"), module) == []


def test_every_part_has_its_layer():
    parts = {module.split(".")[1] for module, _ in modules() if module.startswith("ghosttune.")}
    assert parts <= set(LEVEL)


def test_the_modules_are_found():
    assert {"ghosttune.config.schema", "ghosttune.cli.__init__", "ghostgrad.__init__"} <= dict(modules()).keys()


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("ghosttune.config.schema", "from ghosttune.data.records import Record"),
        ("ghosttune.config.schema", "def f():\n    import ghosttune.cli.main"),
        ("ghosttune.data.files", "from ghosttune.models import loading"),
        ("ghosttune.data.files", "from ..models import loading"),
        ("ghosttune.training.trainer", "if TYPE_CHECKING:\n    from ghosttune.inference.pipeline import Pipeline"),
        ("ghosttune.run.directory", "import ghosttune.registry"),
        ("ghosttune.errors", "from ghosttune.run.directory import RunDir"),
        ("ghosttune.workflows.train", "from ghosttune import load_config"),
        ("ghosttune.workflows.show", "from rich.table import Table"),
        ("ghosttune.cli.main", "import rich"),
        ("ghostgrad.engine", "from transformers import Trainer"),
        ("ghostgrad.engine", "from ghosttune.errors import InputError"),
    ],
)
def test_a_wrong_import_is_found(module, text):
    assert len(faults(text, module)) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("ghosttune.cli.display", "from rich.table import Table"),
        ("ghosttune.cli.main", "from ghosttune.errors import GhosttuneError"),
        ("ghosttune.data.known.e2e", "from ghosttune.data.files import read_file"),
        ("ghosttune.data.known.e2e", "from ..files import read_file"),
        ("ghosttune.training.trainer", "import torch, ghostgrad.engine"),
        ("ghostgrad.layers.linear", "from ghostgrad.forms import Dense\nimport math, torch.nn, numpy as np"),
        ("ghosttune.__init__", "from ghosttune.version import __version__"),
        ("ghosttune.workflows.train", "from ghosttune import __version__"),
    ],
)
def test_a_right_import_is_let_through(module, text):
    assert faults(text, module) == []
