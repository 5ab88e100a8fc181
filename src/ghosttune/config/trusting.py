"""How far the value of a row in a single update can be trusted: before a run by its settings, after it by its account.

Values are right to first order at the guide gradient that they are multiplied with. How much it turns between two guide
passes grows with how far the weights move in between, and AdamW moves them by the learning rate per update. The bounds
are those of `benchmarks/removal.md`, where rows were really taken out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ghosttune.config.schema import RunConfig

MOVED = ((0.005, 0.95), (0.01, 0.9), (0.015, 0.8))
"""Learning rate times updates between two guide passes, at most -> median r of values with removal, at least."""

RANKING = "judge rows by their standing, which averages over updates"


def expected(config: RunConfig) -> str | None:
    """What `check` says of the values that a run will have; None where it has none."""
    ledger, rate = config.measure.ledger, config.train.learning_rate
    if ledger.guide_every is None:
        return None
    if ledger.values != "removal":
        return f"`{ledger.values}` values leave the clip factor as it was: where the clip binds, {RANKING}"
    moved = rate * ledger.guide_every
    said = f"learning rate x updates between guide passes is {moved:.2g}"
    r = next((r for most, r in MOVED if moved <= most * (1 + 1e-9)), None)
    if r is None:
        every = int(MOVED[1][0] / rate)
        remedy = f"set measure.ledger.guide_every to {every}, or " if every else ""
        return f"of single updates, may say little: {said}, above {MOVED[-1][0]:g}; {remedy}{RANKING}"
    return f"of single updates, should follow removal with r {r:g} or more: {said} ({_measured(MOVED)})"


def found(account: Mapping[str, Any]) -> list[str]:
    """What a report says of the values that a run has: `ledger` of its run.json. No r follows from what a run measures,
    since it averages over updates of all rates; a window at whose ends rows rank the other way round is a warning."""
    drop = account["guide_loss_start"] - account["guide_loss_end"]
    notes: list[str] = []
    if account.get("rows") is not None and drop:
        notes.append(f"The account by rows leaves {abs(account['residual'] / drop):.1%} of the drop unexplained.")
    steady = account.get("values_steady")
    if steady is not None:
        said = f"The guide gradients before and after a window rank an update's rows alike with r {steady:.2f}"
        doubt = f"; values of single updates may say little: {RANKING}, or lower measure.ledger.guide_every"
        notes.append(f"{said}, on average over the run{doubt if steady < 0 else ''}.")
    return notes


def _measured(bounds: Sequence[tuple[float, float]]) -> str:
    return "measured on the built-in model: " + ", ".join(f"{r:g} up to {most:g}" for most, r in bounds)
