"""Proof 5: frozen means bit-identical, and so does going on where a run was cut off."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ghosttune.models.modules import module_facts, parameter_facts
from ghosttune.models.upstream import checkpoint_activations
from ghosttune.proving.findings import Bench, Finding, every
from ghosttune.proving.reference import counting_rows, small_llama
from ghosttune.proving.specimens import short_run, write_model, write_rows
from ghosttune.registry import STRATEGIES
from ghosttune.run.directory import RunDir
from ghosttune.run.tables import read_table
from ghosttune.schedules.phases import Schedule
from ghosttune.training import checkpoints
from ghosttune.training.phasing import Phasing
from ghosttune.workflows.train import resume, train

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=False, fused=False),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
}

# Written out by hand, layer by layer, so that the language is not its own judge. The model has two layers.
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
MEANT = {
    "attn->mlp->both": [ATTENTION, MLP, ATTENTION + MLP],
    "both->mlp->attn": [ATTENTION + MLP, MLP, ATTENTION],
    "both->mlp->both": [ATTENTION + MLP, MLP, ATTENTION + MLP],
    "early->late": [("layers.0.",), ("layers.1.",)],
    "cycle": [ATTENTION, MLP, ATTENTION],
    "top-down": [("layers.1.",), ("layers.0.", "layers.1.")],
}
SETTINGS: dict[str, dict[str, Any]] = {"cycle": {"period": 2}, "top-down": {"parts": 2}}

RUN = {
    "train__max_steps": 12,
    "train__eval_steps": 2,
    "train__save_steps": 1,
    "train__save_total_limit": 20,
    "train__weight_decay": 0.1,
    "method__lora_dropout": 0.1,
    "measure__norms__every": 1,
    "measure__norms__effective": 2,
    "measure__ledger__guide_every": 3,
    "data__guide__rows": 4,
}
"""A run with everything on and a checkpoint at every update."""

PLANS: dict[str, Any] = {
    "plan": "both@0-4 > mlp@4-8 > both@8- rewarm 2",
    "guided": {"strategy": "guided", "period": 4},
    "lisa": {"strategy": "lisa", "layers": 1, "period": 4},
}
BOUNDARIES = (3, 4, 5, 7, 8, 9)
"""Of the plan, and the updates beside them."""


def frozen_is_frozen(bench: Bench) -> list[Finding]:
    """Every strategy with every optimizer, activation checkpointing or not, and every way to be cut off."""
    moved = {f"{name} with {optimizer}": not misplaced(name, optimizer) for name in MEANT for optimizer in OPTIMIZERS}
    checkpointed = {
        f"{'all weights' if full else 'LoRA'}, checkpointing {on}": not misplaced("early->late", "AdamW", full, on)
        for full in (False, True)
        for on in (False, True)
    }
    return [
        every("strategy x optimizer: exactly the named tensors move in each phase", moved),
        every("early->late with and without activation checkpointing", checkpointed),
        continued(bench),
    ]


def strategy(name: str, steps: int, **settings: Any) -> Schedule:
    """The schedule of a shipped strategy, for the model of two layers."""
    entry = STRATEGIES[name]
    return entry.build(entry.settings(strategy=name, **SETTINGS.get(name, {}), **settings), steps)


class Loop:
    """A plain training loop that follows a schedule, with a slow record of every update."""

    def __init__(self, schedule: Schedule, optimizer: Any = OPTIMIZERS["AdamW"], model: Any = None, **options: Any):
        self.model = model if model is not None else small_llama()
        facts = parameter_facts(self.model, module_facts(self.model))
        self.phasing = Phasing(self.model, facts, schedule, layers=2, seed=0, **options)
        self.optimizer = optimizer(list(self.phasing.parameters.values()))
        self.phasing.optimizer = self.optimizer
        self.rows = counting_rows(64, 1)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.phasing.parameters.items()}

    def moments(self) -> dict[str, dict[str, torch.Tensor]]:
        named = {id(p): name for name, p in self.phasing.parameters.items()}
        return {
            named[id(p)]: {key: torch.as_tensor(value).clone() for key, value in state.items()}
            for p, state in self.optimizer.state.items()
        }

    def update(self, step: int) -> set[str]:
        """Makes an update; names of the tensors that moved."""
        self.phasing.enter(step)
        before = self.weights()
        self.optimizer.zero_grad()
        for row in self.rows[2 * step : 2 * step + 2]:
            ids = torch.tensor([row["input_ids"]])
            self.model(input_ids=ids, labels=ids).loss.backward()
        self.optimizer.step()
        return {name for name, tensor in self.weights().items() if not torch.equal(tensor, before[name])}

    def held(self, parts: tuple[str, ...]) -> set[str]:
        """Names of the tensors that one of `parts` is in."""
        return {name for name in self.phasing.parameters if any(part in name for part in parts)}


def misplaced(name: str, optimizer: str, full: bool = False, checkpointing: bool = False) -> list[str]:
    """Tensors that moved and were to be frozen, or stood still and were to be trained, each with its phase."""
    model = small_llama(full)
    if checkpointing:
        checkpoint_activations(model)
        model.train()
    loop = Loop(strategy(name, 6), OPTIMIZERS[optimizer], model)
    found = []
    for index, (phase, parts) in enumerate(zip(loop.phasing.schedule.phases, MEANT[name], strict=True)):
        moved: set[str] = set()
        for step in range(phase.start + 1, phase.end + 1):
            moved |= loop.update(step)
        meant = loop.held(parts)
        # While B is zero A has no gradient; it moves by decay, which need not show in the last bit.
        still = {tensor for tensor in meant - moved if index or "lora_A" not in tensor}
        found += [f"{tensor} in {phase.selection}" for tensor in sorted(moved - meant | still)]
    return found


def continued(bench: Bench) -> Finding:
    """Whether a run cut back to each checkpoint and continued ends in the same bytes."""
    model, rows = write_model(bench.folder / "model"), write_rows(bench.folder / "rows.jsonl")
    same = {}
    for kind, steps in {"plan": (8,)}.items() if bench.quick else dict.fromkeys(PLANS, BOUNDARIES).items():
        whole = train(short_run(model, rows, **RUN, phases=PLANS[kind]), bench.folder / kind).folder
        for step in steps:
            cut = bench.folder / f"{kind}-cut-{step}"
            cut_back(whole, cut, step)
            resume(cut)
            differing = differences(whole.path, cut)
            same[f"{kind} at {step}: {', '.join(differing)}"] = not differing
    return every("resumed at boundaries and beside them: runs bit-identical", same)


def cut_back(whole: RunDir, cut: Path, step: int) -> None:
    """A copy of a finished run as it was when the checkpoint of `step` was its newest."""
    shutil.copytree(whole.path, cut)
    for later in RunDir(cut).checkpoint_steps():
        if later > step:
            shutil.rmtree(RunDir(cut).checkpoint(later))
    for folder in (RunDir(cut).adapter, RunDir(cut).last):
        shutil.rmtree(folder)
    RunDir(cut).write_record(RunDir(cut).read_record() | {"status": "running"})


def differences(left: Path, right: Path) -> list[str]:
    """What two runs that should be the same do not share: adapters, events, optimizer, generators, tables, exports."""
    one, two = RunDir(left), RunDir(right)
    found = [f.name for f, g in ((one.adapter, two.adapter), (one.last, two.last)) if not _same_weights(f, g)]
    found += ["events"] if one.events() != two.events() else []
    step = one.checkpoint_steps()[-1]
    for file in (checkpoints.OPTIMIZER, checkpoints.RANDOM):
        mine, other = (run.checkpoint(step) / file for run in (one, two))
        found += [file] if not other.is_file() or mine.read_bytes() != other.read_bytes() else []
    records = [run.read_record() for run in (one, two)]
    found += [name for name in ("verdict", "ledger") if records[0].get(name) != records[1].get(name)]
    tables = [sorted(path.stem for path in run.tables.glob("*.parquet")) for run in (one, two)]
    if tables[0] != tables[1]:
        return [*found, f"tables {tables}"]
    found += [name for name in tables[0] if not read_table(one, name).equals(read_table(two, name))]
    exports = sorted([*left.glob("gradient_analysis.*"), *left.glob("tables/*.csv")])
    return found + [f.name for f in exports if f.read_bytes() != (right / f.relative_to(left)).read_bytes()]


def _same_weights(left: Path, right: Path) -> bool:
    one, two = (load_file(str(folder / "adapter_model.safetensors")) for folder in (left, right))
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
