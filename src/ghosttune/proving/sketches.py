"""Proof 10: sketches keep inner products on average, whatever draws them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

from ghostgrad import Sketcher, SketchOptions
from ghostgrad.sketch import draw
from ghostgrad.testing import one_backward_per_example
from ghostgrad.tiny import Switches, losses, padded, tiny
from ghosttune.proving.findings import Bench, Finding, every

KINDS = ("gaussian", "rademacher", "orthonormal")
SEEDS = 2000
SECONDS = 120
"""How long another process may take to draw a few matrices."""


def sketches_are_faithful(bench: Bench) -> list[Finding]:
    """Every kind of projection, its products over a whole model, and the same matrices elsewhere."""
    shapes = [(2, 9), (4, 6), (6, 6)]
    unbiased = {f"{kind} {k} x {n}": projections_are_unbiased(kind, k, n) for kind in KINDS for k, n in shapes}
    found = [every(f"E[PᵀP] = 1 within 5 standard errors, {SEEDS} seeds", unbiased)]
    products = {f"{kind}, {split}": products_are_unbiased(kind, split) for kind in KINDS for split in ("even", "cheap")}
    found.append(every("inner products of rows of a whole model, 200 seeds", products))
    here, there = checksums(), checksums_elsewhere()
    return [*found, every("matrices that another process draws alike", {k: here[k] == there.get(k) for k in here})]


def projections_are_unbiased(kind: Any, k: int, n: int) -> bool:
    """Whether every entry of the mean of PᵀP is that of the identity, within five standard errors."""
    products = torch.stack([(p := draw(kind, seed, "layer", k, n).double()).mT @ p for seed in range(SEEDS)])
    error = products.std(0) / SEEDS**0.5
    return bool(((products.mean(0) - torch.eye(n)).abs() <= 5 * error + 1e-6).all())


def products_are_unbiased(kind: Any, split: Any) -> bool:
    """Through both sides and all parameters of a model, over 200 seeds."""
    model, batch = tiny(Switches(tied=True)), padded(3)
    reference = one_backward_per_example(losses(model, batch, 3), model.named_parameters())
    exact = torch.stack([value.flatten(1) @ value.flatten(1).mT for value in reference.values()]).sum(0)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    tables = frozenset({"words.weight", "places.weight"})
    estimates = []
    for seed in range(200):
        options = SketchOptions(4, 1, ("*",), True, kind, split, seed, torch.float32)
        sketcher = Sketcher(shapes, options, tables)
        parts = [
            sketcher[name].left(sketcher[name].right(value.view(3, *sketcher[name].shape)).mT).mT.flatten(1)
            for name, value in reference.items()
        ]
        estimates.append(torch.cat(parts, 1) @ torch.cat(parts, 1).mT)
    found = torch.stack(estimates)
    return bool(((found.mean(0) - exact).abs() <= 4.5 * found.std(0) / 200**0.5 + 1e-9).all())


def checksums() -> dict[str, str]:
    """Of the matrices of two parameters, for each kind of projection."""
    shapes = {"b.weight": (9, 7), "a.weight": (5, 8)}
    options = {kind: SketchOptions(16, 2, ("*",), True, kind, "even", 1, torch.float32) for kind in KINDS}
    return {kind: str(Sketcher(shapes, chosen, frozenset()).manifest()["checksum"]) for kind, chosen in options.items()}


def checksums_elsewhere() -> dict[str, str]:
    """The same, drawn in a process of its own."""
    code = f"import sys; from {__name__} import checksums; sys.stdout.write(' '.join(checksums().values()))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
    return dict(zip(KINDS, done.stdout.split(), strict=True))
