"""What does it cost to group rows by length? One seed per call.

    python benchmarks/row_order.py run --seed 1 --noise trainset.csv.gz
    python benchmarks/row_order.py summary

Three sets of rows. `rare kind`: those of `online_selection.py`, 60 order forms of about 70 tokens among 540 rows of
E2E, 60 updates of 8 rows, and dev rows that are order forms. `quickstart` and `init`: the shipped rows at these
recipes. Rows of a step are drawn as they come, or from rows of like length, sorted within pools of at most 4 or 32
steps. Dev loss after the last update. Results are added to runs/row_order/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from online_selection import STEPS, interval, mixed_rows, trained
from quick import QUICK, launch

import ghosttune
from ghosttune.proving.recipes import recipe
from ghosttune.training import order

OUT = Path("runs/row_order")
ARMS = {"as drawn": 0, "pools of 4": 4} | ({} if QUICK else {"pools of 32": 32})
"""Steps whose rows are sorted together, at most."""

SHORT = ("train.max_steps=4", "train.warmup_steps=1", "phases=null", "evaluate.limit=0") if QUICK else ()


def shipped(name: str, out: Path, seed: int, grouped: bool) -> dict[str, Any]:
    """A shipped recipe with another seed and order of rows; its ledger rests, the guide rows stay apart."""
    changes = [f"train.seed={seed}", f"train.group_by_length={str(grouped).lower()}", "measure.ledger.guide_every=1000"]
    begun = time.process_time()
    run = ghosttune.train(recipe(name, *changes, *SHORT), out)
    losses = {event["step"]: event["loss"] for event in run.events if event["event"] == "eval"}
    return {
        "losses": losses,
        "cpu_seconds": time.process_time() - begun,
        "padding": run.record["padding_share"],
    }


def run(seed: int, noise: Path) -> None:
    rows = mixed_rows(noise, OUT / f"seed-{seed}.jsonl")
    for arm, pool in ARMS.items():
        order.POOL = pool
        folder, grouped = OUT / f"seed-{seed}" / arm, pool > 0
        found = {
            "rare kind": trained(folder / "rare", rows, seed, STEPS, {"train.group_by_length": grouped}),
            "quickstart": shipped("quickstart", folder / "quickstart", seed, grouped),
            "init": shipped("init", folder / "init", seed, grouped),
        }
        with (OUT / "results.jsonl").open("a") as file:
            file.write(json.dumps({"seed": seed, "arm": arm, "found": found}) + "\n")


def summary() -> None:
    rows = [json.loads(line) for line in (OUT / "results.jsonl").read_text().splitlines()]
    for name in rows[0]["found"]:
        for arm in ARMS:
            own = [row["found"][name] for row in rows if row["arm"] == arm]
            last = np.array([list(one["losses"].values())[-1] for one in own])
            padding, seconds = (np.mean([one[what] for one in own]) for what in ("padding", "cpu_seconds"))
            print(f"{name:11} {arm:12} {len(own)} seeds  loss {interval(last)}", end="  ")
            print(f"padding {padding:.1%}  {seconds:.1f} s of CPU")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "summary"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--noise", type=Path)
    given = parser.parse_args(argv)
    if given.what == "summary":
        return summary()
    if given.noise is None:
        parser.error("run needs --noise, E2E's trainset.csv")
    return run(given.seed, given.noise)


if __name__ == "__main__":
    launch(
        main,
        "run --noise {e2e}/trainset.csv",
        "summary",
    )
