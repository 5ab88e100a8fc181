"""Answers that vLLM writes beside those of our own loop, on a run that is trained here.

    make vllm-check                               or, where vLLM and ghosttune are: python scripts/vllm_check.py

Trains the quickstart's task for a few steps, answers its dev rows by both engines, with the adapter and without, and
prints how many answers and tokens are the same. Ends with 1 where fewer than 98 of 100 tokens are.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ghosttune import load_config, train
from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.sampling import Sampling
from ghosttune.judging.engines import open_pipeline
from ghosttune.judging.evaluate import evaluate, opened, rows_of

SHARE = 0.98
"""Of the tokens."""


def main() -> None:
    """Trains, answers, compares."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(load_config(settings()), run)
        of_run, config = opened(run, [], False)
        prompts: Any = [record.prompt for record in rows_of(of_run, config, None, "dev").records]
        engines = {"transformers": Pipeline.open(run), "vllm": open_pipeline(run, "vllm")}
        shares = [compared(engines, prompts, adapter) for adapter in (True, False)]
        drawn = [
            [answer.text for answer in engines["vllm"].generate(prompts[:8], sampling=Sampling(0.8, seed=3))]
            for _ in range(2)
        ]
        print(f"equal seeds give equal draws: {drawn[0] == drawn[1]}")
        judged = {name: score(run, name, Path(folder) / name) for name in engines}
        print("exact_match, interval:", judged)
    sys.exit(0 if min(shares) >= SHARE and drawn[0] == drawn[1] else 1)


def settings() -> dict[str, Any]:
    """The quickstart's task, half learned: answers that are neither all right nor all wrong."""
    return {
        "model": {"name": "builtin:tiny", "device": "cpu"},
        "data": {"train": {"path": "builtin:rows"}},
        "method": {"type": "lora", "r": 8},
        "train": {"max_steps": 90, "learning_rate": 5e-3, "per_device_train_batch_size": 8},
        "measure": {"ledger": None},
    }


def compared(engines: dict[str, Any], prompts: Any, adapter: bool) -> float:
    """The share of our loop's tokens that vLLM writes too, up to where an answer takes another turn."""
    said, seconds = {}, {}
    for name, pipeline in engines.items():
        pipeline.generate(prompts[:1], adapter=adapter)  # vLLM is loaded, and compiled, at the first
        start = time.monotonic()
        said[name] = pipeline.generate(prompts, adapter=adapter)
        seconds[name] = time.monotonic() - start
    tokenizer = engines["transformers"].encoder.template.tokenizer
    alike = whole = equal = 0
    for ours, theirs in zip(said["transformers"], said["vllm"], strict=True):
        a, b = (tokenizer(one.text, add_special_tokens=False).input_ids for one in (ours, theirs))
        same = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        alike, whole, equal = alike + same, whole + max(len(a), len(b)), equal + (ours == theirs)
    who = "adapter" if adapter else "base"
    print(f"{who}: {equal} of {len(prompts)} answers, {alike} of {whole} tokens the same; seconds {seconds}")
    return alike / max(1, whole)


def score(run: Path, engine: str, out: Path) -> Any:
    """exact_match of the run's dev rows."""
    return evaluate(run, engine=engine, out=out)["dev"]["adapter"]["exact_match"]


if __name__ == "__main__":
    main()
