"""How long commands take to answer, as ratios to `python -c "import torch"` on the same machine at the same time.

    python benchmarks/startup.py [RUN] [--rounds 7] [--clock wall|cpu]
    python benchmarks/startup.py [RUN] --imports report          where one command's time goes: its slowest imports

Each measurement is a process of its own with one thread; the commands take turns in an order that rotates. Without RUN
the quickstart's run is made first. Printed: median seconds, and the median, least and largest ratio to the import of
torch in the same round. What Transformers imports before any tokenizer is loaded has a line of its own, and is no part
of ours.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from quick import launch

TORCH = "import torch"
TOKENIZERS = "from transformers import AutoTokenizer, LlamaConfig"
COMMANDS = {
    "--help": ["--help"],
    "config error": ["train", "wrong.yaml"],
    "show": ["show", "settings", "train.learning_rate"],
    "preview": ["preview", "RUN/config.yaml"],
    "chat --prompt": ["chat", "RUN", "--prompt", "Two teas, please.", "--max-new-tokens", "8"],
    "report": ["report", "RUN"],
}
"""What is measured, and its arguments; all but the config error end with 0."""


def command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "ghosttune", *arguments]


def processor_time() -> float:
    """Of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


CLOCKS = {"wall": time.perf_counter, "cpu": processor_time}


def seconds(called: list[str], code: int, clock: str) -> float:
    """Of one process; RuntimeError with what it wrote where it ends otherwise than it should."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    start = CLOCKS[clock]()
    ended = subprocess.run(called, capture_output=True, text=True, env=environment, timeout=300)
    taken = CLOCKS[clock]() - start
    if ended.returncode != code:
        raise RuntimeError(f"{' '.join(called)} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return taken


def measured(rounds: int, clock: str) -> dict[str, list[float]]:
    """Seconds of each command in each round."""
    calls = {code: ([sys.executable, "-c", code], 0) for code in (TORCH, TOKENIZERS)}
    calls |= {name: (command(own), 2 if name == "config error" else 0) for name, own in COMMANDS.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(seconds(*calls[name], clock))
    return taken


def report(taken: dict[str, list[float]]) -> None:
    print("| command | seconds, median | ratio to the import of torch (least to most) |\n|---|--:|--:|")
    for name, own in taken.items():
        ratios = [ours / torch for ours, torch in zip(own, taken[TORCH], strict=True)]
        middle = statistics.median(ratios)
        print(f"| `{name}` | {statistics.median(own):.2f} | {middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")


def slowest_imports(name: str, most: int = 25) -> None:
    """Milliseconds of the slowest imports of one command: with what they import, and alone."""
    called = [sys.executable, "-X", "importtime", "-m", "ghosttune", *COMMANDS[name]]
    ended = subprocess.run(called, capture_output=True, text=True, timeout=300)
    lines = re.findall(r"import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)", ended.stderr)
    for alone, together, module in sorted(lines, key=lambda line: -int(line[1]))[:most]:
        print(f"{int(together) / 1000:8.0f} {int(alone) / 1000:8.0f} {module}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that others use too")
    parser.add_argument("--imports", choices=COMMANDS, help="list the imports of this command instead")
    chosen = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "RUN"
        if chosen.run:
            shutil.copytree(chosen.run, run)  # `report` writes into it
        else:
            subprocess.run(command(["quickstart", "--out", str(run)]), check=True, timeout=1800)
        (Path(folder) / "wrong.yaml").write_text("train: {max_stps: 10}\n", encoding="utf-8")
        with contextlib.chdir(folder):
            if chosen.imports:
                slowest_imports(chosen.imports)
            else:
                report(measured(chosen.rounds, chosen.clock))


if __name__ == "__main__":
    launch(main, "{run} --rounds 1 --clock cpu")
