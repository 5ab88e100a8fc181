"""`make chaos`: commands are killed at random and given again, and must leave the bytes of one that nobody killed.

A case is a folder, a command, up to three kills on the way, and the command given again until it is done. What it
leaves is compared with an undisturbed reference, byte by byte, but for TIMES. A seed and a number name a case, so that
`--case train:17` repeats one.

Most commands run in forks of one process that has imported everything, so that a hundred kills fit into minutes; sweeps
and `--processes 2` start real processes of their own, of which none may be left SECONDS_LEFT after a kill of any.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

HOOK = Path(__file__).parent / "chaos_hook"
sys.path.insert(0, str(HOOK))
from faults import Fault, arm  # noqa: E402  # pyright: ignore[reportMissingImports]

TIMES = {
    "started",
    "ended",
    "resumed",
    "stage_seconds",
    "peak_memory_mb",
    "tokens_per_second",
    "targets_per_second",
    "cost",
}
"""Entries of run.json and of a sweep's comparison.json that say when, how long and with how much memory.

The first table of comparison.md shows them too, and a sweep's logs what its runs printed. Every other byte of every
file must be the same.
"""

SHARES = {"train": 62, "index": 10, "infer": 8, "merge": 5, "evaluate": 5, "report": 2, "processes": 4, "sweep": 4}
"""Of a hundred kills."""

KILLS_PER_CASE = 3
SECONDS = 120.0
"""In which a command is done, on a machine that has much else to do."""

OF_THEIR_OWN = {"sweep", "processes"}
"""Commands that run in processes of their own, not in forks."""

SECONDS_LEFT = 5.0
"""In which no process may be left of a command of which one was killed."""

FULL = ("full", "full at the end", "full TMPDIR")
"""What happens besides kills, in cases of their own: the disk is full from a point on."""


class Wrong(AssertionError):
    """What a case shows to be wrong."""


@dataclass(frozen=True)
class Kind:
    """A command, what it starts from and where its result is."""

    name: str
    arguments: Callable[[Path], list[str]]
    result: str
    needs_run: bool = True

    def prepare(self, folder: Path, inputs: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "tmp").mkdir()
        if self.needs_run:
            shutil.copytree(inputs / "run", folder / "run")


def kinds(inputs: Path) -> dict[str, Kind]:
    def train(folder: Path) -> list[str]:
        again = (folder / "run" / "run.json").is_file()
        return ["train", *(["--resume"] if again else [str(inputs / "run.yaml")]), "--out", "run"]

    asked = ["--input", str(inputs / "asked.jsonl"), "--output", "said.jsonl", "--max-new-tokens", "2"]
    sampled = ["--temperature", "1"]
    return {
        kind.name: kind
        for kind in (
            Kind("train", train, "run", needs_run=False),
            Kind("processes", lambda folder: [*train(folder), "--processes", "2"], "run", needs_run=False),
            Kind("index", lambda _: ["index", "run", "--checkpoint", "all"], "run"),
            Kind("infer", lambda _: ["infer", "run", *asked, *sampled], "said.jsonl"),
            Kind("merge", lambda _: ["merge", "run", "--out", "merged"], "merged"),
            Kind("evaluate", lambda _: ["evaluate", "run", "--split", "train", "--limit", "6"], "run"),
            Kind("report", lambda _: ["report", "run"], "run"),
            Kind(
                "sweep",
                lambda _: ["sweep", str(inputs / "sweep.yaml"), "--out", "out", "--processes", "2"],
                "out",
                needs_run=False,
            ),
        )
    }


def write_inputs(inputs: Path, steps: int) -> None:
    """A model, rows, and a run with everything on that takes about a second."""
    from ghosttune.config.rendering import plain_yaml
    from ghosttune.proving.specimens import short_run, write_model, write_rows

    inputs.mkdir()
    model, rows = write_model(inputs / "model"), write_rows(inputs / "rows.jsonl")
    config = short_run(
        model,
        rows,
        train__max_steps=steps,
        train__eval_steps=3,
        train__save_steps=2,
        train__logging_steps=2,
        train__per_device_train_batch_size=2,
        train__gradient_accumulation_steps=2,
        measure__norms__every=1,
        measure__norms__effective=3,
        measure__ledger__guide_every=3,
        data__guide__rows=4,
        phases="both@0-4 > mlp@4-",
    )
    (inputs / "run.yaml").write_text(plain_yaml(config))
    (inputs / "sweep.yaml").write_text(json.dumps({"config": str(inputs / "run.yaml"), "axes": {"method.r": [2, 4]}}))
    prompts = (json.dumps({"id": f"row {n}", "prompt": f"Say {'very ' * (n % 7)}{n}"}) for n in range(600))
    (inputs / "asked.jsonl").write_text("\n".join(prompts))


def import_everything() -> None:
    """In the process that is forked: nothing that computes, since threads do not survive a fork."""
    import accelerate  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sacrebleu  # noqa: F401
    import torch
    import transformers
    from transformers.models.llama import modeling_llama  # noqa: F401

    import ghosttune.choosing.index
    import ghosttune.cli.main
    import ghosttune.judging.evaluate
    import ghosttune.workflows.check
    import ghosttune.workflows.infer
    import ghosttune.workflows.merge
    import ghosttune.workflows.report
    import ghosttune.workflows.train  # noqa: F401

    assert transformers.Trainer
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Its exit code; the number of the signal that killed it, negative."""
    said: str
    points: int = 0
    """Of a command in several processes, of the one that writes most."""
    seconds: float = 0.0

    @property
    def killed(self) -> bool:
        """Whether it was killed, or one of its processes, which it says."""
        return self.code == -signal.SIGKILL or "killed by signal 9" in self.said


def run_forked(arguments: Sequence[str], folder: Path, fault: Fault, kill_after: float | None = None) -> Ended:
    """The command in a fork of this process, killed after so many seconds where that is given."""
    log = folder.with_suffix(".log")
    reader, writer = os.pipe()
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _become(arguments, folder, log, fault, writer)
    os.close(writer)
    deadline = begun + (SECONDS if kill_after is None else kill_after)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, 0)
            if kill_after is None:
                raise Wrong(f"{' '.join(arguments)} was not done within {SECONDS:.0f} s")
            break
        time.sleep(0.002)
    with os.fdopen(reader) as pipe:
        points = int(pipe.read() or 0)
    said = log.read_text(errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), said, points, time.monotonic() - begun)


def _become(arguments: Sequence[str], folder: Path, log: Path, fault: Fault, writer: int) -> None:
    """This fork is the command; does not return."""
    code = 1
    try:
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            signal.signal(number, handler)
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(folder)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        sys.argv = ["ghosttune", *arguments]
        points = arm(fault)
        from ghosttune.cli.main import main

        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(writer, str(points.count).encode())
    finally:
        os._exit(code)


def run_processes(
    arguments: Sequence[str], folder: Path, environment: dict[str, str], kill_after: float | None, draw: random.Random
) -> Ended:
    """The command in processes of its own, one of which, any, is killed after so many seconds.

    `environment` may hold a fault. Wrong where a process is left once the command has ended.
    """
    family, counts = f"{folder.name}-{time.monotonic_ns()}", folder.with_suffix(".points")
    counts.unlink(missing_ok=True)
    paths = [str(HOOK), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    known = os.environ | {"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    known |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": str(draw.randrange(10**6))}
    known |= {"CHAOS_FAMILY": family, "CHAOS_POINTS": str(counts)}
    begun = time.monotonic()
    with open(folder.with_suffix(".log"), "w+") as log:
        command = [sys.executable, "-m", "ghosttune", *arguments]
        process = subprocess.Popen(command, cwd=folder, env=known, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            process.wait(timeout=kill_after or 2 * SECONDS)
        except subprocess.TimeoutExpired:
            if kill_after is not None:
                with suppress(psutil.NoSuchProcess):
                    draw.choice(members(family)).kill()
        try:
            process.wait(timeout=2 * SECONDS if kill_after else 1)
        except subprocess.TimeoutExpired:
            for left in members(family):
                left.kill()
            raise Wrong(f"{' '.join(arguments)} was not done within {2 * SECONDS:.0f} s") from None
        deadline = time.monotonic() + SECONDS_LEFT
        while members(family) and time.monotonic() < deadline:
            time.sleep(0.05)
        if left := members(family):
            raise Wrong(f"{len(left)} processes are left {SECONDS_LEFT:g} s after the end")
        log.seek(0)
        points = max(map(int, counts.read_text().split()), default=0) if counts.is_file() else 0
        return Ended(process.returncode, log.read(), points, time.monotonic() - begun)


def members(family: str) -> list[psutil.Process]:
    """The processes of a command that are alive."""

    def belongs(process: psutil.Process) -> bool:
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            return alive and process.environ().get("CHAOS_FAMILY") == family
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if belongs(process)]


class Suite:
    """The references, and how cases are tried against them."""

    def __init__(self, place: Path, seed: int, steps: int = 8):
        self.place, self.seed = place, seed
        self.inputs = place / "inputs"
        write_inputs(self.inputs, steps)
        self.kinds = kinds(self.inputs)
        self.references: dict[str, Ended] = {}

    def make_references(self, names: Sequence[str]) -> None:
        """What each command leaves when nobody disturbs it, how many points that took, and how long."""
        for name in ["train", *(name for name in names if name != "train")]:
            kind, folder = self.kinds[name], self.place / "reference" / name
            kind.prepare(folder, self.inputs)
            ended = self._run(kind, folder, Fault(str(folder / kind.result)), random.Random(self.seed))
            _require(ended.code == 0, f"the reference of {name} failed: {ended.said}")
            self.references[name] = ended
            if name == "train":
                shutil.copytree(folder / "run", self.inputs / "run")

    def _run(
        self, kind: Kind, folder: Path, fault: Fault, draw: random.Random, kill_after: float | None = None
    ) -> Ended:
        arguments = kind.arguments(folder)
        if kind.name not in OF_THEIR_OWN:
            return run_forked(arguments, folder, fault, kill_after)
        where = {"RANK": "0"} if kind.name == "processes" else {"GHOSTTUNE_CHILD": "1"}
        environment = {"CHAOS": json.dumps(vars(fault) | {"where": where})}
        return run_processes(arguments, folder, environment, kill_after, draw)

    def try_case(self, name: str, number: int, most: int) -> int:
        """One case with at most so many kills; how many there were. Wrong where anything is not as it must be."""
        kind, folder = self.kinds[name], self.place / "cases" / f"{name}-{number}"
        choose = random.Random(f"{self.seed} {name} {number}")
        kind.prepare(folder, self.inputs)
        kills = 0
        for _ in range(min(most, choose.randint(1, KILLS_PER_CASE))):
            ended = self._disturbed(kind, folder, choose)
            kills += ended.killed
            _require(ended.killed or ended.code in (0, 1), f"exit code {ended.code}: {ended.said}")
            if ended.code == 0:
                break
        self._finish(kind, folder, choose)
        shutil.rmtree(folder)
        return kills

    def _disturbed(self, kind: Kind, folder: Path, choose: random.Random) -> Ended:
        reference = self.references[kind.name]
        root, clock = str(folder / kind.result).removesuffix(".jsonl"), choose.choice([0.0, 0.0, 3600.0])
        fault = Fault(root, clock=clock, seed=choose.randrange(10**6))
        if choose.random() < 0.25:
            return self._run(kind, folder, fault, choose, kill_after=choose.uniform(0.05, 0.95) * reference.seconds)
        how = choose.choice(["kill", "kill", "torn"])
        return self._run(kind, folder, replace(fault, at=choose.randint(1, reference.points), how=how), choose)

    def try_full(self, name: str, number: int, what: str) -> None:
        """The disk is full from a point on, or all the time for temporary files; then there is space again."""
        kind, folder = self.kinds[name], self.place / "cases" / f"{name}-full-{number}"
        choose = random.Random(f"{self.seed} full {name} {number}")
        kind.prepare(folder, self.inputs)
        points = self.references[name].points
        first = points * 9 // 10 if what == "full at the end" else 1
        fault = Fault(str(folder / kind.result).removesuffix(".jsonl"), at=choose.randint(first, points), how="full")
        if what == "full TMPDIR":
            fault = replace(fault, at=None, full_tmp=True)
        ended = self._run(kind, folder, fault, choose)
        _require(ended.code in (0, 1, 2) and "should not have happened" not in ended.said, ended.said)
        _require("Traceback" not in ended.said, ended.said)
        if ended.code:
            _require("no space left for" in ended.said or "temporary files" in ended.said, ended.said)
        self._finish(kind, folder, choose)
        shutil.rmtree(folder)

    def _finish(self, kind: Kind, folder: Path, choose: random.Random) -> None:
        """Gives the command again until it is done, and compares."""
        fault = Fault(str(folder / kind.result), clock=choose.choice([0.0, 3600.0]))
        ended = self._run(kind, folder, fault, choose)
        finished_before = (
            "is finished; give another --output" in ended.said or "is not empty; give an empty" in ended.said
        )
        _require(ended.code == 0 or finished_before, f"given again it failed ({ended.code}): {ended.said}")
        differing = differences(self.place / "reference" / kind.name, folder)
        _require(not differing, f"not the same: {', '.join(differing)}")
        if kind.name in ("train", "processes"):
            lost, doubled = _ledger_rows(self.place / "reference" / kind.name / "run", folder / "run")
            _require(lost == doubled == 0, f"ledger: {lost} rows lost, {doubled} doubled")
        _require(not list((folder / "tmp").iterdir()), "temporary files are left")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise Wrong(message)


def differences(reference: Path, folder: Path) -> list[str]:
    """Files that only one of the folders has, or that differ by more than TIMES."""
    left, right = (
        {
            str(name): file
            for file in place.rglob("*")
            if file.is_file() and not _is_log(name := file.relative_to(place))
        }
        for place in (reference, folder)
    )
    found = [f"only {'in the reference' if name in left else 'here'}: {name}" for name in left.keys() ^ right.keys()]
    return found + [
        name for name in sorted(left.keys() & right.keys()) if _content(left[name]) != _content(right[name])
    ]


def _is_log(name: Path) -> bool:
    return name.parts[:2] == ("out", "logs")


def _content(file: Path) -> Any:
    if file.name in ("run.json", "comparison.json"):
        return _without_times(json.loads(file.read_text()))
    if file.name == "comparison.md":
        return file.read_text().partition("\n\n")[2]
    return file.read_bytes()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(inner) for name, inner in value.items() if name not in TIMES}
    return value if not isinstance(value, list) else [_without_times(inner) for inner in value]


def _ledger_rows(reference: Path, run: Path) -> tuple[int, int]:
    """(rows of the ledger that are lost, rows that are there twice), read in a fork: Arrow starts threads."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            from ghosttune.run.directory import RunDir
            from ghosttune.run.tables import read_table

            keys = ["step", "example_id", "group", "layer"]
            expected, found = (
                Counter(tuple(row.values()) for row in read_table(RunDir(path), "ledger", keys).to_pylist())
                for path in (reference, run)
            )
            os.write(writer, f"{(expected - found).total()} {(found - expected).total()}".encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    _require(bool(said), "the ledger cannot be read")
    lost, doubled = said.split()
    return int(lost), int(doubled)


def cases(kills: int, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """(kind, kills to reach) in shares of the whole."""
    for name in names:
        yield name, max(1, round(SHARES[name] * kills / sum(SHARES[name] for name in names)))


def tried(suite: Suite, name: str, wanted: int, until: float, failures: list[str]) -> tuple[int, int]:
    """(kills, cases) of one kind, until so many kills or the time is reached."""
    kills = number = 0
    while kills < wanted and time.monotonic() < until:
        number += 1
        try:
            kills += suite.try_case(name, number, wanted - kills)
        except Wrong as wrong:
            failures.append(f"{name}:{number} {wrong}")
            kills += 1
    return kills, number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--full", type=int, default=18, help="cases with a full disk")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no case after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(SHARES), help="which commands")
    parser.add_argument("--case", metavar="KIND:N", help="one case")
    given = parser.parse_args()
    kind, _, number = (given.case or "").partition(":")
    names = [kind] if kind else given.kinds.split(",")
    begun = time.monotonic()
    import_everything()
    place = Path(tempfile.mkdtemp(prefix="chaos-"))
    suite = Suite(place, given.seed)
    suite.make_references(names)
    if number:
        print(f"{suite.try_case(kind, int(number), KILLS_PER_CASE)} kills")
        return 0
    until, failures, total = begun + 60 * given.minutes, [], 0
    for name, wanted in cases(given.kills, names):
        since = time.monotonic()
        kills, count = tried(suite, name, wanted, until, failures)
        total += kills
        print(f"{name:<10} {kills:>3} kills in {count:>3} cases, {time.monotonic() - since:.0f} s", flush=True)
    full = tried_full(suite, [name for name in names if name not in OF_THEIR_OWN], given.full, until, failures)
    for failure in failures:
        print(failure)
    seconds = time.monotonic() - begun
    print(f"{total} kills, {full} full disks, {len(failures)} failures in {seconds:.0f} s; seed {given.seed}")
    if failures:
        print(f"what they left is in {place}")
    else:
        shutil.rmtree(place)
    return 1 if failures or total < given.kills or full < given.full else 0


def tried_full(suite: Suite, names: Sequence[str], wanted: int, until: float, failures: list[str]) -> int:
    """How many cases with a full disk were tried, every way of being full with a command before the next command."""
    for number in range(wanted):
        if time.monotonic() > until:
            return number
        name, what = names[number // len(FULL) % len(names)], FULL[number % len(FULL)]
        try:
            suite.try_full(name, number, what)
        except Wrong as wrong:
            failures.append(f"{name}, {what}, {number}: {wrong}")
    return wanted


if __name__ == "__main__":
    sys.exit(main())
