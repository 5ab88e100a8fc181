"""LoRA: low-rank updates beside frozen linear layers (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ghosttune.config.schema import Count, MethodSettings, Names, setting
from ghosttune.registry import METHODS

if TYPE_CHECKING:
    import peft


class LoraSettings(MethodSettings):
    type: Literal["lora"] = setting("lora", critical=True)
    """The adapter method (`ghosttune show methods`)."""
    r: Count = setting(8, critical=True, cost="trained parameters grow in proportion")
    """Rank of the update, r in the paper."""
    lora_alpha: Annotated[float, Field(gt=0)] = setting(
        16.0, critical=True, why="the update is scaled by lora_alpha / r"
    )
    """Numerator of the update's scale."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = setting(0.0)
    """Dropout on the adapter's input."""
    target_modules: Literal["attention_qv", "attention", "mlp", "all_linear"] | Names = setting(
        "all_linear", critical=True, why="adapting all linear layers, the MLP above all, usually beats attention alone"
    )
    """Which linear layers: a group, or a list of names and patterns (`[q_proj, "*.layers.0.*"]`); each must match."""

    trainable_token_indices: list[Annotated[int, Field(ge=0)]] | None = setting(
        None, unit="token ids", why="a stop token the base never learned cannot be produced otherwise"
    )
    """Tokens whose rows in the embedding (and in an output layer tied to it) are trained besides."""


@METHODS.register("lora", LoraSettings)
def lora(settings: LoraSettings, targets: list[str], transposed: bool) -> peft.LoraConfig:
    """Low-rank updates W + (lora_alpha / r) B A beside frozen linear layers."""
    import peft

    return peft.LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,  # pyright: ignore[reportArgumentType]  # PEFT only divides it by r
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        trainable_token_indices=settings.trainable_token_indices,
        fan_in_fan_out=transposed,
    )
