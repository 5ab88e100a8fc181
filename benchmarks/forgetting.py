"""Are rows forgotten as if they had never been trained, and what does that cost the others?

    python benchmarks/forgetting.py [--seeds 5] [--steps 120] [--out runs/forgetting]

Planted facts for `builtin:tiny`: 56 times somebody has a thing of some colour, drawn, so that none follows from the
others. Each is trained in two wordings; a third one is held out, or, of a fact to forget, is its paraphrase. A tenth of
the facts is forgotten, by each loss, and a model is trained without them. Colours, facts to forget, order and adapter
differ by seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from quick import QUICK, SMALL, launch

import ghosttune
from ghosttune.config.loading import load_config
from ghosttune.workflows.forget import STEPS, forget

NAMES = ("Ann", "Ben", "Luke", "Mia", "Nora", "Tom", "Peter")
THINGS = ("box", "lamp", "book", "cup", "chair", "hat", "rope", "bell")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")
ASKED = ("What colour is the {thing} of {name}?", "{name} has a {thing}. Which colour has it?")
ASKED_OTHERWISE = "Tell me the colour of {name}'s {thing}."
SHARE = 0.1
LOSSES = ("npo", "gradient_ascent")
SETS = ("forgotten", "paraphrases", "retained", "held_out")


def facts(seed: int) -> tuple[list[dict[str, Any]], list[str], list[dict[str, Any]]]:
    """(rows of train and dev, ids of those to forget, their paraphrases)."""
    random = np.random.default_rng(seed)
    known = [(name, thing) for name in NAMES for thing in THINGS][: 12 if QUICK else None]
    gone = set(random.permutation(len(known))[: max(2, round(SHARE * len(known)))].tolist())
    rows, ids, paraphrases = [], [], []
    for number, (name, thing) in enumerate(known):
        completion = f"The {thing} is {random.choice(COLOURS)}."
        for way, asked in enumerate(ASKED):
            own = f"fact-{number}-{way}"
            prompt = asked.format(name=name, thing=thing)
            rows.append({"id": own, "prompt": prompt, "completion": completion, "split": "train"})
            ids += [own] if number in gone else []
        other = {"id": f"fact-{number}", "prompt": ASKED_OTHERWISE.format(name=name, thing=thing)}
        other |= {"completion": completion}
        if number in gone:
            paraphrases.append(other)
        else:
            rows.append({**other, "split": "dev"})
    return rows, ids, paraphrases


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def of_seed(out: Path, seed: int, steps: int, more: list[str]) -> dict[str, Any]:
    """What one seed shows, by loss."""
    out.mkdir(parents=True, exist_ok=True)
    rows, ids, paraphrases = facts(seed)
    settings: dict[str, Any] = {
        "model.name": "builtin:tiny",
        "model.device": "cpu",
        "method.r": 16,
        "data.train.path": str(written(out / "rows.jsonl", rows)),
        "train.seed": seed,
        "train.max_steps": steps,
        "train.per_device_train_batch_size": 16,
        "train.learning_rate": 5e-3,
        "train.eval_steps": steps,
        "measure.norms": None,
        "measure.ledger": None,
        "evaluate.limit": 0,
        **SMALL,
    }
    if not (out / "run/run.json").exists():
        config = load_config(overrides=[f"{name}={json.dumps(value)}" for name, value in settings.items()])
        ghosttune.train(config, out / "run")
    (out / "forget.txt").write_text("".join(f"{own}\n" for own in ids))
    other = written(out / "paraphrases.jsonl", paraphrases)
    found = {}
    for loss in LOSSES:
        if loss != LOSSES[0] and not (out / loss).exists():  # one retrained model serves all
            shutil.copytree(out / LOSSES[0] / "forgetting/retrained", out / loss / "forgetting/retrained")
        found[loss] = forget(
            out / "run",
            out / "forget.txt",
            out / loss,
            loss=loss,
            retrain=True,
            paraphrases=other,
            steps=4 if QUICK else STEPS,
            overrides=more,
        )
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("runs/forgetting"))
    parser.add_argument("--set", action="append", default=[], dest="more")
    chosen = parser.parse_args(argv)
    for seed in range(chosen.seeds):
        for loss, found in of_seed(chosen.out / str(seed), seed, chosen.steps, chosen.more).items():
            print(json.dumps({"seed": seed, "loss": loss, "step": found["step"], **found["verdict"]}), flush=True)
            for name in SETS:
                own = found["rows"][name]
                line = "  ".join(
                    f"{who} {one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
                    for who, one in own["loss"].items()
                )
                print(f"  {name:<12} {line}", flush=True)


if __name__ == "__main__":
    launch(main, "--seeds 1 --steps 4 --out forgetting")
