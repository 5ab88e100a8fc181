"""LoRA that starts with an update other than zero (PiSSA, OLoRA, CorDA, LoRA-GA), with the base left as it is.

PEFT writes W − s·B₀A₀ into the base, which then is nobody's model: it cannot be judged against, and the adapter fits
no other copy of it. Here the base stays W, and a frozen second adapter adds −s·B₀A₀. What is saved is both as one
plain LoRA adapter of rank 2 r, as in PEFT's own conversion, which PEFT loads on the untouched base.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.config.facts import STARTED_BY_WEIGHTS

if TYPE_CHECKING:
    import peft
    from torch import Tensor, nn

START = "start"
"""Name of the frozen adapter that takes back what the other one starts with."""


def weights_before(model: nn.Module, configuration: Any) -> dict[str, Tensor]:
    """Name -> copy of each base weight that PEFT will change; most methods change none."""
    if getattr(configuration, "init_lora_weights", None) not in STARTED_BY_WEIGHTS:
        return {}
    return {name: model.get_submodule(name).weight.detach().clone() for name in configuration.target_modules}  # type: ignore[union-attr]


def keep_base(adapted: peft.PeftModel, weights: dict[str, Tensor]) -> None:
    """Puts the base weights back, and what they lack into a frozen adapter beside the one that trains."""
    import peft
    import torch

    configuration: Any = copy.copy(adapted.peft_config["default"])
    configuration.init_lora_weights, configuration.lora_dropout = True, 0.0
    configuration.trainable_token_indices = configuration.modules_to_save = None
    peft.PeftModel.add_adapter(adapted, START, configuration)  # without the new head that a task's own class would add
    base: Any = adapted.get_base_model()
    with torch.no_grad():
        for name, weight in weights.items():
            base.get_submodule(name).base_layer.weight.copy_(weight)
        for layer in base.modules():
            if START in getattr(layer, "lora_A", {}):
                take_back(layer)
                layer.set_adapter(["default", START])
    for name, parameter in adapted.named_parameters():
        if f".{START}." in name:
            parameter.requires_grad_(False)


def take_back(layer: Any) -> None:
    """Makes the adapter beside the one that trains take back what that adds; nothing where there is none."""
    if START in layer.lora_A:
        layer.lora_A[START].weight.copy_(layer.lora_A["default"].weight)
        layer.lora_B[START].weight.copy_(-layer.lora_B["default"].weight)


def has_start(model: Any) -> bool:
    """Whether the model's adapter stands beside a frozen one."""
    return START in getattr(model, "peft_config", {})


def save_joined(model: peft.PeftModel, folder: Path) -> None:
    """Both adapters as one of twice the rank, in PEFT's own format."""
    import peft
    import torch
    from safetensors.torch import save_file

    joined = dict(peft.get_peft_model_state_dict(model))
    parameters = dict(model.named_parameters())
    for name in joined:
        for factor, axis in ((".lora_A.", 0), (".lora_B.", 1)):
            if factor in name:
                beside = parameters[name.replace(factor, f"{factor}{START}.")]
                joined[name] = torch.cat([joined[name], beside], dim=axis)
    configuration: Any = copy.copy(model.peft_config["default"])
    configuration.r *= 2
    configuration.lora_alpha *= math.sqrt(2) if configuration.use_rslora else 2
    configuration.init_lora_weights = True
    configuration.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    with in_order(configuration):
        configuration.save_pretrained(str(folder))
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in joined.items()},
        folder / "adapter_model.safetensors",
    )


@contextmanager
def in_order(configuration: Any) -> Iterator[None]:
    """While PEFT's configuration is written, its sets are sorted lists: sets have another order in every process."""
    settings = {} if configuration is None else vars(configuration)
    sets = {name: value for name, value in settings.items() if isinstance(value, set)}
    for name, value in sets.items():
        setattr(configuration, name, sorted(value))
    try:
        yield
    finally:
        for name, value in sets.items():
            setattr(configuration, name, value)
