"""Does choosing rows pay? On the shipped rows, and on a skill that few rows of a corpus teach; one seed per call.

    python benchmarks/choosing.py mistakes --seed 1
    python benchmarks/choosing.py skill --seed 1 --noise trainset.csv.gz
    python benchmarks/choosing.py summary

`mistakes`: a run on the shipped rows, a tenth of which have planted mistakes, with a ledger; then a tenth of the rows
is dropped and the rest trained anew: the lowest standing, the highest loss of the run's last adapter, or at random.
`skill`: 30 order forms among 570 rows of E2E (its trainset.csv, gzipped or not); a run of 40 steps on all of them is
indexed, and the 120 rows most similar to the guide rows (order forms) are trained, or 120 at random. All is judged
by the loss of the last adapter on the shipped dev rows, which choose nothing. Results are added to
runs/choosing/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from quick import QUICK, SMALL, launch, shipped_rows

import ghosttune
from ghosttune.choosing.index import index
from ghosttune.choosing.opened import OpenedRun
from ghosttune.choosing.select import select
from ghosttune.config.loading import load_config
from ghosttune.data.files import read_file

OUT = Path("runs/choosing")
SETTINGS = {
    "model.device": "cpu",
    "train.group_by_length": True,  # as when these figures were measured; the default is false since
    "measure.norms.every": None,
    "measure.norms.effective": None,
    "phases": None,
    "evaluate.limit": 0,
} | SMALL
SKILL: dict[str, Any] = {"data__max_length": 512, "train__eval_steps": 4 if QUICK else 20}
FORMS, OTHERS, CHOSEN = (5, 30, 10) if QUICK else (30, 570, 120)
WARM_STEPS, SKILL_STEPS = (4, 4) if QUICK else (40, 60)


def trained(out: Path, rows: Path, seed: int, ledger: bool = False, **settings: Any) -> Any:
    """A run; with or without a ledger it trains on the same rows, since the guide rows have a split of their own."""
    given = SETTINGS | {"data.train.path": str(rows), "train.seed": seed}
    if not ledger:
        given |= {"measure.ledger.guide_every": None, "data.guide.split": None}
    given |= {path.replace("__", "."): value for path, value in settings.items()}
    overrides = [f"{path}={json.dumps(value)}" for path, value in given.items()]
    return ghosttune.train(load_config(profile="quickstart@1", overrides=overrides), out)


def last_loss(run: Any) -> float:
    """Of the dev rows, after the last step."""
    return [event["loss"] for event in run.events if event["event"] == "eval"][-1]


def mistakes(seed: int, steps: int) -> dict[str, Any]:
    folder = OUT / f"mistakes-{seed}"
    rows = written(shipped_rows(), folder.with_suffix(".jsonl"))
    base = trained(folder / "all", rows, seed, ledger=True, train__max_steps=steps)
    found = {"all": last_loss(base)}
    planted = {row["example_id"] for row in base.values if row["planted"]}
    dropped = {}
    for name, how in {
        "standing": {"by": "value"},
        "loss": {"by": "loss", "lowest": True, "checkpoints": ["last"]},
        "random": {"by": "random"},
    }.items():
        chosen = select(base.path, folder / f"{name}.jsonl", keep=0.9, **how)  # type: ignore[arg-type]
        dropped[name] = sum(row.example_id in planted for row in chosen.dropped)
        keep = {"data__train__keep": chosen.file, "train__max_steps": steps}
        found[name] = last_loss(trained(folder / name, rows, seed, **keep))
    return {"dev_loss": found, "planted_among_dropped": dropped, "planted": len(planted)}


def mixed_rows(noise: Path, out: Path) -> Path:
    """30 order forms and 570 rows of E2E to train on; the shipped dev and guide rows."""
    shipped = shipped_rows()
    forms = [row for row in shipped if row["split"] == "train" and not row["planted"]][:FORMS]
    table = [fields for _, fields in read_file(noise)]
    picked = np.random.default_rng(0).choice(len(table), OTHERS, replace=False)
    others = [
        {"id": f"e2e-{n}", "prompt": table[n]["mr"], "completion": table[n]["ref"], "split": "train", "skill": False}
        for n in picked.tolist()
    ]
    kept = {"id", "prompt", "completion", "split"}
    rows = [{name: row[name] for name in kept} | {"skill": True} for row in forms]
    judges = [row for row in shipped if row["split"] in ("dev", "guide")]
    judges = [{name: row[name] for name in kept} | {"skill": True} for row in judges]
    return written([*rows, *others, *judges], out)


def written(rows: list[dict[str, Any]], out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def skill(seed: int, noise: Path) -> dict[str, Any]:
    folder = OUT / f"skill-{seed}"
    rows = mixed_rows(noise, folder.with_suffix(".jsonl"))
    warm = trained(folder / "warm", rows, seed, ledger=True, train__max_steps=WARM_STEPS, **SKILL)
    index(warm.path)
    opened = OpenedRun(warm.path)
    found: dict[str, float] = {}
    share = FORMS / (FORMS + OTHERS)
    forms: dict[str, dict[int, float]] = {}
    for name, how in {"similar": {"by": "similarity"}, "random": {"by": "random"}}.items():
        chosen = select(opened, folder / f"{name}.jsonl", keep=CHOSEN, **how)  # type: ignore[arg-type]
        ranked = sorted(chosen.kept, key=lambda row: -(row.score or 0.0))
        forms[name] = {
            top: sum(not row.example_id.startswith("e2e-") for row in ranked[:top]) / top / share
            for top in (FORMS, CHOSEN)
        }
        keep = {"data__train__keep": chosen.file, "train__max_steps": SKILL_STEPS}
        found[name] = last_loss(trained(folder / name, rows, seed, **SKILL | keep))
    return {"dev_loss": found, "enrichment": forms}


def summary() -> None:
    rows = [json.loads(line) for line in (OUT / "results.jsonl").read_text().splitlines()]
    for part in dict.fromkeys(row["part"] for row in rows):
        own = [row for row in rows if row["part"] == part]
        print(f"{part}, {len(own)} seeds")
        for arm in own[0]["dev_loss"]:
            losses = np.array([row["dev_loss"][arm] for row in own])
            print(f"  {arm:9} dev loss {losses.mean():.4f} {interval(losses)}")
        for arm in own[0]["dev_loss"]:
            if arm != "random":
                gains = np.array([row["dev_loss"]["random"] - row["dev_loss"][arm] for row in own])
                print(f"  {arm:9} below random by {gains.mean():+.4f} {interval(gains)}, paired")
        for name in ("planted_among_dropped", "enrichment"):
            for row in own:
                if name in row:
                    print(f"  seed {row['seed']}: {name} {row[name]}")


def interval(values: np.ndarray) -> str:
    """95 % interval of the mean, from Student's t."""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"[{values.mean() - half:.4f}, {values.mean() + half:.4f}]"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("mistakes", "skill", "summary"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--noise", type=Path)
    chosen = parser.parse_args(argv)
    if chosen.part == "summary":
        summary()
        return
    found = mistakes(chosen.seed, chosen.steps) if chosen.part == "mistakes" else skill(chosen.seed, chosen.noise)
    with open(OUT / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"part": chosen.part, "seed": chosen.seed, **found}) + "\n")
    print(found)


if __name__ == "__main__":
    launch(
        main,
        "mistakes --steps 12",
        "skill --noise {e2e}/trainset.csv",
        "summary",
    )
