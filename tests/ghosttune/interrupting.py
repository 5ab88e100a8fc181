"""Ctrl-C at a step of a run, and SIGKILL."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ghosttune.run.directory import RunDir


def interrupt_at(step: int) -> Callable[[dict[str, Any]], None]:
    """A listener that interrupts the run when it has made this update."""

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == step:
            signal.raise_signal(signal.SIGINT)

    return listen


def start(*arguments: str | Path) -> subprocess.Popen:
    """A real `ghosttune train` process, with one thread as here."""
    code = "import torch; torch.set_num_threads(1); from ghosttune.cli.main import main; main()"
    command = [sys.executable, "-c", code, "train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=150)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the process ended by itself ({process.returncode})"
        assert time.monotonic() < deadline, "the run never came to the point where it was to be killed"
        time.sleep(0.002)


def wait_for_step(step: int, out: Path, process: subprocess.Popen) -> None:
    wait_for(lambda: steps_logged(out) >= step, process)


def steps_logged(out: Path) -> int:
    return max((event["step"] for event in RunDir(out).events()), default=-1)
