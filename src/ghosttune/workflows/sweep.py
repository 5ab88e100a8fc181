"""Many runs from one file: each in a process of its own, kept when finished, resumed when not, compared at the end."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ghosttune.config.rendering import plain_yaml
from ghosttune.config.sweeps import Trial, read_sweep
from ghosttune.errors import GhosttuneError, InputError, RunError, listed
from ghosttune.judging.arms import named
from ghosttune.judging.compare import Comparison, comparison_of
from ghosttune.own_code import consent
from ghosttune.run.directory import RunDir, require_contained, write_json, write_text
from ghosttune.run.family import interrupted_by_sigterm, let_go, start_child
from ghosttune.stages.runs import open_run

NAMES = {"configs", "logs", "runs", "sweep.json"}
"""What the folder of a sweep holds, besides the files of the comparison."""

SECONDS_TO_END = 60.0
"""How long runs may take to save their state after an interruption."""

LOOK_AGAIN = 0.1
"""Seconds between two looks at the runs that are going on."""

LAST_WORDS = 4
"""Lines of a log that say why a run failed."""

Listener = Callable[[Trial, str], None]
"""Is told of a run: `kept`, `started`, `resumed`, `finished`, or why it failed."""


@dataclass(frozen=True)
class SweepDir:
    """The files of a sweep: its runs below runs/, what they were started with, and what they said."""

    path: Path

    def run(self, trial: Trial) -> RunDir:
        return RunDir(self.path / "runs" / trial.name)

    def config(self, trial: Trial) -> Path:
        """What the run was started with, before anything was derived."""
        return self.path / "configs" / f"{trial.name}.yaml"

    def log(self, trial: Trial) -> Path:
        return self.path / "logs" / f"{trial.name}.log"

    @property
    def record(self) -> Path:
        return self.path / "sweep.json"


@dataclass
class Sweep:
    """How a sweep came out."""

    folder: SweepDir
    finished: list[Trial] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Name of a run -> why it failed."""
    comparison: Comparison | None = None
    """None where fewer than two arms have a finished run."""


def sweep(
    file: str | Path,
    out: str | Path | None = None,
    *,
    processes: int = 1,
    listen: Listener = lambda trial, what: None,
) -> Sweep:
    """Trains every run of a sweep file that `out` (sweeps/NAME when None) does not hold yet, and compares the arms.

    A finished run is kept, an unfinished one resumed. A run that fails is named, and the others go on. At most
    `processes` runs are trained at once. Raises InputError or ConfigError, before anything starts, for what is wrong
    with any of the runs' settings, and for runs in `out` that were started with others.
    """
    trials = read_sweep(file)
    if processes < 1:
        raise InputError(f"{processes} processes cannot train anything; give 1 or more")
    folder = SweepDir(Path(out) if out is not None else Path("sweeps") / Path(file).stem)
    with RunDir(folder.path).locked():
        require_contained(folder.path, NAMES)
        claim(folder, trials)
        result = Sweep(folder)
        train_all(folder, trials, processes, result, listen)
        result.comparison = _compared(folder, trials, result)
        write_json(folder.record, _record(trials, result))
    return result


def claim(folder: SweepDir, trials: Sequence[Trial]) -> None:
    """Writes what each run starts with; RunError where the folder holds a run that was started with other settings."""
    texts = {trial: plain_yaml(trial.config) for trial in trials}
    changed = [
        trial.name
        for trial, text in texts.items()
        if folder.config(trial).is_file() and folder.config(trial).read_text(encoding="utf-8") != text
    ]
    if changed:
        raise RunError(
            f"{folder.path} holds runs of the same names with other settings ({listed(changed)}): the sweep file or "
            "what it refers to was changed; give another --out, or remove these from runs/ and configs/"
        )
    for trial, text in texts.items():
        if not folder.config(trial).is_file():
            write_text(folder.config(trial), text)


def train_all(folder: SweepDir, trials: Sequence[Trial], processes: int, result: Sweep, listen: Listener) -> None:
    """Trains what is not finished, at most `processes` at once, and enters in `result` how each came out."""
    waiting = list(trials)
    going: dict[Trial, subprocess.Popen[bytes]] = {}
    with _ended(going):
        while waiting or going:
            while waiting and len(going) < processes:
                trial = waiting.pop(0)
                if _status(folder, trial) == "finished":
                    result.finished.append(trial)
                    listen(trial, "kept")
                else:
                    listen(trial, "resumed" if folder.run(trial).exists else "started")
                    going[trial] = _start(folder, trial, share=processes)
            for trial in [trial for trial, process in going.items() if process.poll() is not None]:
                code = let_go(going.pop(trial))
                if code == 0 and _status(folder, trial) == "finished":
                    result.finished.append(trial)
                    listen(trial, "finished")
                else:
                    result.failed[trial.name] = _reason(folder, trial, code)
                    listen(trial, result.failed[trial.name])
            if going:
                time.sleep(LOOK_AGAIN)


def _status(folder: SweepDir, trial: Trial) -> str | None:
    run = folder.run(trial)
    return run.read_record()["status"] if run.exists else None


def _start(folder: SweepDir, trial: Trial, share: int) -> subprocess.Popen[bytes]:
    run = folder.run(trial)
    what = _taken_up(run, trial) if run.exists else [str(folder.config(trial))]
    command = [sys.executable, "-m", "ghosttune", "train", *what, *consent(), "--out", str(run.path)]
    # Runs that share a machine and each take all of its cores wait for each other most of the time.
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // share))} if share > 1 else {}
    folder.log(trial).parent.mkdir(parents=True, exist_ok=True)
    with open(folder.log(trial), "ab") as log:
        return start_child(command, threads | os.environ, stdout=log, stderr=log)


def _taken_up(run: RunDir, trial: Trial) -> list[str]:
    """How to continue a run; the sweep file consents to the code of the models that it names, and of no other."""
    if not trial.config.model.trust_remote_code:
        return ["--resume"]
    theirs, ours = open_run(run.path).config.model, trial.config.model
    if (theirs.name, theirs.revision) != (ours.name, ours.revision):
        raise RunError(f"{run.config} names the model {theirs.name}, and the sweep {ours.name}, whose code may run")
    return ["--resume", "--trust-remote-code"]


@contextmanager
def _ended(going: dict[Trial, subprocess.Popen[bytes]]) -> Iterator[None]:
    """No run goes on when this ends: each may save its state first, and continues when the sweep is given again."""
    try:
        with interrupted_by_sigterm():
            yield
    except KeyboardInterrupt:
        raise GhosttuneError(
            "interrupted; finished runs are kept, and the others continue when the same command is given again"
        ) from None
    finally:
        for process in going.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + SECONDS_TO_END
        for process in going.values():
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
            let_go(process)


def _reason(folder: SweepDir, trial: Trial, code: int) -> str:
    """Why a run failed: its last words, and where the others are."""
    lines = folder.log(trial).read_text(encoding="utf-8", errors="replace").split("\n")
    said = " ".join(line.strip() for line in lines[-LAST_WORDS:] if line.strip()) or "said nothing"
    ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{ended}: {said} (see {shlex.quote(str(folder.log(trial)))})"


def _compared(folder: SweepDir, trials: Sequence[Trial], result: Sweep) -> Comparison | None:
    """The comparison of the arms that have finished runs, with the first of the file; written beside the runs."""
    finished: dict[str, list[Any]] = {}
    for trial in trials:
        if trial in result.finished:
            finished.setdefault(trial.arm, []).append(open_run(folder.run(trial).path))
    missing = [f"failed and left out: {name}" for name in result.failed]
    return comparison_of(named(finished), folder.path, missing) if len(finished) > 1 else None


def _record(trials: Sequence[Trial], result: Sweep) -> dict[str, Any]:
    return {
        "runs": [
            {
                "name": trial.name,
                "arm": trial.arm,
                "seed": trial.seed,
                "status": "finished" if trial in result.finished else "failed",
                "reason": result.failed.get(trial.name),
            }
            for trial in trials
        ]
    }
