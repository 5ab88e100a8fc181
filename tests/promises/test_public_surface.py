"""What ghostgrad shows of itself: every tensor of it has a stated shape, and its types are known."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ghostgrad

SOURCE = Path(__file__).parent.parent.parent / "src"
SHAPE = r"\[(?:\*?\w+|\.\.\.)?(?:, (?:\*?\w+(?: \* \w+)?|\.\.\.))*\]|\[k_o \* k_i\]"
"""[B, T], [*P], [..., O], [B, k_o * k_i], and [] for a number."""


def functions() -> Iterator[tuple[str, str, Callable[..., object]]]:
    """(name, all that is said of it, function) of every public function and method of `ghostgrad.__all__`."""
    for name in ghostgrad.__all__:
        thing = getattr(ghostgrad, name)
        if inspect.isfunction(thing):
            yield name, thing.__doc__ or "", thing
        if not inspect.isclass(thing):
            continue
        for method, raw in inspect.getmembers_static(thing):
            function = getattr(raw, "fget", None) or getattr(raw, "__func__", raw)
            if not inspect.isfunction(function) or not function.__module__.startswith("ghostgrad"):
                continue
            if method == "__init__" or not method.startswith("_"):
                yield f"{name}.{method}", said(thing, method), function


def said(of: type, method: str) -> str:
    """Its docstring, those that it takes the place of, and the protocol's; of `__init__` that of the class."""
    if method == "__init__":
        return of.__doc__ or ""
    homes = [*of.__mro__, ghostgrad.Observer]
    return "\n".join(getattr(home, method).__doc__ or "" for home in homes if hasattr(home, method))


def unstated(told: str, function: Callable[..., object]) -> list[str]:
    """Tensors of a function, "return" among them, whose shape its documentation does not state beside their name."""
    tensors = [name for name, kind in function.__annotations__.items() if re.search(r"\bTensor\b", str(kind))]
    lines = re.sub(r"\n\s*(?=\w+:)|(?<=[.;])\s", "\n\n", told).split("\n\n")
    stated = {
        name: any(re.search(SHAPE, line) and (name == "return" or re.search(rf"\b{name}\b", line)) for line in lines)
        for name in tensors
    }
    return [name for name, is_stated in stated.items() if not is_stated]


FUNCTIONS = list(functions())


@pytest.mark.parametrize(
    ("told", "function"), [entry[1:] for entry in FUNCTIONS], ids=[entry[0] for entry in FUNCTIONS]
)
def test_every_tensor_of_the_public_surface_has_a_stated_shape(told, function):
    assert not unstated(told, function)


def test_a_shape_that_is_not_stated_is_found():
    def scores(rows: ghostgrad.observers.Tensor, other: ghostgrad.observers.Tensor) -> ghostgrad.observers.Tensor: ...

    assert unstated("Scores of rows.", scores) == ["rows", "other", "return"]
    assert unstated("[n] scores of `rows`. They are [n, m] with `other`.", scores) == []
    assert unstated("[n] scores of `rows`. And with `other`.", scores) == ["other"]
    assert len(FUNCTIONS) > 60


@pytest.mark.parametrize("package", ["ghostgrad", "ghosttune/config"])
def test_strict_types_have_no_exception_but_for_what_others_leave_untyped(package):
    """Of a whole file only the rules about unknown types are off, and only where it calls torch or PyYAML."""
    allowed = {"Member", "Variable", "Argument"}
    private = {"reportPrivateImportUsage=false", "reportPrivateUsage=false"}  # torch's `_foreach_` operations
    for file in (SOURCE / package).rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        off = {
            rule.strip() for line in re.findall(r"^# pyright: (.*)$", text, re.MULTILINE) for rule in line.split(",")
        }
        assert off <= {f"reportUnknown{kind}Type=false" for kind in allowed} | private, file
        assert not off or re.search(r"^(?:import|from) (?:torch|yaml)\b", text, re.MULTILINE), file
