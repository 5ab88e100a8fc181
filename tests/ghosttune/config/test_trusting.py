"""What is said of values against what was measured, and what it says for the shipped recipes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ghosttune.config.loading import load_config
from ghosttune.config.trusting import MOVED, expected, found

MEASURED = Path(__file__).parents[3] / "benchmarks" / "removal.md"
RATES = {"quickstart": 5e-3, "init": 2e-4}


def measured() -> list[tuple[float, float]]:
    """(learning rate x guide_every, median r) of the benchmark's rows that are of values as runs have them."""
    lines = [line.strip("|\n ").split(" | ") for line in MEASURED.read_text(encoding="utf-8").splitlines()]
    rows = [line[:5] for line in lines if len(line) >= 6 and line[3] == "removal"]
    return [
        ((RATES[name] if rate == "its own" else float(rate)) * int(every), float(r.split()[0]))
        for name, rate, every, _, r in rows
    ]


def test_no_measured_recipe_fell_below_what_is_said():
    found = measured()
    assert len(found) >= 5
    for moved, r in found:
        assert r >= next((bound for most, bound in MOVED if moved <= most * (1 + 1e-9)), 0.0), (moved, r)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "r 0.95 or more: learning rate x updates between guide passes is 0.002"),
        ({"train.learning_rate": 5e-3, "measure.ledger.guide_every": 2}, "r 0.9 or more"),
        ({"train.learning_rate": 5e-3, "measure.ledger.guide_every": 3}, "r 0.8 or more"),
        ({"train.learning_rate": 5e-3}, "may say little: .* is 0.05, above 0.015; set measure.ledger.guide_every to 2"),
        ({"train.learning_rate": 0.5}, "may say little: .* above 0.015; judge rows by their standing"),
        ({"measure.ledger.values": "adamw"}, "`adamw` values leave the clip factor as it was"),
    ],
)
def test_check_says_how_far_values_can_be_trusted(changes: dict[str, Any], said: str):
    overrides = ["data.train.path=builtin:rows", *(f"{name}={value}" for name, value in changes.items())]
    assert re.search(said, expected(load_config(overrides=overrides)) or "")


def test_nothing_is_said_where_there_are_no_values():
    assert expected(load_config(overrides=["data.train.path=builtin:rows", "measure.ledger=null"])) is None


def account(steady: float | None) -> dict[str, Any]:
    return {"guide_loss_start": 3.0, "guide_loss_end": 1.0, "rows": 1.9, "residual": -0.1, "values_steady": steady}


def test_a_report_says_what_its_run_measured():
    assert found(account(None)) == ["The account by rows leaves 5.0% of the drop unexplained."]
    steady, turning = found(account(0.45))[1], found(account(-0.12))[1]
    assert steady.endswith("alike with r 0.45, on average over the run.")
    assert "r -0.12, on average over the run; values of single updates may say little" in turning
