"""`ghosttune train --processes 2` gives what one process gives with the same steps: weights, tables, account."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from float64_training import train_in_float64
from typer.testing import CliRunner

from ghostgrad import Norms
from ghosttune.cli.main import app, main
from ghosttune.models.adapter_files import WEIGHTS
from ghosttune.models.modules import blocks_of
from ghosttune.proving.reference import small_llama
from ghosttune.proving.specimens import write_rows
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import read_table
from ghosttune.stages.launching import own_folder
from ghosttune.training.engines import row_engine
from ghosttune.training.processes import rank
from ghosttune.training.sharding import own_share, share_out
from processes import run_group

SETTINGS = """
model: {name: %s, device: cpu}
data: {train: {path: %s}, dev: {fraction: 0.1}, guide: {rows: 5}, max_length: 128}
train: {max_steps: 9, per_device_train_batch_size: %d, learning_rate: 0.01, warmup_steps: 2, eval_steps: 3,
  save_steps: 3, gradient_accumulation_steps: %d, weight_decay: 0.1}
measure: {norms: {effective: 2}, ledger: {guide_every: 2}}
evaluate: {limit: 2, max_new_tokens: 4}
"""


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ghosttune", "--debug", *arguments], capture_output=True, text=True, timeout=1000
    )


def trained(folder: Path, model: Path, rows: Path, size: int, accumulation: int, *options: str) -> RunDir:
    """The run of this command; in this process, which has its imports already, unless the options ask for several."""
    config = folder.with_suffix(".yaml")
    config.write_text(SETTINGS % (model, rows, size, accumulation))
    arguments = ["train", str(config), "--out", str(folder), *options]
    if "--processes" in options:
        done = command(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return RunDir(folder)


def columns(run: RunDir, name: str) -> dict[str, list[Any]]:
    """A table in an order that does not depend on which process had which row."""
    rows = read_table(run, name)
    keys = [column for column in rows.column_names if column not in NUMBERS]
    return rows.sort_by([(key, "ascending") for key in keys]).to_pydict()


UNLIKE = ["--set", "measure.norms.effective=null", "--json"]
"""What a base that is shared out cannot have."""

NUMBERS = {"norm", "norm_after_clip", "update_norm", "weight_norm", "effective_norm", "relative_norm", "value"}
NUMBERS |= {"standing", "guide_loss_drop", "score", "credit"}


def compare(one: RunDir, two: RunDir, rtol: float = 1e-3) -> None:
    for name in ("norms", "effective", "ledger", "module_steps", "values"):
        left, right = columns(one, name), columns(two, name)
        for column, values in left.items():
            if column in NUMBERS:
                found, expected = np.array(right[column], float), np.array(values, float)
                # AdamW's first steps divide by roots of all but nothing, and multiply what float32 rounds
                np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol / 4 * np.nanmax(np.abs(expected)))
            else:
                assert right[column] == values, (name, column)


@pytest.fixture(scope="module", params=[1, 2])
def in_two(request, two_processes, tiny_model, tmp_path_factory) -> tuple[int, Path, RunDir]:
    """(micro-batches of a step, file of rows, the run of two processes)."""
    folder, accumulation = tmp_path_factory.mktemp("in-two"), request.param
    rows = write_rows(folder / "rows.jsonl")
    options = ["--processes", "2", "--json"]
    return accumulation, rows, trained(folder / "two", tiny_model, rows, 4 // accumulation, accumulation, *options)


def test_two_processes_give_what_one_gives(in_two, tmp_path, tiny_model):
    """With 22 training rows and 8 to a step, so that the last step of an epoch is shared unevenly."""
    accumulation, rows_file, both = in_two
    one = trained(tmp_path / "one", tiny_model, rows_file, 8 // accumulation, accumulation)
    compare(one, both)
    left, right = one.read_record(), both.read_record()
    assert right["ledger"]["modules"] == pytest.approx(left["ledger"]["modules"], rel=1e-3)
    assert right["ledger"]["rows"] == pytest.approx(left["ledger"]["rows"], rel=1e-3)
    assert right["verdict"]["dev_loss"] == pytest.approx(left["verdict"]["dev_loss"], rel=1e-4)
    assert right["data"] == left["data"]


@pytest.mark.slow(seconds=20)
def test_two_processes_in_float64_give_what_one_gives(two_processes, tmp_path, tiny_model, rows_file):
    """Also with guide rows that take turns, so that each process has its share of every half."""
    for name, size in (("one", 8), ("two", 4)):
        (tmp_path / f"{name}.yaml").write_text(
            (SETTINGS % (tiny_model, rows_file, size, 1))
            .replace(
                "group_by_length: true", "group_by_length: false"
            )  # as drawn: AdamW multiplies what float32 rounds
            .replace("rows: 5", "rows: 8")
            .replace("guide_every: 2", "guide_every: 2, guide_subset: 4")
        )
    train_in_float64(str(tmp_path / "one.yaml"), str(tmp_path / "one"))
    run_group(train_in_float64, tmp_path / "two.yaml", tmp_path / "two")
    one, both = RunDir(tmp_path / "one"), RunDir(tmp_path / "two")
    compare(one, both, rtol=1e-6)
    left, right = one.read_record()["ledger"], both.read_record()["ledger"]
    for term in ("guide_loss_start", "guide_loss_end", "modules", "rows", "weight_decay"):
        assert right[term] == pytest.approx(left[term], rel=1e-6), term


@pytest.mark.parametrize("kind", ["plain", pytest.param("kill -9, resume", marks=pytest.mark.slow(seconds=40))])
def test_a_base_that_is_shared_out_changes_nothing(kind, two_processes, tmp_path, tiny_model, rows_file):
    """Bit for bit: the same run of two processes, each of which has the whole base, or a part of every block."""
    whole, shared = (
        trained(tmp_path / name, tiny_model, rows_file, 4, 1, "--processes", "2", *UNLIKE, *options)
        for name, options in (("whole", []), ("shared", ["--set", "train.fsdp=true"]))
    )
    if kind != "plain":
        for step in shared.checkpoint_steps()[1:]:
            shutil.rmtree(shared.checkpoint(step))
        shared.write_record(shared.read_record() | {"status": "running"})
        done = command("train", "--resume", "--out", str(shared.path), "--processes", "2")
        assert done.returncode == 0, done.stdout + done.stderr
    for name in ("norms", "ledger", "module_steps", "values"):
        assert columns(shared, name) == columns(whole, name)
    assert shared.read_record()["ledger"] == whole.read_record()["ledger"]
    assert shared.evaluation.read_bytes() == whole.evaluation.read_bytes()
    assert (shared.adapter / WEIGHTS).read_bytes() == (whole.adapter / WEIGHTS).read_bytes()


def shares() -> None:
    """In each of two processes: half of what is frozen in the blocks, and every gradient of what trains."""
    whole, model = small_llama(), small_llama()
    share_out(model, blocks_of(model.get_base_model()), torch.device("cpu"))
    frozen = [parameter for parameter in model.parameters() if hasattr(parameter, "device_mesh")]
    local = sum(parameter.to_local().numel() for parameter in frozen)
    assert 0 < local == sum(parameter.numel() for parameter in frozen) // 2
    assert not any(parameter.requires_grad for parameter in frozen)
    names = {name for name, parameter in model.named_parameters() if hasattr(parameter, "device_mesh")}
    assert names == {name for name, p in whole.named_parameters() if ".layers." in name and not p.requires_grad}
    assert set(model._ddp_params_and_buffers_to_ignore) == names
    batches = list(own_share(range(5)))  # 0 2 4 and 1 3; who has fewer computes the first again
    assert batches == [[(0, True), (2, True), (4, True)], [(1, True), (3, True), (0, False)]][rank()]


def one_has_to_look_again() -> None:
    """In each of two processes, passes of unequal rows; one of them forgets what it has verified."""
    whole, model = small_llama().double(), small_llama().double()
    share_out(model, blocks_of(model.get_base_model()), torch.device("cpu"))
    ids = torch.arange(24).reshape(3, 8) % 7
    own = slice(0, 2) if rank() == 0 else slice(2, 3)
    engines = {"whole": row_engine(whole, "exact"), "shared": row_engine(model, "exact")}
    for _ in range(5):  # in the first three all look again: a LoRA A has no gradient yet
        found = {}
        for name, engine in engines.items():
            norms = Norms()
            with engine.observe(norms):
                rows = ids if name == "whole" else ids[own]
                engine.model(input_ids=rows).logits.log_softmax(-1).square().sum().backward()
            found[name] = norms.total()
        torch.testing.assert_close(found["shared"], found["whole"][own])
        if rank() == 1:
            engines["shared"].verification.forms.clear()


@pytest.mark.usefixtures("two_processes")
def test_all_verify_a_pass_or_none() -> None:
    run_group(one_has_to_look_again, limit=120)


@pytest.mark.usefixtures("two_processes")
def test_each_has_its_part_of_the_blocks() -> None:
    run_group(shares)


@pytest.mark.slow(seconds=25)
def test_two_processes_follow_phases_as_one_does(two_processes, tmp_path, tiny_model, rows_file):
    """The model is wrapped with everything trainable; what is frozen then is in no bucket's way."""
    plan = ["--set", "phases=both@0-3 > mlp@3-6 > attention@6- rewarm 2"]
    both = trained(tmp_path / "two", tiny_model, rows_file, 4, 1, "--processes", "2", *plan)
    one = trained(tmp_path / "one", tiny_model, rows_file, 8, 1, *plan)
    compare(one, both)
    left, right = (run.export("phases").read_text().splitlines() for run in (one, both))
    for expected, found in zip(left[1:], right[1:], strict=True):
        *same, drop = expected.split(",")
        assert found.split(",")[:-1] == same
        assert float(found.split(",")[-1]) == pytest.approx(float(drop), rel=1e-3, abs=1e-6)


@pytest.mark.slow(seconds=20)
def test_two_processes_choose_the_rows_that_one_chooses(two_processes, tmp_path, tiny_model, rows_file):
    """In float64: AdamW's first steps multiply what float32 rounds."""
    for name, size in (("one", 4), ("two", 2)):
        settings = SETTINGS.replace("dev:", "online_selection: {by: value, candidates: 2}, dev:")
        (tmp_path / f"{name}.yaml").write_text(settings % (tiny_model, rows_file, size, 1))
    train_in_float64(str(tmp_path / "one.yaml"), str(tmp_path / "one"))
    run_group(train_in_float64, tmp_path / "two.yaml", tmp_path / "two")
    one, both = RunDir(tmp_path / "one"), RunDir(tmp_path / "two")
    left, right = columns(one, "selection"), columns(both, "selection")
    np.testing.assert_allclose(np.array(right.pop("score"), float), np.array(left.pop("score"), float), rtol=1e-6)
    assert left == right
    compare(one, both, rtol=1e-6)


@pytest.mark.slow(seconds=40)
def test_two_processes_take_up_a_run_that_was_cut_off(two_processes, tmp_path, tiny_model, rows_file):
    """In the middle, and after the last step: process 1 has none of the tables then, and needs none."""
    options = ["--processes", "2", "--set", "train.logging_steps=2"]  # the checkpoint stands between two logs
    whole = trained(tmp_path / "whole", tiny_model, rows_file, 4, 1, *options)
    for left in (1, 3):
        cut = RunDir(shutil.copytree(whole.path, tmp_path / f"cut-{left}"))
        for step in cut.checkpoint_steps()[left:]:
            shutil.rmtree(cut.checkpoint(step))
        cut.write_record(cut.read_record() | {"status": "running"})
        done = command("train", "--resume", "--out", str(cut.path), "--processes", "2")
        assert done.returncode == 0, done.stdout + done.stderr
        for name in ("norms", "ledger", "module_steps", "values"):
            assert columns(cut, name) == columns(whole, name)
        assert cut.read_record()["ledger"] == whole.read_record()["ledger"]
        assert cut.events() == whole.events()


def test_a_start_that_was_cut_off_can_be_repeated_by_every_process(tmp_path, monkeypatch):
    """Process 1 works on a copy, in which it must know the folder for one that never began, as process 0 does."""
    begun = RunDir(tmp_path / "run").create()
    with begun.locked():
        begun.config.write_text("{}")
        (begun.path / ".run.json.partial").write_text("{")
    monkeypatch.setenv("RANK", "1")
    with own_folder(begun.path) as copy:
        assert copy.path != begun.path and copy.create().config.exists()


def test_a_refusal_in_several_processes_is_said_once(two_processes, tmp_path, tiny_model):
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {{name: {tiny_model}, device: cpu}}\ndata: {{train: {{path: {tmp_path / 'none'}}}}}\n")
    options = ["--processes", "2", "--out", str(tmp_path / "run")]
    arguments = [sys.executable, "-m", "ghosttune", "train", str(config), *options]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("does not exist") == 1
    assert not (tmp_path / "run" / "run.json").exists()


def test_more_processes_than_a_machine_holds_are_refused(tmp_path, tiny_model, rows_file, monkeypatch, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(SETTINGS % (tiny_model, rows_file, 4, 1))
    arguments = ["train", str(config), "--out", str(tmp_path / "run"), "--processes", "1000000"]
    monkeypatch.setattr(sys, "argv", ["ghosttune", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "--processes is 1000000; this machine has" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_run_json_is_written_by_one_process(in_two):
    *_, run = in_two
    assert json.loads(run.record.read_text())["status"] == "finished"
    events = [event["step"] for event in run.events() if event["event"] == "eval"]
    assert events == [0, 3, 6, 9]
