"""Updates that are products of small matrices, in other ways than LoRA's; and rotations of the input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ghosttune.config.facts import Targets
from ghosttune.config.setting import Count, method_name, setting
from ghosttune.errors import ConfigError, Problem, listed
from ghosttune.methods.targets import LinearSettings
from ghosttune.registry import METHODS

if TYPE_CHECKING:
    import peft

Dropout = Annotated[float, Field(ge=0, lt=1)]


def require_plain(method: str, targets: Targets) -> None:
    """ConfigError for layers that PEFT adapts with other methods only."""
    if targets.transposed:
        message = f"{method} does not work on layers that keep their weights transposed, as GPT-2's do; use lora"
        raise ConfigError([Problem("method.type", message)])


class LohaSettings(LinearSettings):
    quantized_base: ClassVar[bool] = False
    type: Literal["loha"] = method_name("loha")
    """The adapter method (`ghosttune show methods`)."""
    r: Count = setting(
        8,
        critical=True,
        why="two products of this rank are multiplied entry by entry",
        benefit="a high rank from few numbers",
        cost="twice LoRA's parameters, in proportion",
    )
    """Rank of each factor; the update has up to its square."""
    alpha: Count = setting(
        8,
        critical=True,
        why="the product is scaled by alpha / r",
        benefit="its size can be kept when r is changed",
        cost="another way to set the learning rate: leave one of them alone",
    )
    """Numerator of the scale of the product."""
    module_dropout: Dropout = setting(
        0.0,
        why="layers can come to depend on each other's updates",
        benefit="each layer's update has to be of use without the others'",
        cost="updates that are left out learn nothing in that step",
    )
    """Share of steps in which a layer's update is left out."""


@METHODS.register("loha", LohaSettings)
def loha(settings: LohaSettings, targets: Targets) -> peft.LoHaConfig:
    """Element-wise product of two low-rank matrices (arXiv 2108.06098): a higher rank for the same parameters."""
    import peft

    require_plain("loha", targets)
    return peft.LoHaConfig(
        r=settings.r, alpha=settings.alpha, module_dropout=settings.module_dropout, target_modules=targets.linear
    )


class LokrSettings(LinearSettings):
    quantized_base: ClassVar[bool] = False
    type: Literal["lokr"] = method_name("lokr")
    """The adapter method (`ghosttune show methods`)."""
    r: Count = setting(
        8,
        critical=True,
        why="the larger of the two factors is a product of this rank",
        benefit="at high r the factor is whole, and the update is an exact Kronecker product",
        cost="parameters, where the larger factor is low-rank",
    )
    """Rank of the larger factor."""
    alpha: Count = setting(
        8,
        critical=True,
        why="scales the Kronecker product by alpha / r",
        benefit="strength and rank can be chosen apart",
        cost="too high a value looks like a learning rate that is too high",
    )
    """Numerator of the scale of the product."""
    module_dropout: Dropout = setting(
        0.0,
        why="an update that is always there can hide that another layer's is of no use",
        benefit="the layers share the work more evenly",
        cost="fewer of them train in each step",
    )
    """Share of steps in which a layer's update is left out."""
    decompose_both: bool = setting(
        False,
        why="the smaller factor is whole unless this says otherwise",
        benefit="the smallest adapter this method can make",
        cost="less freedom in both factors",
    )
    """Make the smaller factor low-rank too."""
    decompose_factor: Annotated[int, Field(ge=-1)] = setting(
        -1,
        why="a weight can be cut into two factors at many places",
        benefit="even parts have the fewest parameters",
        cost="uneven parts: one factor grows faster than the other shrinks",
    )
    """Size of the smaller factor; -1 for the most even parts."""


@METHODS.register("lokr", LokrSettings)
def lokr(settings: LokrSettings, targets: Targets) -> peft.LoKrConfig:
    """Kronecker product of two small matrices (arXiv 2108.06098, 2212.10650): the fewest parameters at full rank."""
    import peft

    require_plain("lokr", targets)
    return peft.LoKrConfig(
        r=settings.r,
        alpha=settings.alpha,
        module_dropout=settings.module_dropout,
        decompose_both=settings.decompose_both,
        decompose_factor=settings.decompose_factor,
        target_modules=targets.linear,
    )


class OftSettings(LinearSettings):
    type: Literal["oft"] = method_name("oft")
    """The adapter method (`ghosttune show methods`)."""
    oft_block_size: Annotated[int, Field(ge=2)] = setting(
        32,
        critical=True,
        why="inputs are rotated block by block; lengths and angles inside stay as they were",
        benefit="larger blocks can mix more inputs",
        cost="more trained parameters: each input has one for every other in its block",
    )
    """Inputs that are rotated together; must divide every adapted layer's inputs."""
    module_dropout: Dropout = setting(
        0.0,
        why="rotations of neighbouring blocks can come to compensate each other",
        benefit="every block's rotation stands on its own",
        cost="those left out turn nothing in that step",
    )
    """Share of rotations that are left out in a step."""


@METHODS.register("oft", OftSettings)
def oft(settings: OftSettings, targets: Targets) -> peft.OFTConfig:
    """Rotations of each layer's inputs, in blocks (arXiv 2306.07280, 2506.19847): angles between neurons stay."""
    import peft

    require_plain("oft", targets)
    odd = sorted({inputs for inputs in targets.inputs if inputs % settings.oft_block_size})
    if odd:
        largest = math.gcd(*targets.inputs)
        message = (
            f"must divide the inputs of every adapted layer (got {settings.oft_block_size}, and there are layers with "
            f"{listed(odd)} inputs); {largest} is the largest that does"
        )
        raise ConfigError([Problem("method.oft_block_size", message)])
    return peft.OFTConfig(
        r=0,
        oft_block_size=settings.oft_block_size,
        module_dropout=settings.module_dropout,
        target_modules=targets.linear,
    )
