"""Does a test fail for every bug of the register that is put back?

    python scripts/mutation_gate.py [BUG…] [--processes 2]

The tests that bugs name are run as they are and must pass; then once per bug, which must make its test fail. Prints a
line for each, and the bugs that cannot be planted with the reason. Exit code 1 where a bug is not caught.

Every try is a fork of this process, which has imported everything but the tests: a try takes seconds.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SECONDS = 600
"""Longest try; one that takes longer is ended and counts as not caught."""

PASSED, FAILED = 0, 1
CAUGHT = "caught"
IMPORTED = (
    "workflows.sweep",
    "judging.evaluate",
    "workflows.check",
    "training.attaching",
    "proving.freezing",
    "cli.main",
)

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path[:0] = [str(REPOSITORY / "src"), str(REPOSITORY / "tests" / "mutations")]


def forked(tests: str, plant: Callable[[], None]) -> int:
    """The process that runs these tests with something planted; its exit code is pytest's."""
    process = os.fork()
    if process:
        return process
    code = -1
    try:
        import pytest

        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        plant()
        options = ["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "not slow"]
        options += [
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
        ]  # this process has imported what it would rewrite
        code = int(pytest.main([*options, *shlex.split(tests)]))
    finally:
        os._exit(code & 0xFF)


def codes(tries: Sequence[tuple[str, Callable[[], None]]], processes: int) -> Iterator[int]:
    """The exit code of each try, in order, so many at once."""
    started: list[tuple[int, float]] = []
    found: dict[int, int] = {}
    for place in range(len(tries)):
        while place not in found:
            going = len(started) - len(found)
            if len(started) < len(tries) and going < processes:
                started.append((forked(*tries[len(started)]), time.monotonic()))
                continue
            for number, (process, since) in enumerate(started):
                if number not in found:
                    if time.monotonic() - since > SECONDS:
                        os.kill(process, signal.SIGKILL)
                    ended, status = os.waitpid(process, os.WNOHANG)
                    if ended:
                        found[number] = os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        yield found[place]


def verdict(sound: int, planted: int) -> str:
    """What the exit codes without and with the bug mean."""
    if sound != PASSED:
        return f"UNSOUND: the test fails without the bug (exit code {sound})"
    return {FAILED: CAUGHT, PASSED: "NOT CAUGHT"}.get(planted, f"NOT PLANTED (exit code {planted})")


def main() -> None:
    from bugs import BUGS, NOT_PLANTED

    parser = argparse.ArgumentParser()
    parser.add_argument("bugs", nargs="*", metavar="BUG")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.bugs if name not in BUGS]:
        parser.error(f"no bug is called {unknown}; there are {', '.join(BUGS)}")
    os.chdir(REPOSITORY)
    for name in IMPORTED:
        importlib.import_module(f"ghosttune.{name}")
    import pytest

    planted = [BUGS[name] for name in chosen.bugs or BUGS]
    tests = list(dict.fromkeys(bug.tests for bug in planted))
    untouched = codes([(test, lambda: None) for test in tests], chosen.processes)
    sound = dict(zip(tests, untouched, strict=True))
    tries = [(bug.tests, lambda bug=bug: bug.plant(pytest.MonkeyPatch())) for bug in planted]
    missed = []
    for bug, code in zip(planted, codes(tries, chosen.processes), strict=True):
        said = verdict(sound[bug.tests], code)
        missed += [bug.name] if said != CAUGHT else []
        print(f"{bug.name:<10} {said:<12} {bug.what}\n{'':<10} {bug.tests}", flush=True)
    print(f"\n{len(planted) - len(missed)} of {len(planted)} bugs are caught" + (f"; not: {missed}" if missed else ""))
    if not chosen.bugs:
        print(f"\n{len(NOT_PLANTED)} cannot be planted:")
        for name, reason in NOT_PLANTED.items():
            print(f"{name:<10} {reason}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
