"""The study of guide rows scores rows as one backward per row does, and agrees with itself."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ghosttune import train
from ghosttune.choosing.opened import OpenedRun
from ghosttune.proving.specimens import short_run, write_model, write_rows

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("guide_rows", REPOSITORY / "benchmarks" / "guide_rows.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> OpenedRun:
    folder = tmp_path_factory.mktemp("guided")
    changes: dict[str, Any] = {"measure__ledger__guide_every": 2, "data__guide__rows": 8, "evaluate__limit": 0}
    return OpenedRun(
        train(short_run(write_model(folder / "m"), write_rows(folder / "rows.jsonl"), **changes), folder / "run").path,
        "cpu",
    )


def test_a_score_is_the_product_of_two_gradients(script, opened):
    step = opened.steps(["last"])[0]
    found = script.Checkpoint(opened, step)
    model = opened.at(step).eval()

    def gradient(row: Any) -> torch.Tensor:
        loss = opened.task.example_loss(model, opened.prepared.collator([row])).sum()
        parts = torch.autograd.grad(loss, [opened.parameters[name] for name in found.sketcher])
        return torch.cat([part.flatten() for part in parts])

    rows = torch.stack([gradient(row) for row in opened.train.features])
    guide = torch.stack([gradient(row) for row in opened.prepared.guide.features]).mean(0)
    dots = found.scores("dot", found.guide)
    torch.testing.assert_close(dots, rows @ guide, rtol=1e-3, atol=1e-5)
    cosines = torch.nn.functional.cosine_similarity(rows, guide, dim=1)
    torch.testing.assert_close(found.scores("cosine", found.guide), cosines, rtol=1e-3, atol=1e-5)
    moments = opened.second_moments(step)
    scale = torch.cat(
        [(1 / (moments[name].sqrt() + 1e-8)).where(moments[name] > 0, 0).flatten() for name in found.sketcher]
    )
    torch.testing.assert_close(found.scores("adamw", found.guide), rows @ (guide * scale), rtol=1e-3, atol=1e-3)


def test_all_guide_rows_agree_with_themselves(script, opened, monkeypatch, capsys):
    assert script.agreement(torch.tensor([1.0, 2, 5]), torch.tensor([0.0, 3, 4])) == pytest.approx(1)
    assert script.agreement(torch.tensor([1.0, 2, 3, 3]), torch.tensor([3.0, 2, 1, 1])) == pytest.approx(-1)
    assert script.told_apart(torch.tensor([-1.0, 2, 0, 4]), np.array([True, False, True, False])) == 1
    monkeypatch.setattr("sys.argv", ["guide_rows.py", str(opened.run.path), "--counts", "2", "8", "--draws", "3"])
    script.main()
    printed = capsys.readouterr().out
    assert "8 guide" in printed and len(re.findall(r"^\| \w+ \| 8 \| 1\.00 \|", printed, re.MULTILINE)) == 3
    monkeypatch.setattr("sys.argv", ["guide_rows.py", str(opened.run.path), "--counts", "9"])
    with pytest.raises(SystemExit, match="has 8 guide rows"):
        script.main()
