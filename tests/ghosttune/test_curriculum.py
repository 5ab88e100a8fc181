"""Rows train in the order that is asked for: in every pass, in several processes, resumed, and as preview shows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupting import interrupt_at
from typer.testing import CliRunner

from ghosttune.cli.main import app
from ghosttune.config.schema import RunConfig
from ghosttune.errors import ConfigError, DataError, RunError
from ghosttune.proving.freezing import differences
from ghosttune.stages.prepare import prepare
from ghosttune.stages.runs import open_run
from ghosttune.training.order import MicroBatches, RowOrder
from ghosttune.training.trainer import RunTrainer
from ghosttune.workflows.preview import preview
from ghosttune.workflows.train import Stopped, resume, train

ROWS, SIZE = 20, 4


@pytest.fixture
def trained_ids(monkeypatch) -> list[list[str]]:
    """The ids of the rows of each micro-batch, as the loss was computed of them."""
    seen: list[list[str]] = []
    compute = RunTrainer.compute_loss

    def watched(self: RunTrainer, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        seen.append([self.train_rows[place].example_id for place in inputs["example_index"].tolist()])
        return compute(self, model, inputs, *rest, **named)

    monkeypatch.setattr(RunTrainer, "compute_loss", watched)
    return seen


@pytest.fixture
def configured(make_config, rows_file, tmp_path):
    """A run of two passes over twenty rows with ids, the dev rows in a file of their own."""
    lines = [{**json.loads(line), "id": f"row-{n}"} for n, line in enumerate(rows_file.read_text().splitlines())]
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in lines[:ROWS]))
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines[ROWS:]))

    def make(**changes: Any) -> RunConfig:
        usual = {"data__dev__path": str(tmp_path / "dev.jsonl"), "train__max_steps": 2 * ROWS // SIZE}
        return make_config(**(usual | {"evaluate__limit": 0} | changes))

    return make


def scored(path: Path, scores: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps({"example_id": own, "score": score}) + "\n" for own, score in scores.items()))
    return str(path)


def by_hand(config: RunConfig) -> dict[str, float]:
    """Loss per token of each training row under the base, as Transformers alone gives it."""
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(config.model.name).eval(), {}
    features: Any = prepare(config).train.features
    for row in features:
        ids = torch.tensor(np.asarray(row.input_ids)).long()
        labels = torch.where(torch.tensor(np.asarray(row.trained)), ids, -100)
        with torch.no_grad():
            found[row.example_id] = model(input_ids=ids[None], labels=labels[None]).loss.item()
    return found


def assert_in_order(seen: list[list[str]], expected: list[str]) -> None:
    """Two passes, each update with the next rows of the order."""
    steps = [expected[start : start + SIZE] for start in range(0, ROWS, SIZE)] * 2
    assert [sorted(step) for step in seen] == [sorted(step) for step in steps]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("by", ["length", "loss", "value"])
def test_rows_train_in_the_order_of_a_sort_written_out(configured, trained_ids, tmp_path, by, descending):
    draws = np.random.default_rng(3).normal(size=ROWS).round(1).tolist()  # with ties
    file = scored(tmp_path / "scores.jsonl", {f"row-{n}": draw for n, draw in enumerate(draws)})
    given = {"train__order_scores": file} if by == "value" else {}
    config = configured(train__order=by, train__order_descending=descending, **given)
    run = train(config, tmp_path / "run")
    if by == "length":
        scores = {row.example_id: float(len(row)) for row in prepare(config).train.features}
    else:
        scores = by_hand(config) if by == "loss" else {f"row-{n}": draw for n, draw in enumerate(draws)}
    expected = sorted(scores, key=lambda own: -scores[own] if descending else scores[own])
    assert_in_order(trained_ids, expected)
    order = run.record["order"]
    assert (order["by"], order["first"], order["rows"]) == (by, "largest" if descending else "smallest", ROWS)
    assert order["smallest"] == pytest.approx(min(scores.values()), rel=1e-5)
    assert [row.example_id for row in preview(config, 5)] == expected[:5]
    assert preview(config, 1)[0].score == pytest.approx(scores[expected[0]], rel=1e-5)


def test_values_are_those_of_a_runs_ledger(configured, trained_ids, tmp_path):
    first = train(
        configured(measure__ledger__guide_every=2, data__guide__rows=4, train__max_steps=8), tmp_path / "first"
    )
    standing = {row["example_id"]: row["standing"] for row in first.values}
    kept = scored(tmp_path / "kept.jsonl", dict.fromkeys(standing, 0))
    trained_ids.clear()
    own = {"data__train__keep": kept, "train__order": "value", "train__order_scores": str(first.path)}
    train(configured(**own, train__max_steps=4), tmp_path / "run")
    expected = sorted(standing, key=lambda own: standing[own])[: 4 * SIZE]
    assert [sorted(step) for step in trained_ids] == [
        sorted(expected[start : start + SIZE]) for start in range(0, 4 * SIZE, SIZE)
    ]
    with pytest.raises(DataError, match="no score for 4 of the 20 training rows"):
        train(configured(train__order="value", train__order_scores=str(first.path)), tmp_path / "other")
    with pytest.raises(RunError, match=r"select .* --by loss --above 0"):
        train(configured(train__order="loss", train__order_scores=str(first.path)), tmp_path / "other")


def test_losses_that_select_writes_are_an_order(configured, trained_ids, tmp_path):
    first = train(configured(train__max_steps=4), tmp_path / "first")
    arguments = ["select", str(first.path), "--by", "loss", "--above", "0", "--out", str(tmp_path / "losses.jsonl")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    trained_ids.clear()
    train(configured(train__order="loss", train__order_scores=str(tmp_path / "losses.jsonl")), tmp_path / "run")
    assert_in_order(trained_ids, [row["example_id"] for row in sorted(rows, key=lambda row: row["score"])])


def test_resuming_is_bit_identical_and_asks_nobody_again(configured, tmp_path):
    config = configured(train__order="loss", train__order_descending=True, train__save_steps=2, train__eval_steps=5)
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", listen=interrupt_at(3))
    resume(tmp_path / "run")
    assert differences(whole.path, tmp_path / "run") == []


def test_two_processes_share_the_same_steps():
    scores = np.random.default_rng(1).normal(size=37).tolist()
    one = MicroBatches(RowOrder([1] * 37, 8, 0, scores=scores), 8)
    two = [MicroBatches(RowOrder([1] * 37, 8, 0, scores=scores), 4, process, 2) for process in (0, 1)]
    steps = [sorted(step) for step in one.steps()]
    assert [sorted(left + right) for left, right in zip(*two, strict=True)][:4] == steps[:4]
    assert steps[0] == sorted(np.argsort(scores, kind="stable")[:8].tolist())


@pytest.mark.slow
def test_a_run_of_two_processes_has_the_order_of_one(configured, two_processes, tmp_path):
    from ghosttune.config.rendering import plain_yaml
    from ghosttune.run.tables import read_table

    one = train(configured(train__order="loss", train__per_device_train_batch_size=4), tmp_path / "one")
    config, out = tmp_path / "config.yaml", tmp_path / "two"
    config.write_text(plain_yaml(configured(train__order="loss", train__per_device_train_batch_size=2)))
    command = [sys.executable, "-m", "ghosttune", "train", str(config), "--out", str(out), "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stdout + done.stderr
    orders = [read_table(run.folder, "order").to_pydict() for run in (one, open_run(out))]
    losses = [[event["loss"] for event in run.events if event["event"] == "eval"] for run in (one, open_run(out))]
    assert orders[0] == orders[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train__order_descending": True}, "does nothing for train.order: random"),
        ({"train__order_scores": "x"}, "does nothing for train.order: random"),
        ({"train__order": "length", "train__order_scores": "x"}, "does nothing for train.order: length"),
        ({"train__order": "value"}, "is missing"),
        ({"train__order": "length", "train__group_by_length": True}, "which it would undo"),
    ],
)
def test_settings_that_contradict(make_config, settings, said):
    with pytest.raises(ConfigError, match=said):
        make_config(**settings)


def test_files_that_are_no_scores(configured, tmp_path):
    def prepared(scores: str) -> None:
        preview(configured(train__order="loss", train__order_scores=scores))

    with pytest.raises(DataError, match="is neither a file nor"):
        prepared("nowhere")
    with pytest.raises(DataError, match="without an example_id and a number"):
        prepared(scored(tmp_path / "words.jsonl", {"row-1": "high"}))
    with pytest.raises(DataError, match="no score for 19 of the 20 training rows"):
        prepared(scored(tmp_path / "few.jsonl", {"row-1": 0.5}))
