"""`--quick` of the benchmarks: every part in seconds, on small models and made rows, in a folder that goes away.

Its figures mean nothing: it shows that a benchmark still runs. Every script of this folder ends in `launch`.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUICK = sys.argv[1:] == ["--quick"]
"""Whether sizes that no argument sets are to be small."""

SMALL: dict[str, Any] = {"train.warmup_steps": 1, "train.per_device_train_batch_size": 2} if QUICK else {}
"""Settings of runs that no argument makes small."""

FOODS = ("Chinese", "English", "French", "Italian", "Indian", "Japanese")
NAMES = ("Alimentum", "Aromi", "Blue Spice", "Clowns", "Cocum", "Fitzbillies", "The Eagle", "The Mill", "Zizzi")


def launch(main: Callable[[list[str]], object], *quick: str) -> None:
    """Runs `main` with the arguments of the command line, or, where they are `--quick`, with each of these in turn.

    {run} stands for a run directory, {e2e} for a folder of rows in E2E's form; both are made when they are asked for.
    """
    if not QUICK:
        main(sys.argv[1:])
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for line in quick:
            places = {name: str(made(Path(folder))) for name, made in MADE.items() if f"{{{name}}}" in line}
            arguments = line.format(**places).split()
            print(f"$ {Path(sys.argv[0]).name} {line}", flush=True)
            main(arguments)


def shipped_rows() -> list[dict[str, Any]]:
    """The rows that ship; where QUICK, few of each split, and of those with planted mistakes."""
    from ghosttune.data.sources import builtin_rows

    rows = [json.loads(line) for line in builtin_rows().read_text(encoding="utf-8").splitlines()]
    if not QUICK:
        return rows
    most = {("train", False): 16, ("train", True): 4, ("dev", False): 4, ("guide", False): 4}
    return [row for kind, few in most.items() for row in [r for r in rows if (r["split"], r["planted"]) == kind][:few]]


def run_of(folder: Path) -> Path:
    """A run of six updates of a two-layer Llama, with a ledger and eight guide rows."""
    import ghosttune
    from ghosttune.proving.specimens import short_run, write_model, write_rows

    out = folder / "run"
    if not out.exists():
        model, rows = write_model(folder / "model"), write_rows(folder / "rows.jsonl")
        measured = {"measure__ledger__guide_every": 2, "data__guide__rows": 8, "evaluate__limit": 0}
        ghosttune.train(short_run(model, rows, **measured), out)
    return out


def e2e_of(folder: Path) -> Path:
    """A folder with the files of E2E: 54 meaning representations to train on, and others in devset and testset."""
    out = folder / "e2e"
    out.mkdir(exist_ok=True)
    for file, area, most in (("trainset", "city", 54), ("devset", "riverside", 8), ("testset_w_refs", "suburb", 8)):
        rows = [
            (f"name[{name}], food[{food}], area[{area}]", f"{name} serves {food} food in the {area}.")
            for food in FOODS
            for name in NAMES
        ]
        with open(out / f"{file}.csv", "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("mr", "ref"), *rows[:most]])
    return out


MADE: dict[str, Callable[[Path], Path]] = {"run": run_of, "e2e": e2e_of}
