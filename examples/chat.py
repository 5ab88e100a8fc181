"""Chat: conversations of several turns, every answer trained; then a question that needs the turn before.

python examples/chat.py [FOLDER] [STEPS]
"""

import json
import random
import sys
import tempfile
from pathlib import Path

import ghosttune
from ghosttune.data.records import Turn

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
folder.mkdir(parents=True, exist_ok=True)
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 120
NAMES = ["Anna", "Carla", "Felix", "Freya", "George", "Hazel", "Hugo", "Luke", "Maya", "Nora", "Oscar", "Tara"]
COLOURS = ["red", "blue", "green", "golden", "white", "black"]

draw = random.Random(0)
rows = []
for name in NAMES:
    for colour in COLOURS:
        said = [
            ("user", f"My name is {name} and my hat is {colour}."),
            ("assistant", f"Hello, {name}!"),
            ("user", "What do you know of me?"),
            ("assistant", f"You are {name}, with a {colour} hat."),
        ]
        rows.append({"messages": [{"role": role, "content": text} for role, text in said]})
draw.shuffle(rows)
path = folder / "talks.jsonl"
path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")

config = ghosttune.load_config(
    {
        "data": {"train": {"path": str(path)}, "max_length": 128},
        "train": {"max_steps": steps, "learning_rate": 5e-3, "warmup_steps": min(10, steps - 1)},
        "evaluate": {"max_new_tokens": 24},
    }
)
run = ghosttune.train(config, folder / "run")
print(run.record["verdict"])
pipeline = run.pipeline()
asked = [Turn("user", "My name is Clara and my hat is blue.")]
greeting = pipeline.chat(asked)
asked += [Turn("assistant", greeting), Turn("user", "What do you know of me?")]
print(greeting, "|", pipeline.chat(asked))
