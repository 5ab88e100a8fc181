"""Does choosing the rows of every step pay, in updates and in seconds? One seed per call.

    python benchmarks/online_selection.py run --seed 1 --noise trainset.csv.gz
    python benchmarks/online_selection.py summary

60 order forms, a tenth of which have planted mistakes, among 540 rows of E2E (its trainset.csv, gzipped or not). Guide
and dev rows are order forms; the dev rows choose nothing, and their loss after the last step is compared. Every arm
makes updates of 8 rows: `value`, `loss`, `gradient_norm` and `random` choose them from 32, `none` takes them as they
come, and `random, longer` draws for as many updates as take the CPU time of `value`. All have the ledger. Results are
added to runs/online_selection/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from quick import QUICK, SMALL, launch, shipped_rows

import ghosttune
from ghosttune.config.loading import load_config
from ghosttune.data.files import read_file

OUT = Path("runs/online_selection")
STEPS = 10 if QUICK else 60
FORMS, MISTAKES, OTHERS = (8, 2, 30) if QUICK else (54, 6, 540)
SETTINGS = {
    "model.device": "cpu",
    "train.group_by_length": True,  # as when these figures were measured; the default is false since
    "measure.norms.every": None,
    "measure.norms.effective": None,
    "measure.ledger.guide_every": 5,
    "phases": None,
    "evaluate.limit": 0,
    "data.max_length": 512,
    "train.per_device_train_batch_size": 8,
    "train.eval_steps": 10,
} | SMALL
ARMS: dict[str, dict[str, Any]] = {"none": {}} | {
    name: {"data.online_selection.by": name} for name in ("random", "loss", "gradient_norm", "value")
}


def mixed_rows(noise: Path, out: Path) -> Path:
    """Order forms, right and wrong, among rows of E2E; the shipped dev and guide rows."""
    shipped = shipped_rows()
    forms = [row for row in shipped if row["split"] == "train" and not row["planted"]][:FORMS]
    forms += [row for row in shipped if row["split"] == "train" and row["planted"]][:MISTAKES]
    table = [fields for _, fields in read_file(noise)]
    picked = np.random.default_rng(0).choice(len(table), OTHERS, replace=False).tolist()
    others = [
        {"id": f"e2e-{n}", "prompt": table[n]["mr"], "completion": table[n]["ref"], "split": "train"} for n in picked
    ]
    forms += [row for row in shipped if row["split"] in ("dev", "guide")]
    kept = ("id", "prompt", "completion", "split")
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = [*({name: row[name] for name in kept} for row in forms), *others]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def trained(out: Path, rows: Path, seed: int, steps: int, settings: dict[str, Any]) -> dict[str, Any]:
    """What one run came to: loss of the dev rows after each ten updates, CPU seconds, and what it trained on."""
    given = SETTINGS | {"data.train.path": str(rows), "train.seed": seed, "train.max_steps": steps} | settings
    overrides = [f"{path}={json.dumps(value)}" for path, value in given.items()]
    begun = time.process_time()
    run = ghosttune.train(load_config(profile="quickstart@1", overrides=overrides), out)
    seconds = time.process_time() - begun
    losses = {event["step"]: event["loss"] for event in run.events if event["event"] == "eval"}
    forms = sum(row["steps_seen"] for row in run.values if not row["example_id"].startswith("e2e-"))
    return {
        "losses": losses,
        "cpu_seconds": seconds,
        "padding": run.record["padding_share"],
        "forms": forms / sum(row["steps_seen"] for row in run.values),
    }


def compared(seed: int, noise: Path) -> dict[str, Any]:
    folder = OUT / f"seed-{seed}"
    rows = mixed_rows(noise, folder.with_suffix(".jsonl"))
    found = {name: trained(folder / name, rows, seed, STEPS, chosen) for name, chosen in ARMS.items()}
    longer = round(STEPS * found["value"]["cpu_seconds"] / found["random"]["cpu_seconds"] / 10) * 10
    again = trained(folder / "longer", rows, seed, longer, ARMS["random"])
    return found | {"random, longer": again | {"steps": longer}}


def interval(values: np.ndarray) -> str:
    """Mean with its 95 % interval over seeds, by Student's t."""
    from scipy.stats import t

    mean, count = values.mean(), len(values)
    half = t.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5 if count > 1 else np.nan
    return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


def summary() -> None:
    rows = [json.loads(line) for line in (OUT / "results.jsonl").read_text().splitlines()]
    print(f"{len(rows)} seeds")
    last = {arm: np.array([list(row["arms"][arm]["losses"].values())[-1] for row in rows]) for arm in rows[0]["arms"]}
    for arm, losses in last.items():
        own = [row["arms"][arm] for row in rows]
        ratio = np.array(
            [one["cpu_seconds"] / row["arms"]["none"]["cpu_seconds"] for one, row in zip(own, rows, strict=True)]
        )
        forms = np.array([one["forms"] for one in own])
        print(f"{arm:14} loss {interval(losses)}  less random {interval(losses - last['random'])}", end="  ")
        print(f"time {np.median(ratio):.2f}  order forms {forms.mean():.0%} of what trained")


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
    found = {"seed": given.seed, "arms": compared(given.seed, given.noise)}
    print(json.dumps(found))
    with (OUT / "results.jsonl").open("a") as file:
        file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    launch(
        main,
        "run --noise {e2e}/trainset.csv",
        "summary",
    )
