"""Scores of bergson for `attribution.py`: the same adapter, tokens, labels and queries, in an environment of its own.

    python benchmarks/attribution_peer.py ARM [ARM ...]

Needs `pip install bergson==2.5.1 torchopt`, and what `attribution.py peer` wrote. Every arm is one of bergson's own
pipelines, called as its command line calls it. Writes runs/attribution/scores/bergson-ARM.npz: [queries, rows] scores,
higher for rows that lower the loss, and the CPU seconds from the adapter and the tokens to these scores, after the
imports.
"""

# pyright: reportMissingImports=false, reportPossiblyUnboundVariable=false
from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import attribution
import numpy as np
import torch
from datasets import Dataset
from quick import QUICK, launch

try:
    from bergson.cli.commands import Build, Ekfac, Score, Trackstar, Trak
    from bergson.config.config import (
        AstraConfig,
        DataConfig,
        HessianConfig,
        HessianPipelineConfig,
        IndexConfig,
        InversionConfig,
        LRScheduleConfig,
        PreprocessConfig,
        QuerySetConfig,
        ScoreConfig,
        TrackstarConfig,
        TrackstarIndexConfig,
        TrakConfig,
    )
    from bergson.data import load_scores_loss_signed
    from bergson.magic.cli import worker
    from bergson.magic.config import MagicConfig
except ModuleNotFoundError as missing:
    raise SystemExit(f"skipped: needs `pip install bergson==2.5.1 torchopt` ({missing})") from None

OUT = Path("runs/attribution")
PEER = OUT / "peer"
TRAIN, QUERIES = DataConfig(dataset=str(PEER / "train.jsonl")), str(PEER / "queries.jsonl")
TOKENIZER = str(PEER / "base")


def asked() -> QuerySetConfig:
    return QuerySetConfig(dataset=QUERIES, aggregation="none")


def settings(out: Path, **changes: Any) -> dict[str, Any]:
    """Of every pipeline: the last adapter in float32, losses summed over a row's tokens as ours are."""
    return {
        "run_path": str(out),
        "model": str(PEER / "last"),
        "tokenizer": TOKENIZER,
        "data": TRAIN,
        "precision": "fp32",
        "token_batch_size": 512,
        **changes,
    }


def products(out: Path, unit: bool) -> Path:
    """Inner products or cosines of whole gradients."""
    query = PreprocessConfig(unit_normalize=unit)
    Build(IndexConfig(**settings(out / "query", data=DataConfig(dataset=QUERIES))), query).execute()
    score = ScoreConfig(query_path=str(out / "query"))
    Score(score, IndexConfig(**settings(out / "scores")), PreprocessConfig(unit_normalize=unit)).execute()
    return out / "scores"


def trackstar(out: Path, adam: bool = False) -> Path:
    state = {"optimizer_state": str(PEER / "last")} if adam else {}
    chosen = TrackstarConfig(
        query=asked(), preprocess_cfg=PreprocessConfig(unit_normalize=True), score_cfg=ScoreConfig()
    )
    Trackstar(TrackstarIndexConfig(**settings(out, projection_dim=16, **state)), chosen).execute()
    return out / "scores"


def ekfac(out: Path, method: Any = "kfac", damping: float = 0.1, own_labels: bool = False, cg: int = 0) -> Path:
    Ekfac(
        IndexConfig(**settings(out)),
        HessianConfig(method=method, ev_correction=True, use_dataset_labels=own_labels),
        ScoreConfig(),
        PreprocessConfig(),
        HessianPipelineConfig(
            query=asked(),
            inversion_cfg=InversionConfig(damping_factor=damping),
            astra=AstraConfig(num_steps=cg, solver="cg", batch_size=240 if cg else 16),
        ),
    ).execute()
    return out / "scores"


def trak(out: Path) -> Path:
    index = settings(out, projection_dim=4096, projection_target="global", loss_fn="log_odds")
    chosen = TrakConfig(
        query=asked(), preprocess_cfg=PreprocessConfig(inversion_cfg=InversionConfig(damping_factor=0.0))
    )
    Trak(TrackstarIndexConfig(**index), chosen).execute()
    return out / "scores"


def magic(out: Path, queries: int = 8) -> Path:
    """One backward through training for each of the first queries, over the same steps from the same adapter."""
    settings_of_rows = {"run_path": str(out), "model": str(PEER / "start"), "tokenizer": TOKENIZER, "precision": "fp32"}
    chosen = MagicConfig(
        **settings_of_rows,
        query=asked(),
        lr_schedule=LRScheduleConfig(lr=2.0e-3, lr_scheduler_type="cosine", warmup_steps=5),
        batch_size=8,
        seed=1,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_eps=1.0e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        wandb_project="",
    )
    out.mkdir(parents=True)
    steps = Dataset.from_json(str(PEER / "steps.jsonl"))  # rows in the order of the run, `doc_ids` says which
    asks = Dataset.from_json(QUERIES).select(range(queries))
    worker(0, 0, 1, steps, asks, 1 + max(row[0] for row in steps["doc_ids"]), queries, chosen)
    return out / "scores"


ARMS = {
    "dot": partial(products, unit=False),
    "cosine": partial(products, unit=True),
    "trackstar": trackstar,
    "trackstar-adam": partial(trackstar, adam=True),
    "ekfac": ekfac,
    "ekfac-labels": partial(ekfac, own_labels=True),
    "ekfac-1": partial(ekfac, damping=1.0),
    "shampoo": partial(ekfac, method="shampoo"),
    "ekfac-cg": partial(ekfac, cg=10),
    "trak": trak,
    "magic": magic,
}


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)
    (OUT / "scores").mkdir(exist_ok=True)
    for name in argv:
        out = PEER / name
        shutil.rmtree(out, ignore_errors=True)
        started = time.process_time()
        folder = ARMS[name](out)
        seconds = time.process_time() - started
        scores = -load_scores_loss_signed(str(folder))[0].float().numpy().T
        np.savez(OUT / "scores" / f"bergson-{name}.npz", scores=scores, seconds=seconds)
        print(f"{name}: {scores.shape}, {seconds:.1f} s of CPU time", flush=True)


def after_attribution(argv: list[str]) -> None:
    """What it reads is made first."""
    attribution.main(["rows", "--e2e", argv[0]])
    attribution.main(["peer"])
    main(argv[1:])


if __name__ == "__main__":
    launch(after_attribution if QUICK else main, "{e2e}/trainset.csv dot")
