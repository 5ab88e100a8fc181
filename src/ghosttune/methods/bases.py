"""Updates in bases that are not trained: random ones, circulant ones, and the model's own."""

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


class RandloraSettings(LinearSettings):
    quantized_base: ClassVar[bool] = False
    type: Literal["randlora"] = method_name("randlora")
    """The adapter method (`ghosttune show methods`)."""
    r: Count = setting(
        32,
        critical=True,
        why="random matrices of this rank are scaled and added up until the update can have full rank",
        benefit="smaller values need more of them, and train more",
        cost="the other way round than LoRA: a small r has the most parameters, and the most time per step",
    )
    """Rank of each random matrix."""
    randlora_alpha: Count = setting(
        640,
        critical=True,
        why="the sum of scaled random matrices is multiplied by randlora_alpha / r",
        benefit="20 times r is the paper's",
        cost="large: where training is not steady, lower this or the learning rate",
    )
    """Numerator of the scale of the sum."""
    randlora_dropout: Dropout = setting(
        0.0,
        why="every random matrix sees all inputs",
        benefit="may keep their scales from single rows; unknown here",
        cost="part of the inputs is not seen in each step",
    )
    """Dropout on what the random matrices see."""


@METHODS.register("randlora", RandloraSettings)
def randlora(settings: RandloraSettings, targets: Targets) -> peft.RandLoraConfig:
    """Scaled sums of random matrices that all layers share (arXiv 2502.00987): full rank with few parameters."""
    import peft

    return peft.RandLoraConfig(
        r=settings.r,
        randlora_alpha=settings.randlora_alpha,
        randlora_dropout=settings.randlora_dropout,
        target_modules=targets.linear,
        fan_in_fan_out=targets.transposed,
    )


class C3aSettings(LinearSettings):
    quantized_base: ClassVar[bool] = False
    usual_rates: ClassVar[tuple[float, float]] = (1e-4, 0.3)
    type: Literal["c3a"] = method_name("c3a")
    """The adapter method (`ghosttune show methods`)."""
    block_size: Count | None = setting(
        None,
        critical=True,
        why="each block of the update is a circulant matrix: one row of numbers, turned further in every line",
        benefit="smaller blocks are more of them, which can say more",
        cost="trained parameters are inputs · outputs / block_size",
    )
    """Size of the blocks; must divide inputs and outputs of every adapted layer. Unset: the largest that does."""


@METHODS.register("c3a", C3aSettings)
def c3a(settings: C3aSettings, targets: Targets) -> peft.C3AConfig:
    """Circular convolutions in blocks (arXiv 2407.19342): full rank, and few parameters where blocks are large."""
    import peft

    require_plain("c3a", targets)
    sides = [*targets.inputs, *targets.outputs]
    largest = math.gcd(*sides)
    size = settings.block_size or largest
    if odd := sorted({side for side in sides if side % size}):
        message = (
            f"must divide inputs and outputs of every adapted layer (got {size}, and there are {listed(odd)}); "
            f"{largest} is the largest that does"
        )
        raise ConfigError([Problem("method.block_size", message)])
    # zeros, so that training begins with the base's own answers; PEFT would begin at random
    return peft.C3AConfig(block_size=size, init_weights=True, target_modules=targets.linear)


class FrodSettings(LinearSettings):
    quantized_base: ClassVar[bool] = False
    type: Literal["frod"] = method_name("frod")
    """The adapter method (`ghosttune show methods`)."""
    sparse_rate: Annotated[float, Field(gt=0, le=1)] = setting(
        0.01,
        critical=True,
        why="layers of one kind share the directions of their weights, and turn them by a sparse matrix",
        benefit="more entries can turn more directions into each other",
        cost="trained parameters, and the time of a step, grow in proportion to this share",
    )
    """Share of the entries of each turn that train."""
    regularization_alpha: Annotated[float, Field(gt=0)] = setting(
        1e-3,
        why="weights of layers of one kind can be all but the same, and then share no one basis",
        benefit="a little more makes the decomposition steady",
        cost="too much, and the basis is less the model's own",
    )
    """Added to what is inverted while the shared basis is made."""
    frod_dropout: Dropout = setting(
        0.0,
        why="turns that many layers share the basis of act on every input",
        benefit="may keep them from single rows; unknown here",
        cost="a part of each input is missing while it trains",
    )
    """Dropout on what is turned."""


@METHODS.register("frod", FrodSettings)
def frod(settings: FrodSettings, targets: Targets) -> peft.FrodConfig:
    """Scales and sparse turns in a basis that layers of one kind share (AAAI 2026): full rank, few parameters."""
    import peft

    require_plain("frod", targets)
    return peft.FrodConfig(
        sparse_rate=settings.sparse_rate,
        regularization_alpha=settings.regularization_alpha,
        frod_dropout=settings.frod_dropout,
        progressbar=False,
        target_modules=targets.linear,
    )
