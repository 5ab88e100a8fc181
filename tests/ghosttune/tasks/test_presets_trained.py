"""Every preset trains three updates, saves and opens again: on a tiny model, and its dataset's own layout of files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ghosttune import train
from ghosttune.config.loading import load_config, shipped

PHASES = {
    "attn-mlp-both": ["attention", "mlp", "both"],
    "both-mlp-attn": ["both", "mlp", "attention"],
    "both-mlp-both": ["both", "mlp", "both"],
    "early-late": ["early", "late"],
}


def e2e(folder: Path) -> None:
    for name in ("trainset", "devset", "testset_w_refs"):
        lines = [f'"name[{name} {n}], food[fox]",{name} {n} serves a fox' for n in range(90)]
        (folder / f"{name}.csv").write_text("\n".join(["mr,ref", *lines]))


def samsum(folder: Path) -> None:
    for name in ("train", "val", "test"):
        rows = [{"id": f"{name}{n}", "dialogue": f"Ann: {name} {n}?\nBen: Yes", "summary": f"{n}."} for n in range(90)]
        (folder / f"{name}.json").write_text(json.dumps(rows))


def sst2(folder: Path) -> None:
    for name in ("train", "dev"):
        lines = [f"the film was {'great' if n % 2 else 'awful'} {name} {n}\t{n % 2}" for n in range(40)]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]))


def squad(folder: Path) -> None:
    for name in ("train", "dev"):
        context = f"ben works at the museum and anna lives near the river in rome on {name} day"
        asked = [
            {"id": f"{name}{n}", "question": f"{name} {n} where", "answers": [{"text": "rome", "answer_start": 57}]}
            for n in range(40)
        ]
        parts = [asked[start::8] for start in range(8)]
        data = [{"title": f"{name}{n}", "paragraphs": [{"context": context, "qas": p}]} for n, p in enumerate(parts)]
        (folder / f"{name}-v1.1.json").write_text(json.dumps({"version": "1.1", "data": data}))


def dolly(folder: Path) -> None:
    rows = [{"instruction": f"Say {n}", "context": "", "response": f"{n}", "category": "x"} for n in range(200)]
    (folder / "databricks-dolly-15k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def text(folder: Path) -> None:
    for domain in ("tales", "facts"):
        (folder / f"{domain}.txt").write_text("".join(f"The {domain} of fox {n} are long.\n" for n in range(700)))


DATASETS: dict[str, Callable[[Path], None]] = {
    "e2e_nlg": e2e,
    "samsum": samsum,
    "sst2": sst2,
    "squad": squad,
    "dolly": dolly,
    "text": text,
}


OF_TASKS = ("preference", "grpo", "tools", "mixture")
"""Tried in test_presets_of_tasks.py, on rows of their own kinds."""


@pytest.mark.parametrize("preset", [name for name in shipped("preset") if name not in OF_TASKS])
def test_a_preset_trains_saves_and_opens_again(preset, tmp_path, tiny_model, families):
    config = load_config(preset=preset)
    encoder = config.task.type != "causal_lm"
    small = {"model.name": str(families("bert") if encoder else tiny_model), "model.dtype": "float32"}
    small |= {"model.device": "cpu", "data.max_length": 48 if encoder else 128}
    small |= {"train.max_steps": 3, "train.warmup_steps": 0}
    small |= {"train.num_train_epochs": None, "train.eval_steps": None, "train.save_steps": None}
    small |= {"train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 1}
    small |= {"train.early_stopping_patience": None, "evaluate.limit": 1, "evaluate.max_new_tokens": 2}
    if config.data.train.name is not None:
        DATASETS[config.data.train.name](tmp_path)
        small |= {"data.train.path": str(tmp_path), "data.dev.limit": 2}
    if config.data.guide.rows is not None:
        small |= {"data.guide.rows": 4}
    if config.data.dev.fraction is not None:
        small |= {"data.dev.fraction": 0.1}
    if config.task.type == "question_answering":
        small |= {"task.stride": 8}
    overrides = [f"{path}={json.dumps(value)}" for path, value in small.items()]
    run = train(load_config(preset=preset, overrides=overrides), tmp_path / "run")
    assert run.record["status"] == "finished" and run.folder.adapter.is_dir()
    if not encoder:
        assert run.pipeline().generate(["fox"], max_new_tokens=2)[0].tokens > 0
    arm = preset.partition("_")[2]
    if arm in PHASES:
        began = [event["trains"] for event in run.folder.events() if event["event"] == "phase"]
        rows = run.folder.export("phases").read_text().splitlines()[1:]
        assert began == [row.split(",")[3] for row in rows] == PHASES[arm]
