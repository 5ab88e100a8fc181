"""Relatives of LoRA that reach a higher rank, or share more, with as many parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ghosttune.config.facts import Targets
from ghosttune.config.schema import RunConfig
from ghosttune.config.setting import Count, method_name, setting
from ghosttune.errors import ConfigError, Problem, listed
from ghosttune.methods.products import Dropout, require_plain
from ghosttune.methods.targets import LinearSettings
from ghosttune.registry import METHODS

if TYPE_CHECKING:
    import peft


class MissSettings(LinearSettings):
    quantized_base: ClassVar[bool] = False
    usual_rates: ClassVar[tuple[float, float]] = (1e-5, 5e-3)
    type: Literal["miss"] = method_name("miss")
    """The adapter method (`ghosttune show methods`)."""
    r: Count = setting(
        16,
        critical=True,
        why="inputs are added up in shards of r, and one block of numbers serves all shards",
        benefit="a larger block tells more inputs apart",
        cost="trained parameters are r times the outputs of each layer: half of LoRA's or less",
    )
    """Rows of the shared block, at most the inputs of the smallest adapted layer."""
    miss_dropout: Dropout = setting(
        0.0,
        why="one block serves many inputs, and can lean on a few of them",
        benefit="may spread what is learned; unknown here",
        cost="steps see a part of the inputs, and are noisier",
    )
    """Dropout on the inputs of the block."""
    init_weights: Literal["balanced", "bat"] = setting(
        "balanced",
        why="the same numbers for all shards change them all alike",
        benefit="`bat` sends the block through the base weight, so that every shard moves in its own way",
        cost="`bat`: a product with the base weight per step, and r must divide inputs and outputs",
    )
    """How the block enters the weight."""


@METHODS.register("miss", MissSettings)
def miss(settings: MissSettings, targets: Targets) -> peft.MissConfig:
    """One small block shared by all shards of a weight (arXiv 2409.15371): fewer parameters than LoRA, high rank."""
    import peft

    require_plain("miss", targets)
    if settings.init_weights == "bat":
        _require_divisor("method.r", settings.r, [*targets.inputs, *targets.outputs], "inputs and outputs", "for bat ")
    if settings.r > min(targets.inputs):
        message = f"must be at most {min(targets.inputs)}, the inputs of the smallest adapted layer (got {settings.r})"
        raise ConfigError([Problem("method.r", message)])
    return peft.MissConfig(
        r=settings.r,
        miss_dropout=settings.miss_dropout,
        init_weights=True if settings.init_weights == "balanced" else settings.init_weights,
        target_modules=targets.linear,
    )


class HiraSettings(LinearSettings):
    quantized_base: ClassVar[bool] = False
    usual_rates: ClassVar[tuple[float, float]] = (1e-4, 3e-2)
    type: Literal["hira"] = method_name("hira")
    """The adapter method (`ghosttune show methods`)."""
    r: Count = setting(
        32,
        critical=True,
        why="the base weight times a product of this rank, entry by entry, is the update",
        benefit="its rank is that of the base times r: high from the start",
        cost="LoRA's parameters at the same r; and the weight itself is multiplied in every step",
    )
    """Rank of the product that the base weight is multiplied with."""
    hira_dropout: Dropout = setting(
        0.0,
        why="the update is as strong as the base weight is large, also where rows are few",
        benefit="may keep large weights from being bent to single rows; unknown here",
        cost="the adapter learns from part of its inputs in each step",
    )
    """Dropout on what the product of weight and update sees."""


@METHODS.register("hira", HiraSettings)
def hira(settings: HiraSettings, targets: Targets) -> peft.HiraConfig:
    """The base weight times a low-rank product, entry by entry (ICLR 2025): LoRA's parameters at a high rank."""
    import peft

    return peft.HiraConfig(
        r=settings.r,
        hira_dropout=settings.hira_dropout,
        target_modules=targets.linear,
        fan_in_fan_out=targets.transposed,
    )


class ShiraSettings(LinearSettings):
    quantized_base: ClassVar[bool] = False
    type: Literal["shira"] = method_name("shira")
    """The adapter method (`ghosttune show methods`)."""
    r: Count = setting(
        8,
        critical=True,
        why="so many entries of the weight train as LoRA of rank r has parameters",
        benefit="the update has no low rank, and adapters of several runs hardly overlap",
        cost="trained parameters in proportion; which entries is drawn by train.seed",
    )
    """Trains r · (inputs + outputs) entries of each weight."""


@METHODS.register("shira", ShiraSettings)
def shira(settings: ShiraSettings, targets: Targets) -> peft.ShiraConfig:
    """A few entries of each weight itself, drawn at random (arXiv 2406.13175): sparse, and of high rank."""
    import peft
    import torch

    require_plain("shira", targets)
    most = min(i * o // (i + o) for i, o in zip(targets.inputs, targets.outputs, strict=True))
    if settings.r > most:
        message = f"must be at most {most}: the smallest adapted weight has no more entries (got {settings.r})"
        raise ConfigError([Problem("method.r", message)])
    return peft.ShiraConfig(r=settings.r, random_seed=torch.initial_seed(), target_modules=targets.linear)


class GraloraSettings(LinearSettings):
    quantized_base: ClassVar[bool] = False
    type: Literal["gralora"] = method_name("gralora")
    """The adapter method (`ghosttune show methods`)."""
    r: Count = setting(
        32,
        critical=True,
        why="the rank is shared out among the blocks of a weight",
        benefit="the whole update has gralora_k times this rank, with LoRA's parameters",
        cost="trained parameters grow in proportion to r, as LoRA's do",
    )
    """Rank of the update as LoRA counts it; must be a multiple of gralora_k."""
    hybrid_r: Annotated[int, Field(ge=0)] = setting(
        0,
        why="blocks cannot say what concerns the weight as a whole",
        benefit="a plain LoRA of this rank beside the blocks can",
        cost="its own trained parameters besides",
    )
    """Rank of a plain LoRA beside the blocks; 0 for none."""
    alpha: Count = setting(
        64,
        critical=True,
        why="the update is scaled by alpha / (r + hybrid_r)",
        benefit="the update keeps its size when the ranks change",
        cost="one more number that acts like a learning rate",
    )
    """Numerator of the scale of the blocks' update."""
    gralora_k: Count = setting(
        2,
        why="each weight is cut into k · k blocks with adapters of their own",
        benefit="inputs of one block with rare, large values do not disturb the others; 4 from r 64 on, says the paper",
        cost="more and smaller products in every step",
    )
    """How often inputs and outputs are cut; must divide those of every adapted layer."""
    gralora_dropout: Dropout = setting(
        0.0,
        why="blocks with adapters of their own see few inputs each",
        benefit="may help where few rows are seen often; unknown here",
        cost="the loss of training rows is that of the weakened blocks",
    )
    """Dropout on the adapters' inputs."""

    def conflicts(self, config: RunConfig) -> Iterator[tuple[str, str]]:
        if self.r % self.gralora_k:
            yield "method.r", f"must be a multiple of method.gralora_k, {self.gralora_k} (got {self.r})"


@METHODS.register("gralora", GraloraSettings)
def gralora(settings: GraloraSettings, targets: Targets) -> peft.GraloraConfig:
    """LoRA in the blocks of each weight (arXiv 2505.20355): a higher rank with the same parameters."""
    import peft

    sides = [*targets.inputs, *targets.outputs]
    _require_divisor("method.gralora_k", settings.gralora_k, sides, "inputs and outputs")
    return peft.GraloraConfig(
        r=settings.r,
        hybrid_r=settings.hybrid_r,
        alpha=settings.alpha,
        gralora_k=settings.gralora_k,
        gralora_dropout=settings.gralora_dropout,
        target_modules=targets.linear,
        fan_in_fan_out=targets.transposed,
    )


def _require_divisor(setting: str, value: int, sizes: list[int], what: str, when: str = "") -> None:
    """ConfigError for a value that does not divide every size of the adapted layers."""
    odd = sorted({size for size in sizes if size % value})
    if odd:
        message = (
            f"must {when}divide the {what} of every adapted layer (got {value}, and there are {listed(odd)}); "
            f"{math.gcd(*sizes)} is the largest that does"
        )
        raise ConfigError([Problem(setting, message)])
