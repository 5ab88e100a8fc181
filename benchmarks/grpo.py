"""Does GRPO teach a model what it hardly ever does, from nothing but a check of its own answers?

    python benchmarks/grpo.py [--seeds 3] [--steps 60] [--out runs/grpo]

For `builtin:tiny`, untouched: "Luke: seven boxes. How many?" is to be answered with "There are seven boxes.", which
the check compares letter by letter. For every seed (rows, order, draws and adapter) the success on held-out prompts,
of which no message was trained, before and after:

    greedy     of the likeliest answer
    drawn      of four answers to each prompt at temperature 1, the policy that was trained
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from quick import QUICK, SMALL, launch

import ghosttune
from ghosttune.config.loading import load_config
from ghosttune.inference.sampling import Sampling

COUNTS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
THINGS = (
    *("apples", "bags", "balls", "bells", "books", "boxes", "cups", "hats", "jars", "keys", "kites", "lamps", "maps"),
    *("mugs", "nails", "pens", "pillows", "pots", "ribbons", "rings", "ropes", "scarfs", "shells", "shoes", "spoons"),
    *("stones", "tables", "tents", "towels", "wheels"),
)
NAMES = (
    *("Ada", "Adam", "Ben", "Bea", "Carl", "Clara", "Eric", "Erin", "Finn", "Ida", "Ivan", "Jack", "Lena", "Luke"),
    *("Mia", "Nora", "Otto", "Paul", "Sara", "Tom"),
)
SIZES = {"train": 12, "dev": 4} if QUICK else {"train": 400, "dev": 60}
DRAWS = 4


def rows(seed: int) -> list[dict[str, Any]]:
    """Rows of both splits; every message once."""
    random = np.random.default_rng(seed)
    messages = [(n, k, t) for n in NAMES for k in COUNTS for t in THINGS]
    chosen = random.permutation(len(messages))[: sum(SIZES.values())].tolist()
    splits = [name for name, size in SIZES.items() for _ in range(size)]
    return [
        {"id": f"{split}-{place}", "prompt": f"{name}: {count} {thing}. How many?", "split": split,
         "completion": f"There are {count} {thing}."}
        for place, (split, (name, count, thing)) in enumerate(
            zip(splits, (messages[number] for number in chosen), strict=True)
        )
    ]  # fmt: skip


def trained(out: Path, seed: int, steps: int) -> Any:
    """A finished run; one that is there already is taken as it is."""
    if (out / "run.json").exists():
        return ghosttune.open_run(out)
    file = out.with_suffix(".jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(seed)))
    settings: dict[str, Any] = {
        "model.name": "builtin:tiny",
        "model.device": "cpu",
        "task.type": "grpo",
        "task.completions": 8,
        "task.max_new_tokens": 12,
        "method.r": 8,
        "data.train.path": str(file),
        "train.seed": seed,
        "train.max_steps": steps,
        "train.per_device_train_batch_size": 8,
        "train.learning_rate": 2e-3,
        "train.warmup_steps": 5,
        "train.logging_steps": max(1, steps // 6),
        "train.eval_steps": steps,
        "train.save_steps": steps,
        "evaluate.max_new_tokens": 12,
        "measure.norms": None,
        "measure.ledger": None,
        **SMALL,
    }
    return ghosttune.train(
        load_config(overrides=[f"{name}={json.dumps(value)}" for name, value in settings.items()]), out
    )


def drawn_success(run: Any, seed: int) -> dict[str, float]:
    """The share of right answers that base and adapter draw to the held-out prompts."""
    asked = [row for row in rows(seed) if row["split"] == "dev" for _ in range(DRAWS)]
    pipeline, found = run.pipeline(), {}
    for name, adapter in (("before", False), ("after", True)):
        sampling = Sampling(temperature=1.0, seed=seed)
        answers = pipeline.generate([row["prompt"] for row in asked], adapter=adapter, sampling=sampling)
        right = [answer.text == row["completion"] for answer, row in zip(answers, asked, strict=True)]
        found[name] = sum(right) / len(right)
    return found


def of_seed(out: Path, seed: int, steps: int) -> dict[str, Any]:
    """What one seed shows."""
    begun = time.process_time()
    run = trained(out / f"seed-{seed}", seed, steps)
    seconds = time.process_time() - begun
    earned = run.record["verdict"]["reward"]
    return {
        "seed": seed,
        "greedy": {"before": earned["success_base"], "after": earned["success"]},
        "drawn": drawn_success(run, seed),
        "drawn_in_training": [round(e["success"], 3) for e in run.events if e["event"] == "log"],
        "verdict": run.record["verdict"]["verdict"],
        "processor_seconds": round(seconds),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/grpo"))
    chosen = parser.parse_args(argv)
    found = []
    for seed in range(chosen.seeds):
        found.append(of_seed(chosen.out, seed, chosen.steps))
        print(json.dumps(found[-1]), flush=True)
    for kind in ("greedy", "drawn"):
        for moment, worst in (("before", max), ("after", min)):
            values = [one[kind][moment] for one in found]
            print(f"{kind:<7} {moment:<7} mean {np.mean(values):.3f}, {worst.__name__} {worst(values):.3f}")


if __name__ == "__main__":
    launch(main, "--seeds 1 --steps 2 --out grpo")
