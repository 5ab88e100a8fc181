"""Which number finds planted mistakes? One seed per call, at the recipe of `ghosttune quickstart`.

    python benchmarks/planted.py run --seed 1
    python benchmarks/planted.py summary

A tenth of the 400 shipped rows have wrong answers, and a column says which. AUROC of these rows at the bottom
by each number of one run, none of which has seen the column:

    standing    the ledger's, for ranking: a row's value over the root mean square of its updates' values
    value       the ledger's, added up over the run; credit the same
    cosine      of the row's gradient with that of the guide rows, over the checkpoints that the run kept
    loss        minus the row's loss per target under the adapter after the last update, in which it has been learned

Results are added to runs/planted/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from quick import QUICK, launch, shipped_rows

import ghosttune
from ghosttune.choosing.index import index
from ghosttune.choosing.select import select
from ghosttune.metrics.ranking import auroc
from ghosttune.proving.recipes import recipe

OUT = Path("runs/planted")
SHORT = ("train.max_steps=12", "train.warmup_steps=1", "phases=null") if QUICK else ()
LEDGER = ("standing", "value", "credit")


def run(seed: int) -> None:
    folder = OUT / f"seed-{seed}"
    rows = folder.with_suffix(".jsonl")
    rows.parent.mkdir(parents=True, exist_ok=True)
    rows.write_text("".join(json.dumps(row) + "\n" for row in shipped_rows()))
    trained = ghosttune.train(recipe("quickstart", f"data.train.path={rows}", f"train.seed={seed}", *SHORT), folder)
    planted = {row["example_id"]: bool(row["planted"]) for row in trained.values}
    scores = {name: {row["example_id"]: row[name] for row in trained.values} for name in LEDGER}
    index(folder, checkpoints=("all",))
    by = {"cosine": {"by": "similarity", "checkpoints": ("all",)}, "loss": {"by": "loss", "checkpoints": ("last",)}}
    for name, how in by.items():
        chosen = select(folder, OUT / f"{name}-{seed}.jsonl", keep=0.5, **how)  # type: ignore[arg-type]
        sign = -1 if name == "loss" else 1
        scores[name] = {row.example_id: sign * row.score for row in (*chosen.kept, *chosen.dropped)}  # type: ignore[operator]
    found = {name: auroc(*_columns(own, planted)).as_dict() for name, own in scores.items()}
    with (OUT / "results.jsonl").open("a") as file:
        file.write(json.dumps({"seed": seed, "rows": len(planted), "planted": sum(planted.values())} | found) + "\n")
    print({name: round(one["value"], 3) for name, one in found.items()}, flush=True)


def _columns(scores: dict[str, float | None], planted: dict[str, bool]) -> tuple[np.ndarray, np.ndarray]:
    """Of the rows that have a score: the score, and whether it is planted."""
    own = {name: score for name, score in scores.items() if score is not None}
    return np.array(list(own.values())), np.array([planted[name] for name in own])


def summary() -> None:
    results = [json.loads(line) for line in (OUT / "results.jsonl").read_text().splitlines()]
    names = [name for name in results[0] if isinstance(results[0][name], dict)]
    print(f"| seed | {' | '.join(names)} |\n|--:|{'---|' * len(names)}")
    for one in sorted(results, key=lambda one: one["seed"]):
        cells = [f"{one[name]['value']:.3f} ({one[name]['low']:.3f} to {one[name]['high']:.3f})" for name in names]
        print(f"| {one['seed']} | {' | '.join(cells)} |")
    means = [f"{np.mean([one[name]['value'] for one in results]):.3f}" for name in names]
    print(f"| mean | {' | '.join(means)} |")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "summary"])
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(argv)
    summary() if given.what == "summary" else run(given.seed)


if __name__ == "__main__":
    launch(main, "run", "summary")
