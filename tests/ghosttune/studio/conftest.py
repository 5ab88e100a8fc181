"""A studio over a folder with one short run."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opened_studio import NASTY, Studio, opened

from ghosttune.config.loading import load_config
from ghosttune.inference import pipeline
from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.streaming import Reply, Wanted
from ghosttune.workflows.train import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with a finished run `first` of six steps, one of whose rows says NASTY."""
    folder = tmp_path_factory.mktemp("studio") / "runs"
    folder.mkdir()
    rows = [{"id": f"row {n}", "prompt": f"Say {n}.", "completion": f"It is {n}.", "kind": "own"} for n in range(40)]
    rows[7] |= {"completion": NASTY, "kind": NASTY}
    rows[7]["id"] = "row 7"
    data = folder.parent / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = ["model.name=builtin:tiny", "model.device=cpu", f"data.train.path={data}", "data.guide.rows=4"]
    steps = ["train.max_steps=6", "train.per_device_train_batch_size=4", "train.warmup_steps=1", "evaluate.limit=2"]
    train(load_config(overrides=[*settings, *steps, "measure.ledger.guide_every=1"]), folder / "first")
    return folder


@pytest.fixture
def studio(trained, tmp_path) -> Iterator[Studio]:
    """A studio of a copy of `trained`."""
    shutil.copytree(trained, tmp_path / "runs")
    with opened(tmp_path / "runs") as found:
        yield found


@pytest.fixture
def slow_replies(monkeypatch) -> list[Reply]:
    """Every reply that was written, a token each twentieth of a second, and none of them ends by itself."""
    written, reply = [], Pipeline.reply

    def slowly(self, *given, tell, **more):
        written.append(reply(self, *given, tell=lambda piece: time.sleep(0.05) or tell(piece), **more))
        return written[-1]

    monkeypatch.setattr(Pipeline, "reply", slowly)
    monkeypatch.setattr(pipeline, "Wanted", lambda stops, *more: Wanted([-1], *more))
    return written
