"""Memory of reading and encoding a JSONL file, by its size: a fresh process each, its anonymous memory at the peak.

    python benchmarks/memory.py 50 100 200          file sizes in MB

Rows are prompts and completions of about 1,000 characters, the tokenizer is that of builtin:tiny. Mapped pages of files
are not counted: the kernel can drop them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = [
    "the",
    "fox",
    "and",
    "a",
    "hen",
    "were",
    "in",
    "one",
    "barn",
    "when",
    "it",
    "began",
    "to",
    "rain",
    "so",
    "they",
]


def written(path: Path, megabytes: int) -> int:
    """Number of rows of a file of that size."""
    rows, size = 0, 0
    with open(path, "w") as file:
        while size < megabytes * 1_000_000:
            words = [WORDS[(rows * 7 + place * place) % len(WORDS)] for place in range(190)]
            row = {"prompt": f"Story {rows}: {' '.join(words)}", "completion": f"It was number {rows}."}
            size += file.write(json.dumps(row) + "\n")
            rows += 1
    return rows


def measured(path: Path) -> None:
    """Prints seconds and peak of one process that prepares the file as training would."""
    import threading

    from ghosttune.config.loading import load_config
    from ghosttune.workflows.prepare import prepare

    peak, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    before = anonymous()
    prepared = prepare(load_config(overrides=[f"data.train.path={path}"]))
    done.set()
    watcher.join(timeout=10)
    facts = {"rows": len(prepared.train), "seconds": round(time.perf_counter() - start, 1)}
    print(json.dumps(facts | {"before_mb": before, "peak_mb": peak[0], "after_mb": anonymous()}))


def anonymous() -> int:
    """Megabytes of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) // 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("megabytes", nargs="*", type=int)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.file:
        return measured(arguments.file)
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            written(path, megabytes)
            command = [sys.executable, __file__, "--file", str(path)]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=3600)
            print(f"{megabytes} MB: {ran.stdout.strip() or ran.stderr[-500:]}")


if __name__ == "__main__":
    main()
