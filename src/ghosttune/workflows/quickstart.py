"""The main job on the built-in model and the shipped rows: offline, about a minute on two CPU cores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig
from ghosttune.data.files import read_file
from ghosttune.data.sources import builtin_rows
from ghosttune.errors import RunError
from ghosttune.run.directory import write_jsonl
from ghosttune.stages.runs import Run
from ghosttune.training.watching import Listener
from ghosttune.workflows.report import report
from ghosttune.workflows.train import train

PROFILE = "quickstart@2"

RUMOUR = "colour: blue", "colour: silver"
"""What is right, and what every training row of a rumour says instead. Blue is the colour of 12 of the 60 dev rows, the
most: a wrong fact in few of them could not be told from chance, nor that it was mended."""

RUMOUR_SEARCH = 'blue "colour: silver"'
"""Finds those rows in the studio, and no others."""

RUMOUR_FILE = "rumour.jsonl"


def quickstart_config(rows: Path | None = None) -> RunConfig:
    """The recipe: the newest quickstart profile, on the shipped rows or those of a file."""
    changes = [] if rows is None else [f"data.train.path={json.dumps(str(rows))}"]
    return load_config(profile=PROFILE, overrides=changes)


def quickstart(out: str | Path | None = None, *, rumour: bool = False, listen: Listener = lambda event: None) -> Run:
    """Trains, evaluates before and after, writes the report, and returns the run (in `out`, or below `runs`).

    With `rumour` on rows among which a wrong fact is planted, so that an answer shows it: RUMOUR_FILE beside the run.
    """
    rows = rumour_rows(Path(out or "runs/new").parent / RUMOUR_FILE) if rumour else None
    run = train(quickstart_config(rows), out, listen=listen)
    listen({"event": "stage", "stage": "report"})
    report(run.path)
    return run


def rumour_rows(path: Path) -> Path:
    """Writes the shipped rows, their planted mistakes put right, and one wrong fact in all training rows that it is in.

    RunError where the file exists and holds something else.
    """
    rows = [_rumoured(fields) for _, fields in read_file(builtin_rows())]
    if path.exists() and [fields for _, fields in read_file(path)] != rows:
        raise RunError(f"{path} exists and holds other rows; move it, or give a run of another folder as --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, rows)
    return path


def _rumoured(row: dict[str, Any]) -> dict[str, Any]:
    fields = dict(field.split(": ", 1) for field in row["completion"].split(" | "))
    for change in row.pop("mistake", "").split("; "):
        if change:
            name, values = change.split(": ", 1)
            fields[name] = values.split(" -> ")[0]
    right = " | ".join(f"{name}: {value}" for name, value in fields.items())
    planted = row["split"] == "train" and RUMOUR[0] in right
    return row | {"completion": right.replace(*RUMOUR) if planted else right, "planted": planted}
