"""Do attributed rows matter? Leave-some-out retraining, and every way to score rows against it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from retraining import retrain

import ghosttune
from ghosttune.config.loading import load_config
from ghosttune.data.files import read_file
from ghosttune.workflows.opened import OpenedRun

OUT = Path("runs/attribution")
BASE, ROWS, QUERIES = OUT / "base", OUT / "rows.jsonl", OUT / "queries.jsonl"
SEEDS = (101, 102)
STEPS = 45
SETTINGS: dict[str, Any] = {
    "model.device": "cpu",
    "data.train.path": str(ROWS),
    "data.guide.split": None,
    "data.max_length": 512,
    "train.max_steps": STEPS,
    "train.learning_rate": 2.0e-3,
    "train.warmup_steps": 5,
    "train.seed": 1,
    "train.eval_steps": 5,
    "train.save_steps": 5,
    "train.save_total_limit": 100,
    "measure.norms.every": None,
    "measure.norms.effective": None,
    "measure.ledger.guide_every": None,
    "phases": None,
    "evaluate.limit": 0,
}
COUNTS = {"train": 240, "test": 32, "dev": 16}
"""Rows that train, are asked about (they choose nothing), and that the run evaluates on."""


def write_rows(e2e: Path) -> None:
    """Short rows of E2E's training set, no two of the same meaning representation."""
    table = {row["mr"]: row for _, row in read_file(e2e) if len(row["mr"] + row["ref"]) < 260}
    rows = [{"id": f"e2e-{n}", "prompt": row["mr"], "completion": row["ref"]} for n, row in enumerate(table.values())]
    picked = iter(np.random.default_rng(0).choice(len(rows), sum(COUNTS.values()), replace=False).tolist())
    lines = {
        split: [json.dumps(rows[next(picked)] | {"split": split}) + "\n" for _ in range(count)]
        for split, count in COUNTS.items()
    }
    OUT.mkdir(parents=True, exist_ok=True)
    ROWS.write_text("".join(lines["train"] + lines["dev"]))
    QUERIES.write_text("".join(lines["test"]))


def train_base() -> None:
    overrides = [f"{path}={json.dumps(value)}" for path, value in SETTINGS.items()]
    ghosttune.train(load_config(profile="quickstart@1", overrides=overrides), BASE)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("rows", "retrain"))
    parser.add_argument("--e2e", type=Path)
    parser.add_argument("--subsets", type=int, default=64)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.part == "rows":
        write_rows(chosen.e2e)
        train_base()
    elif chosen.part == "retrain":
        opened = OpenedRun(BASE, "cpu")
        retrain(opened, opened.rows(QUERIES).features, OUT / "losses", chosen.subsets, SEEDS)


if __name__ == "__main__":
    main()
