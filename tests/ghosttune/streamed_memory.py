"""Reads a stream to the end of its first pass, as a run does, and says what memory that took; a process of its own.

python streamed_memory.py FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ghosttune.config.loading import load_config
from ghosttune.stages.prepare import prepare


def anonymous() -> float:
    """Megabytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


def main(file: str) -> None:
    chosen = [f"data.train.path={file}", "data.train.streaming=true", "data.train.shuffle_buffer=1500"]
    chosen += [f"data.dev.path={Path(file).parent}/dev.jsonl", "measure.ledger=null", "model.device=cpu"]
    stream = prepare(load_config(overrides=chosen)).stream
    assert stream is not None
    place, peak = 0, 0.0
    while stream.next[1].passes == 0:
        _ = stream[place]
        place = stream.next[0]
        peak = max(peak, anonymous())
    sys.stdout.write(json.dumps({"rows": place, "peak_mb": peak}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
