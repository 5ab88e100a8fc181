"""A finished or unfinished run, as Python sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig
from ghosttune.inference.pipeline import Pipeline
from ghosttune.run.directory import RunDir


class Run:
    """Reads a run directory; nothing here changes it."""

    def __init__(self, folder: RunDir):
        self.folder = folder.open()

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def record(self) -> dict[str, Any]:
        """The contents of run.json."""
        return self.folder.read_record()

    @property
    def config(self) -> RunConfig:
        return load_config(self.folder.config)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Everything in metrics.jsonl, in order."""
        return self.folder.events()

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The contents of evaluation.json; None when no rows were answered."""
        path = self.folder.evaluation
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """The answered dev rows."""
        path = self.folder.predictions("dev")
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    def pipeline(self, which: str = "adapter") -> Pipeline:
        """The run's model, ready to answer."""
        return Pipeline.from_run(self.path, which)


def open_run(path: str | Path) -> Run:
    """The run in a directory; RunError when there is none."""
    return Run(RunDir(path))
