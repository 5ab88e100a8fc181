"""Target tokens per second of one LoRA run: ghosttune, TRL's SFTTrainer and a plain transformers.Trainer.

Same model (a Llama of 15 million parameters with 32,000 tokens), rows, batch, optimizer and precision; one epoch over
the same rows, so that each trainer sees the same targets. Each measurement is a process of its own with one thread, the
three taking turns; printed are the medians, the ratio of each pair of turns, and the loss curves.

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/train_speed.py --rounds 5

E2E rows are read from --e2e (a folder with trainset.csv) where it is given; without it, rows have random tokens and the
same lengths as E2E's on average.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from quick import launch

VOCABULARY = 32_000
TRAINERS = ("ghosttune", "trl", "transformers")
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16}
LEARNING_RATE = 1e-3
SEED = 0


def rows_of(count: int, e2e: str | None, tokenizer: str | None) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, completion ids) of each row; ids are folded into the vocabulary of the model."""
    if e2e and tokenizer:
        from transformers import AutoTokenizer

        from ghosttune.config.sections.data import SourceSettings
        from ghosttune.data.sources import open_source

        read = AutoTokenizer.from_pretrained(tokenizer)
        records = open_source(SourceSettings(name="e2e_nlg", path=e2e)).records[:count]
        prompts = read([record.prompt[-1].content for record in records]).input_ids
        completions = read([f"{record.reference}{read.eos_token}" for record in records]).input_ids
        folded = [[token % VOCABULARY for token in ids] for ids in prompts + completions]
        return list(zip(folded[:count], folded[count:], strict=True))
    random = np.random.default_rng(SEED)
    prompt, completion = random.normal(62, 9, count).clip(35, 100), random.normal(26, 10, count).clip(5, 80)
    draw = lambda length: random.integers(3, VOCABULARY, int(length)).tolist()  # noqa: E731
    return [(draw(left), draw(right)) for left, right in zip(prompt, completion, strict=True)]


def model_of() -> Any:
    """The same random Llama in every process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(shape)


def common_arguments(batch: int, steps: int) -> dict[str, Any]:
    return {
        "max_steps": steps, "per_device_train_batch_size": batch, "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant", "optim": "adamw_torch_fused", "max_grad_norm": 1.0,
        "logging_steps": 1, "save_strategy": "no", "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "seed": SEED, "bf16": False,
    }  # fmt: skip


def clock() -> Any:
    """A callback that notes the time of each step's end, and of the first step's beginning."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.times = self.times or [time.perf_counter()]

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    return Clock()


def features_of(rows: list) -> list[Any]:
    """The rows as ghosttune encodes them: completions trained, prompts not."""
    from ghosttune.data.encoding import Features

    return [
        Features(
            position,
            str(position),
            np.array(left + right, np.int32),
            np.array([False] * len(left) + [True] * len(right)),
        )
        for position, (left, right) in enumerate(rows)
    ]


def train_ghosttune(rows: list, batch: int, steps: int, folder: Path, watch: Any) -> list[float]:
    import torch

    from ghosttune.config.loading import load_config
    from ghosttune.config.resolve import resolve_steps
    from ghosttune.data.encoding import Collator, Encoded
    from ghosttune.models.loading import add_adapter
    from ghosttune.registry import TASKS
    from ghosttune.run.directory import RunDir
    from ghosttune.training.instruments import Measurement
    from ghosttune.training.order import RowOrder
    from ghosttune.training.trainer import RunTrainer
    from ghosttune.training.watching import Watch

    settings = {
        "model": {"device": "cpu"},
        "method": {"type": "lora", **LORA},
        "data": {"train": {"path": "builtin:rows"}},
        "train": {
            "max_steps": steps,
            "group_by_length": True,  # as when these figures were measured; the default is false since
            "per_device_train_batch_size": batch,
            "learning_rate": LEARNING_RATE,
            "logging_steps": 1,
        }
        | {"lr_scheduler_type": "constant", "warmup_steps": 0, "eval_steps": steps, "save_steps": steps, "seed": SEED},
    }
    config = resolve_steps(load_config(settings), len(rows))
    features = features_of(rows)
    model = add_adapter(model_of().requires_grad_(False), config.method, SEED)
    run = RunDir(folder / "run").create()
    trainer = RunTrainer(
        model, config, run, TASKS["causal_lm"].build(), Encoded(features), Encoded(features[:1]), Collator(0),
        Watch(run, config.train, lambda event: None), Measurement(model, [], 1.0), phasing=None,
        order=RowOrder.of_run(features, config.train), resuming=False,
    )  # fmt: skip
    trainer.add_callback(watch)
    with torch.enable_grad():
        trainer.train()
    return [event["loss"] for event in run.events() if event["event"] == "log"]


def adapted() -> Any:
    import peft

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return peft.get_peft_model(model_of(), peft.LoraConfig(**LORA, target_modules=names, task_type="CAUSAL_LM"))


def train_trl(rows: list, batch: int, steps: int, folder: Path, watch: Any) -> list[float]:
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    from ghosttune.data.encoding import IGNORED
    from ghosttune.models.builtin import builtin_model_folder

    columns = [{"input_ids": left + right, "labels": [IGNORED] * len(left) + right} for left, right in rows]
    arguments = SFTConfig(output_dir=str(folder), gradient_checkpointing=False, **common_arguments(batch, steps))
    trainer = SFTTrainer(
        model=adapted(),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(columns),
        processing_class=AutoTokenizer.from_pretrained(builtin_model_folder("builtin:tiny")),
        callbacks=[watch],
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train_transformers(rows: list, batch: int, steps: int, folder: Path, watch: Any) -> list[float]:
    from transformers import Trainer, TrainingArguments

    from ghosttune.data.encoding import Collator, Features

    features = features_of(rows)
    collate = Collator(0)

    def without_index(batch_rows: list[Features]) -> dict[str, Any]:
        return {name: tensor for name, tensor in collate(batch_rows).items() if name != "example_index"}

    arguments = TrainingArguments(output_dir=str(folder), remove_unused_columns=False, **common_arguments(batch, steps))
    trainer = Trainer(adapted(), arguments, data_collator=without_index, train_dataset=features, callbacks=[watch])  # type: ignore[arg-type]
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def measure(name: str, rows: list, batch: int) -> dict[str, Any]:
    """One run in this process."""
    import torch

    torch.set_num_threads(1)
    steps = -(-len(rows) // batch)
    watch = clock()
    with tempfile.TemporaryDirectory() as folder:
        losses = globals()[f"train_{name}"](rows, batch, steps, Path(folder), watch)
    seconds = watch.times[-1] - watch.times[0]
    targets = sum(len(right) for _, right in rows)
    return {"trainer": name, "seconds": seconds, "targets_per_second": targets / seconds, "losses": losses}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each trainer")
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--e2e", help="folder with E2E's trainset.csv (or .gz)")
    parser.add_argument("--tokenizer", help="folder of the GPT-2 tokenizer, for --e2e")
    parser.add_argument("--worker", choices=TRAINERS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        rows = rows_of(options.rows, options.e2e, options.tokenizer)
        print(json.dumps(measure(options.worker, rows, options.batch)))
        return
    here = [name for name in TRAINERS if name != "trl" or find_spec("trl")]
    for name in set(TRAINERS) - set(here):
        print(f"skipped: {name}, which is not installed: pip install -e '.[bench]'")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in here}
    own = sys.argv[1:] if argv is None else argv
    for _ in range(options.rounds):
        for name in here:
            worker = [sys.executable, __file__, *own, "--worker", name]
            printed = subprocess.run(worker, capture_output=True, text=True, check=True, env={**_environment()}).stdout
            results[name].append(json.loads(printed.strip().splitlines()[-1]))
    report(results)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def report(results: dict[str, list[dict[str, Any]]]) -> None:
    """Medians, ratios of the turns, and the loss curves at a few steps."""
    for name, turns in results.items():
        speeds = [turn["targets_per_second"] for turn in turns]
        spread = f"median of {len(speeds)}; {min(speeds):.0f} to {max(speeds):.0f}"
        print(f"{name:<14}{statistics.median(speeds):9.0f} targets/s ({spread})")
    for name in list(results)[1:]:
        pairs = zip(results["ghosttune"], results[name], strict=True)
        ratios = [ours["targets_per_second"] / theirs["targets_per_second"] for ours, theirs in pairs]
        print(f"ghosttune / {name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    for name, turns in results.items():
        losses = turns[0]["losses"]
        marks = sorted({0, len(losses) // 4, len(losses) // 2, 3 * len(losses) // 4, len(losses) - 1})
        print(f"{name:<14}loss " + "  ".join(f"step {mark + 1}: {losses[mark]:.3f}" for mark in marks))


if __name__ == "__main__":
    launch(main, "--rounds 1 --rows 16")
