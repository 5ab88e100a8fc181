"""A validation in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

NAMES = {"lowest": "the lowest", "highest": "the highest", "random": "random"}


def as_lines(found: dict[str, Any]) -> Iterator[str]:
    """What each score predicted of the halves, what leaving rows out did, and what was not compared."""
    ceiling = "" if found["ceiling"] is None else f"; no score can be expected above {found['ceiling']:.2f}"
    yield f"Guide loss of {found['subsets']} random halves of {found['rows']:,} rows, predicted and measured{ceiling}:"
    for name, agreement in found["scores"].items():
        slope = "" if agreement["slope"] is None else f", measured over predicted {_said(agreement['slope'])}"
        yield f"  {name:<26} rank correlation {_said(agreement['rank'])}{slope}"
    share = f"{found['dropped']['share']:.0%}"
    yield f"Without {share} of the rows, the guide loss changes by (positive: they were of use):"
    for kind, name in NAMES.items():
        effect = found["dropped"][kind]
        yield f"  {name:<26} {_said(effect['change'], '+.4f')}: {effect['verdict']}"
    yield from (f"Not compared: {name}" for name in found["not_compared"])


def _said(interval: dict[str, float], form: str = ".2f") -> str:
    value, low, high = (format(interval[name], form) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
