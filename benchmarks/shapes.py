"""Models of the sizes that people have, from `check` to `merge`: what was predicted, and what it took.

    python benchmarks/shapes.py [smollm2-135m qwen2-0.5b tinyllama-1.1b qwen2-1.5b] [--out runs/shapes]

Random weights in bfloat16 on the CPU, the tokenizer of builtin:tiny, 64 rows of 80 to 430 tokens, LoRA r 16 on all
linear layers, batches of 4, the ledger with a guide pass every second update. Each command is a process of its own:
`check`; `train`, five updates, killed after the third and resumed; `index` of eight rows; `merge`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from quick import QUICK, launch

LLAMA, QWEN = "LlamaForCausalLM", "Qwen2ForCausalLM"
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "smollm2-135m": (LLAMA, (49_152, 576, 1536, 30, 9, 3)),
    "qwen2-0.5b": (QWEN, (151_936, 896, 4864, 24, 14, 2)),
    "tinyllama-1.1b": (LLAMA, (32_000, 2048, 5632, 22, 32, 4)),
    "qwen2-1.5b": (QWEN, (151_936, 1536, 8960, 28, 12, 2)),
    "tiny": (LLAMA, (4096, 32, 64, 2, 4, 2)),
}
"""Name -> class, and vocabulary, width, inner width, layers, heads, heads of keys."""

FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
FIELDS = (*FIELDS, "num_key_value_heads")
TIED = ("smollm2-135m", "qwen2-0.5b", "qwen2-1.5b")
WORDS = "a hen saw the red fox and two birds near one old barn when it began to rain so they ran home".split()  # noqa: SIM905
STEPS = 5
SETTINGS: dict[str, Any] = {
    "model.dtype": "bfloat16",
    "model.device": "cpu",
    "method.r": 16,
    "method.lora_alpha": 32,
    "data.max_length": 1024,
    "data.dev.limit": 4,
    "train.max_steps": STEPS,
    "train.warmup_steps": 1,
    "train.per_device_train_batch_size": 4,
    "train.per_device_eval_batch_size": 4,
    "train.eval_steps": STEPS,
    "train.save_steps": 1,
    "measure.norms.effective": None,
    "measure.ledger.guide_every": 2,
    "evaluate.limit": 0,
}


def make_model(name: str, folder: Path) -> None:
    import torch
    import transformers
    from transformers import AutoTokenizer

    from ghosttune.models.builtin import builtin_model_folder

    tokenizer = AutoTokenizer.from_pretrained(builtin_model_folder("builtin:tiny"))
    loader, numbers = SHAPES[name]
    cls = getattr(transformers, loader)
    shape = dict(zip(FIELDS, numbers, strict=True))
    special = {each: getattr(tokenizer, each) for each in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    with torch.device("cpu"):
        torch.set_default_dtype(torch.bfloat16)
        cls(cls.config_class(**shape, **special, tie_word_embeddings=name in TIED)).save_pretrained(folder)
        torch.set_default_dtype(torch.float32)
    tokenizer.save_pretrained(folder)


def make_rows(path: Path) -> None:
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    most = (3, 12) if QUICK else (30, 220)
    rows = []
    for number in range(80):
        asked = f"Row {number}: {text(draw.randint(*most))}"
        split = "train" if number < 64 else "dev" if number < 72 else "guide"
        answer = text(draw.randint(2, most[1] // 2))
        rows.append({"id": str(number), "prompt": asked, "completion": answer, "split": split})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ran(*arguments: str | Path, kill_at: Path | None = None) -> dict[str, Any]:
    """Seconds, peak memory and output of a command; `kill_at` is a file whose coming kills it."""
    command = [sys.executable, "-m", "ghosttune", *map(str, arguments)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while kill_at is not None and process.poll() is None and not kill_at.exists():
        time.sleep(0.05)
    if kill_at is not None:
        process.send_signal(signal.SIGKILL)
    said = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1) and kill_at is None:  # 1: `check` has found something
        raise SystemExit(f"{' '.join(command)}\n{said[-4000:]}")
    return {"seconds": time.perf_counter() - began, "peak_gb": usage.ru_maxrss / 1e6, "said": said}


def tried(name: str, out: Path) -> dict[str, Any]:
    """What every command of one shape took."""
    model, rows, run = out / "model", out / "rows.jsonl", out / "run"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    make_model(name, model)
    make_rows(rows)
    settings = SETTINGS | {"model.name": str(model), "data.train.path": str(rows)}
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    checked = ran("check", *given, "--json")
    plan = json.loads(checked["said"][checked["said"].index("{") :])["plan"]
    whole = ran("train", *given, "--out", run)
    cut = out / "cut"
    ran("train", *given, "--out", cut, kill_at=cut / "checkpoints" / "step-3" / "manifest.json")
    resumed = ran("train", "--resume", "--out", cut)
    one, other = (path / "adapter" / "adapter_model.safetensors" for path in (run, cut))
    chosen = out / "eight.jsonl"
    chosen.write_text("".join(rows.read_text().splitlines(keepends=True)[:8]))
    indexed = ran("index", run, "--data", chosen)
    merged = ran("merge", run, "--out", out / "merged")
    record = json.loads((run / "run.json").read_text())
    return {
        "check": checked["seconds"],
        "memory, predicted": plan["memory"]["needed"],
        "train, peak GB": whole["peak_gb"],
        "time, predicted": plan["time"]["about"],
        "train, s": record["stage_seconds"]["train"],
        "same bytes when resumed": one.read_bytes() == other.read_bytes(),
        "resume, s": resumed["seconds"],
        "index, s": indexed["seconds"],
        "merge, s": merged["seconds"],
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", help=f"of {', '.join(SHAPES)}; all but tiny if none is given")
    parser.add_argument("--out", type=Path, default=Path("runs/shapes"))
    given = parser.parse_args(argv)
    shapes = given.shapes or [name for name in SHAPES if name != "tiny"]
    for name in shapes:
        found = tried(name, given.out / name)
        if name == shapes[0]:
            print(f"| shape | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
        cells = [f"{value:.1f}" if isinstance(value, float) else str(value) for value in found.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    launch(main, "tiny")
