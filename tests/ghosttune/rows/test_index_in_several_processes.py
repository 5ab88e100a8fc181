"""`ghosttune index --processes N` stores what one process stores, byte for byte, and goes on after any of them died."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ghostgrad.store import GradientStore
from ghosttune.choosing.index import index
from ghosttune.errors import GhosttuneError, RunError
from ghosttune.run.directory import RunDir
from ghosttune.training.dealing import dealt_sketches, send_sketches
from ghosttune.training.processes import meet, rank
from processes import limited, run_group

BATCH, KIND = 2, "compact@1"


def started(run: Path, processes: int, **streams: Any) -> subprocess.Popen[str]:
    """The command in a session of its own, which a signal reaches as a whole."""
    options = ["--processes", str(processes), "--batch-size", str(BATCH), "--sketch", KIND, "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ghosttune", "index", str(run), *options]
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **streams)


def stored_rows(run: Path) -> int:
    ids = run / "store" / "train" / "step-6" / "ids.txt"
    return ids.read_bytes().count(b"\n") if ids.is_file() else 0


def wait_for_rows(process: subprocess.Popen[str], run: Path, count: int) -> None:
    while process.poll() is None and stored_rows(run) < count:
        time.sleep(0.001)


def wait_for_the_lock(run: Path) -> None:
    """A killed process holds it until the machine has had time to end it."""
    deadline = time.monotonic() + 150
    while True:
        try:
            with RunDir(run).locked():
                return
        except RunError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture(scope="module")
def of_one(trained, tmp_path_factory) -> dict[str, bytes]:
    """The files that one process writes, in batches of the same size."""
    run = tmp_path_factory.mktemp("of-one") / "run"
    shutil.copytree(trained, run)
    index(run, kind=KIND, batch_size=BATCH, device="cpu")
    return files(run)


def files(run: Path) -> dict[str, bytes]:
    folder = run / "store" / "train" / "step-6"
    assert GradientStore.is_sealed(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_killed_in_two_processes_and_taken_up_by_one(two_processes, run, of_one):
    """27 rows in 14 batches, of which the second process has the same number, and three when all are killed."""
    with limited(started(run, 2, stdout=subprocess.DEVNULL)) as process:
        wait_for_rows(process, run, 2 * 5)
        os.killpg(process.pid, signal.SIGKILL)
    wait_for_the_lock(run)
    half = stored_rows(run)
    assert 2 * 5 <= half < 27
    (found,) = index(run, kind=KIND, batch_size=BATCH, device="cpu")
    assert (found.rows, found.added) == (27, 27 - half)
    assert files(run) == of_one


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_command_and_three_take_it_up(two_processes, run, of_one):
    with limited(started(run, 2, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)) as process:
        wait_for_rows(process, run, 2 * 3)
        os.kill(child_of_rank(process.pid, 1), signal.SIGKILL)
        began = time.monotonic()
        _, said = process.communicate(timeout=300)
        assert process.returncode == 1 and "process 1 ended before its rows came" in said, said
        assert time.monotonic() - began < 150
    half = stored_rows(run)
    assert 6 <= half < 27
    with limited(started(run, 3, stdout=subprocess.PIPE)) as process:
        said, _ = process.communicate(timeout=500)
    assert process.returncode == 0 and f"27 rows ({27 - half} new)" in said and said.count("step 6") == 1
    assert files(run) == of_one


def child_of_rank(parent: int, rank: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    (found,) = [child for child in children if f"RANK={rank}".encode() in environment_of(child)]
    return int(found)


def environment_of(process: str) -> list[bytes]:
    return Path(f"/proc/{process}/environ").read_bytes().split(b"\0")


class Numbers:
    """In the place of `RowGradients`: a row of the numbers that are given as rows."""

    device = torch.device("cpu")
    size, dtype = 3, torch.bfloat16

    def __init__(self, failing: int | None = None):
        self.failing = failing
        self.sketcher = self.options = self

    def batches(self, rows: Iterable[int]) -> Iterator[dict[str, list[int]]]:
        numbers = list(rows)
        for start in range(0, len(numbers), 2):
            yield {str(number): [number] for number in numbers[start : start + 2]}

    def batch_sketches(self, batches: Iterable[dict[str, list[int]]]) -> Iterator[tuple[list[str], torch.Tensor]]:
        for batch in batches:
            if self.failing in [number for own in batch.values() for number in own]:
                raise ArithmeticError(f"no gradient of {self.failing}")
            yield list(batch), torch.tensor(list(batch.values()), dtype=self.dtype).expand(-1, self.size)


def deal() -> None:
    """Any number of batches: none, fewer than processes, and a number that does not divide among them."""
    meet(on_cpu=True)
    for count in (0, 1, 2, 3, 9):
        gradients: Any = Numbers()
        if rank():
            send_sketches(gradients, range(count))  # type: ignore[arg-type]
            continue
        ids, rows = [], []
        for names, sketches in dealt_sketches(gradients, range(count)):  # type: ignore[arg-type]
            ids += names
            rows += sketches.tolist()
        assert ids == [str(n) for n in range(count)] and rows == [[n] * 3 for n in range(count)]
    deal_what_fails()


def deal_what_fails() -> None:
    gradients: Any = Numbers(failing=6)  # in the fourth batch, which is process 1's
    if rank():
        with pytest.raises(ArithmeticError):
            send_sketches(gradients, range(9))  # type: ignore[arg-type]
        return
    found = dealt_sketches(gradients, range(9))  # type: ignore[arg-type]
    assert [names for _, (names, _) in zip(range(3), found, strict=False)] == [["0", "1"], ["2", "3"], ["4", "5"]]
    with pytest.raises(GhosttuneError, match="process 1 failed: ArithmeticError: no gradient of 6"):
        next(found)


def test_every_batch_is_dealt_once_and_what_fails_in_another_process_is_said(two_processes):
    run_group(deal)
