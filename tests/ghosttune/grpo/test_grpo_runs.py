"""Runs of GRPO from the file to the last table: drawn, rewarded, resumed, accounted for and reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupting import interrupt_at
from small_llama import small_llama

from ghosttune import own_code
from ghosttune.choosing.index import index
from ghosttune.config.loading import load_config
from ghosttune.config.resolve import steps_per_epoch
from ghosttune.config.schema import RunConfig
from ghosttune.errors import ConfigError
from ghosttune.judging.evaluate import evaluate
from ghosttune.proving.freezing import differences
from ghosttune.run.tables import read_table
from ghosttune.stages.finish import tokens_of_steps
from ghosttune.stages.model import adapted_model
from ghosttune.stages.prepare import prepare
from ghosttune.stages.rewarding import Rewarded
from ghosttune.stages.runs import Run
from ghosttune.training.order import MicroBatches, RowOrder
from ghosttune.workflows.check import check
from ghosttune.workflows.report import report
from ghosttune.workflows.train import Stopped, resume, train

# PEFT 0.21 asks Transformers 5.23 by a name that Transformers is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

WORDS = ["red", "blue", "green"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small model with a tokenizer of words, and rows whose answers are one of three."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    found = tmp_path_factory.mktemp("grpo")
    rows = [{"prompt": f"number {n} is", "completion": WORDS[n % 3], "odd": n % 2 == 1} for n in range(30)]
    names = list(dict.fromkeys(["<pad>", "<eos>", "<unk>", "number", "is", *WORDS]))
    words = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.save_pretrained(found / "model")
    torch.manual_seed(0)
    model = small_llama(len(names), num_hidden_layers=1, hidden_size=16, intermediate_size=24, eos_token_id=1)
    model.save_pretrained(found / "model")
    (found / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found / "own.py").write_text("def says_red(output):\n    return 'red' in output\n")
    return found


@pytest.fixture(scope="module")
def configured(folder) -> Callable[..., RunConfig]:
    def make(**changes: Any) -> RunConfig:
        settings = {
            "task.type": "grpo",
            "task.completions": 4,
            "task.max_new_tokens": 3,
            "task.updates": 2,
            "task.beta": 0.05,
            "model.name": str(folder / "model"),
            "model.device": "cpu",
            "data.train.path": str(folder / "rows.jsonl"),
            "data.guide.rows": 4,
            "train.max_steps": 8,
            "train.per_device_train_batch_size": 2,
            "train.gradient_accumulation_steps": 2,
            "train.learning_rate": 0.05,
            "train.warmup_steps": 0,
            "train.eval_steps": 4,
            "train.save_steps": 4,
            "train.logging_steps": 3,
            "method.lora_dropout": 0.1,
            "measure.ledger.guide_every": 2,
            "evaluate.max_new_tokens": 3,
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
        return load_config(
            overrides=[f"{name}={json.dumps(value)}" for name, value in settings.items() if value is not None]
        )

    return make


@pytest.fixture(scope="module")
def run(configured, tmp_path_factory) -> Run:
    return train(configured(), tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def drawn(run) -> list[dict[str, Any]]:
    return read_table(run.folder, "completions").to_pylist()


def test_every_drawn_answer_is_written_down_with_what_it_earned(run, drawn) -> None:
    assert sorted({row["step"] for row in drawn}) == [1, 3, 5, 7], "every second update draws"
    assert len(drawn) == 4 * 4 * 4
    right = {record.example_id: record.reference for record in prepare(run.config).train_records}
    for row in drawn:
        assert row["reward"] == float(row["text"] == right[row["example_id"]])
        assert row["success"] == (row["reward"] == 1)
        assert 1 <= row["tokens"] <= 3
    assert len({row["reward"] for row in drawn}) == 2, "some are right, or nothing was tested"
    for first in range(0, len(drawn), 4):
        group = drawn[first : first + 4]
        assert [row["part"] for row in group] == ["0", "1", "2", "3"]
        earned = np.array([row["reward"] for row in group])
        expected = (earned - earned.mean()) / (earned.std(ddof=1) + 1e-4)
        assert [row["advantage"] for row in group] == pytest.approx(expected.tolist(), abs=1e-12)


def test_events_tell_rewards(run, drawn) -> None:
    logs = [event for event in run.events if event["event"] == "log"]
    mean = np.mean([row["reward"] for row in drawn if row["step"] <= 3])
    assert logs[0]["step"] == 3 and logs[0]["reward"] == pytest.approx(mean)
    assert {"success", "flat_groups", "completion_tokens", "stopped"} <= logs[0].keys()
    evals = [event for event in run.events if event["event"] == "eval"]
    assert all({"reward", "success", "loss"} <= event.keys() for event in evals)
    best = max(evals[1:], key=lambda event: event["reward"])
    assert run.record["best_step"] == best["step"]
    judged = run.record["verdict"]["reward"]
    assert judged["adapter"] == pytest.approx(best["reward"])
    assert judged["base"] == pytest.approx(evals[0]["reward"])
    assert run.evaluation is not None
    assert run.evaluation["dev"]["adapter"]["exact_match"]["value"] == pytest.approx(judged["adapter"])


def test_an_answer_is_a_row_of_the_ledger(run, drawn) -> None:
    ledger = read_table(run.folder, "ledger").to_pylist()
    visits = {(row["step"], row["example_id"], row["part"]) for row in ledger}
    assert visits >= {(row["step"], row["example_id"], row["part"]) for row in drawn}
    assert len(visits) == 8 * 4 * 4
    flat = {(row["step"], row["example_id"]) for row in drawn if row["advantage"] == 0}
    sums: dict[str, float] = {}
    for row in ledger:
        sums[row["example_id"]] = sums.get(row["example_id"], 0.0) + row["credit"]
    for row in run.values:
        assert not {"value_0", "credit_0"} & row.keys(), "the first answer at one visit is not that at another"
        if row["steps_seen"]:
            assert row["credit"] == pytest.approx(sums[row["example_id"]], rel=1e-9, abs=1e-15)
    assert flat, "a group whose answers earn the same is among them"
    assert run.record["ledger"]["rows"] == pytest.approx(sum(sums.values()), rel=1e-9)


@pytest.mark.parametrize("step", [3, 4])
def test_a_run_that_was_interrupted_ends_in_the_same_bytes(step, configured, run, tmp_path) -> None:
    """Before the second update of the same answers, and after it."""
    with pytest.raises(Stopped):
        train(configured(), tmp_path / "run", listen=interrupt_at(step))
    resume(tmp_path / "run")
    assert differences(run.path, tmp_path / "run") == []


def test_an_answer_is_drawn_by_seed_and_update_alone(configured) -> None:
    prepared = prepare(configured())
    model = adapted_model(prepared).model
    answers = Rewarded(prepared, model)
    prompts = [answers.prompt(position) for position in (3, 5, 3)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = answers.draw(prompts, 7)
    assert torch.equal(before, torch.get_rng_state())
    assert answers.draw(prompts[:1], 7) == first[:1], "whatever stands beside it"
    assert answers.draw(prompts * 4, 7) != answers.draw(prompts * 4, 8)


def test_the_report_and_the_commands_show_it(run, folder, tmp_path) -> None:
    page = report(run.path).read_text(encoding="utf-8")
    assert "Reward over the run" in page and "reward of greedy answers" in page
    assert "Loss over the run" not in page
    assert evaluate(run.path, out=tmp_path)["dev"]["adapter"].keys() == {"exact_match", "stopped"}
    (stored,) = index(run.path, checkpoints=["last"])
    assert stored.rows == len(prepare(run.config).train)
    assert run.pipeline().chat("number 3 is") is not None


def test_own_rewards_run_under_consent_only(folder, configured, tmp_path, monkeypatch) -> None:
    config = configured(task__rewards=["exact_match", f"{folder / 'own.py'}:says_red"], train__max_steps=2,
                        train__eval_steps=2, train__save_steps=2, train__logging_steps=1)  # fmt: skip
    monkeypatch.setattr(own_code, "_allowed", False)
    with pytest.raises(ConfigError, match=r"task\.rewards: .*--allow-code"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    monkeypatch.setattr(own_code, "_allowed", True)
    rows = read_table(train(config, tmp_path / "run").folder, "completions").to_pylist()
    assert {row["reward"] for row in rows if "red" in row["text"]} <= {1.0, 2.0}
    assert all(row["success"] == (row["reward"] == 2) for row in rows)


def test_tokens_of_a_phase_are_those_of_the_answers(run, drawn) -> None:
    """With their prompts, at both updates that they train."""
    prepared = prepare(run.config)
    tokens = tokens_of_steps(run.folder, prepared, prepared.order(), 8)
    own = {step: 0 for step in (1, 3, 5, 7)}
    for row in drawn:
        own[row["step"]] += row["prompt_tokens"] + row["tokens"]
    assert tokens == [own[step] for step in (1, 1, 3, 3, 5, 5, 7, 7)]


def test_full_steps_are_repeated_and_every_row_comes(configured) -> None:
    once, thrice = (MicroBatches(RowOrder([1] * 11, 4, 0, repeats=repeats), 2) for repeats in (1, 3))
    (first, second, rest), again = once.steps(), list(thrice.steps())
    assert again == [first] * 3 + [second] * 3 + [rest]
    assert len(list(thrice)) == len(thrice) == 14
    config = configured(task__updates=3)  # 4 rows per step
    assert steps_per_epoch(config, 11) == len(again)


def test_several_processes_are_refused(configured, monkeypatch) -> None:
    monkeypatch.setattr("ghosttune.stages.prepare.processes", lambda: 2)
    with pytest.raises(ConfigError, match=r"task\.type: is grpo, which draws its answers in one process, not in 2"):
        prepare(configured())


def test_check_plans_it(configured) -> None:
    found = check(configured())
    assert not found.errors
    assert found.plan["steps"] == {"total": 8, "per_epoch": 11, "epochs": 0.73}
