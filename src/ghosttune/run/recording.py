"""run.json while the run goes on: what it is, where it ran, how long each stage took, and how it ended."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ghosttune.run.directory import RunDir
from ghosttune.run.git import git_state
from ghosttune.run.versions import installed
from ghosttune.version import __version__

RECORDED_PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy", "pydantic")


class Record:
    """The contents of run.json; every change is on disk at once."""

    def __init__(self, run: RunDir, contents: dict[str, Any]):
        self.run = run
        self.contents = contents
        self.going: tuple[str, float] | None = None
        """The stage under way, and up to when its time is counted."""

    @classmethod
    def begin(cls, run: RunDir, **facts: Any) -> Record:
        """A record of a run that starts now."""
        contents = {
            "ghosttune": __version__,
            "status": "running",
            "step": 0,
            "started": _now(),
            **facts,
            "environment": environment(),
            "stage_seconds": {},
        }
        return cls(run, contents)._written()

    @classmethod
    def reopen(cls, run: RunDir) -> Record:
        """The record of a run that goes on; what this environment changes is noted beside what it was."""
        contents = {name: value for name, value in run.read_record().items() if name not in ("ended", "error")}
        resumed = {"at": _now(), "environment": environment()}
        contents |= {"status": "running", "resumed": [*contents.get("resumed", []), resumed]}
        return cls(run, contents)._written()

    def note(self, **facts: Any) -> None:
        """Adds or replaces facts."""
        self.contents |= facts
        self._written()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to `stage_seconds`."""
        self.going = (name, time.perf_counter())
        try:
            yield
        finally:
            self.count_seconds()
            self.going = None

    def count_seconds(self) -> None:
        """Adds what the stage under way has taken so far; on disk with the next note."""
        if self.going is not None:
            name, since = self.going
            self.going = (name, time.perf_counter())
            self.add_seconds(name, self.going[1] - since)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Adds to the time of a stage; on disk with the next note."""
        stages = self.contents["stage_seconds"]
        stages[stage] = round(stages.get(stage, 0.0) + seconds, 3)

    def end(self, status: str, **facts: Any) -> None:
        """The last word: finished, stopped or failed."""
        self.note(status=status, ended=_now(), peak_memory_mb=peak_memory_mb(), **facts)

    def _written(self) -> Record:
        self.run.write_record(self.contents)
        return self


def environment() -> dict[str, Any]:
    """Versions, commit and machine; no paths, no names of users, no environment variables."""
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in RECORDED_PACKAGES if (found := installed(name))},
        "git": git_state(),
        "host": {"name": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()},
    }


def peak_memory_mb() -> dict[str, float]:
    """Largest resident memory of this process, and of its CUDA device where torch uses one."""
    peak = {"process": round(_peak_resident() / 2**20, 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak["cuda"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peak


def _peak_resident() -> int:
    """Bytes. Linux's `ru_maxrss` would begin with the peak of whoever started this process."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
