"""The families that see, row by row in float64 against one backward pass each; run it for the table of docs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import torch
from families import FAMILIES, saved
from seeing import COLOURS, picture, write_rows

from ghosttune.config.loading import load_config
from ghosttune.config.schema import RunConfig
from ghosttune.models.loading import load_model
from ghosttune.proving.rowwise import LENGTHS, largest_errors
from ghosttune.run.tables import read_table
from ghosttune.stages.model import adapted_model
from ghosttune.stages.prepare import Prepared, prepare
from ghosttune.training import checkpoints
from ghosttune.training.guide import evaluating
from ghosttune.training.order import RowOrder, rows_of_steps
from ghosttune.workflows.train import train

TARGETS = {"attention": ["q_proj", "v_proj"], "all_linear": "all_linear"}
SIZES = ((12, 9), (40, 20), (9, 30), (64, 64))


def rows(folder: Path) -> Path:
    """Eleven rows with no image, one, two or three of other sizes, some of two exchanges."""
    for number, (colour, size) in enumerate(zip(COLOURS, SIZES, strict=True)):
        picture(folder / "images" / f"{number}.png", colour, size)
    asked: list[tuple[str, list[int]]] = [
        ("<image>\nWhich colour is it?", [0]),
        ("Compare <image> with <image>", [1, 2]),
        ("Only words", []),
        ("<image><image>\nand <image>?", [3, 0, 1]),
    ]
    made = []
    for number in range(11):
        words, shown = asked[number % 4]
        said = [("human", f"{words} {number}"), ("gpt", f"It is {[*COLOURS][number % 4]}.")]
        said += [("human", "Sure?"), ("gpt", "Yes")] if number % 3 == 0 else []
        row = {"id": f"row{number}", "conversations": [{"from": who, "value": what} for who, what in said]}
        made.append(row | ({"images": [f"{(image + number) % 4}.png" for image in shown]} if shown else {}))
    return write_rows(folder, made)


def config_of(model: Path, data: Path, targets: str | list[str]) -> RunConfig:
    """Two steps of four rows, the account of rows and every guide pass on."""
    return load_config(
        {
            "model": {"name": str(model), "device": "cpu"},
            "method": {"target_modules": targets},
            "data": {
                "train": {"name": "image_text", "path": str(data)},
                "dev": {"fraction": 0.1},
                "guide": {"rows": 2},
                "max_length": 600,
                "template": "turns",
            },
            "train": {
                "max_steps": 2,
                "per_device_train_batch_size": 4,
                "learning_rate": 0.02,
                "warmup_steps": 0,
                "lr_scheduler_type": "constant",
                "save_steps": 1,
                "save_total_limit": 3,
            },
            "measure": {"norms": {"every": 1}, "ledger": {"guide_every": 1, "values": "sgd"}},
            "evaluate": {"limit": 0},
        }
    )


def in_float64(*arguments: Any) -> Any:
    return load_model(*arguments).double()


def drawn(prepared: Prepared) -> Any:
    """The model with its adapter, in evaluation mode, nothing of the adapter zero."""
    model = adapted_model(prepared).model.eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=random, dtype=parameter.dtype) * 0.1)
    return model


def engine_error(prepared: Prepared) -> float:
    """Of norms, products with a direction and sums of four rows in one batch, relative to the parameter's largest."""
    model, features = drawn(prepared), prepared.train.features[: len(LENGTHS)]
    return max(largest_errors(model, prepared.task, prepared.collator(features)).values())


def ledger_error(prepared: Prepared, folder: Path) -> float:
    """Of the values that a run writes for its rows, step by step, relative to the largest of the step."""
    run = train(prepared.config, folder)
    table = read_table(run.folder, "ledger").to_pylist()
    model, worst = adapted_model(prepared).model, 0.0
    for step in (1, 2):
        if step > 1:
            checkpoints.restore_adapter(run.folder.checkpoint(step - 1), model)
        with evaluating(model):
            guide = gradients(model, prepared, sorted(prepared.guide.features, key=len))
            goal = {name: rows.sum(0) for name, rows in guide.items()}
            taken = rows_of_step(prepared, step)
            own = gradients(model, prepared, taken)
        norm = torch.stack([rows.sum(0).norm() for rows in own.values()]).norm()
        clip = min(1.0, prepared.config.train.max_grad_norm / (float(norm) + 1e-6))
        expected = 0.02 * clip * sum((rows * goal[name]).flatten(1).sum(1) for name, rows in own.items())
        found = {row.example_id: 0.0 for row in taken}
        for entry in table:
            if entry["step"] == step:
                found[entry["example_id"]] += entry["value"]
        error = (torch.tensor(list(found.values()), dtype=torch.float64) - expected).abs().max()
        worst = max(worst, float(error / expected.abs().max()))
    return worst


def gradients(model: Any, prepared: Prepared, features: Sequence[Any]) -> dict[str, torch.Tensor]:
    """[rows, …] of each trained parameter: one backward pass per row, of its share in the mean over all targets.

    The mean is taken before and not behind the backward pass, as a run does: norms of these models round to float32.
    """
    targets = sum(row.targets for row in features)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, list[torch.Tensor]] = {name: [] for name in trained}
    for row in range(len(features)):
        losses = prepared.task.example_loss(model, prepared.collator(features)) / targets
        made = torch.autograd.grad(losses[row], list(trained.values()))
        for name, gradient in zip(trained, made, strict=True):
            found[name].append(gradient)
    return {name: torch.stack(rows) for name, rows in found.items()}


def rows_of_step(prepared: Prepared, step: int) -> list[Any]:
    order = RowOrder([len(row) for row in prepared.train.features], 4, prepared.config.train.seed)
    *_, taken = rows_of_steps(order, 4, 1, step)
    return [prepared.train.features[position] for position in taken]


def errors(family: str, targets: str | list[str], folder: Path) -> tuple[float, float]:
    """(of the engine, of the ledger) of a family with LoRA on these modules."""
    prepared = prepare(config_of(saved(family, folder / "model"), rows(folder / "rows"), targets))
    with patch("ghosttune.stages.model.load_model", in_float64):
        return engine_error(prepared), ledger_error(prepared, folder / "run")


def table(say: Callable[[str], Any]) -> None:
    """The matrix of docs/data.md."""
    say("| family | LoRA on | rows of a batch | values in the ledger |")
    say("| --- | --- | --- | --- |")
    for family in FAMILIES:
        for name, targets in TARGETS.items():
            engine, ledger = errors(family, targets, Path(mkdtemp()))
            say(f"| {family} | {name} | {engine:.1e} | {ledger:.1e} |")


if __name__ == "__main__":
    table(lambda line: sys.stdout.write(line + "\n"))
