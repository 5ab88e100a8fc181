"""Plain descriptions that layers which do not know each other exchange."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STARTED_BY_WEIGHTS = ("pissa", "olora")
"""LoRA's `init_lora_weights` that begin with a part of the base weight, which PEFT takes out of it."""

STARTED_BY_ROWS = ("corda", "lora_ga")
"""Those that begin with an update that training rows decide; it is zero until they have been read."""


@dataclass(frozen=True)
class ModuleFacts:
    """Where a module stands in the model."""

    name: str
    """Full name in the untouched base model."""
    layer: int | None
    """Index of its block; None outside the blocks."""
    group: str
    """attention, mlp, embedding, head or other."""
    role: str | None
    """Within its group: q, k, v, o, qkv, or the module's own last name; None for tables and heads."""


@dataclass(frozen=True)
class ParameterFacts:
    """Which part of the model a trained parameter belongs to."""

    name: str
    """Full name in the model that trains."""
    module: str
    """Name of its module in the untouched base model."""
    layer: int | None
    group: str
    """attention, mlp, embedding, head, norm or other."""
    factor: str
    """A, B, weight, bias, magnitude, scale, rotation, update (numbers of the update itself) or prompt."""
    role: str | None = None
    """Of its module: q, k, v, o, qkv, or the module's own last name."""


@dataclass(frozen=True)
class ModelKind:
    """What a task asks of a model."""

    loader: str
    """Name of the class in Transformers that loads it."""
    adapter_task: str
    """PEFT's name of the task."""
    entries: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Entries of the model's configuration that the task decides, such as its labels."""
    new_head: bool = True
    """Whether the output layers are the task's own: drawn anew where the weights have none, and trained in full."""


CAUSAL_LM = ModelKind("AutoModelForCausalLM", "CAUSAL_LM", new_head=False)


@dataclass(frozen=True)
class Targets:
    """What a method may act on in a model, by full name in the untouched base."""

    linear: list[str]
    """The linear layers that `method.target_modules` means; empty for methods without it."""
    transposed: bool
    """Whether one of them keeps its weight as [inputs, outputs] (GPT-2's)."""
    inputs: list[int]
    """How many inputs each of them has."""
    outputs: list[int]
    """How many outputs each of them has."""
    inner: list[str]
    """Those of `linear` that lead back from the MLP's own width to the model's."""
    norms: list[str]
    """Normalisation layers with a weight of their own."""
    parameters: list[str]
    """Every parameter, tied ones once; without those of a new head, and of a part that sees."""
