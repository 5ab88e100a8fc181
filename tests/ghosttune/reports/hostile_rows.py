"""Rows that try to break the page: with a flag, a kind, a column of many kinds, and markup everywhere."""

from __future__ import annotations

import json
from pathlib import Path

HOSTILE = "</div><script>alert('row')</script><img src=x onerror=alert(1)> & \"quoted\" $\\alpha$ ☃ 漢字"
HOSTILE_COLUMN = "<b onclick='x'>column</b>"


def write_rows(path: Path) -> Path:
    """Thirty of them, as JSONL."""
    rows = [
        {
            "prompt": f"{HOSTILE} number {n}",
            "completion": f"{'red ' * (1 + n % 3)}{n}{HOSTILE}",
            "planted": n % 4 == 0,
            "source": [HOSTILE, "own"][n % 2],
            HOSTILE_COLUMN: HOSTILE if n % 3 else None,
            "number": n,
        }
        for n in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
