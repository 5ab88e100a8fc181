"""A run directory that leads out of itself: nothing is read or written through it, and it is refused by name."""

from __future__ import annotations

import json
import os
import shutil

import pytest

import ghosttune
from ghosttune.choosing.index import index
from ghosttune.choosing.opened import OpenedRun
from ghosttune.errors import RunError
from ghosttune.inference.pipeline import Pipeline
from ghosttune.judging.evaluate import evaluate
from ghosttune.reports.plots import summary_report
from ghosttune.run.directory import NAMES, RunDir
from ghosttune.workflows.export import export
from ghosttune.workflows.merge import merge
from ghosttune.workflows.sweep import sweep
from ghosttune.workflows.train import resume

WAYS_IN = {
    "open_run": ghosttune.open_run,
    "resume": resume,
    "report": ghosttune.report,
    "evaluate": evaluate,
    "index": index,
    "OpenedRun": OpenedRun,
    "Pipeline": Pipeline.open,
    "merge": lambda run: merge(run, run.parent / "merged"),
    "export": lambda run: export(run, "hub", run.parent / "exported"),
    "summary_report": lambda run: summary_report([run]),
    "lock": lambda run: RunDir(run).locked().__enter__(),
}


def led_out(run, name):
    """Puts a link in the place of a file or folder of the run; returns what it leads to."""
    target = run.parent / "elsewhere"
    if (run / name).is_dir():
        shutil.move(run / name, target)
    else:
        target.write_text("precious")
        (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)
    return target


def contents(target):
    return (
        target.read_bytes()
        if target.is_file()
        else {str(path): path.stat().st_mtime_ns for path in sorted(target.rglob("*"))}
    )


@pytest.mark.parametrize("way", WAYS_IN)
@pytest.mark.parametrize("name", [".lock", "tables", "config.yaml"])
def test_every_way_in_refuses_a_link(copied, name, way):
    target = led_out(copied, name)
    before = contents(target)
    with pytest.raises(RunError, match=rf"leads out of itself: {name} "):
        WAYS_IN[way](copied)
    assert contents(target) == before


@pytest.mark.parametrize(
    "name",
    ["run.json", "metrics.jsonl", "adapter", "adapter/adapter_config.json", "checkpoints/step-3/weights.safetensors"],
)
def test_a_link_anywhere_inside_is_refused(copied, name):
    led_out(copied, name)
    with pytest.raises(RunError, match=f"leads out of itself: {name} "):
        ghosttune.open_run(copied)


def test_a_pipe_that_nobody_fills_is_refused_and_not_waited_for(copied):
    (copied / "config.yaml").unlink()
    os.mkfifo(copied / "config.yaml")
    with pytest.raises(RunError, match=r"config\.yaml is a link, or no ordinary file"):
        ghosttune.open_run(copied)


@pytest.mark.parametrize("name", [".lock", "checkpoints", "config.yaml"])
def test_a_new_run_is_not_started_in_a_folder_that_holds_links(tmp_path, make_config, name):
    run, target = tmp_path / "run", tmp_path / "precious"
    run.mkdir()
    (run / ".lock").touch()
    (run / name).unlink(missing_ok=True)
    target.write_text("precious")
    (run / name).symlink_to(target)
    with pytest.raises(RunError, match="leads out of itself"):
        ghosttune.train(make_config(), run)
    assert target.read_text() == "precious"


def test_what_is_left_of_a_killed_write_is_not_followed(tmp_path):
    """A name that is written under until the contents are complete is a link to a folder, or to a file."""
    from ghosttune.run.directory import write_folder, write_text

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "kept").write_text("kept")
    for name in ("text", "folder"):
        (tmp_path / f".{name}.partial").symlink_to(precious)
    write_text(tmp_path / "text", "new")
    write_folder(tmp_path / "folder", lambda partial: (partial / "new").touch())
    assert (tmp_path / "text").read_text() == "new"
    assert sorted(path.name for path in precious.iterdir()) == ["kept"]


def test_the_logs_of_a_sweep_are_not_written_through_a_link(tmp_path, tiny_model, rows_file):
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    config = {"model": {"name": str(tiny_model)}, "data": {"train": {"path": str(rows_file)}}}
    file.write_text(json.dumps({"config": config, "axes": {"method.r": [2, 4]}}))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / "logs").symlink_to(elsewhere)
    with pytest.raises(RunError, match="leads out of itself: logs "):
        sweep(file, out)
    assert not list(elsewhere.iterdir())


def test_a_run_behind_a_link_that_the_user_names_is_fine(copied):
    behind = copied.parent / "behind"
    behind.symlink_to(copied)
    assert ghosttune.open_run(behind).record["status"] == "finished"
    with RunDir(behind).locked():
        pass


def test_everything_at_the_top_of_a_run_is_looked_at(finished):
    assert {path.name for path in finished.iterdir()} <= NAMES
