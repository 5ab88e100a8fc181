"""Runs the benchmarks that need nothing but the tree, and writes what they print beside machine, versions and commands.

    python scripts/benchmarks.py [--out runs/benchmarks.md] [--quick] [NAME ...]        `make benchmarks`

Those that ask for E2E's rows or for hours (attribution, choosing, generation, online_selection, row_order,
swapped_rows) are run by their own commands; with `--quick` every script is run, in miniature.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PARTS = ("quick", "datamodels", "retraining", "run_values")
"""Imported by the others, no scripts."""

COMMANDS = (
    "startup.py --rounds 7",
    "train_speed.py --rounds 5 --rows 160",
    "engine.py lora --clock cpu",
    "engine.py projection --clock cpu",
    "engine.py top --rows 100000",
    "ledger.py --clock cpu",
    "phases.py --clock cpu",
    "store.py query",
    "memory.py 5 20",
)
"""About an hour on two cores."""


def scripts() -> list[str]:
    return sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in PARTS)


def machine() -> list[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "numpy"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=BENCHMARKS)
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        f"Python {platform.python_version()}, {versions}; commit {commit.stdout.strip() or 'unknown'}; "
        f"{platform.machine()}, {os.cpu_count()} processors, load {load} before the first command.",
    ]


def section(command: str) -> tuple[list[str], bool]:
    """(Markdown of one command and what it printed, whether it ended well)."""
    start = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    called = [sys.executable, *shlex.split(command)]
    ended = subprocess.run(called, capture_output=True, text=True, cwd=BENCHMARKS, env=environment)
    left_out = ended.stderr.startswith("skipped: ")
    failed = ended.returncode != 0 and not left_out
    said = ended.stderr if left_out or failed else ended.stdout
    how = "failed" if failed else "skipped" if left_out else f"{time.monotonic() - start:.0f} s"
    print(f"{command}: {how}", flush=True)
    return [f"## `python benchmarks/{command}`: {how}", "", "```text", said.strip()[-6000:], "```", ""], not failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these scripts, such as train_speed")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks.md"))
    parser.add_argument("--quick", action="store_true", help="every script in miniature: figures mean nothing")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(scripts()):
        parser.error(f"no script is called {', '.join(sorted(unknown))}; there are {', '.join(scripts())}")
    commands = [f"{name}.py --quick" for name in scripts()] if chosen.quick else list(COMMANDS)
    if chosen.names:
        commands = [command for command in commands if command.partition(".")[0] in chosen.names]
    lines, well = ["# Benchmarks", "", *machine(), ""], True
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    for command in commands:
        own, ended_well = section(command)
        lines, well = lines + own, well and ended_well
        chosen.out.write_text("\n".join(lines), encoding="utf-8")
    print(f"written to {chosen.out}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
