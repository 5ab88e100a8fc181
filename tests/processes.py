"""Tests with processes of their own: every one of them ends, whatever it waits for.

Needs nothing but the standard library here, and torch in the processes that form a group.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

LIMIT = 600.0
"""Seconds in which a group of processes is done: it takes five on an idle machine."""

GROUP_TIMEOUT = 300.0
"""Seconds that one process of a group waits for another."""

GRACE = 3.0
"""Seconds in which the other processes may say why they fail too, once one has failed."""


class GroupFailed(AssertionError):
    """A process of a group failed or was not done in time; the message holds what each of them wrote."""


@contextlib.contextmanager
def limited(process: subprocess.Popen, seconds: float = LIMIT) -> Iterator[subprocess.Popen]:
    """Kills the process at the end, and after `seconds` even while somebody reads from it."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        process.kill()
        process.wait(timeout=150)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def run_group(function: Callable[..., None], *arguments: object, size: int = 2, limit: float = LIMIT) -> None:
    """Calls a module's function, with the arguments as text, in `size` new processes that form a gloo group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    if any(name == "lo" for _, name in socket.if_nameindex()):
        group["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo takes the address of the host's name, whatever that leads to
    stacks_after = limit - min(5.0, limit / 4)
    call = [function.__module__, function.__qualname__, *map(str, arguments)]
    command = [sys.executable, __file__, str(stacks_after), *call]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as opened:
        said = [Path(folder) / f"{rank}.txt" for rank in range(size)]
        processes: list[subprocess.Popen] = []
        try:
            for rank, path in enumerate(said):
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                output = opened.enter_context(open(path, "wb"))
                processes.append(
                    subprocess.Popen(
                        command,
                        env=os.environ | group | place,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            in_time = _all_ended(processes, limit)
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # its children too
                process.wait(timeout=150)
        if not in_time or any(process.returncode for process in processes):
            ended = "" if in_time else f"not done within {limit:g} s\n"
            parts = [
                f"--- rank {rank}, exit code {process.returncode}\n{_without_frames(path.read_text(errors='replace'))}"
                for rank, (process, path) in enumerate(zip(processes, said, strict=True))
            ]
            raise GroupFailed(f"{function.__qualname__} in {size} processes: {ended}" + "\n".join(parts))


def _all_ended(processes: list[subprocess.Popen], limit: float) -> bool:
    """Waits until all have ended, or until one has failed and the others had time to say so; False past the limit."""
    deadline, failed = time.monotonic() + limit, False
    while any(process.poll() is None for process in processes):
        if not failed and any(process.poll() for process in processes):
            deadline, failed = min(deadline, time.monotonic() + GRACE), True
        if time.monotonic() > deadline:
            return failed
        time.sleep(0.02)
    return True


def _without_frames(text: str) -> str:
    """Without the addresses inside torch, which say nothing here."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("frame #"))


def add_ones() -> None:
    """The least that a group can do."""
    import torch
    import torch.distributed as dist

    ones = torch.ones(3)
    dist.all_reduce(ones)
    assert torch.equal(ones, torch.full((3,), float(dist.get_world_size())))


def why_no_group() -> str:
    """What happens to two processes that only add up a tensor; an empty string where nothing goes wrong."""
    try:
        run_group(add_ones, limit=60)
    except GroupFailed as failure:
        return str(failure)
    return ""


def main() -> None:
    """One process of a group: `processes.py SECONDS MODULE FUNCTION ARGUMENTS`, its place in the environment."""
    _, seconds, module, function, *arguments = sys.argv
    faulthandler.dump_traceback_later(float(seconds), exit=True)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    called = getattr(importlib.import_module(module), function)
    dist.init_process_group("gloo", timeout=timedelta(seconds=GROUP_TIMEOUT))
    called(*arguments)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
