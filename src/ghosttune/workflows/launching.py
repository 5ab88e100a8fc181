"""`ghosttune train` and `index` in several processes on this machine.

Each gets the same command and its place by the environment variables of torch.distributed; Accelerate does the rest.
Our own start instead of `torchrun` or `accelerate launch`: those end every failure with exit code 1 and a page of their
own, and Accelerate starts several CPU processes through MPI only.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from ghosttune.config.schema import RunConfig
from ghosttune.errors import InputError
from ghosttune.run.directory import RunDir
from ghosttune.training.processes import meet, rank
from ghosttune.workflows.prepare import default_run_folder

SECONDS_TO_END = 20.0
"""How long the others may take to end by themselves once one has ended."""

PROCESSES_PER_PROCESSOR = 8
"""More are a slip of the hand: each loads the model."""


def launch_training(processes: int, config: RunConfig | None, out: Path | None, arguments: Sequence[str]) -> int:
    """Runs this `ghosttune train` command in so many processes, which must all know the same run directory."""
    if out is None and config is not None:
        arguments = [*arguments, "--out", str(default_run_folder(config, datetime.now().strftime("%Y%m%d-%H%M%S")))]
    return launch(processes, arguments)


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Runs `ghosttune` with these arguments in so many processes; the exit code of the first that failed, else 0.

    It is 1 for one that was killed. What process 0 prints is printed; what another says on its way to failing is
    printed when process 0 said nothing. InputError for more processes than this machine can be thought to hold.
    """
    processors = os.cpu_count() or 1
    if processes > PROCESSES_PER_PROCESSOR * processors:
        most = PROCESSES_PER_PROCESSOR * processors
        raise InputError(f"--processes is {processes}; this machine has {processors} processors: give at most {most}")
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    if "lo" in {name for _, name in socket.if_nameindex()}:
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    command = [sys.executable, "-m", "ghosttune", *arguments]
    with tempfile.TemporaryFile() as said, _started(command, environment, processes, said) as started:
        code = _first_failure(started)
        said.seek(0)
        if code and started[0].returncode == 0:
            sys.stderr.write(said.read().decode(errors="replace"))
    return code


@contextmanager
def _started(
    command: list[str], environment: dict[str, str], processes: int, said: IO[bytes]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes; none is left when this ends, however it ends."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            quiet = {} if rank == 0 else {"stdout": subprocess.DEVNULL, "stderr": said}
            started.append(subprocess.Popen(command, env=environment | place, **quiet))  # type: ignore[call-overload]
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()


def _first_failure(started: list[subprocess.Popen[bytes]]) -> int:
    """Waits for all; once one has failed, the others get a while to end and are ended."""
    failed, since = 0, 0.0
    while any(process.poll() is None for process in started):
        try:
            time.sleep(0.05)
        except KeyboardInterrupt:  # the terminal sent it to every process; they save their state and end
            continue
        codes = [process.returncode for process in started if process.returncode]
        if codes and not failed:
            failed, since = codes[0], time.monotonic()
        if failed and time.monotonic() - since > SECONDS_TO_END:
            for process in started:
                if process.poll() is None:
                    process.kill()
    codes = [process.returncode for process in started if process.returncode]
    code = failed or (codes[0] if codes else 0)
    return 1 if code < 0 else code


@contextmanager
def own_folder(run: Path) -> Iterator[RunDir]:
    """The run directory for process 0; for another a copy that nobody reads, so that all of them do the same."""
    if rank() == 0:
        meet()
        yield RunDir(run)
        return
    with tempfile.TemporaryDirectory(prefix="ghosttune-process-") as folder:
        copy = Path(folder) / "run"
        if run.is_dir() and any(run.iterdir()):
            shutil.copytree(run, copy, ignore=shutil.ignore_patterns(".*", "predictions", "store", "tables"))
        meet()  # from here on process 0 writes
        yield RunDir(copy)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
