"""Rows that are as odd as rows may be."""

from __future__ import annotations

import json
from typing import Any

OBEYED = {
    "clipboard": "\x1b]52;c;Y3VybA==\x07",
    "title": "\x1b]0;title\x1b\\",
    "colour": "\x9b31m",
    "direction": "\u202egnp.exe\u2066",
    "line": "\r\u2028\ufeff",
    "bell": "\x07\x08\x7f",
}
"""What terminals obey."""

NASTY = "".join(OBEYED.values())

CELLS = [
    "=1+1",
    "+1 800",
    "-x",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1",
    "'quoted",
    "''twice",
    "-0.5",
    "+1e3",
    "plain",
    "",
]


def odd_row(number: int) -> dict[str, Any]:
    """One of them."""
    return {
        "id": f"=row-{number}{NASTY}[/bold] :warning:",
        "prompt": f"Say {NASTY} red number {number}",
        "completion": f"red {number} {NASTY}",
        "tokens": f"own tokens {number}",
        "row_tokens": f"own row_tokens {number}",
        "value": -number,
        "standing": number % 2 == 0,
        "steps_seen": [number],
        "score": f"own score {number}",
        "reason": f"own reason {number}",
        "large": 10**30 + number,
        "deep": json.loads("[" * 90 + "]" * 90),
        "cell": CELLS[number % len(CELLS)],
        f"=name{NASTY}": f"{NASTY}\nharmful    -9.99 forged",
    }
