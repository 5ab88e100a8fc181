"""Runs of preferences from the file to the last table: trained, resumed, judged, stored and asked about."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupting import interrupt_at
from small_llama import small_llama

from ghosttune.choosing.attribute import attribute
from ghosttune.choosing.index import index
from ghosttune.cli.summary import extras
from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig
from ghosttune.errors import ConfigError, InputError
from ghosttune.judging.evaluate import evaluate
from ghosttune.proving.freezing import differences
from ghosttune.run.tables import read_table
from ghosttune.stages.model import adapted_model
from ghosttune.stages.prepare import prepare
from ghosttune.stages.runs import Run
from ghosttune.training.guide import evaluating
from ghosttune.workflows.check import check
from ghosttune.workflows.infer import infer
from ghosttune.workflows.preview import preview
from ghosttune.workflows.train import Stopped, resume, train

# PEFT 0.21 asks Transformers 5.23 by a name that Transformers is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

WORDS = ["red", "blue", "green", "warm", "cold", "soft"]


def pair(n: int) -> dict[str, Any]:
    good, bad = f"it is {WORDS[n % 3]}", f"{WORDS[3 + n % 3]} perhaps, {WORDS[n % 3]}"
    return {"prompt": f"number {n} is", "chosen": good, "rejected": bad, "odd": n % 2 == 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small model with a tokenizer of words, and files of rows."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    found = tmp_path_factory.mktemp("preferences")
    rows = [pair(n) for n in range(40)]
    text = [
        word
        for row in rows
        for name in ("prompt", "chosen", "rejected")
        for word in row[name].replace(",", " ,").split()
    ]
    names = list(dict.fromkeys(["<pad>", "<eos>", "<unk>", *text]))
    words = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.save_pretrained(found / "model")
    torch.manual_seed(0)
    model = small_llama(len(names), num_hidden_layers=1, hidden_size=16, intermediate_size=24, eos_token_id=1)
    model.save_pretrained(found / "model")
    single = [
        {"prompt": row["prompt"], "completion": row["chosen" if n % 2 else "rejected"], "label": n % 2 == 1}
        for n, row in enumerate(rows)
    ]
    for name, own in (("pairs", rows), ("single", single), ("others", [pair(n) for n in range(50, 54)])):
        (found / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    return found


@pytest.fixture(scope="module")
def configured(folder) -> Callable[..., RunConfig]:
    def make(rows: str = "pairs", **changes: Any) -> RunConfig:
        settings = {
            "task.type": "preference",
            "model.name": str(folder / "model"),
            "model.device": "cpu",
            "data.train.path": str(folder / f"{rows}.jsonl"),
            "data.guide.rows": 4,
            "train.max_steps": 6,
            "train.per_device_train_batch_size": 4,
            "train.gradient_accumulation_steps": 2,
            "train.learning_rate": 0.02,
            "train.warmup_steps": 0,
            "train.eval_steps": 3,
            "train.save_steps": 2,
            "method.lora_dropout": 0.1,
            "measure.ledger.guide_every": 2,
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
        return load_config(
            overrides=[f"{name}={json.dumps(value)}" for name, value in settings.items() if value is not None]
        )

    return make


@pytest.fixture(scope="module")
def run(configured, tmp_path_factory) -> Run:
    return train(configured(), tmp_path_factory.mktemp("runs") / "run")


def test_it_starts_at_chance_and_learns(run) -> None:
    losses = [event["loss"] for event in run.events if event["event"] == "eval"]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 0.05
    assert run.evaluation is not None
    found = run.evaluation["dev"]
    assert found["base"]["reward_accuracy"]["value"] == 0.5
    assert found["base"]["kl_to_base"]["value"] == 0
    assert found["adapter"]["reward_accuracy"]["value"] > 0.5
    assert found["adapter"]["kl_to_base"]["value"] > 0
    assert "constant" not in found
    assert {row["output"] for row in run.predictions} <= {"chosen", "rejected"}


def test_values_and_credits_of_answers_add_up_to_those_of_pairs(run) -> None:
    rows = read_table(run.folder, "values").to_pylist()
    seen = [row for row in rows if row["steps_seen"]]
    assert len(seen) > 20
    for row in seen:
        for kind in ("value", "credit"):
            assert row[f"{kind}_chosen"] + row[f"{kind}_rejected"] == pytest.approx(row[kind], rel=1e-9, abs=1e-15)
    ledger = read_table(run.folder, "ledger").to_pylist()
    visits = {(row["step"], row["example_id"]) for row in ledger}
    assert len(visits) == 48
    assert sum(row["steps_seen"] for row in rows) == 48
    credits = sum(row["credit"] for row in ledger)
    assert run.record["ledger"]["rows"] == pytest.approx(credits, rel=1e-9)


def test_parts_of_values_are_no_columns_of_the_rows(run) -> None:
    """A row is shown with what came with it, and its value by its answers is not that."""
    (row,) = run.lowest_rows(1)
    assert {"value_chosen", "credit_rejected"} <= row.keys()
    assert extras(row) in (f" (tokens: {row['tokens']}, odd: True)", f" (tokens: {row['tokens']})")


def test_what_the_base_says_was_kept(run) -> None:
    prepared = prepare(run.config)
    table = read_table(run.folder, "reference").to_pylist()
    assert len(table) == 2 * (len(prepared.train) + len(prepared.dev) + len(prepared.guide))
    kept = {(row["example_id"], row["part"]): row for row in table}
    model = adapted_model(prepared).model
    with torch.no_grad(), evaluating(model):
        for row in prepared.dev.features:
            logps = prepared.task.reference(model, prepared.collator([row])).tolist()
            for part, logp in zip(("chosen", "rejected"), logps, strict=True):
                assert kept[row.example_id, part]["logp"] == pytest.approx(logp, abs=1e-4)


def test_a_run_that_was_interrupted_ends_in_the_same_bytes(configured, run, tmp_path) -> None:
    with pytest.raises(Stopped):
        train(configured(), tmp_path / "run", listen=interrupt_at(3))
    resume(tmp_path / "run")
    assert differences(run.path, tmp_path / "run") == []


def test_evaluation_alone_says_the_same(run, tmp_path) -> None:
    assert run.evaluation is not None
    again = evaluate(run.path, out=tmp_path)["dev"]
    for name, found in run.evaluation["dev"]["adapter"].items():
        assert again["adapter"][name]["value"] == pytest.approx(found["value"], rel=1e-5, abs=1e-6)


def test_pairs_are_stored_and_attributed(run, folder) -> None:
    (stored,) = index(run.path, checkpoints=["last"])
    assert stored.rows == len(prepare(run.config).train)
    found = attribute(run.path, folder / "others.jsonl", checkpoints=["last"], by="dot", top=3)
    assert found.query_rows == 4
    assert {"prompt", "chosen", "rejected"} <= found.helpful[0].content.keys()
    assert run.pipeline().chat("number 3 is") is not None, "what prefers also writes"


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ipo", "robust_dpo", "simpo", "orpo", "cpo", "kto"])
def test_every_loss_trains(loss, configured, tmp_path) -> None:
    changes = {"task__loss": loss, "train__max_steps": 3, "train__eval_steps": 3, "train__save_steps": 3}
    run = train(configured("single" if loss == "kto" else "pairs", **changes), tmp_path / "run")
    losses = [event["loss"] for event in run.events if event["event"] == "eval"]
    assert losses[-1] < losses[0]
    assert run.config.task.loss == loss  # type: ignore[attr-defined]
    assert run.folder.table("reference").exists() == (loss in ("ipo", "robust_dpo", "kto"))
    values = [row["value"] for row in run.values if row["value"] is not None]
    assert np.isfinite(values).all()
    assert any(values)


def test_training_the_model_itself_keeps_the_base_as_it_was(configured, tmp_path) -> None:
    method = {"method__type": "full", "method__lora_dropout": None, "train__learning_rate": 0.002}
    run = train(configured(**method, train__max_steps=3, train__eval_steps=1), tmp_path / "run")
    losses = [event["loss"] for event in run.events if event["event"] == "eval"]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 0.01


def test_a_reward_model_learns_pairs_and_writes_nothing(configured, folder, tmp_path) -> None:
    run = train(configured(task__type="reward", train__max_steps=12, train__eval_steps=6), tmp_path / "run")
    losses = [event["loss"] for event in run.events if event["event"] == "eval"]
    assert losses[-1] < losses[0] - 0.05
    for row in run.values:
        if row["value"] is not None:
            assert row["value_chosen"] + row["value_rejected"] == pytest.approx(row["value"], rel=1e-9, abs=1e-15)
    prepared = prepare(run.config)
    model = adapted_model(prepared).model.double()
    batch = prepared.collator(prepared.train.features[:3])
    margin = torch.tensor([0.5, 0.0, -0.25])
    rewards = []
    with torch.no_grad(), evaluating(model):
        found = prepared.task.example_loss(model, batch | {"margin": margin})
        for row in prepared.train.features[:3]:
            for ids, _ in row.sequences():  # type: ignore[attr-defined]
                rewards.append(float(model(input_ids=torch.tensor(ids[None], dtype=torch.long)).logits[0, -1]))
    expected = [
        math.log(1 + math.exp(-(c - r - m)))
        for c, r, m in zip(rewards[::2], rewards[1::2], margin.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert evaluate(run.path, folder / "others.jsonl", out=tmp_path)["data-others"]["adapter"].keys() >= {
        "reward_accuracy"
    }
    with pytest.raises(InputError, match="judges pairs of answers"):
        infer(str(run.path), folder / "others.jsonl", tmp_path / "answers.jsonl")


def test_check_and_preview_know_pairs(configured) -> None:
    report = check(configured())
    assert report.errors == []
    assert report.plan["format"] == "preference"
    chosen, rejected = preview(configured(), rows=1)
    assert (chosen.part, rejected.part) == ("chosen", "rejected")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("data__loss_on", "all", "must be completion"),
        ("task__simpo_gamma", 0.5, "does nothing for task.loss: dpo; it is for simpo"),
        ("task__label_smoothing", 0.1, "it is for robust_dpo"),
        ("data__train__format", "messages", "is not for preference, which reads preference"),
    ],
)
def test_settings_that_mean_nothing_are_refused(setting, value, message, configured) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(configured(**{setting: value}))
