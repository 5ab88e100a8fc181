"""Resumed under any method, a run ends in the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interrupting import interrupt_at
from method_cases import CASES, Case
from safetensors.torch import load_file

from ghosttune import train
from ghosttune.run.directory import RunDir
from ghosttune.training import checkpoints
from ghosttune.workflows.train import Stopped, resume


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_file(str(file))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_resumed_is_bit_identical(case: Case, method_config, tmp_path):
    changes = {"train__max_steps": 8, "train__eval_steps": 3, "train__save_steps": 2}
    whole, parts = (RunDir(tmp_path / name) for name in ("whole", "parts"))
    train(method_config(case, **changes), whole.path)
    with pytest.raises(Stopped):
        train(method_config(case, **changes), parts.path, listen=interrupt_at(5))
    resume(parts.path)
    for one, two in ((whole.adapter, parts.adapter), (whole.last, parts.last)):
        left, right = tensors(one), tensors(two)
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    assert whole.events() == parts.events()
    for file in (checkpoints.WEIGHTS, checkpoints.OPTIMIZER, checkpoints.INSTRUMENTS):
        assert (whole.checkpoint(8) / file).read_bytes() == (parts.checkpoint(8) / file).read_bytes(), file
