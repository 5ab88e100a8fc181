"""Tries every family that Transformers has a model of, and writes docs/families.json and docs/families.md.

    python scripts/build_families.py                 # those not tried yet; about an hour on one core for all
    python scripts/build_families.py --failed        # once more those that did not hold
    python scripts/build_families.py llama rwkv      # once more these
    python scripts/build_families.py --page          # only the page, from the results

Each family is tried in a process of its own, forked when everything is imported, and what came of it is written down
at once, so that the script can be ended and started again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from textwrap import fill

from family_trials import BARS, STEPS, Trial, families, tried

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "families.json"
PAGE = DOCS / "families.md"
SECONDS = 180
"""For one family."""


def in_a_process(family: str, task: str) -> Trial:
    """What came of a family, also when its process crashes or does not end."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        child = os.fork()
        if child == 0:
            try:
                (place / "trial.json").write_text(json.dumps(asdict(tried(family, task, place))))
            finally:
                os._exit(0)
        start = time.monotonic()
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() - start > SECONDS:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return Trial(family, task, steps={"model": f"fault: not done after {SECONDS} seconds"})
            time.sleep(0.1)
        if not (place / "trial.json").exists():
            return Trial(family, task, steps={"model": "fault: its process crashed"})
        return Trial(**json.loads((place / "trial.json").read_text()))


def read() -> dict[str, Trial]:
    """The families tried so far."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {name: Trial(name, **entry) for name, entry in found.items()}


def write(trials: dict[str, Trial]) -> None:
    entries = {name: {k: v for k, v in asdict(trials[name]).items() if k != "family"} for name in sorted(trials)}
    RESULTS.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")


def page(trials: dict[str, Trial]) -> str:
    """The results as a table for each task, each reason numbered once."""
    reasons: dict[str, int] = {}

    def cell(found: str) -> str:
        word, _, reason = found.partition(": ") if found.partition(" ")[0] != "-" else ("-", "", found[2:])
        return f"{word} [{reasons.setdefault(reason, len(reasons) + 1)}]" if reason else word

    tables = []
    for task in dict.fromkeys(families().values()):
        own = [trial for trial in trials.values() if trial.task == task]
        made = [trial for trial in own if "model" not in trial.steps]
        lines = [["family", "parameters", *STEPS], ["---"] * (len(STEPS) + 2)]
        lines += [
            [trial.family, f"{trial.parameters:,}", *(cell(trial.steps.get(step, "")) for step in STEPS)]
            for trial in made
        ]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        none = ", ".join(f"{t.family} [{_number(reasons, t.steps['model'])}]" for t in own if t not in made)
        tables.append(f"## {task}\n\n{table}" + (f"\n\nNo small model: {none}." if none else ""))
    listed = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    return TEXT.format(tables="\n\n".join(tables), reasons=listed, counts=fill(counts(trials), 120))


def counts(trials: dict[str, Trial]) -> str:
    """What came of all of them, in two sentences."""
    made = [trial for trial in trials.values() if "model" not in trial.steps]
    works = [trial for trial in made if trial.holds and "train" in trial.steps]
    refused = [trial for trial in made if trial.steps.get("check", "").startswith("refused")]
    failing = [trial for trial in trials.values() if not trial.holds]
    worst = {name: max((_number_in(t.steps.get(name, "")) for t in works), default=0.0) for name in BARS}
    return (
        f"{len(trials)} families: {len(made)} have a small model, {len(trials) - len(made)} have none. Of the small "
        f"models {len(works)} work in every step, {len(refused)} are refused by `check` before anything is written, "
        f"{len(failing)} fail. The largest error of all is {worst['float32']:.1e} in float32 and "
        f"{worst['float64']:.1e} in float64."
    )


def short(trials: dict[str, Trial]) -> str:
    """For the page on compatibility: the counts, and the families that work, by task."""
    lines = [counts(trials)]
    for task in dict.fromkeys(families().values()):
        names = [t.family for t in trials.values() if t.task == task and t.holds and "train" in t.steps]
        lines.append(f"**{task}**: {', '.join(sorted(names))}.")
    return "\n\n".join(fill(line, 120, break_on_hyphens=False) for line in lines)


def _number_in(found: str) -> float:
    return float(found) if found[:1].isdigit() else 0.0


def _number(reasons: dict[str, int], found: str) -> int:
    return reasons.setdefault(found.partition(": ")[2], len(reasons) + 1)


TEXT = """# Families

Written by `scripts/build_families.py`: every family that Transformers has a causal, sequence-to-sequence or
sequence-classification model of, each made small (`ghosttune.proving.shrinking`) and taken through what a user does.
`families.json` holds the same. A test compares the two, and tries a few families again.

Each is tuned with LoRA on `all_linear` and everything measured: **check**, **train** (three steps with norms,
effective norms and the ledger), **index** (every row's gradient), **answer** (chat, or prediction; the same in a
batch and alone), **merge** (where the task writes behind a prompt). **float32** and **float64** are the largest error
of any row's norms and products, and of their sums, against one backward pass per row on the same model, relative to
the largest number of the parameter; the bars are 1e-5 and 1e-12. `-` stands where the model's own code does
not compute in float64. A number in brackets is the reason below. Encoders are tried as classifiers.

A reason of a refusal is what `check` says of the small model; what it says of shapes may be the small size's own fault.

{counts}

{tables}

## Reasons

{reasons}
"""


def main() -> None:
    trials, chosen = read(), families()
    asked = sys.argv[1:]
    if asked == ["--page"]:
        wanted = []
    elif asked == ["--failed"]:
        wanted = [name for name in chosen if name not in trials or not trials[name].holds]
    else:
        wanted = asked or [name for name in chosen if name not in trials]
    for name in wanted:
        trials[name] = in_a_process(name, chosen[name])
        write(trials)
        said = {step: found for step, found in trials[name].steps.items() if found != "ok"}
        print(f"{name}: {trials[name].seconds} s {said}", flush=True)
    PAGE.write_text(page(read()), encoding="utf-8")


if __name__ == "__main__":
    main()
