"""Does a test fail for every bug of the register that is put back?

    python scripts/mutation_gate.py [BUG…] [--processes 2]

First the selected tests are run as they are and must pass; then once per bug, which must make them fail. Prints a
table, and the bugs that cannot be planted with the reason. Exit code 1 where a bug is not caught.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
MUTATIONS = REPOSITORY / "tests" / "mutations"
SECONDS = 600
PASSED, FAILED = 0, 1
CAUGHT = "caught"

sys.path.insert(0, str(MUTATIONS))


def run(tests: str, bug: str | None = None) -> int:
    """pytest's exit code on these tests, with the bug planted where one is given."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "not slow"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _path()}
    if bug is not None:
        command += ["-p", "planting"]
        environment["GHOSTTUNE_BUG"] = bug
    done = subprocess.run(
        [*command, *shlex.split(tests)],
        cwd=REPOSITORY,
        env=environment,
        timeout=SECONDS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return done.returncode


def verdict(sound: int, planted: int) -> str:
    """What the exit codes without and with the bug mean."""
    if sound != PASSED:
        return f"UNSOUND: the test fails without the bug (exit code {sound})"
    return {FAILED: CAUGHT, PASSED: "NOT CAUGHT"}.get(planted, f"NOT PLANTED (exit code {planted})")


def _path() -> str:
    return os.pathsep.join([str(REPOSITORY / "src"), str(MUTATIONS), os.environ.get("PYTHONPATH", "")])


def main() -> None:
    from bugs import BUGS, NOT_PLANTED

    parser = argparse.ArgumentParser()
    parser.add_argument("bugs", nargs="*", metavar="BUG", choices=[[], *BUGS])
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    planted = [BUGS[name] for name in chosen.bugs or BUGS]
    tests = list(dict.fromkeys(bug.tests for bug in planted))
    missed = []
    with ThreadPoolExecutor(chosen.processes) as pool:
        sound = dict(zip(tests, pool.map(run, tests), strict=True))
        for bug, code in zip(planted, pool.map(lambda bug: run(bug.tests, bug.name), planted), strict=True):
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
