"""What packing saves: steps of rows as they are drawn, padded and packed, with and without the ledger, interleaved.

    python benchmarks/packing.py [--rounds 40] [--samsum FOLDER --tokenizer GPT2] [--width 288] [--attention sdpa]

A random Llama of six layers with LoRA r 8 on all linear layers, float32, one thread, steps of eight rows that are not
grouped by length. Without --samsum, rows have random tokens and lengths like SAMSum's. Every arm trains its own copy of
the model by the same loop (forward, backward, clip, fused AdamW) on the same rows; a round is one step of each, in an
order that rotates, the guide passes of the ledger (one every ten steps, of eight rows) included. Printed: the padding
of both, tokens per second, and the median over rounds of the time padded over the time packed, CPU clock, with its 95 %
bootstrap interval.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import torch
from ledger import LINEAR, median_interval
from quick import QUICK, launch
from transformers import LlamaConfig, LlamaForCausalLM

from ghosttune.data.encoding import Collator, Features
from ghosttune.models.modules import module_facts, parameter_facts
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import Table
from ghosttune.tasks.causal import CausalTask
from ghosttune.training.guide import GuideRows
from ghosttune.training.instruments import Measurement, MicroBatch
from ghosttune.training.ledger import MODULE_COLUMNS, ROW_COLUMNS, Ledger
from ghosttune.training.order import RowOrder
from ghosttune.training.packed import packing_of

VOCABULARY, BATCH, GUIDE_EVERY = 8192, 8, 10
LAYERS = 2 if QUICK else 6
TASK = CausalTask()


def rows_of(count: int, samsum: str | None, tokenizer: str | None) -> list[Features]:
    """Dialogues with their summaries, the summaries trained; ids are folded into the vocabulary."""
    if samsum and tokenizer:
        from transformers import GPT2Tokenizer

        from ghosttune.config.sections.data import SourceSettings
        from ghosttune.data.sources import open_source

        read = GPT2Tokenizer.from_pretrained(tokenizer)
        records = open_source(SourceSettings(name="samsum", path=samsum)).records[:count]
        prompts = read([record.prompt[-1].content for record in records]).input_ids
        completions = read([f"{record.reference}{read.eos_token}" for record in records]).input_ids
        return [_row(n, left, right) for n, (left, right) in enumerate(zip(prompts, completions, strict=True))]
    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(4.8, 0.7, count)).clip(20, 600) / (8 if QUICK else 1)
    both = [(int(length) + 1, int(length) // 5 + 1) for length in lengths]
    return [_row(n, *(random.integers(3, VOCABULARY, part) for part in parts)) for n, parts in enumerate(both)]


def _row(number: int, prompt: Any, completion: Any) -> Features:
    ids = np.array([*prompt, *completion], np.int32) % VOCABULARY
    return Features(number, str(number), ids, np.arange(len(ids)) >= len(prompt))


class Arm:
    """A model that trains on padded or on packed rows, with the ledger or without."""

    def __init__(self, model: Any, rows: list[Features], guide: list[Features], packed: bool, run: RunDir | None):
        self.model, self.rows = copy.deepcopy(model), rows
        plain = Collator(0)
        self.collate: Any = packing_of(plain, self.model) if packed else plain
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=True)
        instruments = []
        if run is not None:
            facts = parameter_facts(self.model, module_facts(self.model))
            tables = Table(run, "ledger", ROW_COLUMNS), Table(run, "module_steps", MODULE_COLUMNS)
            rows_that_judge = GuideRows(TASK, plain, guide, BATCH, "cpu")
            instruments = [Ledger(self.model, facts, rows_that_judge, *tables, GUIDE_EVERY, "removal", BATCH)]
        self.measured = Measurement(self.model, instruments, 1.0)
        self.state = SimpleNamespace(global_step=0)
        self.measured.on_train_begin(None, self.state, None, optimizer=self.optimizer)
        self.losses: list[float] = []
        self.positions = 0

    def step(self, places: list[int]) -> None:
        rows = [self.rows[place] for place in places]
        batch = self.collate(rows)
        self.positions += batch["input_ids"].numel()
        head, positions = TASK.head_positions(self.model, batch)
        shown = MicroBatch([row.example_id for row in rows], head, positions, batch.get("row_of_position"))
        with self.measured.micro_batch(lambda: shown, lambda: True):
            loss = TASK.example_loss(self.model, batch).sum() / sum(row.targets for row in rows)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.measured.on_optimizer_step(None, self.state, None)
        self.state.global_step += 1
        self.optimizer.zero_grad()
        self.losses.append(float(loss.detach()))


def model_of(width: int, attention: str) -> Any:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=LAYERS,
        num_attention_heads=width // 48,
        num_key_value_heads=width // 48,
        max_position_embeddings=2048,
    )
    adapter = peft.LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR)
    base = LlamaForCausalLM(shape)
    base.set_attn_implementation(attention)
    return peft.get_peft_model(base, adapter).train()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--samsum", help="folder with SAMSum's files, or one of them")
    parser.add_argument("--tokenizer", help="folder of the GPT-2 tokenizer, for --samsum")
    parser.add_argument("--width", type=int, default=288)
    parser.add_argument("--attention", default="sdpa")
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = rows_of(BATCH * (chosen.rounds + 2), chosen.samsum, chosen.tokenizer)
    rows, guide = rows[:-BATCH], rows[-BATCH:]
    order = list(RowOrder([len(row) for row in rows], BATCH, 0, grouped=False))
    steps = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    model = model_of(chosen.width, chosen.attention)
    with tempfile.TemporaryDirectory() as folder:
        arms = {
            (packed, ledger): Arm(model, rows, guide, packed, RunDir(Path(folder) / str(packed)) if ledger else None)
            for ledger in (False, True)
            for packed in (False, True)
        }
        seconds: dict[Any, list[float]] = {name: [] for name in arms}
        names = list(arms)
        for turn, places in enumerate(steps):
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                start = time.process_time()
                arms[name].step(places)
                seconds[name].append(time.process_time() - start)
            print(f"step {turn + 1}", *(f"{times[-1]:.2f}" for times in seconds.values()), file=sys.stderr)
    report(arms, seconds, sum(len(row) for row in rows))


def report(arms: dict[Any, Arm], seconds: dict[Any, list[float]], tokens: int) -> None:
    """Without the first step, in which the ledger verifies itself."""
    for packed in (False, True):
        padding = 1 - tokens / arms[packed, False].positions
        print(f"{'packed' if packed else 'padded'}: {padding:.1%} of the positions are padding")
    for ledger in (False, True):
        padded, packed = (np.array(seconds[way, ledger][1:]) for way in (False, True))
        middle, low, high = median_interval(padded / packed)
        rate = [tokens * len(times) / (len(times) + 1) / times.sum() for times in (padded, packed)]
        print(
            f"{'with the ledger' if ledger else 'without'}: padded {rate[0]:.0f}, packed {rate[1]:.0f} tokens per CPU "
            f"second, {rate[1] / rate[0]:.2f} times; per step {middle:.2f} [{low:.2f}, {high:.2f}]"
        )
    off = max(
        abs(one - two) / one for one, two in zip(arms[False, False].losses, arms[True, False].losses, strict=True)
    )
    print(f"largest difference of a step's loss, relative: {off:.1e}")


if __name__ == "__main__":
    launch(main, "--rounds 2 --width 96")
