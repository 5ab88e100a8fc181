"""Classification: which mood a sentence has. Writes its own rows; under a minute, offline.

python examples/classification.py [FOLDER] [STEPS]
"""

import json
import random
import sys
import tempfile
from pathlib import Path

import ghosttune

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
folder.mkdir(parents=True, exist_ok=True)
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 120
WORDS = {"glad": ["happy", "merry", "proud", "pleased"], "sad": ["sorry", "lonely", "gloomy", "unhappy"]}
NAMES = ["Anna", "Carla", "Felix", "Freya", "George", "Hazel", "Hugo", "Luke", "Maya", "Nora", "Oscar", "Tara"]
PLACES = ["at home", "in the park", "at work", "on the train", "in the kitchen"]

rows = [
    {"text": f"{name} was {word} {place}.", "label": label}
    for label, words in WORDS.items()
    for word in words
    for name in NAMES
    for place in PLACES
]
random.Random(0).shuffle(rows)
path = folder / "moods.jsonl"
path.write_text("\n".join(json.dumps(row) for row in rows[:160]), encoding="utf-8")

config = ghosttune.load_config(
    {
        "task": {"type": "sequence_classification"},
        "data": {"train": {"path": str(path)}, "max_length": 64},
        "train": {"max_steps": steps, "learning_rate": 5e-3, "warmup_steps": min(10, steps - 1)},
        "evaluate": {"metrics": ["likelihood_accuracy", "likelihood_macro_f1"]},
    }
)
run = ghosttune.train(config, folder / "run")
print(run.record["verdict"])
for name, scores in (run.evaluation or {})["dev"].items():
    if name in ("adapter", "base", "constant"):
        print(name, "accuracy", scores["likelihood_accuracy"]["value"])
print(run.pipeline().classify(["Luke was merry at home.", "Anna was gloomy in the park."]))
