"""Guide rows that take turns: against one backward per row on recorded steps, and against repeated drawing of rows."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ghosttune import train
from ghosttune.errors import ConfigError, InputError
from ghosttune.proving.reference import KeepingTrainer, counting_rows, keeping_trainer, small_llama
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import Table, read_table
from ghosttune.training.attaching import attach
from ghosttune.training.guide import evaluating
from ghosttune.training.rotation import CONTRAST_COLUMNS, Rotation, standard_errors, subsets

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*")

GUIDE = counting_rows(11, 2)
EVERY, SIZE = 5, 4


@pytest.fixture(scope="module")
def rotated(tmp_path_factory) -> tuple[KeepingTrainer, Path]:
    """Twelve steps with passes at 0, 5, 10 and 12, over three subsets of 4, 4 and 3 rows."""
    folder = tmp_path_factory.mktemp("rotated")
    trainer = keeping_trainer(folder, small_llama())
    attach(trainer, folder / "measured", GUIDE, guide_every=EVERY, guide_subset=SIZE, effective_every=None)
    trainer.train()
    return trainer, folder / "measured"


def row_gradient(model: Any, row: dict[str, list[int]]) -> tuple[dict[str, torch.Tensor], int]:
    """Gradient of the row's nats, and how many targets they are of."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ids = torch.tensor([row["input_ids"]])
    with evaluating(model):
        nats = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        return dict(zip(trained, torch.autograd.grad(nats, list(trained.values())), strict=True)), ids.shape[1] - 1


def pooled(rows: list[tuple[dict[str, torch.Tensor], int]]) -> tuple[dict[str, torch.Tensor], int]:
    targets = sum(count for _, count in rows)
    return {name: torch.stack([own[name] for own, _ in rows]).sum(0) / targets for name in rows[0][0]}, targets


def module_of(name: str) -> str:
    return name.removeprefix("base_model.model.").partition(".lora_")[0]


def test_modules_and_their_errors_are_those_of_one_backward_per_row(rotated):
    trainer, folder = rotated
    model: Any = trainer.model
    named = dict(model.named_parameters())
    parts = subsets(len(GUIDE), SIZE, trainer.args.seed)
    passes = []
    for turn, step in enumerate((0, 5, 10, 12)):
        weights = trainer.steps[step].weights if step < 12 else trainer.steps[-1].after
        with torch.no_grad():
            for name, value in weights.items():
                named[name].copy_(value)
        rows = [row_gradient(model, GUIDE[place]) for place in parts[turn % 3]]
        half = (len(rows) + 1) // 2
        (first, one), (second, two) = pooled(rows[:half]), pooled(rows[half:])
        spread = (one * two) ** 0.5 / (one + two)
        contrast = {name: spread * (first[name] - second[name]) for name in first}
        passes.append((turn % 3, weights, pooled(rows)[0], contrast))
    drops: dict[str, float] = {}
    erring: dict[str, np.ndarray] = {}
    for before, after in pairwise(passes):
        for name in before[1]:
            moved, module = after[1][name] - before[1][name], module_of(name)
            drops[module] = drops.get(module, 0.0) - 0.5 * float(((before[2][name] + after[2][name]) * moved).sum())
            errors = erring.setdefault(module, np.zeros(3))
            for subset, _, _, contrast in (before, after):
                errors[subset] -= 0.5 * float((contrast[name] * moved).sum())
    with (folder / "tables" / "modules.csv").open() as file:
        found = {row["module"]: row for row in csv.DictReader(file)}
    assert found.keys() == drops.keys()
    largest = max(abs(drop) for drop in drops.values())
    for module, drop in drops.items():
        # 1e-6: Llama's norms and rotations work in float32 whatever the model's dtype
        assert float(found[module]["guide_loss_drop"]) == pytest.approx(drop, rel=1e-6, abs=1e-6 * largest)
        error = float(np.sqrt((erring[module] ** 2).sum()))
        assert float(found[module]["standard_error"]) == pytest.approx(error, rel=1e-6, abs=1e-6 * largest) and error
    account = json.loads((folder / "ledger.json").read_text())
    whole = float(np.linalg.norm(np.sum(list(erring.values()), axis=0)))
    assert account["modules_standard_error"] == pytest.approx(whole, rel=1e-6)
    assert account["modules"] == pytest.approx(sum(drops.values()), rel=1e-6)
    assert (account["guide_subsets"], account["guide_rows_per_pass"]) == (3, 4)


def test_start_and_end_are_of_all_guide_rows(rotated):
    trainer, folder = rotated
    account = json.loads((folder / "ledger.json").read_text())
    model: Any = trainer.model
    named = dict(model.named_parameters())
    for key, weights in (("start", trainer.steps[0].weights), ("end", trainer.steps[-1].after)):
        with torch.no_grad():
            for name, value in weights.items():
                named[name].copy_(value)
            nats = targets = 0.0
            for row in GUIDE:
                ids = torch.tensor([row["input_ids"]])
                logits = model(input_ids=ids).logits[0, :-1]
                nats += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
                targets += ids.shape[1] - 1
        assert account[f"guide_loss_{key}"] == pytest.approx(nats / targets, rel=1e-4)  # float32 logits
    assert account["guide_loss_path"] is None


@pytest.mark.parametrize("rows, size", [(4, 4), (5, 4), (7, 4), (9, 4), (11, 5), (100, 32), (64, 64)])
def test_every_row_has_its_turn_and_every_subset_two_halves(rows, size):
    parts = subsets(rows, size, seed=3)
    assert sorted(place for part in parts for place in part) == list(range(rows))
    assert max(map(len, parts)) <= size and min(map(len, parts)) >= 2
    assert [part.tolist() for part in subsets(rows, size, 3)] == [part.tolist() for part in parts]
    assert rows == size or [p.tolist() for p in subsets(rows, size, 4)] != [p.tolist() for p in parts]


class Slopes:
    """Guide rows whose loss is a weight times a number: the gradient is the mean of the numbers."""

    def __init__(self, rows: Any):
        self.rows, self.targets = rows, len(rows)

    def batches(self) -> list[Any]:
        return [torch.tensor(self.rows)]

    def loss(self, model: Any, batch: torch.Tensor) -> torch.Tensor:
        return model.weight.sum() * batch.sum() / self.targets


def test_the_standard_error_is_how_much_the_total_varies_when_rows_are_drawn_anew(tmp_path):
    """Windows of unequal movement, seven passes over three subsets; 200 drawings of 12 rows."""
    random, moves = np.random.default_rng(0), [4.0, 2.0, 1.0, 0.5, -0.5, 0.25]
    model = torch.nn.Linear(1, 1, bias=False)
    facts: Any = {"weight": SimpleNamespace(layer=0, group="mlp", module="m", factor="weight")}
    named: Any = {"weight": model.weight}
    totals, errors = [], []
    for drawing in range(200):
        table = Table(RunDir(tmp_path / str(drawing)), "guide_contrasts", CONTRAST_COLUMNS)
        rows = random.normal(1.0, 2.0, 12).tolist()
        rotation = Rotation(rows, 4, 10, drawing, Slopes, table, facts)
        before, total = rotation.gradient(model, named, 0)[1]["weight"], 0.0
        for place, move in enumerate(moves, 1):
            now = rotation.gradient(model, named, 10 * place)[1]["weight"]
            rotation.enter(10 * place, {"weight": torch.tensor([[move]])})
            total -= 0.5 * float(before + now) * move
            before = now
        totals.append(total)
        entries = [part.to_pydict() for part in table.waiting]
        merged = {name: [value for part in entries for value in part[name]] for name in CONTRAST_COLUMNS}
        errors.append(standard_errors(merged)["m"])
        assert rotation.account()["modules_standard_error"] == pytest.approx(errors[-1])
    # the variance of 200 numbers is itself known to 10 %; 3 of these
    assert np.mean(np.square(errors)) == pytest.approx(np.var(totals, ddof=1), rel=0.3)


def test_guide_rows_that_are_all_the_same_leave_no_doubt(tmp_path):
    trainer = keeping_trainer(tmp_path, small_llama(), max_steps=4)
    attach(trainer, tmp_path / "measured", [GUIDE[0]] * 8, guide_every=2, guide_subset=4, effective_every=None)
    trainer.train()
    account = json.loads((tmp_path / "measured" / "ledger.json").read_text())
    assert account["modules_standard_error"] < 1e-9 < abs(account["modules"])


def test_a_turn_of_more_rows_than_there_are_is_refused(tmp_path, make_config):
    config = make_config(measure__ledger__guide_every=2, measure__ledger__guide_subset=9, data__guide__rows=8)
    with pytest.raises(ConfigError, match=r"guide_subset.*asks for 9 rows of 8 guide rows"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for size in (3, 12):
        with pytest.raises(InputError, match=rf"guide_subset is {size}; accepted are 4 to 11"):
            trainer = keeping_trainer(tmp_path, small_llama())
            attach(trainer, tmp_path / f"measured-{size}", GUIDE, guide_subset=size)


def test_the_table_of_a_run_names_the_subset_of_both_ends_of_a_window(tmp_path, make_config):
    settings = {"measure__ledger__guide_every": 2, "measure__ledger__guide_subset": 4, "data__guide__rows": 8}
    run = train(make_config(**settings), tmp_path / "run").folder
    rows = read_table(run, "guide_contrasts").to_pydict()
    ends = list(dict.fromkeys(zip(rows["step"], rows["subset"], strict=True)))
    assert ends == [(2, 0), (2, 1), (4, 1), (4, 0), (6, 0), (6, 1)]
    assert "standard_error" in run.export("modules").read_text().splitlines()[0].split(",")
