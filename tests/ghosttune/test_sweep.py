"""A sweep keeps what is finished, continues what is not, goes on past what fails, and ends in a comparison."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ghosttune import train
from ghosttune.cli.main import app
from ghosttune.errors import GhosttuneError, RunError
from ghosttune.proving.freezing import differences
from ghosttune.proving.specimens import short_run, write_rows
from ghosttune.run.directory import RunDir
from ghosttune.workflows import sweep as module
from ghosttune.workflows.sweep import SweepDir, sweep

SECONDS = 1500


def sweep_file(folder: Path, model: Path, **keys: object) -> Path:
    rows = write_rows(folder / "rows.jsonl")
    config = short_run(model, rows, data__dev__fraction=0.3, train__max_steps=4, evaluate__limit=3).model_dump()
    path = folder / "ranks.yaml"
    path.write_text(yaml.safe_dump({"config": config, "axes": {"method.r": [2, 4]}, "seeds": [1, 2], **keys}))
    return path


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory) -> Path:
    """The runs that a sweep of two ranks and two seeds would make."""
    folder = tmp_path_factory.mktemp("trained")
    for trial in module.read_sweep(sweep_file(folder, tiny_model)):
        train(trial.config, folder / trial.name)
    return folder


class Fake:
    """Stands for `ghosttune train` in a process: copies a run that was trained before, fails, or never ends."""

    def __init__(self, trained: Path, failing: tuple[str, ...] = (), hanging: tuple[str, ...] = ()):
        self.trained, self.failing, self.hanging = trained, failing, hanging
        self.started: list[str] = []

    def __call__(self, folder: SweepDir, trial, share: int) -> subprocess.Popen[bytes]:
        self.started.append(trial.name)
        folder.log(trial).parent.mkdir(parents=True, exist_ok=True)
        folder.log(trial).write_text("step 1/4\nthe disk is full\n")
        code = "import sys; sys.exit(7)" if trial.name in self.failing else "pass"
        if trial.name in self.hanging:
            code = "import time; time.sleep(1000)"
        elif trial.name not in self.failing:
            shutil.copytree(self.trained / trial.name, folder.run(trial).path, dirs_exist_ok=True)
        return subprocess.Popen([sys.executable, "-c", code])


def test_finished_runs_are_kept_and_failures_are_named(tiny_model, trained, tmp_path, monkeypatch):
    file, said = sweep_file(tmp_path, tiny_model), []
    fake = Fake(trained, failing=("r-4/seed-2",))
    monkeypatch.setattr(module, "_start", fake)
    result = sweep(file, tmp_path / "out", processes=2, listen=lambda trial, what: said.append((trial.name, what)))
    assert [trial.name for trial in result.finished] == ["r-2/seed-1", "r-2/seed-2", "r-4/seed-1"]
    assert result.failed["r-4/seed-2"].startswith("exit code 7: step 1/4 the disk is full (see ")
    assert result.comparison is not None and result.comparison["arms"]["r-2"]["seeds"] == [1]
    flags = result.comparison["flags"]
    assert {"failed and left out: r-4/seed-2", "seed: 2 of r-2 left out, which not every arm has"} <= set(flags)
    assert (tmp_path / "out" / "comparison.md").is_file()
    fake.failing, fake.started = (), []
    again = sweep(file, tmp_path / "out")
    assert fake.started == ["r-4/seed-2"] and not again.failed
    assert again.comparison is not None and again.comparison["arms"]["r-2"]["seeds"] == [1, 2]


def test_one_arm_alone_is_not_compared(tiny_model, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_start", Fake(trained, failing=("r-4/seed-1", "r-4/seed-2")))
    result = sweep(sweep_file(tmp_path, tiny_model), tmp_path / "out")
    assert len(result.failed) == 2 and result.comparison is None


def test_a_changed_file_is_refused_before_anything_starts(tiny_model, trained, tmp_path, monkeypatch):
    fake = Fake(trained)
    monkeypatch.setattr(module, "_start", fake)
    sweep(sweep_file(tmp_path, tiny_model), tmp_path / "out")
    changed = sweep_file(tmp_path, tiny_model)
    changed.write_text(changed.read_text().replace("lora_alpha: 16", "lora_alpha: 8"))
    fake.started = []
    with pytest.raises(RunError, match=r"holds runs of the same names with other settings \(r-2/seed-1, "):
        sweep(changed, tmp_path / "out")
    more = sweep_file(tmp_path, tiny_model, seeds=[1, 2, 3])
    monkeypatch.setattr(module, "_start", Fake(trained, failing=("r-2/seed-3", "r-4/seed-3")))
    assert len(sweep(more, tmp_path / "out").failed) == 2, "more seeds are welcome"
    assert fake.started == []


def test_an_interruption_ends_every_run(tiny_model, trained, tmp_path, monkeypatch):
    fake = Fake(trained, hanging=("r-2/seed-1", "r-2/seed-2"))
    going: list[subprocess.Popen[bytes]] = []
    sleep = time.sleep

    def start(*arguments, **options):
        going.append(fake(*arguments, **options))
        return going[-1]

    def interrupted(seconds: float) -> None:
        monkeypatch.setattr(time, "sleep", sleep)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_start", start)
    monkeypatch.setattr(module, "SECONDS_TO_END", 2.0)
    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(GhosttuneError, match="continue when the same command is given again"):
        sweep(sweep_file(tmp_path, tiny_model), tmp_path / "out", processes=2)
    assert len(going) == 2 and all(process.returncode is not None for process in going)


def test_runs_that_share_a_machine_share_its_cores(tiny_model, trained, tmp_path, monkeypatch):
    seen = []

    def popen(command, **options):
        seen.append((command, options["env"].get("OMP_NUM_THREADS")))
        raise KeyboardInterrupt

    monkeypatch.setattr(module.subprocess, "Popen", popen)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 8)
    for processes in (1, 4):
        with pytest.raises(GhosttuneError):
            sweep(sweep_file(tmp_path, tiny_model), tmp_path / f"out-{processes}", processes=processes)
    assert [threads for _, threads in seen] == [None, "2"]
    assert seen[0][0][1:4] == ["-m", "ghosttune", "train"] and "--resume" not in seen[0][0]


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    (tmp_path / "sweep.yaml").write_text("axes: {method.r: [1, 1]}\n")
    with pytest.raises(Exception, match="different values"):
        app(["sweep", str(tmp_path / "sweep.yaml")], standalone_mode=False)


@pytest.mark.slow(seconds=35)
def test_killed_and_given_again_it_ends_as_if_never_stopped(tiny_model, trained, tmp_path):
    """Real processes: the whole sweep is killed in the middle of a run."""
    file = sweep_file(tmp_path, tiny_model)
    command = [sys.executable, "-m", "ghosttune", "sweep", str(file), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + SECONDS
    second = RunDir(tmp_path / "out" / "runs" / "r-2" / "seed-2")
    while not second.checkpoint_steps() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=150)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "r-2/seed-1: kept" in done.stdout and "r-2/seed-2: resumed" in done.stdout
    assert "Against r-2, on the same rows:" in done.stdout
    for name in ("r-2/seed-1", "r-2/seed-2", "r-4/seed-1"):
        assert differences(trained / name, tmp_path / "out" / "runs" / name) == []
