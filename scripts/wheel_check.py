"""What a newcomer gets: a built wheel in an environment of its own, from the quickstart to files for other programs.

    make wheel-check                              or, of a wheel that is there: python scripts/wheel_check.py WHEEL

Installs the wheel with the versions of constraints.txt, from the package index, and runs every command offline in an
empty folder, so that nothing of this tree can help. Prints the seconds of each; ends with 1 at the first that fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CONSTRAINTS = ROOT / "constraints.txt"

COMMANDS = {
    "doctor": ["doctor", "--json"],
    "quickstart": ["quickstart", "--out", "run", "--json"],
    "prove": ["prove", "--quick", "--json"],
    "export to gguf": ["export", "run", "--to", "gguf", "--out", "gguf", "--json"],
    "export to vllm": ["export", "run", "--to", "vllm", "--out", "vllm", "--json"],
    "report": ["report", "run"],
}


def main() -> None:
    """Reads the arguments and checks the wheel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel.resolve()
    with tempfile.TemporaryDirectory() as folder:
        check(wheel, Path(folder))


def check(wheel: Path, folder: Path) -> None:
    """Installs and runs; SystemExit with 1 at the first step that fails."""
    home, work = folder / "venv", folder / "empty"
    work.mkdir()
    began = time.monotonic()
    venv.create(home, with_pip=True)
    installs = [["torch==2.13.0"], [f"{wheel}[export]"]]
    for packages in installs:
        pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", CONSTRAINTS, *packages]
        timed(f"install {packages[0].rpartition('/')[2]}", pip, folder, os.environ.copy())
    said = {
        name: timed(name, [home / "bin" / "ghosttune", *words], work, offline()) for name, words in COMMANDS.items()
    }
    found = {name: json.loads(text) for name, text in said.items() if "--json" in COMMANDS[name]}
    faults = [
        *(["doctor finds wrong versions"] if found["doctor"]["unmet"] else []),
        *(
            ["the adapter of the quickstart is not better"]
            if found["quickstart"]["verdict"]["verdict"] != "better"
            else []
        ),
        *(["a proof failed"] if not found["prove"]["passed"] else []),
        *(f"{name} is missing or empty" for name in ("gguf", "vllm") if not any((work / name).iterdir())),
    ]
    print(f"{time.monotonic() - began:7.1f} s  in all; {'passed' if not faults else ', '.join(faults)}")
    sys.exit(1 if faults else 0)


def timed(name: str, command: Sequence[object], folder: Path, environment: dict[str, str]) -> str:
    """What the command prints; SystemExit with what it said where it fails."""
    start = time.monotonic()
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=3600
    )
    print(f"{time.monotonic() - start:7.1f} s  {name}", flush=True)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def offline() -> dict[str, str]:
    """The environment without what would lead to this tree or to the network."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    main()
