"""How far inner products and cosines of sketched gradients are from exact ones, by size, kind and split of the sketch.

    python benchmarks/projection_error.py RUN [RUN ...] [--out results.json] [--rows 24] [--seeds 6]
        [--sizes 16 32 64 128 256 512 1024] [--checkpoint best] [--layers '*mlp*']

For a few training rows of each run, drawn by `--seed`, the gradient of every trained parameter is taken whole, one row
at a time; lookup tables are left out, as `ghosttune index` leaves them out. The same gradients are then projected with
every combination of size (numbers per parameter), kind and split, with as many seeds of the projection. RESULTS.json
holds a line for each combination, RESULTS-*.pdf the three figures (`ghosttune.reports.plots.plot_projection_error`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from ghostgrad import Sketcher, SketchOptions
from ghostgrad.forms import Dense
from ghostgrad.sketch import Kind, Split, sides
from ghosttune.choosing.opened import OpenedRun
from ghosttune.reports.plots import plot_projection_error
from ghosttune.reports.projections import QUANTITIES
from ghosttune.run.directory import write_json
from ghosttune.training.sketching import sketcher_for

SIZES = (16, 32, 64, 128, 256, 512, 1024)
SIDE = 4
"""Least rank of a side; 4 * 4 is the smallest size."""

OPTIONS = SketchOptions(1 << 40, 1, ("*",), False, "gaussian", "even", 0, torch.float32)
"""Whole gradients: what is measured is projecting, not rounding."""

Gradients = Mapping[str, Tensor]
"""Parameter -> [rows, O, I], the gradient of each row."""


def whole_gradients(run: Path, checkpoint: str, rows: int, seed: int, layers: tuple[str, ...] = ("*",)) -> Gradients:
    """The exact gradients of so many training rows of a run, one row to a backward pass."""
    opened = OpenedRun(run, "cpu")
    sketcher = sketcher_for(opened.adapted.facts, opened.parameters, replace(OPTIONS, layers=layers))
    some = set(drawn(opened.train.ids, rows, seed))
    chosen = [row for row in opened.train.features if row.example_id in some]
    (step,) = opened.steps([checkpoint])
    found = torch.cat([row for _, row in opened.gradients(step, sketcher, batch_size=1).sketches(chosen)])
    return reassembled(found, sketcher)


def drawn(ids: list[str], rows: int, seed: int) -> list[str]:
    """So many of the ids."""
    return np.random.default_rng(seed).permutation(ids)[:rows].tolist()


def reassembled(rows: Tensor, sketcher: Sketcher) -> Gradients:
    """The parameters' gradients from [rows, size] whole ones, as a store of `exact@1` keeps them."""
    columns: Any = sketcher.manifest()["columns"]
    return {name: rows[:, start:end].unflatten(1, sketcher.shapes[name]) for name, (start, end) in columns.items()}


def exact_products(gradients: Gradients) -> Tensor:
    """[rows, rows] float64."""
    return torch.stack([own.flatten(1).double() @ own.flatten(1).double().mT for own in gradients.values()]).sum(0)


def estimates(gradients: Gradients, options: SketchOptions, seeds: Iterable[int]) -> tuple[int, Tensor]:
    """(numbers per row, [seeds, rows, rows] inner products of the sketches)."""
    shapes = {name: tuple(own.shape[1:]) for name, own in gradients.items()}
    found, size = [], 0
    for seed in seeds:
        sketcher = Sketcher(shapes, replace(options, seed=seed), frozenset())
        rows = torch.cat([Dense(gradients[name]).sketch(sketcher[name]) for name in sketcher], 1).double()
        found.append(rows @ rows.mT)
        size = sketcher.size
    return size, torch.stack(found)


def errors(exact: Tensor, found: Tensor) -> dict[str, float]:
    """Root mean square errors over the pairs of different rows and the seeds, the relative one with a standard error.

    `relative` is the RMSE over the root mean square of the exact inner products, `bias` the mean ratio minus one of
    the squared norms.
    """
    above = torch.triu(torch.ones_like(exact, dtype=torch.bool), 1)
    squares = (found - exact)[:, above].square().mean(1)
    scale = exact[above].square().mean().sqrt()
    rmse = squares.mean().sqrt()
    spread = squares.std() / len(squares) ** 0.5 / (2 * rmse) if rmse else torch.zeros(())
    away = (cosines(found) - cosines(exact))[:, above]
    ratios = found.diagonal(dim1=1, dim2=2) / exact.diagonal()
    return {
        "rmse": float(rmse),
        "relative": float(rmse / scale),
        "relative_error": float(spread / scale),
        "cosine": float(away.square().mean().sqrt()),
        "bias": float(ratios.mean() - 1),
    }


def cosines(products: Tensor) -> Tensor:
    norms = products.diagonal(dim1=-2, dim2=-1).sqrt()
    return products / (norms.unsqueeze(-1) * norms.unsqueeze(-2))


def predicted(gradients: Gradients, options: SketchOptions) -> float:
    """RMSE of inner products under Gaussian projections of both sides, from their variance in closed form.

    With S = P_oᵀ P_o and T = P_iᵀ P_i, the estimate of <A, B> is tr(Aᵀ S B T). For a Gaussian P of k rows
    E[S X S] = X + (Xᵀ + tr(X) I) / k; used for both sides this gives the terms below. The last is that of one
    unstructured projection to k_o * k_i numbers; the others are the larger, the smaller the ranks of the gradients.
    """
    variance = torch.zeros(())
    for own in gradients.values():
        values = own.double()
        left, right = sides((values.shape[1], values.shape[2]), options)
        outer, inner = (0 if left == values.shape[1] else 1 / left), (0 if right == values.shape[2] else 1 / right)
        rows = (values @ values.mT).flatten(1)
        columns = (values.mT @ values).flatten(1)
        dots = values.flatten(1) @ values.flatten(1).mT
        norms = dots.diagonal()
        by_outer, by_inner = columns @ columns.mT, rows @ rows.mT  # ‖B Aᵀ‖² and ‖Aᵀ B‖² of every pair
        variance = (
            variance
            + (outer + outer * inner) * by_outer
            + (inner + outer * inner) * by_inner
            + (outer + inner) * squared_traces(values)
            + outer * inner * (dots.square() + norms.unsqueeze(0) * norms.unsqueeze(1))
        )
    above = torch.triu(torch.ones_like(variance, dtype=torch.bool), 1)
    return float(variance[above].mean().sqrt())


def squared_traces(values: Tensor) -> Tensor:
    """[rows, rows] tr((B Aᵀ)²) of every pair of rows, over the shorter side."""
    if values.shape[1] > values.shape[2]:
        values = values.mT
    return torch.stack([(products := values @ own.mT).mul(products.mT).sum((1, 2)) for own in values])


def study(gradients: Gradients, sizes: Iterable[int], seeds: int) -> list[dict[str, Any]]:
    """A line for each split, size and kind."""
    exact = exact_products(gradients)
    lines = []
    for split, size in product(get_args(Split), sizes):
        options = replace(OPTIONS, size=size, side=SIDE, split=split)
        expected = predicted(gradients, options)
        for kind in get_args(Kind):
            numbers, found = estimates(gradients, replace(options, kind=kind), range(seeds))
            settings = {"kind": kind, "split": split, "size": size, "numbers": numbers}
            lines.append(settings | errors(exact, found) | ({"predicted": expected} if kind == "gaussian" else {}))
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/projection_error/results.json"))
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of rows")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help=f"at least {SIDE**2}")
    parser.add_argument("--checkpoint", default="best")
    parser.add_argument("--layers", nargs="+", default=["*"])
    chosen = parser.parse_args(argv)
    lines = []
    for run in chosen.runs:
        gradients = whole_gradients(run, chosen.checkpoint, chosen.rows, chosen.seed, tuple(chosen.layers))
        exact = sum(own[0].numel() for own in gradients.values())
        print(f"{run.name}: {chosen.rows} rows, {len(gradients)} parameters of {exact:,} numbers")
        for line in study(gradients, chosen.sizes, chosen.seeds):
            print(*(f"{name} {value:.3g}" if isinstance(value, float) else value for name, value in line.items()))
            lines.append({"run": run.name, "exact_numbers": exact, **line})
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(chosen.out, lines)
    for quantity in QUANTITIES:
        plot_projection_error(chosen.out, chosen.out.with_name(f"{chosen.out.stem}-{quantity}.pdf"), view=quantity)


if __name__ == "__main__":
    from quick import launch

    launch(main, "{run} --rows 4 --seeds 2 --sizes 16 64")
