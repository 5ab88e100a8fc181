"""Small rows that stand for gradients: store them, find near-duplicates, and know how far to trust a similarity.

python examples/ghostgrad/mlp_sketches.py
"""

import tempfile

import torch
from torch import nn

from ghostgrad import GradientEngine, Gram, Sketcher, Sketches, SketchOptions
from ghostgrad.influence import top_k
from ghostgrad.sketch import error_bar
from ghostgrad.store import GradientStore

torch.manual_seed(0)
torch.set_num_threads(1)

ROWS = 256
inputs, labels = torch.randn(ROWS, 40), torch.randint(0, 5, (ROWS,))
inputs[200], labels[200] = inputs[17] + 0.01 * torch.randn(40), labels[17]  # a near-duplicate

model = nn.Sequential(nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 5))
engine = GradientEngine(model)
options = SketchOptions(
    size=256,
    side=4,
    layers=("*.weight",),
    embeddings=False,
    kind="rademacher",
    split="even",
    seed=1,
    dtype=torch.float32,
)
sketcher = Sketcher({name: tuple(p.shape) for name, p in engine.parameters.items()}, options, tables=frozenset())
sketches, gram = Sketches(sketcher), Gram()


def losses(rows: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(inputs[rows]), labels[rows], reduction="sum")


# How far are sketched similarities from exact ones? Measured on a few rows.
exact = GradientEngine(model, select=["*.weight"])
with exact.observe(sketches, gram):
    losses(torch.arange(12)).backward()
bar = error_bar(gram.total(), sketches.rows())

with tempfile.TemporaryDirectory() as folder:
    with GradientStore.create(folder, size=sketcher.size, dtype=torch.float32, meaning=sketcher.manifest()) as store:
        for rows in torch.arange(ROWS).split(64):
            with engine.probe(sketches) as backward:  # no training step: no p.grad, less work
                backward(losses(rows))
            store.append([f"row-{row}" for row in rows.tolist()], sketches.rows())
    reader = GradientStore.read(folder)
    nearest = top_k(reader, reader.rows(["row-17"]), 3, similarity="cosine", without=["row-17"])[0]

assert nearest.ids[0] == "row-200" and nearest.scores[0] > 0.9 > nearest.scores[1]
assert bar.cosine < 0.2
first, second = nearest.scores[:2].tolist()
print(f"nearest to row-17: {nearest.ids[0]} ({first:.2f}), then {second:.2f}; error bar ±{bar.cosine:.2f}")
