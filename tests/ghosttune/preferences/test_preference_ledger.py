"""The ledger of pairs: each answer's part of its pair's gradient, and pairs taken out as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ghostgrad import PROFILES, Dots, GradientEngine, Norms
from ghostgrad.crediting import Clip, RowCredits
from ghosttune.training.instruments import MicroBatch
from ghosttune.training.sketching import sketcher_for

# PEFT 0.21 asks Transformers 5.23 by a name that Transformers is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def trained(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def own_gradients(model: Any, task: Any, collate: Any, rows: Sequence[Any]) -> list[dict[str, Tensor]]:
    """One backward per pair."""
    named = trained(model)
    found = []
    for row in rows:
        loss = task.example_loss(model, collate([row])).sum()
        found.append(dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)))
    return found


def part_gradients(model: Any, task: Any, collate: Any, row: Any) -> dict[str, dict[str, Tensor]]:
    """Part -> the derivative of the loss by that answer's log-probability, times the gradient of that."""
    from ghosttune.tasks.losses import Said

    named, batch = trained(model), collate([row])
    reference, tokens = task.reference(model, batch), (batch["labels"][:, 1:] != -100).sum(1)
    logps = task.logps(model, batch)
    leaf = logps.detach().clone().requires_grad_(True)
    sides = [Said(leaf[n : n + 1], tokens[n : n + 1], reference[n : n + 1]) for n in range(2)]
    (slopes,) = torch.autograd.grad(task.loss.loss(*sides, task.settings).sum(), leaf)
    found = {}
    for place, part in enumerate(("chosen", "rejected")):
        grads = torch.autograd.grad(logps[place] * slopes[place], list(named.values()), retain_graph=True)
        found[part] = dict(zip(named, grads, strict=True))
    return found


def direction_of(model: Any, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=random, dtype=p.dtype) for n, p in trained(model).items()}


def product(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    return sum(float((left[name] * right[name]).sum()) for name in left)


@pytest.mark.parametrize("loss", ["dpo", "orpo", "kto"])
def test_products_and_norms_of_pairs_are_those_of_one_backward_each(loss, adapted, task, rows, collate) -> None:
    own = task(loss, beta=0.7)
    features = rows(*([(0, 1)] * 4)) if loss != "kto" else rows((0, 1), (0,), (1,), (0, 1))
    if loss == "kto":  # what other rows say of the divergence is no part of a row's gradient
        own._divergence = lambda model, batch, reference: torch.tensor(0.1, dtype=torch.float64)
    batch, direction = collate(features), direction_of(adapted)
    engine = GradientEngine(adapted)
    shown = MicroBatch.of(own, adapted, batch, [row.example_id for row in features])
    dots, norms = Dots(direction), Norms()
    with engine.observe(dots, norms, **shown.by_row(engine)):
        own.example_loss(adapted, batch).sum().backward()
    expected = own_gradients(adapted, own, collate, features)
    torch.testing.assert_close(
        dots.total(),
        torch.tensor([product(g, direction) for g in expected], dtype=torch.float64),
        rtol=1e-10,
        atol=1e-10,
    )
    lengths = torch.tensor([product(g, g) ** 0.5 for g in expected], dtype=torch.float64)
    torch.testing.assert_close(norms.total(), lengths, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo"])
def test_each_answer_has_its_part_of_the_pair(loss, adapted, task, pairs, collate) -> None:
    own, direction = task(loss), direction_of(adapted)
    batch, engine = collate(pairs), GradientEngine(adapted)
    shown = MicroBatch.of(own, adapted, batch, [row.example_id for row in pairs])
    dots = Dots(direction)
    with engine.observe(dots, selected=shown.selected(engine)):
        own.example_loss(adapted, batch).sum().backward()
    expected = [
        (f"{part}:{row.example_id}", product(gradient, direction))
        for row in pairs
        for part, gradient in part_gradients(adapted, own, collate, row).items()
    ]
    assert shown.names == [name for name, _ in expected]
    torch.testing.assert_close(
        dots.total(), torch.tensor([value for _, value in expected], dtype=torch.float64), rtol=1e-10, atol=1e-10
    )


def test_stored_rows_are_whole_pairs(adapted, task, pairs, collate) -> None:
    from ghosttune.config.facts import ParameterFacts
    from ghosttune.training.sketching import RowGradients

    named = trained(adapted)
    facts = {name: ParameterFacts(name, name, 0, "attention", "A") for name in named}
    sketcher = sketcher_for(facts, named, PROFILES["exact@1"])
    gradients = RowGradients(adapted, task("dpo"), collate, sketcher, batch_size=3)
    found: dict[str, Tensor] = {}
    for ids, stored in gradients.sketches(pairs):
        found |= zip(ids, stored, strict=True)
    for row, expected in zip(pairs, own_gradients(adapted, task("dpo"), collate, pairs), strict=True):
        torch.testing.assert_close(
            found[row.example_id].double(), sketcher.row(expected).double(), rtol=1e-5, atol=1e-6
        )


# --- values of pairs that are taken out of a real step ---


class Steps:
    """AdamW on pairs, credited answer by answer (or pair by pair)."""

    def __init__(self, model: Any, task: Any, collate: Any, rows: Sequence[Any], limit: float, whole: bool):
        self.model, self.task, self.collate, self.rows, self.limit, self.whole = (
            model,
            task,
            collate,
            rows,
            limit,
            whole,
        )
        self.optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2)
        self.engine = GradientEngine(model)
        self.credits = RowCredits(self.engine.parameters, self.optimizer, 8, 1)
        self.guide = direction_of(model, 5)

    def run(self, steps: int) -> Iterator[Any]:
        for number in range(1, steps + 1):
            self.optimizer.zero_grad()
            for part in (self.rows[:1], self.rows[1:]):
                batch = self.collate(part)
                shown = MicroBatch.of(self.task, self.model, batch, [row.example_id for row in part])
                options: dict[str, Any] = {"selected": shown.selected(self.engine)}
                if self.whole:
                    options = shown.by_row(self.engine)
                with self.engine.observe(self.credits.observer, **options):
                    self.task.example_loss(self.model, batch).sum().backward()
                if self.whole:
                    self.credits.add([row.example_id for row in part])
                else:
                    assert shown.owners is not None
                    self.credits.add(shown.names, shown.owners.tolist())
            norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.limit))
            assert norm > self.limit, "the clip binds"
            self.optimizer.step()
            self.credits.update(number, self.guide, Clip(norm, self.limit))
        yield from self.credits.finish()


def test_parts_add_up_to_the_value_of_the_pair_also_where_the_clip_binds(adapted, task, pairs, collate) -> None:
    import copy

    found = []
    for whole in (True, False):
        steps = Steps(copy.deepcopy(adapted), task("dpo", beta=0.7), collate, pairs, 0.1, whole)
        found.append(list(steps.run(3)))
    for pair, parts in zip(*found, strict=True):
        assert parts.ids == [f"{part}:{name}" for name in pair.ids for part in ("chosen", "rejected")]
        for kind in ("values", "credits"):
            own, summed = getattr(pair, kind), getattr(parts, kind).unflatten(0, (-1, 2)).sum(1)
            assert own.abs().max() > 1e-6
            torch.testing.assert_close(summed, own, rtol=1e-9, atol=1e-12)
