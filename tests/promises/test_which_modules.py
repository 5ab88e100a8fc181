"""Two tasks whose truth is known: one that only attention can solve, and one that only the MLP can.

The base says nothing before it is adapted: what its attention and its MLPs write is zero, so that the residual stream
at a position holds the embedding of that token alone.

* copy: the answer is the first word of the prompt, which nothing but attention can bring to the last position.
* lookup: the answer is the entry of a Latin square for the pair (row, column) that the last word stands for. Its
  embedding is the sum of the two, and no sum of what each says alone tells one answer from another: it takes the MLP.
"""

from __future__ import annotations

import csv
import json
import math
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

import ghosttune
from ghosttune.run.tables import read_table

SIDE = 4
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
ANSWERS = [f"answer{place}" for place in range(SIDE)]
PAIRS = [f"pair{row}{column}" for row in range(SIDE) for column in range(SIDE)]
FILLERS = [f"filler{place}" for place in range(24)]
WORDS = [*SPECIAL, *ANSWERS, *PAIRS, *FILLERS]
WIDTH = 64
BUDGET = 10_000
SEEDS = (0, 1, 2)
NEEDED = {"copy": "attention", "lookup": "mlp"}


def silent_base(folder: Path) -> Path:
    """A Llama of two layers whose layers write nothing; after an answer it expects the end, after a pair an answer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words: Any = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names: Any = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    torch.manual_seed(0)
    shape: Any = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    special: Any = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    model: Any = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, tie_word_embeddings=False, **shape, **special)
    )
    head, table = (normalize(torch.randn(len(WORDS), WIDTH), dim=-1) for _ in range(2))
    rows, columns = (normalize(torch.randn(SIDE, WIDTH), dim=-1) for _ in range(2))
    an_answer = normalize(torch.randn(WIDTH), dim=-1)
    for place, word in enumerate(WORDS):
        if word in ANSWERS:
            head[place] = normalize(head[place] + an_answer, dim=-1)
            table[place] = normalize(table[place] + 2 * head[SPECIAL.index("</s>")], dim=-1)
        if word in PAIRS:
            table[place] = normalize(rows[int(word[-2])] + columns[int(word[-1])] + 1.5 * an_answer, dim=-1)
    with torch.no_grad():
        model.lm_head.weight.copy_(head)
        model.model.embed_tokens.weight.copy_(table)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    return folder


def rows_of(task: str, count: int = 1600) -> list[dict[str, str]]:
    draw = random.Random(1)
    square = random.Random(7).sample(ANSWERS, SIDE)
    rows = []
    for place in range(count):
        first, pair = draw.choice(ANSWERS), draw.choice(PAIRS)
        answer = first if task == "copy" else square[(int(pair[-2]) + int(pair[-1])) % SIDE]
        prompt = " ".join([first, *draw.sample(FILLERS, 3), pair])
        rows.append({"id": f"row{place}", "prompt": prompt, "completion": f" {answer}"})
    return rows


@pytest.fixture(scope="module")
def learn(tmp_path_factory) -> Any:
    """(task, target modules, seed) -> a run with that many parameters, wherever they stand."""
    folder = tmp_path_factory.mktemp("groups")
    base = silent_base(folder / "base")

    def run(task: str, target: str, seed: int = 0) -> Any:
        path = folder / f"{task}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(task)), encoding="utf-8")
        measured = target == "all_linear"
        settings: dict[str, Any] = {
            "model": {"name": str(base), "device": "cpu"},
            "method": {"type": "lora", "target_modules": target, "parameter_budget": BUDGET, "lora_alpha": 16},
            "data": {"train": {"path": str(path)}, "dev": {"fraction": 0.1}, "max_length": 32},
            "train": {
                "max_steps": 200,
                "per_device_train_batch_size": 16,
                "learning_rate": 5e-3,
                "warmup_steps": 10,
                "eval_steps": 200,
                "seed": seed,
            },
            "measure": {"ledger": {"guide_every": 2} if measured else None, "norms": {} if measured else None},
            "evaluate": {"limit": 0},
        }
        if measured:
            settings["data"]["guide"] = {"rows": 64}
        return ghosttune.train(ghosttune.load_config(settings), folder / f"{task}-{target}-{seed}")

    return run


def shares(run: Any) -> dict[str, float]:
    """What each group of modules did to the guide loss, of all that the modules did."""
    drops: dict[str, float] = defaultdict(float)
    with (run.path / "tables/modules.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            drops[row["group"]] += float(row["guide_loss_drop"])
    return {group: drop / sum(drops.values()) for group, drop in drops.items()}


def first_norms(run: Any) -> dict[str, float]:
    """The gradient norm of each group at the first step, as norms are usually looked at."""
    squares: dict[str, float] = defaultdict(float)
    for row in read_table(run.folder, "norms").to_pylist():
        if row["step"] == 1:
            squares[row["group"]] += row["norm"] ** 2
    return {group: math.sqrt(square) for group, square in squares.items()}


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize(("task", "needed"), NEEDED.items())
def test_the_task_needs_that_group(learn, task, needed) -> None:
    """With as many parameters in one group only: what is left of the loss tells who can solve the task."""
    left = {group: learn(task, group).record["verdict"]["dev_loss"] for group in ("attention", "mlp")}
    (other,) = left.keys() - {needed}
    assert left[needed] < 0.1 and left[other] > 3 * left[needed], left


@pytest.mark.slow(seconds=6)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("task", "needed"), NEEDED.items())
def test_the_ledger_names_the_group_and_the_first_gradient_norms_do_not(learn, task, needed, seed) -> None:
    run = learn(task, "all_linear", seed)
    assert run.record["verdict"]["dev_loss"] < 0.1
    found = shares(run)
    assert found[needed] > 2 / 3, found
    norms = first_norms(run)
    assert norms["attention"] > 2 * norms["mlp"], "they name attention whatever the task needs"
