"""What measuring costs: steps with instruments against plain steps, interleaved.

    python benchmarks/ledger.py [--rounds 50] [--clock wall|cpu] [--arms norms,effective,ledger,apart]

A Llama of 34 million parameters with LoRA r 8 on all linear layers, float32, 8 rows of 64 tokens, one thread. Every arm
trains its own copy by the same loop (forward, backward, clip, fused AdamW); a round is ten steps of each arm, so that
each round holds one guide pass of as many rows as a batch, and one step of effective norms; `apart` is the ledger
without those passes, each time with the first one's gradient. The arms take turns in an order that rotates. Printed:
the median over rounds of an arm's time over the plain arm's in the same round, with the 95 % bootstrap interval of the
median, and the peak memory of an arm alone (`--memory ARM`).
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import torch
from quick import QUICK, launch
from transformers import LlamaConfig, LlamaForCausalLM

from ghosttune.models.modules import module_facts, parameter_facts
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import Table
from ghosttune.training.instruments import Instrument, Measurement, MicroBatch
from ghosttune.training.ledger import MODULE_COLUMNS, ROW_COLUMNS, Ledger
from ghosttune.training.norms import EFFECTIVE_COLUMNS, NORM_COLUMNS, EffectiveNorms, Norms

ROWS, LENGTH, STEPS = (2, 16, 10) if QUICK else (8, 64, 10)
LAYERS = 2 if QUICK else 8
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BARS = {"norms": 1.02, "effective": 1.05, "ledger": 1.10, "apart": 1.0}


class Guide:
    """One batch."""

    def __init__(self, rows: dict[str, Any]):
        self.rows = rows

    def batches(self) -> list[Any]:
        return [self.rows]

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        return loss(model, batch)


class Apart(Ledger):
    """The ledger but for its guide passes."""

    def _guide_gradient(self, step: int) -> tuple[float, dict[str, torch.Tensor]]:
        return (self.loss_before, self.gradient) if self.gradient else super()._guide_gradient(step)


class Arm:
    """A model that trains, with its instruments."""

    def __init__(self, name: str, folder: Path):
        torch.manual_seed(0)
        shape = LlamaConfig(
            vocab_size=8192,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=LAYERS,
            num_attention_heads=8,
            num_key_value_heads=8,
            max_position_embeddings=256,
        )
        self.model: Any = peft.get_peft_model(
            LlamaForCausalLM(shape), peft.LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR)
        )
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=True)
        self.random = torch.Generator().manual_seed(1)
        self.measured = Measurement(self.model, self._instruments(name, RunDir(folder / name)), 1.0)
        self.state = SimpleNamespace(global_step=0)
        self.measured.on_train_begin(None, self.state, None, optimizer=self.optimizer)

    def _instruments(self, name: str, run: RunDir) -> list[Instrument]:
        facts = parameter_facts(self.model, module_facts(self.model))
        norms = Norms(self.model, facts, Table(run, "norms", NORM_COLUMNS), 1, by_module=True)
        if name == "norms":
            return [norms]
        if name == "effective":
            return [norms, EffectiveNorms(self.model, facts, Table(run, "effective", EFFECTIVE_COLUMNS), STEPS)]
        if name in ("ledger", "apart"):
            kind = Ledger if name == "ledger" else Apart
            tables = Table(run, "ledger", ROW_COLUMNS), Table(run, "module_steps", MODULE_COLUMNS)
            return [kind(self.model, facts, Guide(batch(self.random)), *tables, STEPS, "removal", ROWS)]
        return []

    def step(self) -> None:
        rows = batch(self.random)
        with self.measured.micro_batch(lambda: MicroBatch([str(row) for row in range(ROWS)]), lambda: True):
            loss(self.model, rows).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.measured.on_optimizer_step(None, self.state, None)
        self.state.global_step += 1
        self.optimizer.zero_grad()


def batch(random: torch.Generator) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 8192, (ROWS, LENGTH), generator=random)
    return {"input_ids": ids, "labels": ids}


def loss(model: Any, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**rows, use_cache=False).loss


def median_interval(ratios: np.ndarray) -> tuple[float, float, float]:
    random = np.random.default_rng(0)
    medians = np.median(random.choice(ratios, (5000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--arms", default="norms,effective,ledger,apart")
    parser.add_argument("--memory", choices=["plain", *BARS])
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.memory:
            arm = Arm(chosen.memory, Path(folder))
            for _ in range(STEPS + 1):
                arm.step()
            print(chosen.memory, round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), "MiB")
            return
        clock = time.perf_counter if chosen.clock == "wall" else time.process_time
        names = ["plain", *chosen.arms.split(",")]
        arms = {name: Arm(name, Path(folder)) for name in names}
        for arm in arms.values():
            for _ in range(STEPS):
                arm.step()
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(chosen.rounds):
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                start = clock()
                for _ in range(STEPS):
                    arms[name].step()
                seconds[name].append(clock() - start)
            print(f"round {turn + 1}", {name: round(times[-1], 2) for name, times in seconds.items()}, file=sys.stderr)
        print(f"plain: {np.median(seconds['plain']) / STEPS * 1000:.0f} ms per step ({chosen.clock})")
        for name in names[1:]:
            middle, low, high = median_interval(np.array(seconds[name]) / np.array(seconds["plain"]))
            print(f"{name}: {middle:.3f} [{low:.3f}, {high:.3f}], bar {BARS[name]}")


if __name__ == "__main__":
    launch(
        main,
        "--rounds 1",
        "--memory ledger",
    )
