"""Do learnt weights find the source that helps? One seed per call.

    python benchmarks/mixtures.py run --seed 1
    python benchmarks/mixtures.py run --seed 1 --useless shuffled
    python benchmarks/mixtures.py summary

Two sources: order forms that ship, and rows of another skill (sentences about restaurants), or other order forms whose
answers are shuffled. Guide and dev rows are order forms, and the dev rows choose nothing. `oracle` trains on the useful
source alone, `uniform` on both alike, `guide`, `odm` and `doremi` begin like it and learn; `uniform` is the reference
of `doremi`. All make updates of 8 rows; only
`guide` needs the ledger, and only it has one. Loss of the dev rows after the last update. Results are added to
runs/mixtures/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from online_selection import interval
from quick import FOODS, NAMES, QUICK, SMALL, launch, shipped_rows

import ghosttune
from ghosttune.choosing.select import select
from ghosttune.config.loading import load_config

OUT = Path("runs/mixtures")
STEPS = 6 if QUICK else 60
ROWS, DEV, GUIDE = (8, 2, 4) if QUICK else (90, 24, 16)
SETTINGS = {
    "model.device": "cpu",
    "measure.norms.every": None,
    "measure.norms.effective": None,
    "measure.ledger.guide_every": None,
    "phases": None,
    "evaluate.limit": 0,
    "data.dev.split": "dev",
    "data.dev.limit": DEV,
    "data.max_length": 512,
    "train.per_device_train_batch_size": 8,
    "train.max_steps": STEPS,
    "train.eval_steps": STEPS,
} | SMALL
EVERY = {"data.mixture.every": 2 if QUICK else 5}
ARMS: dict[str, dict[str, Any]] = {
    "oracle": {},
    "uniform": {},
    "guide": {
        "data.mixture.by": "guide",
        "measure.ledger.guide_every": 5,
        "data.guide.split": "guide",
        "data.guide.rows": GUIDE,
    }
    | EVERY,
    "odm": {"data.mixture.by": "odm"} | EVERY,
    "doremi": {"data.mixture.by": "doremi"} | EVERY,
}


def written(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A source of these rows, with the weight it begins with."""
    kept = ("id", "prompt", "completion", "split")
    path = OUT / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({column: row[column] for column in kept}) + "\n" for row in rows))
    return {"path": str(path), "weight": 1.0}


def sources(useless: str) -> dict[str, dict[str, Any]]:
    """The useful source, and the useless one."""
    shipped = shipped_rows()
    forms = [row for row in shipped if row["split"] == "train" and not row["planted"]]
    judges = [row for row in shipped if row["split"] in ("dev", "guide")]
    others = forms[-ROWS:]
    answers = np.random.default_rng(0).permutation([row["completion"] for row in others]).tolist()
    shuffled = [row | {"completion": answer} for row, answer in zip(others, answers, strict=True)]
    areas = ("city", "riverside")
    skill = [
        {
            "id": f"restaurant-{area}-{food}-{name}",
            "prompt": f"name[{name}], food[{food}], area[{area}]",
            "completion": f"{name} serves {food} food in the {area}.",
            "split": "train",
        }
        for area in areas
        for food in FOODS
        for name in NAMES
    ][:ROWS]
    rows = {"skill": skill, "shuffled": shuffled}[useless]
    return {"forms": written("forms", [*forms[:ROWS], *judges]), useless: written(useless, rows)}


def reference_losses(run: Path) -> Path:
    """The loss of each training row under the run with equal weights, in a file beside it."""
    file = run.with_name("losses.jsonl")
    select(run, file, by="loss", above=0.0, device="cpu")
    return file


def trained(out: Path, parts: dict[str, Any], seed: int, arm: str) -> dict[str, Any]:
    """What one run came to: dev loss, CPU seconds, and the share of useful rows among those that trained."""
    given = SETTINGS | ARMS[arm] | {"train.seed": seed, "data.train.sources": parts}
    if arm == "doremi":
        given |= {"data.mixture.reference_losses": str(reference_losses(out.with_name("uniform")))}
    overrides = [f"{path}={json.dumps(value)}" for path, value in given.items()]
    begun = time.process_time()
    run = ghosttune.train(load_config(profile="quickstart@1", overrides=overrides), out)
    found = {"loss": run.record["verdict"]["dev_loss"], "cpu_seconds": time.process_time() - begun}
    if learnt := run.record.get("mixture"):
        found |= {"weight": learnt["weights"]["forms"]["last"], "learning_seconds": learnt["seconds"]}
    return found


def run(seed: int, useless: str) -> None:
    parts = sources(useless)
    for arm in ARMS:
        used = {"forms": parts["forms"]} if arm == "oracle" else parts
        found = trained(OUT / f"seed-{seed}-{useless}" / arm, used, seed, arm)
        line = {"seed": seed, "useless": useless, "arm": arm, **found}
        print(json.dumps(line), flush=True)
        with (OUT / "results.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def summary() -> None:
    rows = [json.loads(line) for line in (OUT / "results.jsonl").read_text().splitlines()]
    for useless in dict.fromkeys(row["useless"] for row in rows):
        own = {(row["arm"], row["seed"]): row for row in rows if row["useless"] == useless}
        seeds = sorted({seed for arm, seed in own if all((other, seed) in own for other in ARMS)})
        losses = {arm: np.array([own[arm, seed]["loss"] for seed in seeds]) for arm in ARMS}
        print(f"useless: {useless}, {len(seeds)} seeds")
        for arm, found in losses.items():
            seconds = np.mean([own[arm, seed]["cpu_seconds"] for seed in seeds])
            weights = [own[arm, seed]["weight"] for seed in seeds if "weight" in own[arm, seed]]
            print(
                f"{arm:8} loss {interval(found)}  over oracle {interval(found / losses['oracle'])}  less uniform "
                f"{interval(found - losses['uniform'])}  {seconds:.0f} s of CPU"
                + (f"  last weight of the useful source {np.mean(weights):.2f}" if weights else "")
            )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "summary"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--useless", choices=["skill", "shuffled"], default="skill")
    given = parser.parse_args(argv)
    if given.what == "summary":
        return summary()
    return run(given.seed, given.useless)


if __name__ == "__main__":
    launch(main, "run", "run --useless shuffled", "summary")
