"""Memory of a run by the size of its JSONL file: a fresh process each, at its peak.

    python benchmarks/memory.py 50 100 200          file sizes in MB

The process reads, splits and tokenises the file, trains four steps with the ledger and evaluates, with eight dev rows
and eight guide rows. Rows are prompts and completions of about 1,000 characters, model and tokenizer are builtin:tiny.
Anonymous memory is what the process has for itself; mapped files, which resident memory counts too, are pages that the
kernel can drop.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = "the fox and a hen were in one barn when it began to rain so they".split()  # noqa: SIM905

SETTINGS = [
    "data.dev.limit=8",
    "data.guide.rows=8",
    "data.max_length=512",
    "train.max_steps=4",
    "train.per_device_train_batch_size=2",
    "train.per_device_eval_batch_size=1",
    "train.warmup_steps=0",
    "evaluate.limit=4",
    "evaluate.max_new_tokens=4",
    "model.device=cpu",
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


def measured(path: Path, settings: list[str]) -> dict[str, float]:
    """Rows, seconds until they are ready, and megabytes of this process, which trains with that file.

    Anonymous memory before, at the peak until training begins, and at the peak of all; resident memory at its peak.
    """
    import threading

    import ghosttune
    from ghosttune.config.loading import load_config
    from ghosttune.models.loading import load_model, load_tokenizer

    config = load_config(overrides=[f"data.train.path={path}", *settings])
    load_model(config.model, 0)  # libraries are not what is measured
    load_tokenizer(config.model)
    before = anonymous()
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    found: dict[str, float] = {"before_mb": before}

    def listen(event: dict) -> None:
        if event["event"] == "begin":
            found.update(rows=len(event["prepared"].train), seconds=round(time.perf_counter() - start, 1))
            found.update(prepared_mb=peak[0])

    with tempfile.TemporaryDirectory() as folder:
        ghosttune.train(config, f"{folder}/run", listen=listen)
    done.set()
    watcher.join(timeout=10)
    return found | {"trained_mb": peak[0], "resident_mb": status("VmHWM")}


def anonymous() -> float:
    """Megabytes of this process that no file backs."""
    return status("RssAnon")


def status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000, 1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("megabytes", nargs="*", type=int)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.file:
        return print(json.dumps(measured(arguments.file, SETTINGS)))
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            written(path, megabytes)
            command = [sys.executable, __file__, "--file", str(path)]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=3600)
            print(f"{megabytes} MB: {ran.stdout.strip() or ran.stderr[-500:]}")


if __name__ == "__main__":
    from quick import launch

    launch(main, "1")
