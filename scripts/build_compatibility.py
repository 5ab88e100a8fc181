"""Writes docs/compatibility.md: what each method does on a tiny model of each family, tried out.

    python scripts/build_compatibility.py            # about two minutes on one core

A test compares the page with what this writes.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from compatible_families import FAMILIES, Family

from ghosttune.config.schema import section_class
from ghosttune.errors import GhosttuneError
from ghosttune.models.loading import add_adapter, load_adapter, save_adapter, without_upstream_warnings
from ghosttune.models.modules import targets_in

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"r": 2}),
    "dora": ("lora", {"r": 2, "use_dora": True}),
    "pissa": ("lora", {"r": 2, "init_lora_weights": "pissa"}),
    "adalora": ("adalora", {"init_r": 2, "target_r": 1}),
    "vera": ("vera", {"r": 8}),
    "loha": ("loha", {"r": 2}),
    "lokr": ("lokr", {"r": 2}),
    "oft": ("oft", {"oft_block_size": 4}),
    "ia3": ("ia3", {}),
    "prompt_tuning": ("prompt_tuning", {"num_virtual_tokens": 3}),
    "p_tuning": ("p_tuning", {"num_virtual_tokens": 3, "encoder_hidden_size": 8}),
    "prefix_tuning": ("prefix_tuning", {"num_virtual_tokens": 3}),
    "layernorm": ("layernorm", {}),
    "bitfit": ("bitfit", {}),
    "full": ("full", {}),
}
"""Column -> method and settings."""

PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning")
STEPS = {"train": "t", "save": "s", "reload": "r", "merge": "m", "generate": "g"}
GROUPS = ("attention_qv", "attention", "mlp", "all_linear", "keys_values_inner")


def cell(family: Family, method: str) -> tuple[str, str]:
    """(letters of the steps that work, why the next one does not)."""
    name, settings = METHODS[method]
    model = family.model()
    done = ""
    try:
        adapted = add_adapter(model, section_class("method", name)(**settings), 0, family.task_type)
        for step, work in _steps(family, method, adapted):
            work()
            done += STEPS[step]
    except GhosttuneError as error:
        return done or "refused", str(error).splitlines()[-1].partition(": ")[2]
    except Exception as error:  # whatever PEFT and Transformers raise is the finding
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return done or "fails", f"{type(error).__name__}: {first[:120]}"
    return done, ""


def _steps(family: Family, method: str, adapted: Any) -> Any:
    rows = family.rows()
    yield "train", lambda: _train(adapted, rows)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "adapter"
        tuned = _logits(adapted, rows)
        yield "save", lambda: save_adapter(adapted, folder)
        again = load_adapter(family.model(), folder).eval()
        yield "reload", lambda: torch.testing.assert_close(_logits(again, rows), tuned, rtol=1e-4, atol=1e-5)
    if family.task_type != "SEQ_CLS":
        yield "generate", lambda: _generate(again, rows)
    if method not in PROMPTS:
        yield "merge", lambda: _merge(again, rows, tuned)


def _train(model: Any, rows: dict[str, torch.Tensor]) -> None:
    """Five updates lower the loss and move nothing frozen."""
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(6):
        torch.manual_seed(0)
        loss = model(**rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if not losses[-1] < losses[0]:
        raise AssertionError(f"the loss does not fall: {losses[0]:.4f} to {losses[-1]:.4f}")
    moved = [name for name, p in model.named_parameters() if name in frozen and not torch.equal(frozen[name], p)]
    if moved:
        raise AssertionError(f"frozen parameters moved: {moved[:3]}")


@torch.no_grad()
def _logits(model: Any, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    asked = {name: values for name, values in rows.items() if name != "labels"}
    if model.config.is_encoder_decoder:
        asked["decoder_input_ids"] = rows["input_ids"]
    return model.eval()(**asked).logits


def _merge(model: Any, rows: dict[str, torch.Tensor], tuned: torch.Tensor) -> None:
    torch.testing.assert_close(_logits(model.merge_and_unload(), rows), tuned, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def _generate(model: Any, rows: dict[str, torch.Tensor]) -> None:
    asked = {name: values[:1] for name, values in rows.items() if name != "labels"}
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
    reasons: dict[str, int] = {}
    rows = []
    for name, family in FAMILIES.items():
        found = []
        for method in METHODS:
            letters, reason = cell(family, method)
            number = reasons.setdefault(reason, len(reasons) + 1) if reason else None
            found.append(f"{letters} [{number}]" if number else letters)
        rows.append([name, *found])
    targets = [[name, *groups_of(family).values()] for name, family in FAMILIES.items()]
    listed = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    return TEXT.format(
        methods=_table(["", *METHODS], rows), groups=_table(["", *GROUPS], targets), reasons=listed or "none"
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TEXT = """# Compatibility

Written by `scripts/build_compatibility.py`, which tries every cell on a tiny model built from the family's
configuration; a test compares this page with what it finds.

## Methods and families

**t** it trains (the loss falls, nothing frozen moves), **s** it saves, **r** what is reloaded gives the same logits,
**g** it generates, **m** merged it gives the same logits. BERT, RoBERTa and DistilBERT classify and generate nothing;
learned prompts cannot be merged. A number in brackets says why it stops there.

{methods}

{reasons}

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
