"""Proof 2: every per-row norm, product, sketch and gradient equals one float64 backward per row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import peft
import torch
from torch import Tensor, nn

from ghostgrad.cases import LAYERS, ROWS, SWITCHES, compare_parts, compare_products
from ghostgrad.testing import check_rule, compare
from ghostgrad.tiny import Switches, losses, packed, padded, tiny
from ghosttune.proving.families import MAKE, TARGETS, contributions, llama, randomized, rows, token_losses
from ghosttune.proving.findings import Bench, Finding, every

Case = tuple[str, Callable[[], Any]]
"""Its name, and what raises AssertionError where a number is off by more than 1e-10."""


def rows_equal_one_backward_each(bench: Bench) -> list[Finding]:
    """Norms, products, Gram matrices, sums, sketches and whole gradients of every case; none is left out."""
    return [
        tried("layer rules x rows", layer_cases()),
        tried("tied, used twice, checkpointed x rows x padding side", switch_cases()),
        tried("packed documents, tied, used twice, checkpointed", packed_cases()),
        tried("products with 1, 2, 4, 8 guide rows, tied or not", guide_cases()),
        tried("micro-batches of one step", accumulation_cases()),
        tried("GPT-2, Llama, BERT, T5 x full, LoRA, DoRA, IA3", family_cases()),
        tried("prompt and prefix tables", table_cases()),
    ]


def tried(what: str, cases: Iterable[Case]) -> Finding:
    """How many cases are exact."""
    held = {}
    for name, check in cases:
        try:
            check()
            held[name] = True
        except AssertionError as error:
            held[f"{name}: {str(error).strip().splitlines()[0]}"] = False
    return every(what, held)


def layer_cases() -> Iterator[Case]:
    for name, (make, given) in LAYERS.items():
        for size in ROWS:
            torch.manual_seed(0)
            yield f"{name} x {size}", lambda make=make, given=given, size=size: check_rule(make(), given(size))


def switch_cases() -> Iterator[Case]:
    for switches, size, side in itertools.product(SWITCHES, ROWS, ("left", "right")):
        batch = padded(size, side)
        yield (
            f"{switches} x {size} padded {side}",
            lambda s=switches, b=batch, n=size: compare(tiny(s), lambda model: losses(model, b, n)),
        )


def packed_cases() -> Iterator[Case]:
    for switches, size in itertools.product(SWITCHES, ROWS[1:]):
        batch = packed(size)
        yield (
            f"{switches} x {size}",
            lambda s=switches, b=batch, n=size: compare(
                tiny(s), lambda model: losses(model, b, n), examples=b["document"]
            ),
        )


def guide_cases() -> Iterator[Case]:
    for guides, tied in itertools.product(ROWS, (False, True)):
        yield f"{guides} guide rows, tied {tied}", lambda g=guides, t=tied: compare_products(tiny(Switches(tied=t)), g)


def accumulation_cases() -> Iterator[Case]:
    for parts in (1, 2, 4):
        yield f"{parts} parts", lambda parts=parts: compare_parts(parts)


def family_cases() -> Iterator[Case]:
    for family, method, size in itertools.product(MAKE, ("full", "lora", "dora", "ia3"), ROWS):
        batch = rows(size, side="left" if size % 4 else "right")
        yield (
            f"{family} {method} x {size}",
            lambda f=family, m=method, b=batch: compare(adapted(f, m), lambda model: contributions(model, f, b)),
        )


def adapted(family: str, method: str) -> nn.Module:
    """The family's tiny model under a training method."""
    torch.manual_seed(0)
    model = MAKE[family]()
    if method == "full":
        return randomized(model)
    if method == "embedding":
        embedding = {"gpt2": "wte", "llama": "embed_tokens", "bert": "word_embeddings", "t5": "shared"}[family]
        config = peft.LoraConfig(r=3, target_modules=[embedding])
    elif method == "ia3":
        settings: dict[str, Any] = {"target_modules": TARGETS[family], "feedforward_modules": TARGETS[family][-1:]}
        config = peft.IA3Config(fan_in_fan_out=family == "gpt2", **settings)
    else:
        settings = {"target_modules": TARGETS[family], "bias": "lora_only" if method == "lora" else "none"}
        config = peft.LoraConfig(r=3, use_dora=method == "dora", fan_in_fan_out=family == "gpt2", **settings)
    return randomized(peft.get_peft_model(model, config))  # type: ignore[arg-type]


TABLES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "prompt": lambda common: peft.PromptTuningConfig(**common),
    "prefix": lambda common: peft.PrefixTuningConfig(**common),
    "p-tuning": lambda common: peft.PromptEncoderConfig(encoder_hidden_size=8, **common),
}


def table_cases() -> Iterator[Case]:
    for kind, size in itertools.product(TABLES, ROWS):
        yield f"{kind} x {size}", lambda kind=kind, size=size: compare_table(kind, size)


def compare_table(kind: str, size: int) -> None:
    """AssertionError unless a learned prompt of this kind is exact."""
    config = TABLES[kind]({"task_type": "CAUSAL_LM", "num_virtual_tokens": 3})
    model, batch = randomized(peft.get_peft_model(llama(), config)), rows(size)  # type: ignore[arg-type]
    extra = 0 if kind == "prefix" else 3

    def row_losses(model: nn.Module) -> Tensor:
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, extra:][:, :-1]
        return token_losses(logits, batch.labels[:, 1:]).sum(1)

    compare(model, row_losses)
