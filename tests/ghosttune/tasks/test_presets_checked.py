"""The shipped presets of encoders and of corpora on rows in their datasets' own layout: `check` raises no alarm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_presets_trained import squad, sst2

from ghosttune.config.loading import read_config
from ghosttune.workflows.check import check


def corpus(folder: Path) -> None:
    for domain in ("tales", "facts"):
        (folder / f"{domain}.txt").write_text("".join(f"The {domain} of fox {n} are long.\n" for n in range(4000)))


BRIEF = {"train.num_train_epochs": 20, "train.warmup_steps": 5, "train.eval_steps": 10, "train.save_steps": 10}
CASES = {  # lengths that fit so few rows, and what the tiny models read
    "classification": (sst2, BRIEF),
    "qa": (squad, BRIEF | {"data.max_length": 48, "task.stride": 8}),
    "gpt2-pile-values": (
        corpus,
        {"train.max_steps": 1000, "data.max_length": 128, "data.guide.rows": 8, "data.dev.fraction": 0.1}
        | {"train.warmup_steps": 100, "train.eval_steps": 100, "train.save_steps": 100},
    ),
}


@pytest.mark.parametrize("preset", CASES)
def test_a_preset_raises_no_alarm(preset, tmp_path, tiny_model, families):
    write, sizes = CASES[preset]
    write(tmp_path)
    model = tiny_model if preset == "gpt2-pile-values" else families("bert")
    changes: dict[str, Any] = {"model.name": str(model), "model.device": "cpu", "data.train.path": str(tmp_path)}
    overrides = [f"{key}={json.dumps(value)}" for key, value in (changes | sizes).items()]
    report = check(*read_config(preset=preset, overrides=overrides))
    assert report.errors == report.not_checked == [] and report.plan
    assert [str(finding) for finding in report.findings] == []
