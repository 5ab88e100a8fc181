"""Writes docs/compatibility.md: what each method does on a tiny model of each family for each task, tried out.

    python scripts/build_compatibility.py            # about three minutes of one core

A test compares the page with what this writes.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import build_families
import torch
from compatible_families import FAMILIES, Family
from compatible_tasks import TRIED, Tried

from ghosttune import registry
from ghosttune.config.schema import section_class
from ghosttune.errors import GhosttuneError
from ghosttune.models.loading import add_adapter, load_adapter, save_adapter
from ghosttune.models.merging import merged
from ghosttune.models.modules import targets_in
from ghosttune.models.prompting import prompt_length
from ghosttune.models.upstream import without_upstream_warnings

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"

SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2},
    "adalora": {"init_r": 2, "target_r": 1},
    "vera": {"r": 8},
    "loha": {"r": 2},
    "lokr": {"r": 2},
    "oft": {"oft_block_size": 4},
    "miss": {"r": 4},
    "hira": {"r": 2},
    "shira": {"r": 2},
    "gralora": {"r": 4, "alpha": 8},
    "randlora": {"r": 4, "randlora_alpha": 80},
    "c3a": {"block_size": 4},
    "hra": {"r": 4},
    "frod": {"sparse_rate": 0.1},
    "prompt_tuning": {"num_virtual_tokens": 3},
    "p_tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 8},
    "prefix_tuning": {"num_virtual_tokens": 3},
}
"""Method -> settings that are small for a width of 16; the others take their defaults."""

KINDS = {"dora": {"use_dora": True}, "pissa": {"init_lora_weights": "pissa"}}
"""Columns for kinds of LoRA besides."""

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", SETTINGS["lora"]),
    **{kind: ("lora", SETTINGS["lora"] | settings) for kind, settings in KINDS.items()},
    **{name: (name, SETTINGS.get(name, {})) for name in registry.METHODS.names() if name != "lora"},
}
"""Column -> method and settings: every method there is."""

STEPS = {"train": "t", "save": "s", "reload": "r", "merge": "m", "generate": "g"}
GROUPS = ("attention_qv", "attention", "mlp", "all_linear", "keys_values_inner")


class Page:
    """What is found on a page, each reason numbered once."""

    def __init__(self, place: Path):
        self.place = place
        self.reasons: dict[str, int] = {}

    def models(self, task: str) -> dict[str, Any]:
        """Family -> its model for the task, or why there is none."""
        found: dict[str, Any] = {}
        for name, family in FAMILIES.items():
            if task in family.tasks:
                try:
                    found[name] = TRIED[task].model(family, self.place / family.kind)
                except GhosttuneError as error:
                    found[name] = str(error).replace(f"{self.place}/", "")
        return found

    def table(self, task: str, methods: Sequence[str]) -> str:
        """One row per family that has a model for the task; then those that have none."""
        models = self.models(task)
        rows = [[name, *self.row(task, models[name], methods)] for name in models if not isinstance(models[name], str)]
        none = [self.cell_text(name, reason) for name, reason in models.items() if isinstance(reason, str)]
        return _table(["", *methods], rows) + (f"\n\nNo model: {', '.join(none)}." if none else "")

    def row(self, task: str, model: Any, methods: Sequence[str]) -> list[str]:
        return [self.cell_text(*cell(TRIED[task], model, method)) for method in methods]

    def cell_text(self, letters: str, reason: str) -> str:
        return f"{letters} [{self.reasons.setdefault(reason, len(self.reasons) + 1)}]" if reason else letters


def cell(tried: Tried, model: Any, method: str) -> tuple[str, str]:
    """(letters of the steps that work, why the next one does not)."""
    name, settings = METHODS[method]
    done = ""
    try:
        chosen: Any = section_class("method", name)(**settings)
        adapted = add_adapter(copy.deepcopy(model), chosen, 0, tried.kind)
        for step, work in _steps(tried, model, adapted):
            work()
            done += STEPS[step]
    except GhosttuneError as error:
        return done or "refused", str(error).splitlines()[-1].partition(": ")[2]
    except Exception as error:  # whatever PEFT and Transformers raise is the finding
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return done or "fails", f"{type(error).__name__}: {first[:120]}"
    return done, ""


def _steps(tried: Tried, model: Any, adapted: Any) -> Any:
    batch, task = tried.batch(), tried.task
    yield "train", lambda: _train(task, adapted, batch)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "adapter"
        tuned = _losses(task, adapted, batch)
        yield "save", lambda: save_adapter(adapted, folder)
        again = load_adapter(copy.deepcopy(model), folder)
        yield "reload", lambda: torch.testing.assert_close(_losses(task, again, batch), tuned, rtol=1e-4, atol=1e-5)
    if tried.name in ("causal_lm", "seq2seq_lm"):
        yield "generate", lambda: _generate(again, batch)
    if not prompt_length(again):
        whole = merged(again)
        yield "merge", lambda: torch.testing.assert_close(_losses(task, whole, batch), tuned, rtol=1e-3, atol=1e-3)


def _train(task: Any, model: Any, batch: dict[str, torch.Tensor]) -> None:
    """Five updates lower the loss, move all that trains and nothing else."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(6):
        torch.manual_seed(0)
        loss = task.example_loss(model, batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if not losses[-1] < losses[0]:
        raise AssertionError(f"the loss does not fall: {losses[0]:.4f} to {losses[-1]:.4f}")
    moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    if moved - trained:
        raise AssertionError(f"frozen parameters moved: {sorted(moved - trained)[:3]}")
    if still := sorted(trained - moved):
        raise AssertionError(f"no gradient reaches {len(still)} of {len(trained)} parameters: {still[:2]}")


@torch.no_grad()
def _losses(task: Any, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return task.example_loss(model.eval(), batch)


@torch.no_grad()
def _generate(model: Any, batch: dict[str, torch.Tensor]) -> None:
    asked = {name: batch[name][:1] for name in ("input_ids", "attention_mask")}
    with without_upstream_warnings():
        new = model.generate(**asked, max_new_tokens=3, do_sample=False)
    if new.shape[1] < 2:
        raise AssertionError(f"nothing was generated: {tuple(new.shape)}")


def groups_of(family: Family) -> dict[str, str]:
    """Target group -> last names of the layers it means."""
    found = {}
    for group in GROUPS:
        try:
            names = targets_in(family.model(), group).linear
            found[group] = " ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
        except GhosttuneError:
            found[group] = "none"
    return found


def page() -> str:
    """The whole page."""
    tables = []
    with tempfile.TemporaryDirectory() as place:
        written = Page(Path(place))
        for task in TRIED:
            tables.append(f"### {task}\n\n{written.table(task, list(METHODS))}")
    targets = [[name, *groups_of(family).values()] for name, family in FAMILIES.items()]
    listed = "\n".join(f"{number}. {reason}" for reason, number in written.reasons.items())
    return TEXT.format(
        methods="\n\n".join(tables),
        groups=_table(["", *GROUPS], targets),
        reasons=listed,
        families=build_families.short(build_families.read()),
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TEXT = """# Compatibility

Written by `scripts/build_compatibility.py`, which tries every cell on a tiny model built from the family's
configuration; a test compares this page with what it finds.

## Methods, families and tasks

The model is saved as the family's published weights are, and loaded as a run of the task loads it. **t** it trains (the
loss falls, everything that should move does, nothing else), **s** it saves, **r** what is reloaded gives the same
losses, **g** it generates, **m** merged it gives the same losses. Only `causal_lm` and `seq2seq_lm` generate; learned
prompts cannot be merged. A number in brackets says why it stops there. Regression is `sequence_classification` with one
output. LLaVA is tried on text, and its part that sees stays as it is.

Behind a learned prompt (`prompt_tuning`, `p_tuning`) encoders judge a row at the first learned vector. Decoders judge a
row at its last token, for which PEFT on its own needs rows without padding on the right.

{methods}

{reasons}

## Every family of Transformers

With LoRA on `all_linear` and everything measured; [families.md](families.md) says what each step gave, why the others
are refused, and how exact each row's numbers are.

{families}

## Target groups

What `method.target_modules` means in each family, by the last names of the layers, found from the model's structure.
Experts that a model keeps in one tensor (Mixtral) are no linear layers and are not adapted.

{groups}
"""


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
