"""Audit: 40 of the 400 shipped rows have a wrong answer. Which rows stand lowest in the account of a run?

python examples/planted_labels.py [FOLDER] [STEPS]
"""

import sys
import tempfile
from pathlib import Path

import ghosttune

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 240

config = ghosttune.load_config(
    {
        "data": {"train": {"path": "builtin:rows"}, "guide": {"split": "guide"}, "max_length": 256},
        "train": {"max_steps": steps, "learning_rate": 5e-3, "warmup_steps": min(10, steps - 1)},
        "measure": {"ledger": {"guide_every": 5}},
        "evaluate": {"limit": 0},
    }
)
run = ghosttune.train(config, folder / "run")
lowest = run.lowest_rows(40)
print(f"of the 40 lowest rows {sum(row['planted'] for row in lowest)} are planted; the lowest:")
for row in lowest[:5]:
    print(f"  {row['standing']:+.2f}  {row['example_id']}  {row['mistake'] or ''}")
print("told apart by their standing:", run.record["ledger"]["columns"]["planted"])
