"""Whatever is killed of a family of processes, none of them is left after five seconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ghosttune import train
from ghosttune.config.rendering import plain_yaml
from ghosttune.proving.specimens import short_run, write_rows
from ghosttune.run.directory import RunDir
from ghosttune.run.scratch import scratch_folder
from ghosttune.stages.launching import _first_failure
from processes import limited

KILL, TERM = signal.SIGKILL, signal.SIGTERM

SECONDS_LEFT = 5.0
"""In which no process may be left of a family of which one was killed."""

SECONDS_TO_SAVE = 150.0
"""The same after SIGTERM, upon which runs finish their step and save their state: seconds on an idle machine."""

STARTS_A_CHILD = """
import os, sys, time
from ghosttune.run.family import start_child
child = start_child([sys.executable, "-c", sys.argv[1]], os.environ, stdout=sys.stdout)
time.sleep(1000)
"""
IS_A_CHILD = """
import sys, time
{before}
from ghosttune.run.family import end_with_parent
end_with_parent()
print("ready", flush=True)
{then}
"""
BUSY = """
import ctypes
ctypes.PyDLL(None).usleep(1000_000_000)  # without letting go of the interpreter's lock
"""


class Family:
    """A command and all its processes, which are known by a word in their environment."""

    def __init__(self, word: str, process: subprocess.Popen[bytes]):
        self.word, self.process = word, process

    def members(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._belongs(process)]

    def _belongs(self, process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("FAMILY") == self.word
        except psutil.Error:
            return False

    def child(self, rank: int | None = None) -> psutil.Process:
        """A process that the command has started: that of a rank, or any."""
        while True:
            for process in self.members():
                if process.pid == self.process.pid or process.ppid() != self.process.pid:
                    continue
                if rank is None or process.environ().get("RANK") == str(rank):
                    return process
            assert self.process.poll() is None, "the command ended by itself"
            time.sleep(0.02)

    def require_gone(self, after: int = KILL) -> None:
        """Waits until all have ended by a signal that one of them was sent."""
        deadline = time.monotonic() + (SECONDS_LEFT if after == KILL else SECONDS_TO_SAVE)
        while left := self.members():
            assert time.monotonic() < deadline, [process.cmdline() for process in left]
            time.sleep(0.05)

    def said(self) -> str:
        """Everything it has printed, once it has ended."""
        return b"".join(self.process.communicate(timeout=150)).decode()

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 600
        while not what():
            assert self.process.poll() is None, f"the command ended by itself: {self.said()}"
            assert time.monotonic() < deadline
            time.sleep(0.01)


@contextmanager
def family(*command: str | Path, **environment: str) -> Iterator[Family]:
    word = uuid.uuid4().hex
    known = os.environ | {"FAMILY": word, "OMP_NUM_THREADS": "1"} | environment
    started = subprocess.Popen(
        [sys.executable, *map(str, command)], env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with limited(started, 750) as process:
        members = Family(word, process)
        try:
            yield members
        finally:
            for left in members.members():
                left.kill()


@pytest.mark.parametrize("then", ["time.sleep(1000)", BUSY], ids=["by its input", "by the kernel"])
def test_a_child_ends_with_its_parent(then):
    """Its thread hears the end of its input on every platform; one that cannot run needs the kernel, Linux's here."""
    kernel = "time.sleep" not in then
    if kernel and sys.platform != "linux":
        pytest.skip("only Linux ends children by itself")
    before = "" if kernel else "sys.platform = 'another one'"
    with family("-c", STARTS_A_CHILD, IS_A_CHILD.format(before=before, then=then)) as members:
        assert members.process.stdout is not None and members.process.stdout.readline() == b"ready\n"
        assert len(members.members()) == 2
        members.process.kill()
        members.require_gone()


def test_what_a_killed_process_kept_is_removed_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "import time; from ghosttune.run.scratch import scratch_folder\nwith scratch_folder() as folder:\n"
    code += " (folder / 'weights').write_text('x'); print(folder, flush=True); time.sleep(1000)"
    left = []
    with family("-c", code, TMPDIR=str(tmp_path)) as killed, family("-c", code, TMPDIR=str(tmp_path)) as alive:
        for members in (killed, alive):
            assert members.process.stdout is not None
            left.append(Path(members.process.stdout.readline().decode().strip()))
        killed.process.kill()
        killed.process.wait(timeout=150)
        assert all((folder / "weights").exists() for folder in left)
        with scratch_folder() as own:
            assert set(tmp_path.iterdir()) == {left[1], own}
    assert set(tmp_path.iterdir()) == {left[1]}


@pytest.fixture(scope="module")
def endless(tiny_model, tmp_path_factory) -> Path:
    """A configuration of a run that does not end by itself."""
    folder = tmp_path_factory.mktemp("endless")
    rows, often = write_rows(folder / "rows.jsonl"), 10**6
    steps = {"train__max_steps": often, "train__eval_steps": often, "train__save_steps": often}
    (folder / "run.yaml").write_text(plain_yaml(short_run(tiny_model, rows, **steps)))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def short(tiny_model, tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("short")
    return train(short_run(tiny_model, write_rows(folder / "rows.jsonl")), folder / "run").path


@contextmanager
def training(endless: Path, out: Path) -> Iterator[Family]:
    """Two processes that train one run and have begun to."""
    with family("-m", "ghosttune", "train", endless, "--out", out, "--processes", "2") as members:
        members.wait_for(lambda: bool(RunDir(out).events()))
        yield members


@contextmanager
def sweeping(endless: Path, out: Path) -> Iterator[Family]:
    """A sweep whose two runs have both begun to train."""
    file = out.with_suffix(".yaml")
    file.write_text(json.dumps({"config": str(endless), "axes": {"method.r": [2, 4]}}))
    with family("-m", "ghosttune", "sweep", file, "--out", out, "--processes", "2") as members:
        members.wait_for(lambda: len(list(out.glob("runs/**/metrics.jsonl"))) == 2)
        yield members


@contextmanager
def indexing(run: Path, folder: Path) -> Iterator[Family]:
    """Two processes that have begun to store the gradients of many rows."""
    rows = folder / "many.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Say {n}", "completion": str(n)}) + "\n" for n in range(3_000)))
    own = RunDir(shutil.copytree(run, folder / "run"))
    command = ["index", own.path, "--data", rows, "--batch-size", "1", "--processes", "2", "--sketch", "exact@1"]
    with family("-m", "ghosttune", *command) as members:
        members.wait_for(lambda: any(file.stat().st_size for file in own.path.glob("store/*/*/ids.txt")))
        yield members


@pytest.mark.parametrize("dies", [0, 1])
def test_a_killed_process_is_noticed_while_another_works_on(dies):
    """Nothing that they have to say to each other tells the other: it is told by who has started both."""
    code = ["import time; time.sleep(100)", "import os; os.kill(os.getpid(), 9)"]
    started = [subprocess.Popen([sys.executable, "-c", code[rank == dies]]) for rank in range(2)]
    try:
        begun = time.monotonic()
        assert _first_failure(started) == (dies, False)
        assert time.monotonic() - begun < SECONDS_LEFT
    finally:
        for process in started:
            process.kill()
            process.wait(timeout=150)


def parent(members: Family) -> psutil.Process:
    return psutil.Process(members.process.pid)


def writer(members: Family) -> psutil.Process:
    return members.child(0)


def helper(members: Family) -> psutil.Process:
    return members.child(1)


@pytest.mark.slow(seconds=60)
@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize(
    ("whom", "number"), [(parent, KILL), (parent, TERM), (writer, KILL), (helper, KILL), (helper, TERM)]
)
def test_of_several_processes_that_train(endless, tmp_path, whom, number):
    with training(endless, tmp_path / "run") as members:
        whom(members).send_signal(number)
        members.require_gone(number)
        said = members.said()
    assert members.process.returncode == (-number if (whom, number) == (parent, KILL) else 1), said
    if number == TERM:
        assert RunDir(tmp_path / "run").read_record()["status"] == "stopped"
        assert RunDir(tmp_path / "run").checkpoint_steps() and "Continue with" in said
    elif whom is not parent:
        rank = 0 if whom is writer else 1
        assert f"process {rank} of 2 was killed by signal 9" in said and "should not have happened" not in said


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("number", [KILL, TERM])
def test_of_a_sweep(endless, tmp_path, number):
    with sweeping(endless, tmp_path / "out") as members:
        members.process.send_signal(number)
        members.require_gone(number)
    records = [json.loads(file.read_text()) for file in tmp_path.glob("out/runs/**/run.json")]
    status = "running" if number == KILL else "stopped"
    assert [record["status"] for record in records] == [status, status]


@pytest.mark.slow(seconds=10)
def test_a_run_of_a_sweep_that_is_killed_costs_no_other(endless, tmp_path):
    with sweeping(endless, tmp_path / "out") as members:
        killed = members.child()
        killed.kill()
        assert members.process.stdout is not None
        assert any(b"killed by signal 9" in line for line in members.process.stdout), "it ended without saying so"
        assert len(members.members()) == 2
        members.process.terminate()
        members.require_gone(TERM)


@pytest.mark.slow(seconds=50)
@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize(("whom", "number"), [(parent, KILL), (parent, TERM), (helper, KILL)])
def test_of_several_processes_that_index(short, tmp_path, whom, number):
    with indexing(short, tmp_path) as members:
        whom(members).send_signal(number)
        members.require_gone(number)
        said = members.said()
    assert members.process.returncode == (-number if (whom, number) == (parent, KILL) else 1), said
    assert "should not have happened" not in said
