"""Low-rank updates beside frozen linear layers: LoRA with its variants, AdaLoRA, VeRA."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ghosttune.config.facts import STARTED_BY_ROWS, STARTED_BY_WEIGHTS, Targets
from ghosttune.config.schema import RunConfig
from ghosttune.config.setting import Count, method_name, setting
from ghosttune.errors import ConfigError, Problem
from ghosttune.methods.budget import ranks_for
from ghosttune.methods.targets import LinearSettings
from ghosttune.registry import METHODS

if TYPE_CHECKING:
    import peft

Dropout = Annotated[float, Field(ge=0, lt=1)]

FROM_ROWS = ("eva", *STARTED_BY_ROWS)
"""Values of `init_lora_weights` that training rows decide."""

STARTED = (*STARTED_BY_WEIGHTS, *STARTED_BY_ROWS)
"""Those that start with an update other than zero, which a frozen adapter takes back."""


class LoraSettings(LinearSettings):
    type: Literal["lora"] = method_name("lora")
    """The adapter method (`ghosttune show methods`)."""
    r: Count = setting(
        8,
        critical=True,
        why="how much the update can hold; few rows of one kind need little",
        benefit="more room where loss on training rows stops falling too early",
        cost="trained parameters grow in proportion",
    )
    """Rank of the update, r in the paper."""
    lora_alpha: Annotated[float, Field(gt=0)] = setting(
        16.0,
        critical=True,
        why="the update is scaled by lora_alpha / r",
        benefit="the size of the update can stay the same when r changes",
        cost="acts like a learning rate: change one of the two, not both",
    )
    """Numerator of the update's scale."""
    parameter_budget: Count | None = setting(
        None,
        unit="trained parameters",
        why="arms of a comparison should differ in where they train, not in how much",
        benefit="attention against the MLP, or few layers against many, at equal size",
        cost="ranks are whole numbers: a small remainder of the budget is left, and printed",
    )
    """Ranks so that all layers together come nearest to this many; `r` then only sets the scale lora_alpha / r."""
    lora_dropout: Dropout = setting(
        0.0,
        why="an adapter can lean on few inputs of a layer",
        benefit="may help where few rows are seen often; unknown here, no study varies it",
        cost="noise in every step; the training loss is of the weakened adapter, and stands higher",
    )
    """Dropout on the adapter's input."""
    use_rslora: bool = setting(
        False,
        why="divided by r, the update shrinks as r grows",
        benefit="the scale stays right when r grows (rsLoRA, arXiv 2312.03732)",
        cost="at r above 1 the same lora_alpha makes a larger update: retune the learning rate",
    )
    """Scale the update by lora_alpha / √r instead."""
    use_dora: bool = setting(
        False,
        why="full training changes directions more than magnitudes",
        benefit="often a little better at small r (DoRA, arXiv 2402.09353)",
        cost="about half more time per step",
    )
    """Train each output's magnitude apart from its direction."""
    init_lora_weights: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva", "corda", "lora_ga"] = (
        setting(
            "default",
            why="an update that begins at random first has to find its directions",
            benefit="pissa (arXiv 2404.02948) and olora (2406.01775) take them from the base weight; eva (2410.07170), "
            "corda (2406.05223) and lora_ga (2407.05000) from what training rows do to it",
            cost="one decomposition per layer, for the last three init_rows forward passes too; but for eva, the saved "
            "adapter has rank 2 r",
        )
    )
    """How A and B begin; what they add is zero in effect for each of them. `default`: A uniform, B zero."""
    init_rows: Count = setting(
        256,
        unit="rows",
        why="eva, corda and lora_ga look at training rows first, those that training takes first",
        benefit="more rows say more surely which directions matter",
        cost="a forward pass each, for lora_ga a backward pass too, once per part of the layers that fits into 2 GB",
    )
    """Training rows that decide how A and B begin; all of them where there are fewer."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] = setting(
        1.0,
        why="A and B have gradients of different sizes in wide models",
        benefit="B may take the larger steps it wants there (LoRA+, arXiv 2402.12354); 16 is the paper's",
        cost="one more number that acts on the learning rate",
    )
    """Learning rate of B over that of A."""

    trainable_token_indices: list[Annotated[int, Field(ge=0)]] | None = setting(
        None,
        unit="token ids",
        why="a stop token the base never learned cannot be produced otherwise",
        benefit="new marks of a template become words of the model, without training the whole table",
        cost="one row of the embedding each, in the adapter's folder too",
    )
    """Tokens whose rows in the embedding (and in an output layer tied to it) are trained besides."""

    def conflicts(self, config: RunConfig) -> Iterator[tuple[str, str]]:
        bits, start = config.model.quantization, self.init_lora_weights
        if bits != "none" and start in (*STARTED, "orthogonal"):
            message = f"{start} needs the base weights as they are, and they are quantized; use default or eva"
            yield "method.init_lora_weights", message
        if bits == "int8" and self.use_dora and config.model.device == "cpu":
            message = (
                "measures the base weights, which PEFT cannot in int8 on the CPU; use nf4, a GPU, or lora without it"
            )
            yield "method.use_dora", message
        if self.parameter_budget is not None and start in STARTED:
            message = f"{start} is saved with one rank for all layers; use default or eva with parameter_budget"
            yield "method.init_lora_weights", message
        if self.use_dora and start in STARTED:
            message = f"{start} starts inside the weight that use_dora measures; keep one"
            yield "method.init_lora_weights", message


@METHODS.register("lora", LoraSettings)
def lora(settings: LoraSettings, targets: Targets) -> peft.LoraConfig:
    """Low-rank updates W + (lora_alpha / r) B A beside frozen linear layers; the usual choice."""
    import peft

    ranks = _ranks(settings, targets)
    _require_directions(settings, targets, ranks)
    return peft.LoraConfig(
        r=settings.r,
        rank_pattern=ranks,
        alpha_pattern={name: _alpha(settings, rank) for name, rank in ranks.items()},
        lora_alpha=settings.lora_alpha,  # pyright: ignore[reportArgumentType]  # PEFT only divides it by r
        lora_dropout=settings.lora_dropout,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        init_lora_weights=True if settings.init_lora_weights in ("default", *FROM_ROWS) else settings.init_lora_weights,
        target_modules=targets.linear,
        trainable_token_indices=settings.trainable_token_indices,
        fan_in_fan_out=targets.transposed,
    )


def _require_directions(settings: LoraSettings, targets: Targets, ranks: dict[str, int]) -> None:
    """ConfigError where a layer has fewer directions than its start takes."""
    start = settings.init_lora_weights
    if start == "eva":
        most, whole, rank = min(targets.inputs), "layer has more inputs", max(ranks.values(), default=settings.r)
    elif start in STARTED:
        most, whole, rank = min([*targets.inputs, *targets.outputs]), "weight has more directions", settings.r
    else:
        return
    if start == "lora_ga":
        most, whole = most // 2, "gradient has more pairs of directions"
    if rank > most and settings.parameter_budget is None:
        message = f"must be at most {most} for {start}: no adapted {whole} than that"
        raise ConfigError([Problem("method.r", message)])
    if rank > most:
        message = f"gives a layer rank {rank}, and {start} at most {most}: no adapted {whole} than that; lower it"
        raise ConfigError([Problem("method.parameter_budget", message)])


def _ranks(settings: LoraSettings, targets: Targets) -> dict[str, int]:
    """Rank by layer under a budget; without one, nothing. DoRA's magnitudes are part of it."""
    if settings.parameter_budget is None:
        return {}
    shapes = dict(zip(targets.linear, zip(targets.inputs, targets.outputs, strict=True), strict=True))
    fixed = sum(targets.outputs) if settings.use_dora else 0
    return ranks_for({name: sum(shape) for name, shape in shapes.items()}, settings.parameter_budget, fixed)


def _alpha(settings: LoraSettings, rank: int) -> float:
    """That gives an update of this rank the scale that lora_alpha gives one of rank r."""
    share = rank / settings.r
    return settings.lora_alpha * (math.sqrt(share) if settings.use_rslora else share)


class AdaloraSettings(LinearSettings):
    type: Literal["adalora"] = method_name("adalora")
    """The adapter method (`ghosttune show methods`)."""
    init_r: Count = setting(
        12,
        critical=True,
        why="room to choose from before ranks go",
        benefit="layers that need more than the mean can have it",
        cost="parameters of the first updates, which the memory has to hold",
    )
    """Rank of every update at first."""
    target_r: Count = setting(
        8,
        critical=True,
        why="what is left in the end, spread over the layers",
        benefit="rank goes where it lowers the loss, instead of everywhere alike",
        cost="a larger adapter in the end",
    )
    """Mean rank of the updates at the end."""
    lora_alpha: Annotated[float, Field(gt=0)] = setting(
        16.0,
        critical=True,
        why="the update is scaled by it",
        benefit="one number makes all layers' updates larger or smaller",
        cost="to raise it and the learning rate together is to do the same twice",
    )
    """Numerator of the update's scale."""
    lora_dropout: Dropout = setting(
        0.0,
        why="what is dropped cannot be relied upon",
        benefit="may help where rows are few; not measured here",
        cost="importance of ranks is estimated from noisier gradients",
    )
    """Dropout on the adapter's input."""
    tinit: Annotated[int, Field(ge=0)] = setting(
        0,
        unit="optimizer updates",
        why="importance cannot be judged before anything was learned",
        benefit="ranks are taken where they are not needed, not where learning has not begun",
        cost="all ranks are trained for so long",
    )
    """Updates before ranks begin to be taken away."""
    tfinal: Annotated[int, Field(ge=0)] = setting(
        0,
        unit="optimizer updates",
        why="what remains has to settle once ranks no longer change",
        benefit="the last updates train the adapter that is saved",
        cost="less of the run is left to choose in",
    )
    """Last updates, in which the ranks stay as they are."""
    deltaT: Count = setting(
        1,
        unit="optimizer updates",
        why="importance is a mean over updates, and needs some of them",
        benefit="longer intervals judge by more gradients",
        cost="ranks go in larger steps at a time",
    )
    """Interval at which ranks are taken away."""
    orth_reg_weight: Annotated[float, Field(ge=0)] = setting(
        0.5,
        why="ranks can be judged one by one only where they do not overlap",
        benefit="taking one away leaves the others as they were",
        cost="a pull that has nothing to do with your rows",
    )
    """Weight of the penalty that keeps A and B orthogonal; in the gradient, not in the recorded loss."""

    def conflicts(self, config: RunConfig) -> Iterator[tuple[str, str]]:
        steps = config.train.max_steps
        if self.target_r > self.init_r:
            yield (
                "method.target_r",
                f"must be at most method.init_r, {self.init_r} (got {self.target_r}): ranks are only taken away",
            )
        if steps is not None and self.tinit + self.tfinal >= steps:
            message = f"leaves no update for taking ranks away: tinit + tfinal is {self.tinit + self.tfinal} of {steps}"
            yield "method.tfinal" if self.tfinal else "method.tinit", message
        if config.phases.strategy != "none":
            yield (
                "method.type",
                "adalora moves ranks between all layers at every update, so that phases cannot hold some; use lora",
            )


@METHODS.register("adalora", AdaloraSettings)
def adalora(settings: AdaloraSettings, targets: Targets) -> peft.AdaLoraConfig:
    """Low-rank updates whose ranks move to where they matter (arXiv 2303.10512); for a fixed budget of parameters."""
    import peft

    return peft.AdaLoraConfig(
        init_r=settings.init_r,
        target_r=settings.target_r,
        lora_alpha=settings.lora_alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.lora_dropout,
        tinit=settings.tinit,
        tfinal=settings.tfinal,
        deltaT=settings.deltaT,
        orth_reg_weight=settings.orth_reg_weight,
        total_step=settings.tinit + settings.tfinal + 1,  # the least PEFT accepts; training sets the run's own
        target_modules=targets.linear,
        fan_in_fan_out=targets.transposed,
    )


class VeraSettings(LinearSettings):
    usual_rates: ClassVar[tuple[float, float]] = (1e-4, 5e-2)
    type: Literal["vera"] = method_name("vera")
    """The adapter method (`ghosttune show methods`)."""
    r: Count = setting(
        256,
        critical=True,
        why="all layers share two random matrices of this rank, and only scale them",
        benefit="a high rank costs hardly any trained parameters",
        cost="compute grows in proportion, trained parameters hardly",
    )
    """Rank of the random matrices that all layers share."""
    vera_dropout: Dropout = setting(
        0.0,
        why="the shared matrices see every input of the layer",
        benefit="may keep the scales from fitting single rows; unknown here",
        cost="steps see only part of the input, and learn slower",
    )
    """Dropout on what the shared matrices see."""
    d_initial: Annotated[float, Field(gt=0)] = setting(
        0.1,
        why="scales of zero would leave nothing for a gradient to reach",
        benefit="the other scale begins at zero, so that training begins with the base's own answers",
        cost="too small, and the first updates move little",
    )
    """First value of the scales inside the update."""


@METHODS.register("vera", VeraSettings)
def vera(settings: VeraSettings, targets: Targets) -> peft.VeraConfig:
    """Two trained vectors per layer around random matrices all layers share (arXiv 2310.11454); tiny adapters."""
    import peft

    return peft.VeraConfig(
        r=settings.r,
        vera_dropout=settings.vera_dropout,
        d_initial=settings.d_initial,
        target_modules=targets.linear,
        fan_in_fan_out=targets.transposed,
    )
