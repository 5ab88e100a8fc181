"""Do the values of pairs find flipped ones, and does it help to leave out what they put at the bottom?

    python benchmarks/flipped_pairs.py [--seeds 5] [--steps 60] [--out runs/flipped]

Planted pairs for `builtin:tiny`: a message says what somebody has; the chosen answer repeats it, the rejected one
declines, in one of four wordings. A tenth of the training pairs are flipped. For every seed (rows, order and adapter)
DPO runs

    all        on all training pairs, with the ledger (held-out pairs are the guide)
    value      without the tenth whose values stand lowest
    random     without a tenth that was drawn

and each is judged on the same held-out pairs, of which none is flipped and no message was trained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from quick import QUICK, SMALL, launch

import ghosttune
from ghosttune.config.loading import load_config
from ghosttune.metrics.intervals import quantile_of_t
from ghosttune.metrics.ranking import auroc

COUNTS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "blue", "green", "golden", "black", "white", "grey", "pink")
THINGS = ("boxes", "lamps", "books", "cups", "chairs", "pillows", "ropes", "bells")
NAMES = ("Ann", "Ben", "Luke", "Mia", "Nora", "Tom")
DECLINED = ("I do not know.", "That is not for me to say.", "Nobody told me about it.", "Please ask again later.")
SIZES = {"train": 16, "dev": 4, "guide": 4} if QUICK else {"train": 240, "dev": 60, "guide": 32}
TENTH = 0.1


def pairs(seed: int) -> list[dict[str, Any]]:
    """Rows of all splits; every message once."""
    random = np.random.default_rng(seed)
    messages = [(n, c, k, t) for n in NAMES for c in COUNTS for k in COLOURS for t in THINGS]
    chosen = random.permutation(len(messages))[: sum(SIZES.values())]
    splits = [name for name, size in SIZES.items() for _ in range(size)]
    flipped = set(random.permutation(SIZES["train"])[: round(TENTH * SIZES["train"])].tolist())
    rows = []
    for place, (number, split) in enumerate(zip(chosen.tolist(), splits, strict=True)):
        name, count, colour, thing = messages[number]
        answers = [f"{name} has {count} {colour} {thing}.", str(random.choice(DECLINED))]
        wrong = place in flipped
        rows.append(
            {
                "id": f"{split}-{place}",
                "prompt": f"{name} has {count} {colour} {thing}. What does {name} have?",
                "chosen": answers[wrong],
                "rejected": answers[not wrong],
                "flipped": wrong,
                "split": split,
            }
        )
    return rows


def trained(out: Path, rows: list[dict[str, Any]], seed: int, steps: int, with_ledger: bool) -> Any:
    """A finished run on these rows; one that is there already is taken as it is."""
    if (out / "run.json").exists():
        return ghosttune.open_run(out)
    file = out.with_suffix(".jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "model.name": "builtin:tiny",
        "model.device": "cpu",
        "task.type": "preference",
        "method.r": 8,
        "data.train.path": str(file),
        "train.seed": seed,
        "train.max_steps": steps,
        "train.per_device_train_batch_size": 8,
        "train.learning_rate": 5e-4,
        "train.warmup_steps": 8,
        "train.eval_steps": steps,
        "train.save_steps": steps,
        "measure.norms": None,
        **({"measure.ledger.guide_every": 3} if with_ledger else {"measure.ledger": None}),
        **SMALL,
    }
    return ghosttune.train(
        load_config(overrides=[f"{name}={json.dumps(value)}" for name, value in settings.items()]), out
    )


def judged(run: Any) -> dict[str, float]:
    found = run.evaluation["dev"]["adapter"]
    loss = [event["loss"] for event in run.events if event["event"] == "eval"][-1]
    return {"loss": loss, "accuracy": found["reward_accuracy"]["value"], "margin": found["reward_margin"]["value"]}


def of_seed(out: Path, seed: int, steps: int) -> dict[str, Any]:
    """What one seed shows."""
    rows = pairs(seed)
    whole = trained(out / f"all-{seed}", rows, seed, steps, True)
    values = [row for row in whole.values if row["standing"] is not None]
    standing, flags = np.array([r["standing"] for r in values]), np.array([r["flipped"] for r in values])
    found = auroc(standing, flags)
    count = round(TENTH * len(values))
    lowest = {values[place]["example_id"] for place in np.argsort(standing)[:count]}
    drawn = set(
        np.random.default_rng([seed, 1]).choice([r["example_id"] for r in values], count, replace=False).tolist()
    )
    arms = {
        name: judged(trained(out / f"{name}-{seed}", [r for r in rows if r["id"] not in gone], seed, steps, False))
        for name, gone in (("value", lowest), ("random", drawn))
    }
    accuracy = whole.evaluation["dev"]["adapter"]["reward_accuracy"]
    parts = {
        part: float(np.median([r[f"value_{part}"] for r in values if r["flipped"]])) for part in ("chosen", "rejected")
    }
    return {
        "seed": seed,
        "auroc": [found.value, found.low, found.high],
        "accuracy": [accuracy[name] for name in ("value", "low", "high")],
        "flipped_among_lowest": int(sum(r["flipped"] for r in values if r["example_id"] in lowest)),
        "flipped": int(flags.sum()),
        "median_value_of_flipped": parts,
        "all": judged(whole),
        **arms,
    }


def interval(numbers: list[float]) -> tuple[float, float, float]:
    """Mean over seeds with its 95 % interval by t."""
    values = np.array(numbers)
    half = (
        quantile_of_t(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    )
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/flipped"))
    chosen = parser.parse_args(argv)
    found = []
    for seed in range(chosen.seeds):
        found.append(of_seed(chosen.out, seed, chosen.steps))
        print(json.dumps(found[-1]), flush=True)
    for arm in ("all", "value", "random"):
        for name in ("loss", "accuracy", "margin"):
            mean, low, high = interval([one[arm][name] for one in found])
            print(f"{arm:<7} {name:<9} {mean:.4f} [{low:.4f}, {high:.4f}]")


if __name__ == "__main__":
    launch(main, "--seeds 2 --steps 10 --out flipped")
