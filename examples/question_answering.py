"""Question answering: a text and a question, answered with words of the text. Writes its own rows; offline.

The built-in model writes its answers, and is too small to always take the right one of two: look at its score. Models
that mark a span of the text (BERT) have a task of their own: `ghosttune train --preset qa`.

python examples/question_answering.py [FOLDER] [STEPS]
"""

import json
import random
import sys
import tempfile
from pathlib import Path

import ghosttune

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
folder.mkdir(parents=True, exist_ok=True)
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
    rows.append({"prompt": f"{context} {asked[0]}", "completion": asked[1]})
path = folder / "purchases.jsonl"
path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")

config = ghosttune.load_config(
    {
        "data": {"train": {"path": str(path)}, "max_length": 96},
        "train": {"max_steps": steps, "learning_rate": 5e-3, "warmup_steps": min(10, steps - 1)},
        "evaluate": {"metrics": ["squad_em", "squad_f1"], "max_new_tokens": 8},
    }
)
run = ghosttune.train(config, folder / "run")
print(run.record["verdict"])
for name in ("adapter", "base", "constant"):
    print(name, "exact match", (run.evaluation or {})["dev"][name]["squad_em"])
pipeline = run.pipeline()
for question in ("What did Maya buy?", "Who bought a lamp?"):
    print(question, pipeline.chat(f"Hugo bought a lamp. Maya bought two apples. {question}"))
