"""`ghosttune train` and `index` in several processes on this machine.

Each gets the same command and its place by the environment variables of torch.distributed; Accelerate does the rest.
`torchrun` and `accelerate launch` start the same command, on several machines too. Our own start for one machine ends
failures with the command's own exit code and message; theirs is 1, with a page of their own.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
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
from ghosttune.run.directory import PARTIAL, REPLACED, RunDir
from ghosttune.run.family import OTHERS_GONE, handling, let_go, start_child
from ghosttune.run.scratch import scratch_folder
from ghosttune.stages.prepare import default_run_folder
from ghosttune.training.processes import meet, rank

SECONDS_TO_END = 20.0
"""How long the others may take to end by themselves, and to say why, once one has failed."""

SECONDS_AFTER_A_KILL = 0.5
"""The same once one was killed, of which the others know nothing to say, or once a second signal came."""

LOOK_AGAIN = 0.05
"""Seconds between two looks at the processes."""

NOT_COPIED = (PARTIAL.format("*"), REPLACED.format("*"), "predictions", "store", "tables")
"""Of a run, for a process that only trains: what was never finished, and what it does not look at."""

PROCESSES_PER_PROCESSOR = 8
"""More are a slip of the hand: each loads the model."""


ONLY_DDP = "leave it out: processes that share rows (DDP), and the base under train.fsdp, are what there is"

LAUNCHED_WITH = {
    "ACCELERATE_USE_FSDP": ("false", "leave it out, and set train.fsdp: true, which shares the base out"),
    "ACCELERATE_USE_DEEPSPEED": ("false", ONLY_DDP),
    "ACCELERATE_USE_MEGATRON_LM": ("false", ONLY_DDP),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("false", ONLY_DDP),
    "ACCELERATE_MIXED_PRECISION": ("no", "give --mixed_precision no; model.dtype says the precision"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "give --dynamo_backend no: compiled code cannot be measured"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "leave it at 1; train.gradient_accumulation_steps says how many"),
}
"""What `accelerate launch` would change behind the configuration: the value that changes nothing, and what to do."""


def require_plain_launch() -> None:
    """InputError, with all of them, where a launcher has set what the configuration does not say."""
    found = [
        f"{name}={os.environ[name]}: {remedy}"
        for name, (nothing, remedy) in LAUNCHED_WITH.items()
        if os.environ.get(name, nothing).lower() != nothing
    ]
    if found:
        raise InputError("\n".join(["what launched this process has set", *found]))


def require_gpus(wanted: int) -> None:
    """InputError where torch does not see so many on this machine."""
    import torch

    there = torch.cuda.device_count()
    if wanted > there:
        raise InputError(
            f"--gpus is {wanted}; torch {torch.__version__} sees {there} here: give at most that, or, on the CPU, "
            "--processes"
        )


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
        failed, interrupted = _first_failure(started)
        said.seek(0)
        if failed and started[0].returncode in (0, OTHERS_GONE, -signal.SIGKILL):
            sys.stderr.write(said.read().decode(errors="replace"))
    code = 0 if failed is None else started[failed].returncode
    if code < 0 and interrupted:
        raise KeyboardInterrupt
    if code < 0:
        sys.stderr.write(f"process {failed} of {processes} was killed by signal {-code}; the others were ended, and ")
        sys.stderr.write("what is saved stays\n")
    return 1 if code < 0 else code


@contextmanager
def _started(
    command: list[str], environment: dict[str, str], processes: int, said: IO[bytes]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes; none is left when this ends, however it ends."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            quiet = (subprocess.DEVNULL, said) if rank else ()
            started.append(start_child(command, environment | place, *quiet))
        yield started
    finally:
        for process in started:
            process.kill()
            let_go(process)


def _first_failure(started: list[subprocess.Popen[bytes]]) -> tuple[int | None, bool]:
    """Waits for all; (which failed first, None where none did; whether this process was interrupted).

    Once one has failed or was killed, the others get a while to end and are ended. Ctrl-C and SIGTERM, which need not
    have reached them, are passed on: training saves its state, and everything else ends at once.
    """
    failed, deadline, signals = None, math.inf, 0

    def pass_on(number: int) -> None:
        nonlocal signals
        signals += 1
        for process in started:
            process.terminate()  # training takes it and a Ctrl-C that the terminal has sent for one

    going = True
    with handling((signal.SIGINT, signal.SIGTERM), pass_on):
        while going:
            time.sleep(LOOK_AGAIN)
            going = None in [process.poll() for process in started]  # each is looked at, whatever the first one does
            if failed is None and (failed := _failed(started)) is not None:
                killed = started[failed].returncode < 0
                deadline = time.monotonic() + (SECONDS_AFTER_A_KILL if killed else SECONDS_TO_END)
            if signals > 1:
                deadline = min(deadline, time.monotonic() + SECONDS_AFTER_A_KILL)
            if time.monotonic() > deadline:
                for process in started:
                    process.kill()
    return failed, signals > 0


def _failed(started: list[subprocess.Popen[bytes]]) -> int | None:
    """One that has failed, by itself if possible; None while there is none."""
    codes = {rank: process.returncode for rank, process in enumerate(started) if process.returncode}
    return min(codes, key=lambda rank: (codes[rank] == OTHERS_GONE, rank), default=None)


@contextmanager
def own_folder(run: Path) -> Iterator[RunDir]:
    """The run directory for process 0; for another a copy that nobody reads, so that all of them do the same.

    InputError where a launcher has set what the configuration does not say.
    """
    require_plain_launch()
    if rank() == 0:
        meet()
        yield RunDir(run)
        return
    with scratch_folder() as folder:
        copy = folder / "run"
        if run.is_dir() and any(run.iterdir()):
            shutil.copytree(run, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
        meet()  # from here on process 0 writes
        yield RunDir(copy, copy_of=run)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
