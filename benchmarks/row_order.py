"""What does it cost to group rows by length, where a kind of rows that is rare differs in length? One seed per call.

    python benchmarks/row_order.py run --seed 1 --noise trainset.csv.gz
    python benchmarks/row_order.py summary

The rows of `online_selection.py`: 60 order forms of about 70 tokens among 540 rows of E2E, 60 updates of 8 rows, and
dev rows that are order forms. With and without `train.group_by_length`. Results are added to
runs/row_order/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from online_selection import STEPS, interval, mixed_rows, trained
from quick import launch

OUT = Path("runs/row_order")
ARMS = {"grouped": True, "as drawn": False}


def run(seed: int, noise: Path) -> None:
    rows = mixed_rows(noise, OUT / f"seed-{seed}.jsonl")
    found = {
        name: trained(OUT / f"seed-{seed}" / name, rows, seed, STEPS, {"train.group_by_length": grouped})
        for name, grouped in ARMS.items()
    }
    with (OUT / "results.jsonl").open("a") as file:
        file.write(json.dumps({"seed": seed, "arms": found}) + "\n")


def summary() -> None:
    rows = [json.loads(line) for line in (OUT / "results.jsonl").read_text().splitlines()]
    print(f"{len(rows)} seeds")
    for arm in ARMS:
        own = [row["arms"][arm] for row in rows]
        last = np.array([list(one["losses"].values())[-1] for one in own])
        padding, seconds = (np.mean([one[name] for one in own]) for name in ("padding", "cpu_seconds"))
        print(f"{arm:9} loss {interval(last)}  padding {padding:.1%}  {seconds:.1f} s of CPU")


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
