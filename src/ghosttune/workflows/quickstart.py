"""The main job on the built-in model and the shipped rows: offline, about a minute on two CPU cores."""

from __future__ import annotations

from pathlib import Path

from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig
from ghosttune.training.watching import Listener
from ghosttune.workflows.report import report
from ghosttune.workflows.runs import Run
from ghosttune.workflows.train import train

PROFILE = "quickstart@2"


def quickstart_config() -> RunConfig:
    """The recipe: the newest quickstart profile and nothing else."""
    return load_config(profile=PROFILE)


def quickstart(out: str | Path | None = None, *, listen: Listener = lambda event: None) -> Run:
    """Trains, evaluates before and after, writes the report, and returns the run (in `out`, or below `runs`)."""
    run = train(quickstart_config(), out, listen=listen)
    report(run.path)
    return run
