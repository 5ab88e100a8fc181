"""How far a row's value tells what taking it out of a real update does, at the shipped recipes.

    python benchmarks/removal.py --out benchmarks/removal.md
    python benchmarks/removal.py --quick

Every row of 20 updates after the 50th is taken out of that update, one at a time: gradient, clip factor and v̂ are as
they would be. A recipe is trained without phases, with its own schedule up to the 72nd update. Values of one update are
compared with the guide loss without each row: Pearson r, and the slope of the real change over the value.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from ghosttune.proving.recipes import removals

UPDATES = range(51, 71)
CASES = (
    ("quickstart", 1, "removal", None),
    ("init", 1, "removal", None),
    ("quickstart", 5, "removal", None),
    ("init", 10, "removal", None),
    ("quickstart", 1, "adamw", None),
    ("init", 1, "adamw", None),
)


def measured(name: str, every: int, values: str, rate: float | None, updates: range) -> np.ndarray:
    """[updates, 2]: r and slope."""
    changes = [f"measure.ledger.guide_every={every}", f"measure.ledger.values={values}"]
    changes += [f"train.learning_rate={rate}"] if rate else []
    with tempfile.TemporaryDirectory() as folder:
        return np.array(removals(name, Path(folder) / "run", updates, *changes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="two updates of one case")
    given = parser.parse_args()
    cases, updates = (CASES[:1], range(3, 5)) if given.quick else (CASES, UPDATES)
    lines = [
        "# Values against removal",
        "",
        f"{len(updates)} updates each, median [lowest]. Made by `benchmarks/removal.py`, which says how.",
        "",
        "| recipe | learning rate | guide_every | values | r | slope |",
        "|---|---|--:|---|---|---|",
    ]
    for name, every, values, rate in cases:
        r, slope = measured(name, every, values, rate, updates).T
        said = f"{np.median(r):.3f} [{r.min():.3f}] | {np.median(slope):.2f} [{slope.min():.2f}]"
        lines.append(f"| {name} | {rate or 'its own'} | {every} | {values} | {said} |")
        print(lines[-1], flush=True)
    if given.out:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
