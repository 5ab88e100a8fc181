"""What a store of gradients costs: making it, against forward and backward of the same rows, and asking it.

    python benchmarks/store.py build RUN [--sketch standard@1] [--rounds 7] [--clock cpu]
    python benchmarks/store.py query [--rows 100000] [--size 14336]

`build` takes the training rows of a run in the run's batches and alternates the arms: `plain` is forward and backward
as training does them (gradients of the adapter), `index` what `ghosttune index` does, appending to disk included.
`query` asks a store of random bfloat16 numbers, of so many per row, for its best ten rows:
the least of five, by the clock and in time of all processors together.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from quick import launch

from ghostgrad.influence import top_k
from ghostgrad.store import GradientStore
from ghosttune.choosing.opened import OpenedRun
from ghosttune.training.guide import evaluating
from ghosttune.training.sketching import RowGradients, row_batches, sketcher_of

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def build(run: str, sketch: str, rounds: int, clock: str) -> None:
    opened, now = OpenedRun(run), CLOCKS[clock]
    features = opened.train.features
    sketcher = sketcher_of(opened.adapted.facts, opened.parameters, len(features), sketch)
    gradients = opened.gradients(opened.steps(["best"])[0], sketcher)
    arms: dict[str, Callable[[], None]] = {
        "plain": lambda: plain(opened, gradients),
        "index": lambda: stored(opened, gradients),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(rounds + 1):
        for name, arm in arms.items():
            start = now()
            arm()
            if round_:  # the first one warms up
                seconds[name].append(now() - start)
    ratios = np.array(seconds["plain"]) / np.array(seconds["index"])
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, (2000, len(ratios))), axis=1)
    for name, found in seconds.items():
        print(f"{name:6} {len(features) / np.median(found):8.1f} rows per second ({clock})")
    low, high = np.quantile(medians, [0.025, 0.975])
    print(f"index makes {np.median(ratios):.2f} [{low:.2f}, {high:.2f}] times the rows of plain; {sketch}, "
          f"{sketcher.size:,} numbers per row")  # fmt: skip


def plain(opened: OpenedRun, gradients: RowGradients) -> None:
    model = gradients.model
    with evaluating(model):
        for batch in row_batches(opened.train.features, gradients.batch_size):
            windows = [window for own in batch.values() for window in own]
            tensors = {name: tensor.to(gradients.device) for name, tensor in gradients.collate(windows).items()}
            model.zero_grad(set_to_none=True)
            gradients.task.example_loss(model, tensors).sum().backward()


def stored(opened: OpenedRun, gradients: RowGradients) -> None:
    sketcher = gradients.sketcher
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        with GradientStore.create(path, size=sketcher.size, dtype=sketcher.options.dtype, meaning={}) as store:
            for ids, rows in gradients.sketches(opened.train.features):
                store.append(ids, rows)


def query(rows: int, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        with GradientStore.create(path, size=size, dtype=torch.bfloat16, meaning={}) as store:
            block = torch.randn(1000, size)
            for start in range(0, rows, 1000):
                store.append([f"row-{n}" for n in range(start, start + 1000)], block.roll(start, 1))
        store = GradientStore.read(path)
        print(f"{rows:,} rows x {size:,} bfloat16, {(path / 'rows.bin').stat().st_size / 1e9:.2f} GB")
        for queries, similarity in itertools.product((1, 30), ("dot", "cosine")):
            asked, taken = torch.randn(queries, size), []
            for _ in range(5):
                start, processor = time.perf_counter(), time.process_time()
                top_k(store, asked, 10, similarity=similarity)
                taken.append((time.perf_counter() - start, time.process_time() - processor))
            wall, processor = (min(found) for found in zip(*taken, strict=True))
            print(f"top 10 of {queries} by {similarity:6}: {wall:.2f} s, {processor:.2f} s of processors, "
                  f"{torch.get_num_threads()} threads")  # fmt: skip
        start = time.perf_counter()
        with GradientStore.append_to(path, meaning={}) as opened:
            opened.seal()
        GradientStore.read_sealed(path)
        print(f"sealed and verified in {time.perf_counter() - start:.1f} s")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parts = parser.add_subparsers(dest="part", required=True)
    building = parts.add_parser("build")
    building.add_argument("run")
    building.add_argument("--sketch", default="standard@1")
    building.add_argument("--rounds", type=int, default=7)
    building.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu where others use the machine")
    asking = parts.add_parser("query")
    asking.add_argument("--rows", type=int, default=100_000)
    asking.add_argument("--size", type=int, default=14336)
    chosen = parser.parse_args(argv)
    if chosen.part == "build":
        build(chosen.run, chosen.sketch, chosen.rounds, chosen.clock)
    else:
        query(chosen.rows, chosen.size)


if __name__ == "__main__":
    launch(
        main,
        "build {run} --rounds 1",
        "query --rows 1000 --size 512",
    )
