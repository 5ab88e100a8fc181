"""A comparison as Markdown whose tables can be read in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def as_markdown(result: dict[str, Any]) -> str:
    """What was compared, how it came out, what differs, and what to keep in mind."""
    parts = [
        _table(
            ["arm", "seeds", "parameters", "updates", "rows seen", "train s", "choosing s", "tokens/s", "MB"],
            _arms(result),
        ),
        _table(["metric", *result["arms"]], _metrics(result)),
        f"Against {result['reference']}, on the same rows:",
        _table(
            ["arm", "metric", "change", "95 % interval", "test", "p", "p adjusted", "seeds", "verdict"], _tests(result)
        ),
        _chance(result),
    ]
    if result["differing_settings"]:
        parts += ["Settings that differ:", _table(["setting", *result["arms"]], _settings(result))]
    untested = (f"not tested: {', '.join(names)} of {arm}" for arm, names in result["not_tested"].items() if names)
    notes = [*result["flags"], *untested]
    if notes:
        parts.append("\n".join(f"* {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _arms(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, arm in result["arms"].items():
        budget, cost = arm["budget"], arm["cost"]
        counts = [f"{budget[key]:,}" for key in ("trainable_parameters", "updates", "rows_seen")]
        costs = ["" if value is None else f"{value:,.0f}" for value in cost.values()]
        rows.append([name, " ".join(map(str, arm["seeds"])), *counts, *costs])
    return rows


def _metrics(result: dict[str, Any]) -> list[list[str]]:
    names = dict.fromkeys(name for arm in result["arms"].values() for name in arm["metrics"])
    return [[name, *(_interval(arm["metrics"].get(name)) for arm in result["arms"].values())] for name in names]


def _tests(result: dict[str, Any]) -> list[list[str]]:
    return [
        [
            arm,
            metric,
            f"{test['change']['value']:+.4f}",
            f"{test['change']['low']:+.4f} to {test['change']['high']:+.4f}",
            test["test"],
            f"{test['p']:.3g}",
            f"{test['p_adjusted']:.3g}",
            test.get("seeds_agree", ""),
            test["verdict"],
        ]
        for arm, tests in result["tests"].items()
        for metric, test in tests.items()
    ]


def _chance(result: dict[str, Any]) -> str:
    arms, tests = len(result["tests"]), sum(len(tests) for tests in result["tests"].values())
    return (
        f"{tests} tests of {arms} arms at 95 %, adjusted for the metrics of each arm (Holm): of arms that do not "
        "differ, one in twenty has a metric that says so."
    )


def _settings(result: dict[str, Any]) -> list[list[str]]:
    return [[name, *map(_said, values.values())] for name, values in result["differing_settings"].items()]


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "null" if value is None else str(value)


def _interval(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    value, low, high = ("none" if found[key] is None else f"{found[key]:.4f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[text.replace("|", "\\|") for text in row] for row in (columns, *rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "| " + " | ".join(f"{text:<{w}}" for text, w in zip(line, widths, strict=True)) + " |" for line in ruled
    )
