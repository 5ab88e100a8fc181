"""How far a row's value tells what taking it out of a real update does, at the shipped recipes and beside them.

    python benchmarks/removal.py --out benchmarks/removal.md
    python benchmarks/removal.py --quick

Every row of 20 updates after the 50th is taken out of that update, one at a time: gradient, clip factor and v̂ are as
they would be. A recipe is trained without phases, with its own schedule up to the 72nd update. Values of one update are
compared with the guide loss without each row: Pearson r, and the slope of the real change over the value. `clip held`:
the clip factor stays as it was with the row, in the value as in the real step. `steadiness` is what the run itself says
(`run.json`, `values_steady`): how far its values agree by the guide gradients at both ends of a window; `residual` what
its account by rows leaves of the drop of these 72 updates.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from ghostgrad.crediting import Clip
from ghosttune.proving.recipes import Removal, recipe
from ghosttune.proving.removal import agreement, values_in
from ghosttune.run.directory import RunDir
from ghosttune.workflows.train import train

UPDATES = range(51, 71)
HELD = "removal, clip held"
CASES = (
    ("quickstart", None, HELD, (1,)),
    ("init", None, "removal", (10, 1)),
    ("init", None, HELD, (1,)),
    ("quickstart", None, "removal", (5, 3, 2, 1)),
    ("quickstart", 1e-3, "removal", (2, 1)),
    ("quickstart", 2e-3, "removal", (2, 1)),
    ("quickstart", 1e-2, "removal", (2, 1)),
    ("quickstart", None, "adamw", (1,)),
    ("init", None, "adamw", (1,)),
)
"""Recipe, learning rate (None: its own), values, and updates between two guide passes."""


@contextmanager
def clip_held() -> Iterator[None]:
    """Inside, the clip factor without a row is that with it."""
    with mock.patch.object(Clip, "without", lambda self, towards, squares: torch.ones_like(towards)):
        yield


def measured(
    name: str, rate: float | None, values: str, passes: tuple[int, ...], updates: range
) -> Iterator[tuple[int, np.ndarray, dict[str, Any]]]:
    """(updates between guide passes, [updates, 2] r and slope, the run's account). Rows are taken out once: guide
    passes leave training as it is."""
    real: list[tuple[list[str], np.ndarray]] = []
    held = values == HELD
    for every in passes:
        changes = [f"measure.ledger.guide_every={every}", f"measure.ledger.values={values.partition(',')[0]}"]
        changes += ["phases=null", *([f"train.learning_rate={rate}"] if rate else [])]
        removal = Removal(updates)
        with tempfile.TemporaryDirectory() as folder, removal.watching():
            with clip_held() if held else mock.MagicMock():
                train(recipe(name, *changes), run := Path(folder) / "run")
            said, account = values_in(run), RunDir(run).read_record()["ledger"]
        real = real or [removal.changes(number, held) for number in updates]
        found = [
            agreement(np.array([said[number][row] for row in ids]), own)
            for number, (ids, own) in zip(updates, real, strict=True)
        ]
        yield every, np.array(found), account


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="two updates of one case")
    given = parser.parse_args()
    cases, updates = ((("quickstart", None, HELD, (1, 2)),), range(3, 5)) if given.quick else (CASES, UPDATES)
    lines = [
        "# Values against removal",
        "",
        f"{len(updates)} updates each, median [lowest]. Made by `benchmarks/removal.py`, which says how.",
        "",
        "| recipe | learning rate | guide_every | values | r | slope | steadiness | residual |",
        "|---|---|--:|---|---|---|--:|--:|",
    ]
    for name, rate, values, passes in cases:
        for every, found, account in measured(name, rate, values, passes, updates):
            r, slope = found.T
            said = f"{np.median(r):.3f} [{r.min():.3f}] | {np.median(slope):.2f} [{slope.min():.2f}]"
            steady, drop = account["values_steady"], account["guide_loss_start"] - account["guide_loss_end"]
            left = f"{'' if steady is None else f'{steady:.2f}'} | {account['residual'] / drop:+.1%}"
            lines.append(f"| {name} | {rate or 'its own'} | {every} | {values} | {said} | {left} |")
            print(lines[-1], flush=True)
    if given.out:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
