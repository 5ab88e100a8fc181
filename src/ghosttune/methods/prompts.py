"""Learned prompts: vectors in front of every row, while the model itself stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ghosttune.config.facts import Targets
from ghosttune.config.schema import RunConfig
from ghosttune.config.setting import Count, MethodSettings, method_name, setting
from ghosttune.registry import METHODS

if TYPE_CHECKING:
    import peft


class PromptSettings(MethodSettings):
    """What every learned prompt has."""

    usual_rates: ClassVar[tuple[float, float]] = (1e-4, 0.5)
    num_virtual_tokens: Count = setting(
        20,
        unit="positions",
        critical=True,
        why="how much the learned prompt can say",
        benefit="more positions hold more, and the model itself stays untouched",
        cost="each takes one position of the model's context from every row",
    )
    """Length of the learned prompt."""


class PromptTuningSettings(PromptSettings):
    type: Literal["prompt_tuning"] = method_name("prompt_tuning")
    """The adapter method (`ghosttune show methods`)."""
    prompt_tuning_init: Literal["random", "sample_vocab"] = setting(
        "sample_vocab",
        why="vectors far from every word are new to the model",
        benefit="a prompt that begins as words learns faster",
        cost="which words is drawn by the seed: one more thing that differs between seeds",
    )
    """Begin with random vectors, or with those of random words."""


@METHODS.register("prompt_tuning", PromptTuningSettings)
def prompt_tuning(settings: PromptTuningSettings, targets: Targets) -> peft.PromptTuningConfig:
    """Learned input vectors in front of every row (arXiv 2104.08691): the smallest adapter; wants large models."""
    import peft

    return peft.PromptTuningConfig(
        num_virtual_tokens=settings.num_virtual_tokens,
        prompt_tuning_init=settings.prompt_tuning_init.upper(),  # pyright: ignore[reportArgumentType]
    )


class PTuningSettings(PromptSettings):
    type: Literal["p_tuning"] = method_name("p_tuning")
    """The adapter method (`ghosttune show methods`)."""
    encoder_hidden_size: Count = setting(
        128,
        critical=True,
        why="single vectors of a prompt have only their own gradients to learn from",
        benefit="a network in front lets them learn together, which is steadier",
        cost="trained parameters, none of them in the result",
    )
    """Width of the network that makes the prompt while it is trained."""


@METHODS.register("p_tuning", PTuningSettings)
def p_tuning(settings: PTuningSettings, targets: Targets) -> peft.PromptEncoderConfig:
    """Learned input vectors made by a small network while training (arXiv 2103.10385): steadier than prompt_tuning."""
    import peft

    return peft.PromptEncoderConfig(
        num_virtual_tokens=settings.num_virtual_tokens, encoder_hidden_size=settings.encoder_hidden_size
    )


class PrefixTuningSettings(PromptSettings):
    type: Literal["prefix_tuning"] = method_name("prefix_tuning")
    """The adapter method (`ghosttune show methods`)."""
    encoder_hidden_size: Annotated[int, Field(ge=1)] | None = setting(
        None,
        why="a plain table of keys and values is hard to train",
        benefit="a network around the prefix trains more steadily",
        cost="trained parameters, none in the result",
    )
    """Width of a network that makes the prefix while it is trained; null for a plain table."""

    def conflicts(self, config: RunConfig) -> Iterator[tuple[str, str]]:
        if config.train.activation_checkpointing:
            yield "train.activation_checkpointing", "loses the keys and values that prefix_tuning trains; switch it off"


@METHODS.register("prefix_tuning", PrefixTuningSettings)
def prefix_tuning(settings: PrefixTuningSettings, targets: Targets) -> peft.PrefixTuningConfig:
    """Learned keys and values in front of every row, in each layer (arXiv 2101.00190); for generation."""
    import peft

    return peft.PrefixTuningConfig(
        num_virtual_tokens=settings.num_virtual_tokens,
        prefix_projection=settings.encoder_hidden_size is not None,
        encoder_hidden_size=settings.encoder_hidden_size,  # pyright: ignore[reportArgumentType]
    )
