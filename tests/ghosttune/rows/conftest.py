"""A run whose rows are asked about, and gradients of its rows the slow and obvious way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = ["red", "green", "blue", "golden", "silver", "pink", "white"]
ROWS = [
    {
        "id": f"row-{n}",
        "prompt": f"Say {WORDS[n % 7]} {'please ' * (n % 5)}number {n}",
        "completion": f"{WORDS[n % 7]} " * (1 + n % 3) + str(n),
        "kind": "even" if n % 2 == 0 else "odd",
    }
    for n in range(24)
]
COPIES = [{**ROWS[5], "id": "copy-a"}, {**ROWS[5], "id": "copy-b"}, {**ROWS[8], "id": "copy-c"}]
GUIDE = [
    {"id": f"guide-{n}", "prompt": f"Tell me {WORDS[n]} number {n}", "completion": WORDS[n], "kind": "odd"}
    for n in range(4)
]
DEV = [
    {"id": f"dev-{n}", "prompt": f"Ask for {WORDS[n]} number {n}", "completion": WORDS[n], "kind": "odd"}
    for n in range(3)
]


@pytest.fixture(scope="session")
def trained(tiny_model, tmp_path_factory) -> Path:
    """Six steps on 27 rows, three of them copies, with a ledger and checkpoints at 3 and 6; never changed."""
    from ghosttune.config.loading import load_config
    from ghosttune.workflows.train import train

    folder = tmp_path_factory.mktemp("asked")
    splits = {"train": ROWS + COPIES, "guide": GUIDE, "dev": DEV}
    lines = [json.dumps({**row, "split": split}) for split, rows in splits.items() for row in rows]
    (folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    settings: dict[str, Any] = {
        "model.name": str(tiny_model),
        "model.device": "cpu",
        "data.train.path": str(folder / "rows.jsonl"),
        "data.max_length": 64,
        "method.lora_dropout": 0.2,
        "train.max_steps": 6,
        "train.save_steps": 3,
        "train.eval_steps": 3,
        "train.logging_steps": 1,
        "train.per_device_train_batch_size": 4,
        "train.learning_rate": 0.01,
        "train.warmup_steps": 0,
        "measure.norms.every": None,
        "measure.norms.effective": None,
        "measure.ledger.guide_every": 2,
        "evaluate.limit": 0,
    }
    config = load_config(overrides=[f"{path}={json.dumps(value)}" for path, value in settings.items()])
    train(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def indexed(trained, tmp_path_factory) -> Path:
    """The same run with whole gradients at both checkpoints; never changed."""
    from ghosttune.choosing.index import index

    run = tmp_path_factory.mktemp("indexed") / "run"
    shutil.copytree(trained, run)
    index(run, checkpoints=["all"], device="cpu")
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A run of one's own, not indexed."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def own_indexed(indexed, tmp_path) -> Path:
    """An indexed run of one's own."""
    shutil.copytree(indexed, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="session")
def opened(indexed) -> Any:
    from ghosttune.choosing.opened import OpenedRun

    return OpenedRun(indexed, "cpu")


@pytest.fixture(scope="session")
def slow_gradient(opened) -> Callable[..., dict[str, Any]]:
    """(features, step) -> gradient of the sum of their nats by parameter, by one backward pass."""
    import torch

    def gradient(features: list[Any], step: int) -> dict[str, Any]:
        model = opened.at(step).eval()
        named = {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}
        loss = opened.task.example_loss(model, opened.prepared.collator(features)).sum()
        found = torch.autograd.grad(loss, list(named.values()))
        return {name: gradient.double() for name, gradient in zip(named, found, strict=True)}

    return gradient


@pytest.fixture(scope="session")
def slow_row(slow_gradient) -> Callable[..., Any]:
    """(features, step) -> the same in one row."""
    import torch

    return lambda features, step: torch.cat([g.flatten() for g in slow_gradient(features, step).values()])
