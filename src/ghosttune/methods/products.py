"""Updates that are products of small matrices, in other ways than LoRA's; and rotations of the input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ghosttune.config.facts import Targets
from ghosttune.config.schema import Count, method_name, setting
from ghosttune.errors import ConfigError, Problem, listed
from ghosttune.methods.targets import LinearSettings
from ghosttune.registry import METHODS

if TYPE_CHECKING:
    import peft

Dropout = Annotated[float, Field(ge=0, lt=1)]


def _require_plain(method: str, targets: Targets) -> None:
    """ConfigError for layers that PEFT adapts with other methods only."""
    if targets.transposed:
        message = f"{method} does not work on layers that keep their weights transposed, as GPT-2's do; use lora"
        raise ConfigError([Problem("method.type", message)])


class LohaSettings(LinearSettings):
    quantized_base: ClassVar[bool] = False
    type: Literal["loha"] = method_name("loha")
    """The adapter method (`ghosttune show methods`)."""
    r: Count = setting(
        8, critical=True, why="how much the update can hold", cost="twice LoRA's parameters, in proportion"
    )
    """Rank of each factor; the update has up to its square."""
    alpha: Count = setting(8, critical=True, why="the update is scaled by alpha / r", cost="acts like a learning rate")
    """Numerator of the update's scale."""
    module_dropout: Dropout = setting(0.0)
    """Share of steps in which a layer's update is left out."""


@METHODS.register("loha", LohaSettings)
def loha(settings: LohaSettings, targets: Targets) -> peft.LoHaConfig:
    """Element-wise product of two low-rank matrices (arXiv 2108.06098): a higher rank for the same parameters."""
    import peft

    _require_plain("loha", targets)
    return peft.LoHaConfig(
        r=settings.r, alpha=settings.alpha, module_dropout=settings.module_dropout, target_modules=targets.linear
    )


class LokrSettings(LinearSettings):
    quantized_base: ClassVar[bool] = False
    type: Literal["lokr"] = method_name("lokr")
    """The adapter method (`ghosttune show methods`)."""
    r: Count = setting(
        8, critical=True, why="how much the update can hold", cost="parameters, where the larger factor is low-rank"
    )
    """Rank of the larger factor."""
    alpha: Count = setting(8, critical=True, why="the update is scaled by alpha / r", cost="acts like a learning rate")
    """Numerator of the update's scale."""
    module_dropout: Dropout = setting(0.0)
    """Share of steps in which a layer's update is left out."""
    decompose_both: bool = setting(False)
    """Make the smaller factor low-rank too."""
    decompose_factor: Annotated[int, Field(ge=-1)] = setting(-1)
    """Size of the smaller factor; -1 for the most even parts."""


@METHODS.register("lokr", LokrSettings)
def lokr(settings: LokrSettings, targets: Targets) -> peft.LoKrConfig:
    """Kronecker product of two small matrices (arXiv 2108.06098, 2212.10650): the fewest parameters at full rank."""
    import peft

    _require_plain("lokr", targets)
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
        32, critical=True, why="larger blocks can mix more inputs", cost="trained parameters grow in proportion"
    )
    """Inputs that are rotated together; must divide every adapted layer's inputs."""
    module_dropout: Dropout = setting(0.0)
    """Share of rotations that are left out in a step."""


@METHODS.register("oft", OftSettings)
def oft(settings: OftSettings, targets: Targets) -> peft.OFTConfig:
    """Rotations of each layer's inputs, in blocks (arXiv 2306.07280, 2506.19847): angles between neurons stay."""
    import peft

    _require_plain("oft", targets)
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
