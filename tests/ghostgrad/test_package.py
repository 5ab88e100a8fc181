"""What ghostgrad promises about itself: its imports, and examples that run."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

import ghostgrad

SOURCE = Path(ghostgrad.__file__).parent
EXAMPLES = Path(__file__).parents[2] / "examples" / "ghostgrad"


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_only_torch_and_numpy_are_imported() -> None:
    found = {name for path in SOURCE.rglob("*.py") for name in imported(path)} - set(sys.stdlib_module_names)
    assert found == {"torch", "numpy", "ghostgrad"}


def test_nothing_is_pickled() -> None:
    text = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    assert "pickle" not in text and "torch.save" not in text and "torch.load" not in text


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each asserts what it claims and prints one line."""
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.count("\n") == 1
