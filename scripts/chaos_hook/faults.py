"""Faults in a process under test: killed at its n-th write, a disk that is full from there on, a clock that goes back.

A *point* is what changes a folder: opening a file to write, writing to it, fsync, rename, removal, mkdir, truncation.
What Rust and C++ write (safetensors, Parquet) is no point by itself, but the fsync and the rename that follow are; a
torn kill there leaves part of what was not synced yet, as a kill inside such a write does.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """What is to happen, and where."""

    root: str
    """Points outside this folder do not count."""
    at: int | None = None
    """The point at which it happens; None for never."""
    how: str = "kill"
    """`kill`, `torn` (a kill that leaves part of what was being written) or `full` (no space from here on)."""
    seed: int = 0
    clock: float = 0.0
    """Seconds by which the clock goes back at each look."""
    full_tmp: bool = False
    """Whether there is no space for temporary files."""


class Points:
    """Counts the points of this process, and lets the fault happen."""

    def __init__(self, fault: Fault):
        self.fault, self.count, self.is_full = fault, 0, False
        self.synced: dict[str, int] = {}
        """Size of files when they were last synced, of which a kill takes nothing away."""

    def reach(self, path: Any, tear: Callable[[], object] = lambda: None, writes: bool = True) -> None:
        """A point that changes `path`; OSError where it needs space and there is none."""
        if isinstance(path, int) or not os.path.abspath(os.fsdecode(path)).startswith(self.fault.root):
            return
        self.count += 1
        if self.count == self.fault.at and self.fault.how == "full":
            self.is_full = True
        elif self.count == self.fault.at:
            if self.fault.how == "torn":
                tear()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.is_full and writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))

    def cut(self, path: str) -> None:
        """Leaves part of what was written since the last sync."""
        size = os.path.getsize(path)
        kept = random.Random(self.fault.seed).randint(min(self.synced.get(path, 0), size), size)
        with io.FileIO(path, "r+") as file:
            file.truncate(kept)


class File:
    """A file that is written; every `write` is a point."""

    def __init__(self, file: Any, path: Any, points: Points):
        self.file, self.path, self.points = file, path, points

    def write(self, data: Any) -> Any:
        def half() -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()

        self.points.reach(self.path, half)
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def arm(fault: Fault) -> Points:
    """Lets the fault happen in this process, from now on."""
    points = Points(fault)
    real_fsync, real_open, opened = os.fsync, os.open, io.open

    def of_path(name: str, writes: bool) -> None:
        real = getattr(os, name)

        def wrapped(path: Any, *rest: Any, **options: Any) -> Any:
            if options.get("dir_fd") is None:
                points.reach(rest[0] if name in ("rename", "replace") else path, writes=writes)
            return real(path, *rest, **options)

        setattr(os, name, wrapped)

    def fsync(handle: Any) -> None:
        path = os.readlink(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}")
        is_file = os.path.isfile(path)
        points.reach(path, (lambda: points.cut(path)) if is_file else lambda: None)
        real_fsync(handle)
        if is_file:
            points.synced[path] = os.path.getsize(path)

    def open_descriptor(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and options.get("dir_fd") is None:
            points.reach(path)
        return real_open(path, flags, *rest, **options)

    def open_file(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+") or isinstance(path, int):
            return opened(path, mode, *rest, **options)
        points.reach(path)
        return File(opened(path, mode, *rest, **options), path, points)

    for name, writes in {"rename": False, "replace": False, "unlink": False, "remove": False, "rmdir": False}.items():
        of_path(name, writes)
    of_path("mkdir", True)
    of_path("truncate", False)
    os.fsync, os.open = fsync, open_descriptor
    builtins.open = io.open = open_file
    if fault.clock:
        _turn_back(fault.clock)
    if fault.full_tmp:
        tempfile.TemporaryFile = lambda *_, **__: opened("/dev/full", "r+b", buffering=0)  # type: ignore[assignment]
    return points


def _turn_back(seconds: float) -> None:
    real, looks = time.time, iter(range(10**9))
    time.time = lambda: real() - seconds * next(looks)
    time.time_ns = lambda: int(time.time() * 1e9)
