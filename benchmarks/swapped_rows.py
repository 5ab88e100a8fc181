"""Do values find wrong rows in real data? E2E rows, a tenth of whose completions are swapped among each other.

    python benchmarks/swapped_rows.py FOLDER [--rows 1000] [--steps 600] [--out runs/swapped]

FOLDER holds E2E's trainset.csv and devset.csv. Trains on the damaged rows with a ledger, and on the same rows
undamaged; prints how well three scores put the swapped rows at the bottom (AUROC, 95 % bootstrap interval over rows):

    standing   the ledger's, from the run on the damaged rows
    loss       control: minus the loss per target of each row under the adapter that was trained on it
    ceiling    the same under the adapter that was trained on the undamaged rows, which nobody has in practice
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quick import QUICK, launch

import ghosttune
from ghosttune.config.loading import load_config
from ghosttune.metrics.ranking import auroc, separation
from ghosttune.models.loading import load_adapter, load_model
from ghosttune.registry import TASKS
from ghosttune.stages.prepare import prepare
from ghosttune.training.guide import GuideRows, guide_losses

SETTINGS = [
    "model.name=builtin:tiny",
    "model.device=cpu",
    "method.r=16",
    "method.lora_alpha=32",
    "data.max_length=512",
    f"data.guide.rows={4 if QUICK else 128}",
    "train.learning_rate=0.005",
    "train.group_by_length=true",  # as when these figures were measured; the default is false since
    f"train.warmup_steps={2 if QUICK else 20}",
    "measure.norms=null",
    "evaluate.limit=0",
]


def rows_of(folder: str, count: int) -> list[dict[str, Any]]:
    source = ["data.train.name=e2e_nlg", f"data.train.path={folder}", f"data.train.limit={count}"]
    prepared = prepare(load_config(overrides=[*SETTINGS, *source, "data.dev.fraction=0.1"]))
    records = [*prepared.train_records, *prepared.dev_records, *prepared.guide_records]
    return [{"id": r.example_id, "prompt": r.prompt[-1].content, "completion": r.reference} for r in records]


def damaged(rows: list[dict[str, Any]], held_out: set[str]) -> list[dict[str, Any]]:
    """A tenth of the rows that train get the completion of the next of them."""
    random = np.random.default_rng(0)
    own = [place for place, row in enumerate(rows) if row["id"] not in held_out]
    chosen = random.choice(own, len(own) // 10, replace=False).tolist()
    completions = [rows[place]["completion"] for place in chosen]
    wrong = dict(zip(chosen, [*completions[1:], completions[0]], strict=True))
    return [
        row | {"completion": wrong.get(place, row["completion"]), "swapped": place in wrong}
        for place, row in enumerate(rows)
    ]


def trained(out: Path, rows: list[dict[str, Any]], steps: int) -> Any:
    file = out.with_suffix(".jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [f"data.train.path={file}", "data.dev.fraction=0.05", f"train.max_steps={steps}"]
    return ghosttune.train(load_config(overrides=[*SETTINGS, *own]), out)


def losses_under(run: Any, features: list[Any], collator: Any) -> np.ndarray:
    """Nats per target of each row under the run's last adapter."""
    model = load_adapter(load_model(run.config.model, run.config.train.seed), run.folder.last)
    guide = GuideRows(TASKS["causal_lm"].build(), collator, features, 64, torch.device("cpu"))
    by_length = [features[place] for part in guide.parts for place in part]
    nats = guide_losses(model, guide).numpy() * guide.targets
    found = {row.example_id: nat / row.targets for row, nat in zip(by_length, nats, strict=True)}
    return np.array([found[row.example_id] for row in features])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("runs/swapped"))
    chosen = parser.parse_args(argv)
    clean = rows_of(chosen.folder, chosen.rows)
    clean_run = trained(chosen.out / "clean", clean, chosen.steps)
    splits = [line.split(",") for line in clean_run.folder.splits.read_text().splitlines()[1:]]
    run = trained(chosen.out / "damaged", damaged(clean, {i for i, split in splits if split != "train"}), chosen.steps)
    values = {row["example_id"]: row for row in run.values}
    prepared = prepare(run.config)
    features = [row for row in prepared.train.features if values[row.example_id]["standing"] is not None]
    swapped = np.array([values[row.example_id]["swapped"] for row in features])
    scores = {
        "standing": np.array([values[row.example_id]["standing"] for row in features]),
        "loss": -losses_under(run, features, prepared.collator),
        "ceiling": -losses_under(clean_run, features, prepared.collator),
    }
    account = run.record["ledger"]
    print(f"guide loss {account['guide_loss_start']:.3f} -> {account['guide_loss_end']:.3f}; {swapped.sum()} swapped")
    for name, score in scores.items():
        found = auroc(score, swapped)
        verdict = separation(found, int(swapped.sum()))
        print(f"{name:<9} AUROC {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] {verdict}")


if __name__ == "__main__":
    launch(main, "{e2e} --rows 40 --steps 4")
