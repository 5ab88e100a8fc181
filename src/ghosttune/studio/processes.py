"""Trainings that the studio starts: each a `ghosttune train` of its own, which goes on when the studio ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ghosttune.errors import InputError, RunError
from ghosttune.foreign import read_json
from ghosttune.run.directory import write_json, write_text
from ghosttune.studio.folder import Folder

CHILDREN: dict[int, subprocess.Popen[bytes]] = {}
"""Processes that this studio started, by number."""

LAST_BYTES = 4000
"""Of a log that is shown."""


def start(folder: Folder, name: str, text: str, share: int = 1) -> None:
    """Trains the configuration in `text` as a new run of this name, one of `share` that are started together.

    InputError for a name that cannot be used.
    """
    place = folder.new(name)
    if started_here(folder, name):
        raise RunError(f"a run {name} has just been started; give another name")
    config = folder.own("configs", name, ".yaml")
    write_text(config, text)
    _launch(folder, name, ["train", str(config), "--out", str(place)], share)
    folder.note("started", run=name)


def resume(folder: Folder, name: str) -> None:
    """Goes on with a run that was stopped or has crashed."""
    run = folder.run(name)
    _launch(folder, name, ["train", "--resume", "--out", str(run.path)])
    folder.note("resumed", run=name)


def stop(folder: Folder, name: str) -> None:
    """Asks a run that was started here to save its state and end; RunError where its process is not known."""
    pid = started_here(folder, name)
    if pid is None:
        raise RunError(
            f"{name} was not started in this studio, or has ended; stop it where it was started: Ctrl-C, or SIGTERM"
        )
    os.kill(pid, signal.SIGTERM)
    folder.note("stopped", run=name)


def started_here(folder: Folder, name: str) -> int | None:
    """The process that trains the run, if the studio started it and it still goes on."""
    record = folder.own("processes", name, ".json")
    if not record.is_file():
        return None
    try:
        known = read_json(record.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(known, dict) or not isinstance(known.get("pid"), int):
        return None
    child = CHILDREN.get(known["pid"])
    if child is not None and child.poll() is not None:  # takes note of its end; of others the system does
        return None
    return known["pid"] if _is_it(known) else None


def said(folder: Folder, name: str) -> str:
    """The last words of the run's process; empty where the studio did not start it."""
    log = folder.own("logs", name, ".log")
    if not log.is_file():
        return ""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - LAST_BYTES))
        text = file.read().decode(errors="replace")
    return "\n".join(line.rpartition("\r")[2] for line in text.split("\n")).strip()


def _launch(folder: Folder, name: str, words: Sequence[str], share: int = 1) -> None:
    log = folder.own("logs", name, ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ghosttune", *words]
    # Runs that share a machine and each take all of its cores wait for each other most of the time.
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // share))} if share > 1 else {}
    with open(log, "ab") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=threads | os.environ,
                start_new_session=True,
            )
        except OSError as error:
            raise InputError(f"the training cannot be started: {error}") from error
    CHILDREN[process.pid] = process
    write_json(
        folder.own("processes", name, ".json"),
        {"pid": process.pid, "born": _born(process.pid), "command": command},
    )


def _is_it(known: dict[str, Any]) -> bool:
    """Whether the process of this number is still the one that was started: numbers are used again."""
    return known.get("born") is not None and _born(known["pid"]) == known["born"]


def _born(pid: int) -> float | None:
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None
