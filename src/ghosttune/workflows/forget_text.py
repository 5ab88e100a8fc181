"""What was forgotten, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

NAMES = {"forgotten": "forgotten", "paraphrases": "paraphrases", "retained": "retained", "held_out": "held out"}


def as_lines(found: dict[str, Any]) -> Iterator[str]:
    """Losses of each set of rows under each adapter, and the verdict."""
    until = "" if found["until"] is None else f", to stop at {found['until']:.3f} nats per target"
    yield f"{found['out']} forgets rows of {found['run']}: step {found['step']}{until}"
    yield "Loss in nats per target, with 95 % intervals:"
    for name, title in NAMES.items():
        if name in found["rows"]:
            own = found["rows"][name]
            n = next(iter(own["loss"].values()))["n"]
            yield f"  {f'{title} ({n:,} rows)':<26} " + "; ".join(
                f"{who} {_said(one)}" for who, one in own["loss"].items()
            )
            for against in ("before", "retrained"):
                if (change := own.get(f"from_{against}")) is not None:
                    said = f"{_said(change, '+.3f')}, {change['verdict']}"
                    yield f"    {f'than {against}':<24} {said}"
    verdict = found["verdict"]
    yield f"Forgotten rows: {verdict['forgotten']}."
    yield f"Retained rows, before and after: {verdict['retained_from_before']}."


def _said(interval: dict[str, Any], form: str = ".3f") -> str:
    value, low, high = (format(interval[name], form) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
