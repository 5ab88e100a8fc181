"""Proof 11: where there is nothing to find, nothing is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ghosttune.proving.findings import Bench, Finding, at_least
from ghosttune.proving.reference import GUIDE, keeping_trainer, small_llama
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import read_table
from ghosttune.training.attaching import attach
from ghosttune.training.exports import separated_columns

FLAGS = 40
FEWEST = 35
"""Of FLAGS verdicts: 95 % intervals err about twice in forty."""


def nothing_is_found(bench: Bench) -> list[Finding]:
    """Random flags on the values of real, of identical and of randomly labelled rows."""
    return [indistinct(bench.folder / kind, kind) for kind in ("counting rows", "identical rows", "random labels")]


def indistinct(folder: Path, kind: str) -> Finding:
    """How many of forty random flags are called `not distinguishable`."""
    trainer = keeping_trainer(folder, small_llama(dtype=torch.float32), rows=64, max_steps=24)
    if kind == "identical rows":
        trainer.train_dataset = [{"input_ids": list(range(9))} for _ in range(64)]  # type: ignore[assignment]
    if kind == "random labels":
        random = np.random.default_rng(1)
        trainer.train_dataset = [{"input_ids": random.integers(0, 64, 9).tolist()} for _ in range(64)]  # type: ignore[assignment]
    attach(trainer, folder / "measured", GUIDE, guide_every=4)
    trainer.train()
    values = read_table(RunDir(folder / "measured"), "values").to_pylist()
    verdicts = []
    for seed in range(FLAGS):
        flags = np.random.default_rng(seed).permutation([True] * 12 + [False] * 52)
        flagged = [row | {"flag": bool(flag)} for row, flag in zip(values, flags, strict=True)]
        verdicts.append(separated_columns(flagged)["flag"]["verdict"])
    what = f"{kind}: verdicts `not distinguishable` on {FLAGS} random flags"
    return at_least(what, verdicts.count("not distinguishable"), FEWEST)
