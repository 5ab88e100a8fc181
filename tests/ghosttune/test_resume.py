"""A run that was interrupted, killed or cut off inside a checkpoint ends in the same bytes as one that was not."""

from __future__ import annotations

import errno
import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from interrupting import interrupt_at, kill, start, steps_logged, wait_for, wait_for_step

from ghosttune import train
from ghosttune.config.rendering import plain_yaml
from ghosttune.config.schema import RunConfig
from ghosttune.errors import DataError, NoSpace, RunError
from ghosttune.proving.freezing import differences
from ghosttune.proving.specimens import short_run, write_rows
from ghosttune.run.directory import RunDir, write_folder
from ghosttune.run.recording import Record
from ghosttune.stages.runs import Run
from ghosttune.training import checkpoints
from ghosttune.workflows.train import Stopped, resume

STEPS = 16
FULL = {
    "train__max_steps": STEPS,
    "train__per_device_train_batch_size": 2,
    "train__gradient_accumulation_steps": 2,
    "train__eval_steps": 5,
    "train__save_steps": 4,
    "train__logging_steps": 3,
    "method__lora_dropout": 0.1,
    "measure__norms__every": 1,
    "measure__norms__effective": 4,
    "measure__ledger__guide_every": 3,
    "data__guide__rows": 4,
}
LATEST = 24
EARLY = FULL | {"train__max_steps": LATEST, "train__learning_rate": 0.5}
"""Runs that end before their last step, once patience is lost."""


@pytest.fixture(scope="module")
def full(tiny_model, tmp_path_factory) -> RunConfig:
    """The configuration of runs that are made once for all tests."""
    return short_run(tiny_model, write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl"), **FULL)


@pytest.fixture(scope="module")
def whole(full, tmp_path_factory) -> Path:
    """A run of it that nothing interrupted."""
    return train(full, tmp_path_factory.mktemp("whole") / "run").folder.path


@pytest.fixture(scope="module")
def stopped(full, tmp_path_factory) -> Path:
    """A run of it that stopped after step 9."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Stopped):
        train(full, out, listen=interrupt_at(9))
    return out


@pytest.fixture
def cut(stopped, tmp_path) -> Path:
    """The same, to do with as a test likes."""
    return shutil.copytree(stopped, tmp_path / "run")


def assert_same_run(left: Path, right: Path) -> None:
    assert differences(left, right) == []


def in_a_checkpoint(out: Path) -> bool:
    return steps_logged(out) >= 3 and bool(list(out.glob("checkpoints/.*.partial")))


@pytest.mark.parametrize("step", [1, 4, 7, 8, 11, 15])
def test_interrupted_and_resumed_is_bit_identical(full, whole, tmp_path, step):
    with pytest.raises(Stopped, match=f"stopped after step {step + 1}|stopped after step {step}"):
        train(full, tmp_path / "parts", listen=interrupt_at(step))
    record = RunDir(tmp_path / "parts").read_record()
    assert record["status"] == "stopped" and record["step"] in (step, step + 1)
    resume(tmp_path / "parts")
    assert_same_run(whole, tmp_path / "parts")


def in_three_parts(config: RunConfig, out: Path) -> Path:
    """A run of it that is interrupted twice."""
    with pytest.raises(Stopped):
        train(config, out, listen=interrupt_at(5))
    with pytest.raises(Stopped):
        resume(out, listen=interrupt_at(11))
    return resume(out).path


def test_interrupted_twice(full, whole, tmp_path):
    assert_same_run(whole, in_three_parts(full, tmp_path / "parts"))


def test_interrupted_twice_with_a_guide_subset_that_is_drawn_anew(make_config, tmp_path):
    config = make_config(**FULL | {"measure__ledger__guide_subset": 4, "data__guide__rows": 9})
    whole = train(config, tmp_path / "whole").path
    assert_same_run(whole, in_three_parts(config, tmp_path / "parts"))


def test_interrupted_in_its_last_step_the_run_still_ends(full, whole, tmp_path):
    train(full, tmp_path / "parts", listen=interrupt_at(STEPS))
    assert RunDir(tmp_path / "parts").read_record()["status"] == "finished"
    assert_same_run(whole, tmp_path / "parts")


@pytest.fixture
def cut_at_the_end(monkeypatch, tmp_path) -> Callable[[RunConfig], Path]:
    """Trains, and is cut off after the last step."""

    def cut(*_):
        raise KeyboardInterrupt

    def run(config: RunConfig) -> Path:
        out = tmp_path / "parts"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("ghosttune.workflows.train.evaluate_dev_rows", cut)
            train(config, out)
        assert RunDir(out).read_record()["status"] == "stopped"
        return out

    return run


def test_cut_off_after_its_last_step_trains_no_further(full, whole, cut_at_the_end):
    parts = cut_at_the_end(full)
    assert resume(parts).record["step"] == STEPS
    assert_same_run(whole, parts)


def test_cut_off_after_it_stopped_early_trains_no_further(make_config, tmp_path, cut_at_the_end):
    config = make_config(**EARLY | {"train__eval_steps": 1, "train__early_stopping_patience": 1})
    whole, parts = train(config, tmp_path / "whole"), cut_at_the_end(config)
    assert resume(parts).record["step"] == whole.record["step"] < LATEST
    assert_same_run(whole.path, parts)


TRAINED = ("tokens_per_second", "targets_per_second", "padding_share")


@pytest.mark.parametrize("cut", ["in the middle", "after the last step"])
def test_what_it_trained_with_is_counted_over_all_parts(make_config, tmp_path, monkeypatch, cut):
    """Tokens by the seconds that made them; the share of padding needs no clock and is the same number."""
    settings = FULL | {"train__max_steps": 8}
    whole = train(make_config(**settings), tmp_path / "whole").record
    if cut == "in the middle":
        with pytest.raises(Stopped):
            train(make_config(**settings), tmp_path / "parts", listen=interrupt_at(5))
    else:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("ghosttune.workflows.train.throughput", lambda *_: signal.raise_signal(signal.SIGINT))
            train(make_config(**settings), tmp_path / "parts")
    parts = resume(tmp_path / "parts").record
    assert parts["padding_share"] == whole["padding_share"] > 0
    counted = [record["tokens_per_second"] * record["stage_seconds"]["train"] for record in (whole, parts)]
    assert counted[1] == pytest.approx(counted[0], rel=1e-3)
    assert all(parts[name] for name in TRAINED)


def test_the_time_of_a_killed_run_is_counted_up_to_its_checkpoint(make_config, tmp_path, monkeypatch):
    written: list[float] = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ghosttune.workflows.train.Record.end", lambda *_: None)  # killed: it cannot say how it ended
        train(make_config(**FULL), tmp_path / "run", listen=partial(interrupted_after, tmp_path / "run", written))
    record = RunDir(tmp_path / "run").read_record()
    assert record["status"] == "running" and record["step"] == 8
    assert record["stage_seconds"]["train"] == written[-1] > written[0]


def interrupted_after(out: Path, written: list[float], event: dict) -> None:
    """Notes the recorded time at every step, and kills at step 9."""
    if event["event"] == "step":
        written.append(RunDir(out).read_record()["stage_seconds"].get("train", 0.0))
        if event["step"] == 10:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["write_measurements", "write_adapters", "evaluate_dev_rows"])
def test_terminated_after_its_last_step_it_is_stopped_and_ends_later(make_config, tmp_path, monkeypatch, stage):
    """Whoever shuts a machine down tells every process, and their parents pass it on: two signals are one."""

    def terminated(*_):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(f"ghosttune.workflows.train.{stage}", terminated)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(), tmp_path / "run")
    assert RunDir(tmp_path / "run").read_record()["status"] == "stopped"
    assert resume(tmp_path / "run").record["status"] == "finished"


@pytest.mark.parametrize("signals", [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGTERM")])
def test_told_twice_to_end_a_run_saves_its_state_all_the_same(make_config, tmp_path, signals):
    def listen(event):
        if event["event"] == "log":
            for name in signals:
                signal.raise_signal(signal.Signals[name])

    with pytest.raises(Stopped):
        train(make_config(**FULL), tmp_path / "run", listen=listen)
    assert RunDir(tmp_path / "run").checkpoint_steps() == [4]


def test_a_start_that_was_cut_off_leaves_its_folder_usable(make_config, tmp_path, monkeypatch):
    def cut(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ghosttune.workflows.train.Record.begin", cut)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(), tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").is_file() and not RunDir(tmp_path / "run").exists
    assert train(make_config(train__max_steps=3), tmp_path / "run").record["status"] == "finished"
    assert train(make_config(train__max_steps=3), tmp_path / "other").config == Run(RunDir(tmp_path / "run")).config


def test_early_stopping_counts_on_after_resume(make_config, tmp_path):
    settings = EARLY | {"train__eval_steps": 1, "train__early_stopping_patience": 4}
    whole = train(make_config(**settings), tmp_path / "whole")
    stop = whole.record["step"]
    assert stop < LATEST
    with pytest.raises(Stopped):
        train(make_config(**settings), tmp_path / "parts", listen=interrupt_at(stop - 2))
    assert resume(tmp_path / "parts").record["step"] == stop
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow(seconds=30)
def test_killed_at_any_moment_and_resumed_is_bit_identical(make_config, tmp_path):
    settings = FULL | {"train__max_steps": 60}
    train(make_config(**settings), tmp_path / "whole")
    config_file = tmp_path / "run.yaml"
    config_file.write_text(plain_yaml(make_config(**settings)))
    choose = random.Random(0)
    out = tmp_path / "killed"
    process = start(config_file, "--out", out)
    wait_for_step(choose.randrange(2, 8), out, process)
    kill(process)
    for _ in range(4):
        reached = steps_logged(out)
        process = start("--resume", "--out", out)
        wait_for_step(min(reached + choose.randrange(3, 12), 54), out, process)
        time.sleep(choose.random() / 20)
        kill(process)
    assert RunDir(out).read_record()["status"] == "running"
    resume(out)
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.slow(seconds=10)
def test_killed_in_the_middle_of_a_checkpoint(make_config, tmp_path):
    settings = FULL | {"train__max_steps": 60, "train__save_steps": 1}
    train(make_config(**settings), tmp_path / "whole")
    config_file = tmp_path / "run.yaml"
    config_file.write_text(plain_yaml(make_config(**settings)))
    caught = False
    for attempt in range(5):
        out = tmp_path / f"killed-{attempt}"
        process = start(config_file, "--out", out)
        wait_for(partial(in_a_checkpoint, out), process)
        kill(process)
        if list(out.glob("checkpoints/.*.partial")):
            caught = True
            break
    assert caught, "no kill fell into a checkpoint"
    resume(out)
    assert_same_run(tmp_path / "whole", out)


def test_a_line_cut_short_by_a_crash_is_not_an_event(cut, whole):
    run = RunDir(cut)
    before = run.events()
    with open(run.metrics, "a") as file:
        file.write('{"step": 10, "event": "lo')
    assert run.events() == before
    resume(cut)
    assert_same_run(whole, cut)


def test_a_damaged_checkpoint_is_refused_and_named(cut):
    run = RunDir(cut)
    step = run.checkpoint_steps()[-1]
    file = run.checkpoint(step) / checkpoints.OPTIMIZER
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=f"step-{step} is damaged: {checkpoints.OPTIMIZER}"):
        resume(cut)


def test_changed_data_is_refused(make_config, rows_file, tmp_path):
    with pytest.raises(Stopped):
        train(make_config(**FULL), tmp_path / "run", listen=interrupt_at(9))
    rows_file.write_text(rows_file.read_text() + json.dumps({"prompt": "new", "completion": "row"}) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl changed since"):
        resume(tmp_path / "run")


def test_an_edited_configuration_is_refused(cut):
    config = RunDir(cut).config
    written = config.read_text()
    config.write_text(written.replace("seed: 42", "seed: 43"))  # would draw other dev rows
    with pytest.raises(RunError, match=r"config\.yaml was edited since the run was started"):
        resume(cut)
    config.write_text("# a comment changes nothing\n" + written)
    assert resume(cut).record["status"] == "finished"


@pytest.mark.parametrize("contents", ["", '{"status": "stop', "[]", "{}"])
def test_a_damaged_record_is_refused_and_named(full, cut, contents):
    RunDir(cut).record.write_text(contents)
    for again in (resume, partial(train, full)):
        with pytest.raises(RunError, match=r"run\.json is damaged"):
            again(cut)


@pytest.mark.parametrize("damage", ["deleted", "emptied", "first line lost", "log line lost"])
def test_missing_events_are_refused_and_named(cut, damage):
    metrics = RunDir(cut).metrics
    before = metrics.read_text()
    lines = before.splitlines(keepends=True)
    if damage == "deleted":
        metrics.unlink()
    else:
        metrics.write_text({"emptied": "", "first line lost": "".join(lines[1:])}.get(damage, "".join(lines[:-1])))
    with pytest.raises(RunError, match=r"metrics\.jsonl (is missing|holds \d of the \d events) up to step 9"):
        resume(cut)
    metrics.write_text(before)
    assert resume(cut).record["status"] == "finished"


def test_a_finished_run_without_a_verdict_is_damaged(make_config, tmp_path):
    run = train(make_config(train__max_steps=3), tmp_path / "run").folder
    record = run.read_record()
    run.write_record({name: value for name, value in record.items() if name != "verdict"})
    for read in (resume, partial(train, make_config()), lambda path: Run(RunDir(path)).record):
        with pytest.raises(RunError, match=r"run\.json is damaged: .*no verdict"):
            read(tmp_path / "run")


def test_a_run_that_failed_once_and_went_on_names_no_error(tmp_path):
    run = RunDir(tmp_path).create()
    data = {name: {} for name in ("fingerprints", "rows", "tokens", "targets")}
    facts = {"seed": 1, "model": {"name": "m", "trainable_parameters": {}}, "data": data, "configuration": ""}
    begun = Record.begin(run, **facts, left_out={}, origins={})
    begun.end("failed", error="RuntimeError")
    again = Record.reopen(run)
    assert run.read_record()["status"] == "running" and not {"error", "ended"} & again.contents.keys()
    again.end("stopped")
    assert "error" not in run.read_record() and len(run.read_record()["resumed"]) == 1


def test_a_damaged_event_is_named(tmp_path):
    run = RunDir(tmp_path)
    run.metrics.write_text('{"step": 1, "event": "log"}\n{"step":\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl:2 is damaged"):
        run.events()


@pytest.mark.parametrize("manifest", ["{}", "[]", '["a"]', "null"])
def test_a_checkpoint_without_its_digests_is_damaged(cut, manifest):
    run = RunDir(cut)
    (run.checkpoint(run.checkpoint_steps()[-1]) / checkpoints.MANIFEST).write_text(manifest)
    with pytest.raises(RunError, match="is damaged"):
        resume(cut)


def test_a_start_that_was_killed_can_be_repeated(make_config, tmp_path):
    run = RunDir(tmp_path / "run")
    with run.locked():
        run.create()
    run.config.write_text("cut sho")
    run.path.joinpath(".splits.csv.partial").write_text("exa")
    assert train(make_config(), run.path).record["status"] == "finished"
    assert not list(run.path.rglob("*.partial"))


def test_a_run_that_lost_its_record_is_not_written_over(make_config, cut):
    RunDir(cut).record.unlink()
    with pytest.raises(RunError, match="not empty and holds no run"):
        train(make_config(), cut)


def test_a_folder_with_a_file_of_the_users_is_used(make_config, tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(RunError, match="not empty and holds no run"):
        train(make_config(), tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_no_folder_has_a_model_card_that_nobody_wrote(whole):
    assert (whole / "adapter" / "adapter_config.json").is_file() and not list(whole.rglob("README.md"))


def test_nothing_partial_is_left(cut):
    run = RunDir(cut)
    (run.checkpoints / ".step-9.partial").mkdir()
    (run.path / ".adapter.replaced").mkdir()
    (run.path / ".run.json.partial").write_text("{")
    resume(run.path)
    assert {path.name for path in run.path.rglob(".*")} == {".lock"}


def test_a_full_disk_gets_back_what_was_begun(tmp_path):
    def fill(folder: Path) -> None:
        (folder / "begun").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NoSpace, match=r"no space left for .*give the command again"):
        write_folder(tmp_path / "step-4", fill)
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_returned_as_it_is(make_config, tmp_path):
    run = train(make_config(), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert resume(tmp_path / "run").record["status"] == "finished"
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_two_processes_cannot_write_one_run(make_config, tmp_path):
    run = RunDir(tmp_path / "run")
    with run.locked(), pytest.raises(RunError, match="another process"):
        train(make_config(), tmp_path / "run")


def test_nothing_to_resume(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        resume(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no run"):
        resume(tmp_path / "empty")
