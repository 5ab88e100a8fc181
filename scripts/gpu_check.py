"""What only a GPU can show, as one JSON, and the page that is made from it. `scripts/gpu_check.sh` runs it.

    python scripts/gpu_check.py --out results.json            every part on the GPU, at most eight minutes
    python scripts/gpu_check.py --out results.json --tiny     every part in miniature, also without a GPU
    python scripts/gpu_check.py --page results.json           benchmarks/gpu.md

Each part is a process of its own, with what is left of the time as its limit: one that fails, is killed or is out of
memory leaves the others alone, and its error stands in the JSON. Model (random weights) and rows are made here.

tests     the tests marked gpu
train     bfloat16 LoRA with measuring off and on, in turns: tokens per second of the second epoch, peak memory
trl       the same rows and adapter under TRL's SFTTrainer, with what is installed of packing, FlashAttention and Liger
nf4       the same with the base in 4 bits
resume    whether a run, the same run again, and one that was stopped and resumed end in the same bytes
store     rows per second of the store of gradients of the run with measuring off
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
SECONDS = 460
"""For all parts together; what remains of eight minutes is for starting and writing."""

WORDS = "a hen saw the red fox and two birds near one old barn when it began to rain so they ran home".split()  # noqa: SIM905


@dataclass(frozen=True)
class Size:
    """Of the model, the rows and the updates."""

    shape: dict[str, int]
    rows: int
    words: tuple[int, int]
    """Least and most of a row; a word is about two tokens of the built-in tokenizer."""
    batch: int
    length: int
    rounds: int
    updates: int
    """Of the runs whose bytes are compared."""


WHOLE = Size(
    {
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    },
    rows=192, words=(30, 240), batch=8, length=1024, rounds=2, updates=6,
)  # fmt: skip
"""TinyLlama's shape, 1.1 billion parameters."""

TINY = Size(
    WHOLE.shape | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    rows=16, words=(3, 12), batch=4, length=128, rounds=1, updates=4,
)  # fmt: skip


class Skipped(Exception):
    """A part needs what is not installed here."""


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def make(size: Size, folder: Path) -> None:
    """`model`, a folder with random weights in bfloat16, and `rows.jsonl`."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from ghosttune.models.builtin import builtin_model_folder

    tokenizer = AutoTokenizer.from_pretrained(builtin_model_folder("builtin:tiny"))
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    with torch.device(device()):
        model: Any = LlamaForCausalLM(LlamaConfig(**size.shape, **special))
    model.to(torch.bfloat16)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = torch.Generator().manual_seed(0)

    def text(words: int) -> str:
        return " ".join(WORDS[place] for place in torch.randint(len(WORDS), (words,), generator=draw).tolist())

    low, high = size.words
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for number in range(size.rows + 16):
            words = int(torch.randint(low, high + 1, (), generator=draw))
            split = "train" if number < size.rows else "dev" if number < size.rows + 8 else "guide"
            row = {"id": str(number), "prompt": f"Row {number}: {text(words)}", "completion": text(words)}
            file.write(json.dumps(row | {"split": split}) + "\n")


def config_of(size: Size, folder: Path, measuring: bool, **changes: Any) -> Any:
    from ghosttune.config.loading import load_config

    steps = 2 * size.rows // size.batch
    measured = {"norms.every": 1, "norms.effective": 10, "ledger.guide_every": 10}
    settings = {
        "model.name": str(folder / "model"),
        "model.dtype": "bfloat16",
        "model.device": device(),
        "method.r": 16,
        "method.lora_alpha": 32,
        "data.train.path": str(folder / "rows.jsonl"),
        "data.max_length": size.length,
        "train.max_steps": steps,
        "train.warmup_steps": 1,
        "train.per_device_train_batch_size": size.batch,
        "train.group_by_length": True,
        "train.eval_steps": steps,
        "train.save_steps": steps,
        "evaluate.limit": 0,
    }
    settings |= {f"measure.{name}": value if measuring else None for name, value in measured.items()}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(overrides=[f"{name}={json.dumps(value)}" for name, value in settings.items()])


def trained(config: Any, out: Path, rows: int, batch: int) -> dict[str, Any]:
    """One run: tokens per second of the second epoch, peak memory, and whether the loss is a number."""
    import torch

    import ghosttune

    gc.collect()  # else the model before, which holds itself in a circle, counts too
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    ends: dict[int, float] = {}

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            ends[event["step"]] = now()

    run = ghosttune.train(config, out, listen=listen)
    epoch = rows // batch
    losses = [event["loss"] for event in run.events if event["event"] == "eval"]
    return {
        "tokens_per_second": run.record["data"]["tokens"]["train"] / (ends[2 * epoch] - ends[epoch]),
        "peak_memory_mb": run.record["peak_memory_mb"],
        "dev_loss": [losses[0], losses[-1]],
    }


def now() -> float:
    """Seconds, with everything done that the GPU was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def train(size: Size, folder: Path) -> dict[str, Any]:
    warm = config_of(size, folder, False, train__max_steps=2, train__eval_steps=2, train__save_steps=2)
    import ghosttune

    ghosttune.train(warm, folder / "warm")
    turns: dict[str, list[dict[str, Any]]] = {"off": [], "on": []}
    for turn in range(size.rounds):
        for name, own in turns.items():
            config = config_of(size, folder, measuring=name == "on")
            own.append(trained(config, folder / f"{name}-{turn}", size.rows, size.batch))
    ratios = [
        off["tokens_per_second"] / on["tokens_per_second"] for off, on in zip(turns["off"], turns["on"], strict=True)
    ]
    return turns | {"time_on_over_off": statistics.median(ratios)}


def trl(size: Size, folder: Path) -> dict[str, Any]:
    """Packing only where FlashAttention keeps packed rows apart: else its rows would see each other."""
    if not find_spec("trl"):
        raise Skipped("trl is not installed")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    fast = torch.cuda.is_available()
    with_flash, with_liger = fast and bool(find_spec("flash_attn")), fast and bool(find_spec("liger_kernel"))
    found = {}
    for compiled in (False, True) if fast else (False,):
        ends: list[float] = []

        class Epochs(TrainerCallback):
            def on_epoch_begin(self, *_: Any, _ends: list[float] = ends, **__: Any) -> None:
                _ends.append(now())

            def on_train_end(self, *_: Any, _ends: list[float] = ends, **__: Any) -> None:
                _ends.append(now())

        model = AutoModelForCausalLM.from_pretrained(
            folder / "model",
            dtype=torch.bfloat16,
            attn_implementation="flash_attention_2" if with_flash else "sdpa",
            device_map=device(),
        )
        arguments = SFTConfig(
            output_dir=str(folder / "trl"),
            num_train_epochs=2,
            per_device_train_batch_size=size.batch,
            max_length=size.length,
            packing=with_flash,
            use_liger_kernel=with_liger,
            torch_compile=compiled,
            bf16=True,
            use_cpu=not fast,
            gradient_checkpointing=False,
            optim="adamw_torch_fused",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        rows = _encoded(size, folder)
        gc.collect()
        if fast:
            torch.cuda.reset_peak_memory_stats()
        SFTTrainer(
            model=_with_lora(model),
            args=arguments,
            train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(folder / "model"),
            callbacks=[Epochs()],
        ).train()
        found["compiled" if compiled else "plain"] = {
            "tokens_per_second": sum(map(len, rows["input_ids"])) / (ends[2] - ends[1]),
            "peak_memory_mb": torch.cuda.max_memory_allocated() / 2**20 if fast else None,
            "settings": {"packing": with_flash, "flash_attention_2": with_flash, "liger": with_liger},
        }
    return found


def _encoded(size: Size, folder: Path) -> Any:
    """The training rows as ghosttune encodes them: the same tokens, completions trained."""
    import datasets

    from ghosttune.data.encoding import IGNORED
    from ghosttune.stages.prepare import prepare

    rows = prepare(config_of(size, folder, measuring=False)).train.features
    columns = [
        {
            "input_ids": row.input_ids.tolist(),  # type: ignore[attr-defined]
            "labels": [
                token if own else IGNORED
                for token, own in zip(row.input_ids.tolist(), row.trained.tolist(), strict=True)  # type: ignore[attr-defined]
            ],
        }
        for row in rows
    ]
    return datasets.Dataset.from_list(columns)


def _with_lora(model: Any) -> Any:
    import peft

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=names, task_type="CAUSAL_LM"))


def nf4(size: Size, folder: Path) -> dict[str, Any]:
    if not find_spec("bitsandbytes"):
        raise Skipped("bitsandbytes is not installed")
    config = config_of(size, folder, measuring=True, model__quantization="nf4")
    return trained(config, folder / "nf4", size.rows, size.batch)


def resume(size: Size, folder: Path) -> dict[str, Any]:
    """The last adapter of three runs that should be one: with kernels that add in any order, they need not be."""
    import torch
    from safetensors.torch import load_file

    import ghosttune
    from ghosttune.workflows.train import Stopped
    from ghosttune.workflows.train import resume as resumed

    middle = size.updates // 2
    lengths = {"train__max_steps": size.updates, "train__eval_steps": size.updates, "train__save_steps": middle}
    config = config_of(size, folder, True, method__lora_dropout=0.1, **lengths)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == middle:
            signal.raise_signal(signal.SIGINT)

    ghosttune.train(config, folder / "whole")
    ghosttune.train(config, folder / "again")
    try:
        ghosttune.train(config, folder / "parts", listen=stop)
        raise RuntimeError("the run that was to be stopped went on to its end")
    except Stopped:
        resumed(folder / "parts")
    whole, again, parts = (
        load_file(folder / name / "last" / "adapter_model.safetensors") for name in ("whole", "again", "parts")
    )

    def compared(other: dict[str, torch.Tensor]) -> dict[str, Any]:
        away = max(float((whole[name] - other[name]).abs().max()) for name in whole)
        return {"identical": all(torch.equal(whole[name], other[name]) for name in whole), "largest_difference": away}

    return {"repeated": compared(again), "stopped_and_resumed": compared(parts)}


def store(size: Size, folder: Path) -> dict[str, Any]:
    """As benchmarks/store.py builds it, from an opened run to the rows on disk, the second time."""
    from ghosttune.choosing.opened import OpenedRun
    from ghosttune.training.sketching import sketcher_of

    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    from store import stored  # pyright: ignore[reportMissingImports]

    opened = OpenedRun(folder / "off-0", device())
    sketcher = sketcher_of(opened.adapted.facts, opened.parameters, size.rows, "standard@1")
    gradients = opened.gradients(opened.steps(["last"])[0], sketcher)
    stored(opened, gradients)
    start = now()
    stored(opened, gradients)
    return {"rows": size.rows, "numbers_per_row": sketcher.size, "rows_per_second": size.rows / (now() - start)}


def tests(size: Size, folder: Path) -> dict[str, Any]:
    """Counts by outcome, and what was said of each that failed; in this process, so that its limit is theirs."""
    from xml.etree.ElementTree import parse

    import pytest

    report = folder / "tests.xml"
    files = ["tests/ghostgrad/test_on_gpu.py", "tests/ghosttune/test_train_on_gpu.py"]
    chosen = ["-m", "gpu", "-p", "no:cacheprovider", f"--junit-xml={report}"]
    pytest.main([*chosen, *(str(REPOSITORY / file) for file in files)])
    suite = next(parse(report).getroot().iter("testsuite"))
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors")}
    if not counts["tests"]:
        raise RuntimeError("no test is marked gpu any more")
    said = [
        f"{case.get('name')}: {fault.get('message')}"
        for case in suite.iter("testcase")
        for fault in case
        if fault.tag in ("failure", "error")
    ]
    return counts | {"left_out": int(suite.attrib["skipped"])} | ({"said": said} if said else {})


PARTS: dict[str, Callable[[Size, Path], dict[str, Any]]] = {
    part.__name__: part for part in (tests, train, trl, nf4, resume, store)
}


def all_parts(out: Path, tiny: bool) -> int:
    """Writes the JSON after every part, so that a lease that ends early loses nothing; 1 where a part failed."""
    begun = time.monotonic()
    results: dict[str, Any] = machine() | {"tiny": tiny, "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("make", *PARTS):
            start = time.monotonic()
            left = SECONDS - (start - begun)
            results["parts"][name] = found = one_part(name, Path(folder), tiny, left)
            found["seconds"] = round(time.monotonic() - start, 1)
            results["seconds"] = round(time.monotonic() - begun, 1)
            out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{name}: {json.dumps(found)[:600]}", flush=True)
    return int(any("error" in found or found.get("said") for found in results["parts"].values()))


def one_part(name: str, folder: Path, tiny: bool, seconds: float) -> dict[str, Any]:
    if seconds < 10:
        return {"error": "not begun: the time was used up"}
    command = [sys.executable, __file__, "--part", name, "--folder", str(folder), *(["--tiny"] if tiny else [])]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not done within the {seconds:.0f} s that were left"}
    written = folder / f"{name}.result.json"
    if ended.returncode == 0 and written.exists():
        return json.loads(written.read_text(encoding="utf-8"))
    return {"error": f"exit code {ended.returncode}: {(ended.stderr or ended.stdout)[-2000:]}"}


def write_part(name: str, folder: Path, tiny: bool) -> None:
    size = TINY if tiny else WHOLE
    try:
        found = (make(size, folder) or {}) if name == "make" else PARTS[name](size, folder)
    except Skipped as reason:
        found = {"skipped": str(reason)}
    (folder / f"{name}.result.json").write_text(json.dumps(found), encoding="utf-8")


def machine() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    import torch

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    names = ("torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes", "flash-attn", "liger-kernel")
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    is_gpu = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name(0) if is_gpu else None,
        "note": ""
        if is_gpu
        else "This was NOT a GPU: every part ran on the CPU, and no figure here says anything of one.",
        "cuda": torch.version.cuda if is_gpu else None,
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in names},
        "commit": git.stdout.strip() or None,
    }


def page(results: dict[str, Any]) -> str:
    """benchmarks/gpu.md."""
    parts, versions = results["parts"], {name: own for name, own in results["versions"].items() if own}
    lines = [
        "# On a GPU",
        "",
        *([f"**{results['note']}**", ""] if results["note"] else []),
        *(["**In miniature (`--tiny`): figures mean nothing.**", ""] if results["tiny"] else []),
        f"`scripts/gpu_check.sh`, commit {results['commit']}, {results['gpu'] or 'CPU'}, {results['seconds']:.0f} s; "
        f"{', '.join(f'{name} {own}' for name, own in versions.items())}. A Llama of 1.1 billion random weights in "
        f"bfloat16, LoRA r 16 on all linear layers, {WHOLE.rows} rows of mixed length, batch {WHOLE.batch}; the second "
        "of two epochs is timed.",
        "",
        "| | tokens per second | peak memory, MiB |",
        "|---|--:|--:|",
        *_speeds(parts),
        "",
    ]
    for name, part in parts.items():
        if "error" in part or "skipped" in part:
            lines.append(f"* {name}: {'failed' if 'error' in part else 'skipped'}: "
                         f"{(part.get('error') or part['skipped']).strip().splitlines()[-1]}")  # fmt: skip
    if "tests" in parts["tests"]:
        found = parts["tests"]
        bad = found["failures"] + found["errors"]
        lines.append(
            f"* tests marked gpu: {found['tests']}, of which {bad} failed and {found['left_out']} were skipped"
        )
    if "time_on_over_off" in parts["train"]:
        lines.append(
            f"* measuring takes {parts['train']['time_on_over_off']:.2f} times the time of training without it"
        )
    for name in ("repeated", "stopped_and_resumed"):
        if name in parts["resume"]:
            own = parts["resume"][name]
            same = "the same bytes" if own["identical"] else f"away by at most {own['largest_difference']:.2g}"
            lines.append(f"* a run {name.replace('_', ' ')}: {same}")
    if "rows_per_second" in parts["store"]:
        lines.append(
            f"* store of gradients (standard@1), written to disk: {parts['store']['rows_per_second']:.1f} rows/s"
        )
    return "\n".join(lines) + "\n"


def _speeds(parts: dict[str, Any]) -> list[str]:
    """A line for each arm: the median of its rounds."""
    arms = {f"ghosttune, measuring {name}": parts["train"].get(name) for name in ("off", "on")}
    arms["ghosttune, nf4, measuring on"] = [parts["nf4"]] if "tokens_per_second" in parts["nf4"] else None
    for name in ("plain", "compiled"):
        arms[f"TRL, {name}"] = [parts["trl"][name]] if name in parts["trl"] else None
    return [
        f"| {name} | {statistics.median(one['tokens_per_second'] for one in own):,.0f} | {_memory(own[-1])} |"
        for name, own in arms.items()
        if own
    ]


def _memory(arm: dict[str, Any]) -> str:
    peak = arm["peak_memory_mb"]
    own = peak.get("cuda", peak["process"]) if isinstance(peak, dict) else peak
    return "" if own is None else f"{own:,.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON")
    parser.add_argument("--tiny", action="store_true", help="every part in miniature, on the CPU where there is no GPU")
    parser.add_argument("--page", type=Path, metavar="JSON", help="print the page that these results make")
    parser.add_argument("--part", choices=("make", *PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.page:
        sys.stdout.write(page(json.loads(chosen.page.read_text(encoding="utf-8"))))
        return 0
    if chosen.part:
        write_part(chosen.part, chosen.folder, chosen.tiny)
        return 0
    if chosen.out is None:
        parser.error("--out says where the results go")
    if device() == "cpu" and not chosen.tiny:
        parser.error("no CUDA device here; --tiny runs every part in miniature on the CPU")
    return all_parts(chosen.out, chosen.tiny)


if __name__ == "__main__":
    sys.exit(main())
