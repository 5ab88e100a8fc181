"""Writes docs/reference.md: every setting, method, task, dataset, metric, preset and so on, as `show` has them.

    python scripts/build_reference.py

A test compares the page with what this writes.
"""

from __future__ import annotations

from pathlib import Path

from ghosttune.workflows.show import KINDS, show

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"

HEAD = """# Reference

Written by `scripts/build_reference.py` from the schema and the registries; `ghosttune show` prints the same, and
`ghosttune show settings KEY --run RUN` what a setting was and did in a run besides.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, _settings(), *(_listed(kind) for kind in KINDS if kind != "settings")])


def _settings() -> str:
    lines = [
        "## settings",
        "",
        "| setting | default | what | takes | why | benefit | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in show("settings", None)[1]:
        facts = show("settings", name)[1]
        takes = facts["how"].partition("; --set")[0]
        reasons = (facts[heading] for heading in ("why", "benefit", "cost"))
        lines.append(_row(f"`{name}`", facts["default"], facts["what"], takes, *reasons))
    return "\n".join([*lines, ""])


def _listed(kind: str) -> str:
    rows = [_row(f"`{name}`", meaning) for name, meaning in show(kind, None)[1].items()]
    return "\n".join([f"## {kind}", "", "| name | what |", "|---|---|", *rows, ""])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
