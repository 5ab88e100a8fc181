"""Data selection: drop the tenth of the rows that stands lowest, train anew; the same with a tenth drawn at random.

Both are judged on the same dev rows. One seed shows how it is done and proves nothing: benchmarks/choosing.md has four.

    python examples/data_selection.py [FOLDER] [STEPS]
"""

import sys
import tempfile
from pathlib import Path

import ghosttune
from ghosttune.choosing.select import select

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 240
settings = {
    "data": {"train": {"path": "builtin:rows"}, "guide": {"split": "guide"}, "max_length": 256},
    "train": {"max_steps": steps, "learning_rate": 5e-3, "warmup_steps": min(10, steps - 1)},
    "evaluate": {"limit": 0},
}
whole = ghosttune.train(ghosttune.load_config(settings), folder / "whole")
scored = [row for row in whole.values if row["standing"] is not None]  # the others no update saw, or only the first
for by in ("value", "random"):
    kept = folder / f"{by}.jsonl"
    select(whole.path, kept, keep=round(0.9 * len(scored)), by=by)
    changed = {**settings, "data": {**settings["data"], "train": {"path": "builtin:rows", "keep": str(kept)}}}
    run = ghosttune.train(ghosttune.load_config(changed), folder / by)
    planted = sum('"planted": true' in line for line in kept.read_text(encoding="utf-8").splitlines())
    print(f"{by}: {planted} planted rows kept, dev loss {run.record['verdict']['dev_loss']:.4f}")
print(f"all rows: 40 planted rows, dev loss {whole.record['verdict']['dev_loss']:.4f}")
