"""Do scores of rows say what training without them does? Leave-some-out retraining and the linear datamodelling score.

    python benchmarks/attribution.py rows --e2e trainset.csv.gz     the rows, and the run that is asked about; or
    python benchmarks/attribution.py rows --samsum train.jsonl.gz   of dialogues, in another folder to work in
    python benchmarks/attribution.py retrain --subsets 128          on halves of the rows; goes on where it was cut off
    python benchmarks/attribution.py score                          every score of ours and the cheap ones, timed
    python benchmarks/attribution.py peer                           tokens, labels and adapters for attribution_peer.py
    python benchmarks/attribution.py summary                        LDS with intervals, and differences, paired

The arm bm25 of `score` needs `pip install rank-bm25==0.2.2`. Everything is written below runs/attribution.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datamodels import ceiling, interval, resampled
from quick import QUICK, launch
from retraining import Retraining, retrain, retrained, subset
from run_values import RunValues
from safetensors.torch import load_file
from torch import Tensor

import ghosttune
from ghostgrad.curvature import preconditioned
from ghostgrad.influence import norms, scores
from ghosttune.choosing.attribute import DAMPING
from ghosttune.choosing.index import index
from ghosttune.choosing.opened import OpenedRun
from ghosttune.config.loading import load_config
from ghosttune.data.content import content
from ghosttune.data.encoding import RowFeatures
from ghosttune.data.files import read_file
from ghosttune.models.builtin import builtin_model_folder
from ghosttune.training.order import RowOrder, rows_of_steps
from ghosttune.training.sketching import over_second_moments

OUT = Path("runs/attribution")
BASE, ROWS, QUERIES, SCORES, PEER = (OUT / name for name in ("base", "rows.jsonl", "queries.jsonl", "scores", "peer"))
SEEDS = (101, 102)
STEPS = 9 if QUICK else 45
THIRDS = (STEPS // 3, 2 * STEPS // 3, STEPS)
SETTINGS: dict[str, Any] = {
    "model.device": "cpu",
    "data.train.path": str(ROWS),
    "data.guide.split": None,
    "data.max_length": 512,
    "train.max_steps": STEPS,
    "train.learning_rate": 2.0e-3,
    "train.warmup_steps": STEPS // 9,
    "train.seed": 1,
    "train.group_by_length": True,  # as when these figures were measured; the default is false since
    "train.eval_steps": STEPS // 9,
    "train.save_steps": STEPS // 9,
    "train.save_total_limit": 100,
    "measure.norms.every": None,
    "measure.norms.effective": None,
    "measure.ledger.guide_every": None,
    "phases": None,
    "evaluate.limit": 0,
}
COUNTS = {"train": 16, "test": 4, "dev": 4} if QUICK else {"train": 240, "test": 32, "dev": 16}
"""Rows that train, are asked about (they choose nothing), and that the run evaluates on."""


def e2e_rows(file: Path) -> list[dict[str, Any]]:
    """Short rows of E2E's training set, no two of the same meaning representation."""
    table = {row["mr"]: row for _, row in read_file(file) if len(row["mr"] + row["ref"]) < 260}
    return [{"id": f"e2e-{n}", "prompt": row["mr"], "completion": row["ref"]} for n, row in enumerate(table.values())]


def samsum_rows(file: Path) -> list[dict[str, Any]]:
    """Short dialogues of SAMSum's training set, each once, with their summaries."""
    table = {row["dialogue"]: row for _, row in read_file(file) if len(row["dialogue"] + row["summary"]) < 260}
    return [{"id": row["id"], "prompt": row["dialogue"], "completion": row["summary"]} for row in table.values()]


def write_rows(rows: list[dict[str, Any]]) -> None:
    picked = iter(np.random.default_rng(0).choice(len(rows), sum(COUNTS.values()), replace=False).tolist())
    lines = {
        split: [json.dumps(rows[next(picked)] | {"split": split}) + "\n" for _ in range(count)]
        for split, count in COUNTS.items()
    }
    OUT.mkdir(parents=True, exist_ok=True)
    ROWS.write_text("".join(lines["train"] + lines["dev"]))
    QUERIES.write_text("".join(lines["test"]))


def train_base() -> None:
    overrides = [f"{path}={json.dumps(value)}" for path, value in SETTINGS.items()]
    ghosttune.train(load_config(profile="quickstart@1", overrides=overrides), BASE)


class Asked:
    """The run opened, with its queries."""

    def __init__(self, run: Path):
        self.opened = OpenedRun(run, "cpu")
        self.rows = self.opened.train
        self.queries = self.opened.rows(QUERIES)

    def directions(self, step: int, by: str) -> Tensor:
        """[queries, size] the stored form of each query's gradient at a checkpoint."""
        store = self.opened.store(self.rows, step)
        sketcher = self.opened.sketcher(store)
        self.opened.at(step)
        found = []
        for row in self.queries.features:
            direction = self.opened.direction([row], sketcher)
            if by == "adamw":
                epsilon = self.opened.config.train.adam_epsilon
                direction = over_second_moments(direction, self.opened.second_moments(step), epsilon)
            found.append(sketcher.row(direction))
        return torch.stack(found)

    def scored(self, by: str, steps: Sequence[int]) -> np.ndarray:
        """[queries, rows] as `choosing.attribute.scored` does for one query, for all of them at once."""
        rates = [1.0 if by == "preconditioned" else self.opened.learning_rate(step) for step in steps]
        total = np.zeros((len(self.queries.ids), len(self.rows.ids)))
        for step, rate in zip(steps, rates, strict=True):
            store = self.opened.store(self.rows, step)
            towards = self.directions(step, by)
            if by == "preconditioned":
                towards = preconditioned(store, towards, DAMPING, self.opened.sketcher(store).sides)
            own = scores(store, towards, "cosine" if by == "cosine" else "dot")
            places = [store.place(name) for name in self.rows.ids]
            total += rate / sum(rates) * own[:, places].double().numpy()
        return total


def timed(name: str, made: Callable[[], np.ndarray], before: float = 0.0) -> None:
    started = time.process_time()
    found = made()
    seconds = before + time.process_time() - started
    SCORES.mkdir(exist_ok=True)
    np.savez(SCORES / f"{name}.npz", scores=found, seconds=seconds)
    print(f"{name}: {seconds:.1f} s of CPU time", flush=True)


def score() -> None:
    """Every arm but the peer's, from the run's checkpoints to scores of all rows for all queries."""
    timed("random", partial(np.random.default_rng(0).standard_normal, (COUNTS["test"], COUNTS["train"])))
    if find_spec("rank_bm25"):
        timed("bm25", partial(bm25, OpenedRun(BASE, "cpu")))
    else:
        print("skipped: bm25, which needs rank-bm25==0.2.2")
    asked, seconds = indexed(BASE, "exact@1", "last")
    timed("gradient norm", partial(same_for_all, norms(asked.opened.store(asked.rows, STEPS)).numpy()), seconds)
    timed("row loss", partial(row_losses, asked))
    products(asked, "", [STEPS], seconds)
    timed("removal, over the run", over_the_run)
    asked, more = indexed(BASE, "exact@1", *map(str, THIRDS))
    timed("preconditioned, 3 checkpoints", partial(asked.scored, "preconditioned", THIRDS), more)
    asked, more = indexed(BASE, "exact@1", "all")
    products(asked, ", 9 checkpoints", asked.opened.steps(["all"]), more)
    sketched = OUT / "base-standard"
    shutil.rmtree(sketched, ignore_errors=True)
    shutil.copytree(BASE, sketched, ignore=shutil.ignore_patterns("store"))
    asked, seconds = indexed(sketched, "standard@1", "last")
    products(asked, ", standard@1", [STEPS], seconds)


def indexed(run: Path, kind: str, *checkpoints: str) -> tuple[Asked, float]:
    """The run with its rows' gradients stored anew, opened; and the CPU seconds of both."""
    shutil.rmtree(run / "store", ignore_errors=True)
    started = time.process_time()
    index(run, checkpoints=checkpoints, kind=kind)
    return Asked(run), time.process_time() - started


def products(asked: Asked, name: str, steps: Sequence[int], before: float) -> None:
    for by in ("dot", "cosine", "adamw", "preconditioned"):
        timed(f"{by}{name}", partial(asked.scored, by, steps), before)


def over_the_run() -> np.ndarray:
    """[queries, rows] the ledger's values for each query, added up over the run, which is repeated for it."""
    opened = OpenedRun(BASE, "cpu")
    values = RunValues(Retraining(opened, opened.rows(QUERIES).features), 5)
    values.retraining.trained(range(COUNTS["train"]), opened.config.train.seed, values)
    values.close()
    return values.values.numpy()


def same_for_all(of_rows: np.ndarray) -> np.ndarray:
    return np.tile(of_rows, (COUNTS["test"], 1))


def bm25(opened: OpenedRun) -> np.ndarray:
    """[queries, rows] Okapi BM25 of prompt and completion together, in lower-case words."""
    from rank_bm25 import BM25Okapi  # pyright: ignore[reportMissingImports]

    queries = opened.rows(QUERIES)
    words = [
        [re.findall(r"\w+", " ".join(map(str, content(rows.record(name)).values())).lower()) for name in rows.ids]
        for rows in (opened.train, queries)
    ]
    table = BM25Okapi(words[0])
    return np.stack([table.get_scores(query) for query in words[1]])


def row_losses(asked: Asked) -> np.ndarray:
    """[queries, rows] nats per target of the rows at the last checkpoint."""
    asked.opened.at(STEPS)
    return same_for_all(Retraining(asked.opened, asked.rows.features).losses())


def write_peer() -> None:
    """What another library needs to see the same: tokens with labels, the order of the run's rows, its adapters."""
    opened = OpenedRun(BASE, "cpu")
    train, features = opened.config.train, opened.train.features
    size = train.per_device_train_batch_size
    order = RowOrder([len(row) for row in features], size, train.seed, train.group_by_length)
    steps = [place for step in rows_of_steps(order, size, 1, STEPS) for place in step]
    PEER.mkdir(exist_ok=True)
    shutil.copytree(builtin_model_folder("builtin:tiny"), PEER / "base", dirs_exist_ok=True)
    longest = max(len(row) for row in features)
    write_tokens("train", features)
    write_tokens("queries", opened.rows(QUERIES).features)
    write_tokens("steps", [features[place] for place in steps], [{"doc_ids": [place] * longest} for place in steps])
    write_adapter(opened, PEER / "last")
    opened = OpenedRun(BASE, "cpu")  # as it is before training
    opened.adapted.model.save_pretrained(PEER / "start")
    rename_base(PEER / "start")


def write_tokens(name: str, rows: Sequence[RowFeatures], more: Sequence[dict[str, Any]] | None = None) -> None:
    with open(PEER / f"{name}.jsonl", "w") as file:
        for row, extra in zip(rows, more or [{}] * len(rows), strict=True):
            ids, trained = row.input_ids.tolist(), row.trained.tolist()  # type: ignore[attr-defined]
            labels = [token if own else -100 for token, own in zip(ids, trained, strict=True)]
            line = {"input_ids": ids, "labels": labels, "length": len(ids), **extra}
            file.write(json.dumps(line) + "\n")


def write_adapter(opened: OpenedRun, folder: Path) -> None:
    """The last adapter, and AdamW's state as transformers writes it."""
    own, train = opened.run.checkpoint(STEPS), opened.config.train
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(own / name, folder)
    rename_base(folder)
    saved = load_file(own / "optimizer.safetensors")
    names = [key.removesuffix("|exp_avg_sq") for key in saved if key.endswith("|exp_avg_sq")]
    state = {
        place: {part: saved[f"{name}|{part}"] for part in ("exp_avg", "exp_avg_sq", "step")} | {"param_name": name}
        for place, name in enumerate(names)
    }
    group = {"params": list(state), "betas": (train.adam_beta1, train.adam_beta2), "eps": train.adam_epsilon}
    torch.save({"state": state, "param_groups": [group]}, folder / "optimizer.pt")


def rename_base(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(PEER / "base")
    (folder / "adapter_config.json").write_text(json.dumps(config))


def summary(first: int, seeds: Sequence[int]) -> None:
    """Every arm on the subsets from `first` on; then differences on the same draws of queries and subsets."""
    losses = retrained(OUT / "losses", seeds)[first:]
    subsets = np.zeros((len(losses), COUNTS["train"]), dtype=bool)
    for number, own in enumerate(subsets, first):
        own[subset(number, COUNTS["train"])] = True
    files = {file.stem: np.load(file) for file in sorted(SCORES.glob("*.npz"))}
    whole = {name: file for name, file in files.items() if len(file["scores"]) == COUNTS["test"]}
    most = f"; ceiling {ceiling(losses).mean():.3f}" if len(seeds) % 2 == 0 else ""
    print(f"{len(losses)} subsets, {len(seeds)} seeds{most}")
    report(whole, subsets, losses.mean(1))
    for few in sorted({len(file["scores"]) for file in files.values()} - {COUNTS["test"]}):
        print(f"the first {few} queries")
        cut = {name: {"scores": file["scores"][:few], "seconds": file["seconds"]} for name, file in files.items()}
        report(cut, subsets, losses.mean(1)[:, :few])


def report(arms: dict[str, Any], subsets: np.ndarray, losses: np.ndarray) -> None:
    found = resampled({name: file["scores"].astype(float) for name, file in arms.items()}, subsets, losses)
    for name, values in sorted(found.items(), key=lambda item: -item[1][0]):
        own = interval(values, losses.shape[1])
        print(f"{name:32} {own.value:6.3f} [{own.low:6.3f}, {own.high:6.3f}] {float(arms[name]['seconds']):7.1f} s")
    ours = "preconditioned"
    for name in sorted(found, key=lambda name: -found[name][0]):
        if name != ours:
            gain = interval(found[ours] - found[name], losses.shape[1])
            print(f"{ours} over {name:32} {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("rows", "retrain", "score", "peer", "summary"))
    parser.add_argument("--e2e", type=Path)
    parser.add_argument("--samsum", type=Path)
    parser.add_argument("--subsets", type=int, default=128)
    parser.add_argument("--seeds", type=int, choices=(1, 2), default=2, help="trainings of each half")
    parser.add_argument("--first", type=int, default=0, help="leave out the subsets before this one")
    chosen = parser.parse_args(argv)
    seeds = SEEDS[: chosen.seeds]
    torch.set_num_threads(1)
    if chosen.part == "rows":
        write_rows(e2e_rows(chosen.e2e) if chosen.e2e else samsum_rows(chosen.samsum))
        train_base()
    elif chosen.part == "retrain":
        opened = OpenedRun(BASE, "cpu")
        retrain(opened, opened.rows(QUERIES).features, OUT / "losses", chosen.subsets, seeds)
    elif chosen.part == "summary":
        summary(chosen.first, seeds)
    else:
        {"score": score, "peer": write_peer}[chosen.part]()


if __name__ == "__main__":
    launch(
        main,
        "rows --e2e {e2e}/trainset.csv",
        "retrain --subsets 2",
        "score",
        "peer",
        "summary",
    )
