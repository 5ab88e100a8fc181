"""Question answering: the words of a text that answer. Writes its own rows; about a minute, offline.

python examples/question_answering.py [FOLDER] [STEPS]
"""

import json
import random
import sys
import tempfile
from pathlib import Path

import ghosttune

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 150
NAMES = ["Anna", "Carla", "Felix", "Freya", "George", "Hazel", "Hugo", "Luke", "Maya", "Nora", "Oscar", "Tara"]
THINGS = ["a book", "a lamp", "two apples", "a red hat", "some bread", "a drum"]

draw = random.Random(0)
rows = []
for _ in range(240):
    (first, second), (one, other) = draw.sample(NAMES, 2), draw.sample(THINGS, 2)
    context = f"{first} bought {one}. {second} bought {other}."
    who, what = draw.choice([(first, one), (second, other)])
    asked = draw.choice([(f"What did {who} buy?", what), (f"Who bought {what}?", who)])
    answers = {"text": [asked[1]], "answer_start": [context.index(asked[1])]}
    rows.append({"question": asked[0], "context": context, "answers": answers})
path = folder / "purchases.jsonl"
path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")

config = ghosttune.load_config(
    {
        "task": {"type": "question_answering", "stride": 16},
        "data": {"train": {"path": str(path)}, "max_length": 96},
        "train": {"max_steps": steps, "learning_rate": 5e-3, "warmup_steps": min(10, steps - 1)},
    }
)
run = ghosttune.train(config, folder / "run")
print(run.record["verdict"])
context = "Hugo bought a lamp. Maya bought two apples."
print(run.pipeline().answer([("What did Maya buy?", context), ("Who bought a lamp?", context)]))
