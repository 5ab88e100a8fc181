"""Rotations and reflections of each layer's inputs, in other ways than OFT's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ghosttune.config.facts import Targets
from ghosttune.config.setting import Count, method_name, setting
from ghosttune.errors import ConfigError, Problem, listed
from ghosttune.methods.products import Dropout, require_plain
from ghosttune.methods.targets import LinearSettings
from ghosttune.registry import METHODS

if TYPE_CHECKING:
    import peft


class BoftSettings(LinearSettings):
    quantized_base: ClassVar[bool] = False
    type: Literal["boft"] = method_name("boft")
    """The adapter method (`ghosttune show methods`)."""
    boft_block_size: Annotated[int, Field(ge=2, multiple_of=2)] = setting(
        4,
        critical=True,
        why="each factor rotates inputs block by block",
        benefit="larger blocks turn more inputs together in one factor",
        cost="trained parameters grow in proportion to the block",
    )
    """Inputs that one factor rotates together; must divide every adapted layer's inputs."""
    boft_n_butterfly_factor: Count = setting(
        1,
        why="blocks of one factor never mix with each other",
        benefit="a second factor with its inputs shuffled mixes all blocks with few parameters",
        cost="a product of matrices per factor and layer, in each step",
    )
    """How many rotations follow each other, each on inputs in another order."""
    boft_dropout: Dropout = setting(
        0.0,
        why="a chain of rotations can come to depend on each of its blocks",
        benefit="single blocks left as they were do less harm",
        cost="noise in every step, and a training loss that stands higher",
    )
    """Share of blocks that turn nothing in a step."""


@METHODS.register("boft", BoftSettings)
def boft(settings: BoftSettings, targets: Targets) -> peft.BOFTConfig:
    """Chains of sparse rotations of each layer's inputs (arXiv 2311.06243), and one scale per output."""
    import peft

    require_plain("boft", targets)
    whole = settings.boft_block_size * 2 ** (settings.boft_n_butterfly_factor - 1)
    odd = sorted({inputs for inputs in targets.inputs if inputs % whole})
    if odd:
        message = (
            f"times 2 for each butterfly factor after the first is {whole}, which must divide the inputs of every "
            f"adapted layer, and there are layers with {listed(odd)}; their largest divisor is "
            f"{math.gcd(*targets.inputs)}"
        )
        raise ConfigError([Problem("method.boft_block_size", message)])
    return peft.BOFTConfig(
        boft_block_size=settings.boft_block_size,
        boft_n_butterfly_factor=settings.boft_n_butterfly_factor,
        boft_dropout=settings.boft_dropout,
        target_modules=targets.linear,
    )


class HraSettings(LinearSettings):
    quantized_base: ClassVar[bool] = False
    type: Literal["hra"] = method_name("hra")
    """The adapter method (`ghosttune show methods`)."""
    r: Annotated[int, Field(ge=2, multiple_of=2)] = setting(
        8,
        critical=True,
        why="each reflection turns one direction of the inputs around",
        benefit="more reflections reach more directions",
        cost="they follow one after another: time grows in proportion",
    )
    """How many reflections; even, so that they begin in pairs that undo each other."""
    apply_GS: bool = setting(
        False,
        why="reflections that overlap work against each other",
        benefit="made orthogonal, each has a direction of its own",
        cost="an orthogonalisation per layer and step",
    )
    """Make the directions of the reflections orthogonal (Gram-Schmidt)."""


@METHODS.register("hra", HraSettings)
def hra(settings: HraSettings, targets: Targets) -> peft.HRAConfig:
    """A chain of reflections of each layer's inputs (arXiv 2405.17484): rotations with LoRA's parameters."""
    import peft

    require_plain("hra", targets)
    return peft.HRAConfig(r=settings.r, apply_GS=settings.apply_GS, target_modules=targets.linear)
