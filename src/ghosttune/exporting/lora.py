"""The matrices of a LoRA adapter: what other programs can add to a base by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ghosttune.errors import ModelError

if TYPE_CHECKING:
    import torch

INSTEAD = "export the merged model instead"


@dataclass(frozen=True)
class Pair:
    """What LoRA adds to one module: `scale * up @ down`."""

    down: torch.Tensor
    """[rank, in]"""
    up: torch.Tensor
    """[out, rank]"""
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def pairs_of(model: Any) -> dict[str, Pair]:
    """Module of the base -> what the active adapter adds; ModelError for an adapter that is more than LoRA's pairs."""
    from peft.tuners.lora import LoraLayer

    settings, name = model.active_peft_config, model.active_adapter
    kind = "DoRA" if getattr(settings, "use_dora", False) else settings.peft_type.value
    if kind != "LORA":
        raise ModelError(f"an adapter of the method {kind} is no pair of matrices beside each weight; {INSTEAD}")
    found = {}
    for module, layer in model.get_base_model().named_modules():
        if hasattr(layer, "modules_to_save") or hasattr(layer, "token_adapter"):
            raise ModelError(f"{module} was trained beside LoRA; {INSTEAD}")
        if isinstance(layer, LoraLayer):
            if name not in layer.lora_A or layer.lora_bias.get(name):
                raise ModelError(f"the adapter of {module} is not LoRA's pair of a linear layer alone; {INSTEAD}")
            down: Any = layer.lora_A[name].weight
            up: Any = layer.lora_B[name].weight
            found[module] = Pair(down, up, layer.scaling[name])
    return found


def one_rank_and_scale(pairs: dict[str, Pair]) -> tuple[int, float]:
    """The rank and scale of every pair; ModelError where they differ, which these programs' settings cannot say."""
    kinds = {(pair.rank, pair.scale) for pair in pairs.values()}
    if len(kinds) != 1:
        raise ModelError(f"the modules have {len(kinds)} ranks and scales; {INSTEAD}")
    return kinds.pop()
