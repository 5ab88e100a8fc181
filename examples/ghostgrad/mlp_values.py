"""Which rows helped? In-run values in a plain loop: wrong labels end up at the bottom.

python examples/ghostgrad/mlp_values.py
"""

import torch
from torch import nn

from ghostgrad import GradientEngine
from ghostgrad.values import InRunValues

torch.manual_seed(0)
torch.set_num_threads(1)

ROWS, GUIDE, BATCH, STEPS = 400, 100, 20, 150
labels = torch.randint(0, 4, (ROWS + GUIDE,))
inputs = 1.5 * torch.randn(4, 10)[labels] + torch.randn(ROWS + GUIDE, 10)
wrong = torch.zeros(ROWS, dtype=torch.bool)
wrong[torch.randperm(ROWS)[: ROWS // 10]] = True
given = torch.where(wrong, (labels[:ROWS] + 1) % 4, labels[:ROWS])
guide = inputs[ROWS:], labels[ROWS:]

model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
engine = GradientEngine(model)
values = InRunValues(engine.parameters, optimizer, "adamw")

for _ in range(STEPS):
    chosen = torch.randperm(ROWS)[:BATCH]
    guide_loss = nn.functional.cross_entropy(model(guide[0]), guide[1])
    direction = torch.autograd.grad(guide_loss, list(model.parameters()))

    dots = values.open_step(dict(zip(engine.parameters, direction, strict=True)))
    with engine.observe(dots):  # the ordinary forward and backward
        nn.functional.cross_entropy(model(inputs[chosen]), given[chosen]).backward()
    values.add([str(row) for row in chosen.tolist()])
    optimizer.step()
    optimizer.zero_grad()
    values.close_step()

value = torch.tensor([values.totals[str(row)].value for row in range(ROWS)])
worst = value.argsort()[: int(wrong.sum())]
found = wrong[worst].double().mean().item()
ranks = value.argsort().argsort().double()
auroc = 1 - (ranks[wrong].mean() - (wrong.sum() - 1) / 2).item() / (~wrong).sum().item()
assert found > 0.6 and auroc > 0.9, (found, auroc)
print(f"{found:.0%} of the {int(wrong.sum())} lowest values are wrong labels; AUROC {auroc:.3f}")
