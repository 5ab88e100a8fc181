"""What observing a training step costs: interleaved steps, paired ratios to the plain step, peak memory.

    python benchmarks/engine.py lora                     plain, norms, dots, sketches, gram on a Llama under LoRA
    python benchmarks/engine.py full                     the same on a GPT-2 shape, all weights trained
    python benchmarks/engine.py full --arms plain,vmap --rounds 10
    python benchmarks/engine.py projection               examples per second of building sketches
    python benchmarks/engine.py top --rows 1000000       top 10 of rows of 4,096 numbers, against reading the file

Needs transformers and peft; the arms `opacus` and `bergson` need those packages. Each round runs every arm once, in
an order that rotates; a ratio divides two times of one round, by the first arm named. Printed: the median ratio and
the 95 % bounds of the median (order statistics of the binomial distribution). One thread.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import torch
from quick import launch
from torch import Tensor, nn

from ghostgrad import Dots, GradientEngine, Gram, Norms, Sketcher, Sketches, SketchOptions
from ghostgrad.influence import top_k
from ghostgrad.sketch import Kind
from ghostgrad.store import GradientStore

Arm = Callable[[], None]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def llama_lora(rank: int) -> nn.Module:
    """33.9 M parameters, 8 layers of width 512, LoRA on all seven matrices of each."""
    import peft
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=8000,
    )
    model = transformers.LlamaForCausalLM(config)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return peft.get_peft_model(model, peft.LoraConfig(r=rank, target_modules=targets))


def gpt2(width: int = 256, layers: int = 4, vocabulary: int = 8000) -> nn.Module:
    """The shape of the survey's section 9.1: 4 layers of width 256, vocabulary 8000, tied."""
    import transformers

    config = transformers.GPT2Config(
        n_embd=width,
        n_layer=layers,
        n_head=width // 64,
        vocab_size=vocabulary,
        n_positions=1024,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return transformers.GPT2LMHeadModel(config)


def llama_projected(width: int = 256, layers: int = 4) -> nn.Module:
    """The shape of the survey's section 9.4: 28 Linear layers, all weights trained but embeddings and head."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=688,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=8000,
    )
    return transformers.LlamaForCausalLM(config)


class Steps:
    """One training step in every variant, on one model and one batch."""

    def __init__(self, model: nn.Module, batch: int, length: int, vocabulary: int = 8000):
        self.model: Any = model.train()
        random = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, vocabulary, (batch, length), generator=random)
        self.trained: dict[str, Any] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=1e-5)
        self.engine = GradientEngine(model)
        self.direction = {n: torch.randn(p.shape, generator=random) for n, p in self.trained.items()}

    def contributions(self, ids: Tensor) -> Tensor:
        logits = self.model(input_ids=ids).logits[:, :-1]
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return losses.view(len(ids), -1).sum(1) / ids[:, 1:].numel()

    def loss(self) -> Tensor:
        return self.model(input_ids=self.ids, labels=self.ids).loss

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def plain(self) -> None:
        self.loss().backward()
        self.update()

    def observed(self, *observers: Any) -> Arm:
        def step() -> None:
            with self.engine.observe(*observers):
                self.loss().backward()
            observers[0].total() if not isinstance(observers[0], Sketches) else observers[0].rows()
            self.update()

        return step

    def off(self) -> None:
        with self.engine.observe():
            self.loss().backward()
        self.update()

    def naive(self) -> None:
        """One backward per example, dotted with the direction; their sum is the step's gradient."""
        for row in self.contributions(self.ids).unbind():
            grads = torch.autograd.grad(row, list(self.trained.values()), retain_graph=True)
            sum((g * d).sum() for g, d in zip(grads, self.direction.values(), strict=True))
            for parameter, grad in zip(self.trained.values(), grads, strict=True):
                parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        self.update()

    def vmap(self) -> None:
        """torch.func: gradients of all examples at once, dotted with the direction."""
        values = {name: p.detach() for name, p in self.trained.items()}
        divisor = self.ids[:, 1:].numel()

        def row_loss(parameters: dict[str, Tensor], ids: Tensor) -> Tensor:
            logits = torch.func.functional_call(self.model, parameters, (), {"input_ids": ids[None]}).logits[0, :-1]
            return nn.functional.cross_entropy(logits, ids[1:], reduction="sum") / divisor

        grads = torch.func.vmap(torch.func.grad(row_loss), in_dims=(None, 0), randomness="different")(values, self.ids)
        for name, parameter in self.trained.items():
            grads[name].flatten(1).matmul(self.direction[name].flatten())
            parameter.grad = grads[name].sum(0)
        self.update()

    def opacus(self) -> None:
        """Opacus' per-example gradients (hooks of its GradSampleModule), then their norms."""
        from opacus.grad_sample import GradSampleModule  # pyright: ignore[reportMissingImports]

        wrapped = GradSampleModule(self.model, loss_reduction="mean", strict=False)
        try:
            wrapped(input_ids=self.ids, labels=self.ids).loss.backward()
            torch.stack([p.grad_sample.flatten(1).square().sum(1) for p in self.trained.values()]).sum(0).sqrt()
        finally:
            wrapped.to_standard_module()
            for parameter in self.trained.values():
                parameter.grad_sample = None
        self.update()

    def arms(self) -> dict[str, Arm]:
        arms = {
            "opacus": self.opacus,
            "plain": self.plain,
            "off": self.off,
            "norms": self.observed(Norms()),
            "dots": self.observed(Dots(self.direction)),
            "dots+norms": self.observed(Dots(self.direction), Norms()),
            "gram": self.observed(Gram()),
            "sketches": self.observed(Sketches(self.sketcher())),
            "naive": self.naive,
            "vmap": self.vmap,
        }
        return arms

    def sketcher(self, kind: Kind = "rademacher") -> Sketcher:
        shapes = {name: tuple(p.shape) for name, p in self.trained.items()}
        tables = frozenset(n for n in shapes if "embed" in n or "wte" in n or "wpe" in n)
        options = SketchOptions(256, 8, ("*",), False, kind, "even", 42, torch.float16)
        return Sketcher(shapes, options, tables)


class Building:
    """Building sketches of the survey's section 9.4, 28 Linear layers, 16 x 16 numbers each: a pass, not a step."""

    def __init__(self, batch: int, length: int, folder: Path):
        self.model: Any = llama_projected()
        self.ids = torch.randint(0, 8000, (batch, length), generator=torch.Generator().manual_seed(0))
        self.engine = GradientEngine(self.model, select=["*_proj.weight"])
        shapes = {name: tuple(p.shape) for name, p in self.engine.parameters.items()}
        options = SketchOptions(256, 8, ("*",), False, "rademacher", "even", 42, torch.bfloat16)
        self.sketches = Sketches(Sketcher(shapes, options, frozenset()))
        size = self.sketches.sketcher.size
        self.store = GradientStore.create(folder, size=size, dtype=torch.bfloat16, meaning={})

    def loss(self) -> Tensor:
        return self.model(input_ids=self.ids, labels=self.ids).loss * self.ids[:, 1:].numel()

    def plain(self) -> None:
        """Forward and backward with all weight gradients."""
        self.model.requires_grad_(True)
        self.loss().backward()
        self.model.zero_grad()

    def frozen(self) -> None:
        """Forward and backward down to the embeddings, no weight gradient of a layer."""
        self.model.requires_grad_(False)
        self.model.get_input_embeddings().requires_grad_(True)
        self.loss().backward()
        self.model.zero_grad()

    def sketch(self) -> Tensor:
        self.model.requires_grad_(False)
        with self.engine.probe(self.sketches) as backward:
            backward(self.loss())
        return self.sketches.rows()

    def stored(self) -> None:
        rows, start = self.sketch(), len(self.store)
        self.store.append([str(n) for n in range(start, start + len(rows))], rows)

    def bergson(self) -> None:
        """Bergson's TraceCollector, whose targets it is told, with its own two-sided projection."""
        from bergson.collector.gradient_collectors import TraceCollector  # pyright: ignore[reportMissingImports]
        from bergson.gradients import GradientProcessor  # pyright: ignore[reportMissingImports]

        self.model.requires_grad_(False)
        self.model.get_input_embeddings().requires_grad_(True)
        if not hasattr(self, "processor"):
            self.processor = GradientProcessor(projection_dim=16)
            self.targets = {name.removesuffix(".weight") for name in self.engine.parameters}
        collector = TraceCollector(
            model=self.model,
            processor=self.processor,
            target_modules=self.targets,
            device="cpu",
            dtype=torch.bfloat16,
        )
        with collector:
            self.loss().backward()
        torch.cat([rows[0].flatten(1) for rows in collector.mod_grads.values()], 1)
        self.model.zero_grad()

    def arms(self) -> dict[str, Arm]:
        return {name: getattr(self, name) for name in ("plain", "frozen", "sketch", "stored", "bergson")}


def bounds(values: list[float]) -> tuple[float, float, float]:
    """Median and its 95 % bounds from order statistics."""
    ordered, count = sorted(values), len(values)
    tail, below = 0.0, 0
    while below < count // 2 and tail + comb(count, below) * 0.5**count <= 0.025:
        tail += comb(count, below) * 0.5**count
        below += 1
    low = max(0, below - 1)
    return statistics.median(ordered), ordered[low], ordered[count - 1 - low]


def peak_memory(step: Arm) -> int:
    """Bytes the step's peak lies above what was resident before it (Linux, glibc)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else the peak hides in memory that earlier steps left with the allocator
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def interleave(arms: dict[str, Arm], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every arm in every round; the order rotates from round to round."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for name in names:
        for _ in range(2):
            arms[name]()
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            arms[name]()
            times[name].append(clock() - start)
    return times


def report(title: str, times: dict[str, list[float]], memory: dict[str, int], rows: int) -> list[str]:
    """A Markdown table."""
    name_of_base, base_times = next(iter(times.items()))
    lines = [
        f"### {title}",
        "",
        f"| arm | ms (median) | ratio to {name_of_base} [95 % bounds] | rows/s | peak MiB |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, seconds in times.items():
        middle, low, high = bounds([mine / base for mine, base in zip(seconds, base_times, strict=True)])
        typical = statistics.median(seconds)
        lines.append(
            f"| {name} | {typical * 1e3:.0f} | {middle:.3f} [{low:.3f}, {high:.3f}] | {rows / typical:.1f} "
            f"| {memory[name] / 2**20:.0f} |"
        )
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=("lora", "full", "projection", "top"))
    parser.add_argument("--arms", default="plain,norms,dots,sketches,frozen,sketch,stored")
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: on a machine that others use too")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rank", type=int, default=8)
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.setting == "top":
            sys.stdout.write("\n".join(top(chosen.rows, Path(folder) / "store")) + "\n")
            return
        if chosen.setting == "projection":
            steps: Steps | Building = Building(chosen.batch, chosen.length, Path(folder))
        else:
            model = llama_lora(chosen.rank) if chosen.setting == "lora" else gpt2()
            steps = Steps(model, chosen.batch, chosen.length)
        measure(steps, chosen)


def top(rows: int, folder: Path) -> list[str]:
    """Seconds and GB/s of one top-10 query against those of reading the same file, and the memory it takes."""
    block = torch.randn(8192, 4096).half()
    with GradientStore.create(folder, size=4096, dtype=torch.float16, meaning={}) as store:
        for start in range(0, rows, len(block)):
            part = block[: min(len(block), rows - start)]
            store.append([str(n) for n in range(start, start + len(part))], part)
    store, gigabytes, lines = GradientStore.read(folder), rows * 8192 / 1e9, []
    query = torch.randn(1, 4096)

    def read() -> None:
        for _ in store.blocks(256):
            pass

    for name, work in {
        "read the file": read,
        "top 10, inner product": lambda: top_k(store, query, 10, similarity="dot"),
        "top 10, cosine": lambda: top_k(store, query, 10, similarity="cosine"),
    }.items():
        memory, seconds = peak_memory(work), []
        for _ in range(3):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        best = min(seconds)
        lines.append(f"| {name} | {best:.2f} | {gigabytes / best:.2f} | {memory / 2**20:.0f} |")
    head = [
        f"### top: {rows} rows x 4,096 float16, {gigabytes:.1f} GB",
        "",
        "| | s | GB/s | peak MiB |",
        "|---|--:|--:|--:|",
    ]
    return head + lines


def measure(steps: Steps | Building, chosen: argparse.Namespace) -> None:
    """Runs the chosen arms and prints their table."""
    every = steps.arms()
    arms = {name: every[name] for name in chosen.arms.split(",") if name in every}
    times = interleave(arms, chosen.rounds, CLOCKS[chosen.clock])
    memory = {name: peak_memory(arm) for name, arm in arms.items()}
    millions = sum(p.numel() for p in steps.model.parameters()) / 1e6
    title = (
        f"{chosen.setting}: {millions:.1f} M parameters, {chosen.batch} x {chosen.length} tokens, "
        f"{chosen.rounds} rounds, torch {torch.__version__}, {platform.machine()}, 1 thread, {chosen.clock} time"
    )
    sys.stdout.write("\n".join(report(title, times, memory, chosen.batch)) + "\n")


if __name__ == "__main__":
    launch(
        main,
        "lora --arms plain,norms,dots,sketches --rounds 1 --batch 2 --length 8",
        "full --arms plain,off,gram,naive,vmap --rounds 1 --batch 2 --length 8",
        "projection --rounds 1 --batch 2 --length 8",
        "top --rows 1000",
    )
