"""What freezing saves: step time and saved activations of each phase, on a deep model, phases taking turns.

    python benchmarks/phases.py [--rounds 50] [--clock wall|cpu] [--checkpointing]

A Llama of 24 layers (width 256) with LoRA r 8 on all linear layers, float32, 8 rows of 64 tokens, one thread. One model
trains; phases of one update each take turns, entered and left by the same code as in a run. Printed per phase: the
median over rounds of its time over that of the phase that trains everything, in the same round, with the 95 %
bootstrap interval of the median; and the bytes that autograd keeps between forward and backward.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import peft
import torch
from ledger import median_interval
from quick import QUICK, launch
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from ghosttune.models.modules import module_facts, parameter_facts
from ghosttune.schedules.phases import scheduled
from ghosttune.training.phasing import Phasing, let_the_backward_stop

LAYERS, ROWS, LENGTH = (4, 2, 16) if QUICK else (24, 8, 64)
PHASES = ["all", "top 25%", "late", "early", "attention", "mlp"]


def deep_model(checkpointing: bool) -> Any:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
    )
    adapter = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    model: Any = peft.get_peft_model(LlamaForCausalLM(shape), adapter)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        let_the_backward_stop(model)
    return model.train()


class Kept:
    """Bytes of the tensors that autograd keeps, each storage once; parameters are there anyway."""

    def __init__(self, model: Any):
        self.storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.bytes = 0

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.storages:
            self.storages.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--checkpointing", action="store_true")
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = deep_model(chosen.checkpointing)
    turns = PHASES * (chosen.rounds + 1)
    plan = " > ".join(f"{name}@{step}-{step + 1}" for step, name in enumerate(turns))
    facts = parameter_facts(model, module_facts(model))
    phasing = Phasing(model, facts, scheduled(plan, len(turns), "keep"), LAYERS, seed=0)
    optimizer = torch.optim.AdamW(list(phasing.parameters.values()), lr=1e-4, fused=True)
    phasing.optimizer = optimizer
    clock = time.perf_counter if chosen.clock == "wall" else time.process_time
    random = torch.Generator().manual_seed(1)
    seconds: dict[str, list[float]] = {name: [] for name in PHASES}
    kept: dict[str, int] = {}
    for step, name in enumerate(turns):
        ids = torch.randint(0, 2048, (ROWS, LENGTH), generator=random)
        measuring = Kept(model)
        first = step < len(PHASES)  # the first round warms up, and is the one whose kept bytes are counted
        start = clock()
        phasing.enter(step + 1)
        if first:
            with saved_tensors_hooks(measuring.keep, lambda tensor: tensor):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        else:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if first:
            kept[name] = measuring.bytes
        else:
            seconds[name].append(clock() - start)
    print(
        f"all: {np.median(seconds['all']) * 1000:.0f} ms per step ({chosen.clock}), {kept['all'] / 2**20:.0f} MiB kept"
    )
    for name in PHASES[1:]:
        middle, low, high = median_interval(np.array(seconds[name]) / np.array(seconds["all"]))
        print(f"{name}: time {middle:.3f} [{low:.3f}, {high:.3f}], kept {kept[name] / 2**20:.0f} MiB")


if __name__ == "__main__":
    launch(
        main,
        "--rounds 2",
        "--rounds 2 --clock cpu --checkpointing",
    )
