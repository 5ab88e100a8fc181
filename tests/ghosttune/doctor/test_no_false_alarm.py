"""The shipped presets on rows in their datasets' own layout: `check` has nothing to say but what is their data's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from doctor_cases import tokenizer
from small_llama import small_llama

from ghosttune.config.loading import read_config, shipped
from ghosttune.workflows.check import check

OTHERS = ("classification", "qa", "gpt2-pile-values", "preference", "grpo", "tools", "mixture")
PRESETS = [name for name in shipped("preset") if name not in OTHERS]
"""Those of causal models on rows of sentences."""

ROWS = 400


def e2e(folder: Path) -> None:
    for name in ("trainset", "devset", "testset_w_refs"):
        lines = [f'"name[{name} {n}], food[fox]",{name} {n} serves a fox' for n in range(ROWS)]
        (folder / f"{name}.csv").write_text("\n".join(["mr,ref", *lines, *lines[:9]]))  # as published, rows repeat


def samsum(folder: Path) -> None:
    for name in ("train", "val", "test"):
        rows = [
            {"id": f"{name}{n}", "dialogue": f"Ann: {name} {n}?\nBen: Yes", "summary": f"{n}."} for n in range(ROWS)
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows))


def dolly(folder: Path) -> None:
    rows = [{"instruction": f"Say {n}", "context": "", "response": f"{n}", "category": "x"} for n in range(ROWS)]
    (folder / "databricks-dolly-15k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


LAYOUTS = {"e2e_nlg": e2e, "samsum": samsum, "dolly": dolly}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> str:
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("narrow")
    small_llama(len(tokenizer()), max_position_embeddings=1100).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_raises_no_alarm(preset, narrow, tmp_path):
    config = read_config(preset=preset)[0]
    name = config.data.train.name
    changes: dict[str, object] = {"model.name": narrow, "model.device": "cpu"}
    if name is not None and config.train.num_train_epochs:  # for as many steps as on the whole dataset
        changes["train.num_train_epochs"] = 60
    if name is not None:
        LAYOUTS[name](tmp_path)
        changes["data.train.path"] = str(tmp_path)
    report = check(*read_config(preset=preset, overrides=[f"{key}={json.dumps(v)}" for key, v in changes.items()]))
    assert report.errors == report.not_checked == [] and report.plan
    assert [str(finding) for finding in report.findings] == []


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize("preset", ["e2e_mlp", "tinyllama-module-study"])
def test_a_preset_raises_no_alarm_on_all_real_rows(preset, narrow, shared):
    path = shared / "data" / "e2e"
    changes = {"model.name": narrow, "model.device": "cpu", "data.train.path": str(path), "data.max_length": 1024}
    report = check(*read_config(preset=preset, overrides=[f"{key}={json.dumps(v)}" for key, v in changes.items()]))
    assert report.errors == [] and report.plan["rows"]["repeated"] > 1000, "as published"
    assert [finding.check for finding in report.findings] in ([], ["answers longer than evaluation allows"])
