"""Parameters of the model itself: scales of its features, its norms, its biases, or all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from ghosttune.config.facts import Targets
from ghosttune.config.schema import RunConfig
from ghosttune.config.setting import MethodSettings, Names, method_name, setting
from ghosttune.errors import ConfigError, Problem
from ghosttune.registry import METHODS

if TYPE_CHECKING:
    import peft


class Ia3Settings(MethodSettings):
    usual_rates: ClassVar[tuple[float, float]] = (1e-4, 3e-2)
    type: Literal["ia3"] = method_name("ia3")
    """The adapter method (`ghosttune show methods`)."""
    target_modules: Literal["keys_values_inner", "attention_qv", "attention", "mlp", "all_linear"] | Names = setting(
        "keys_values_inner",
        critical=True,
        why="keys_values_inner is the paper's choice",
        benefit="the smallest adapter here that still reaches every layer",
        cost="one number per feature of each layer: next to nothing",
    )
    """Which linear layers: a group, or a list of names and patterns; each must match. Layers that lead back from the
    MLP's own width are scaled at their input, all others at their output."""


@METHODS.register("ia3", Ia3Settings)
def ia3(settings: Ia3Settings, targets: Targets) -> peft.IA3Config:
    """One trained scale per feature of keys, values and the MLP's inside (arXiv 2205.05638): tiny, merges away."""
    import peft

    return peft.IA3Config(
        target_modules=targets.linear, feedforward_modules=targets.inner, fan_in_fan_out=targets.transposed
    )


class OwnParameters(MethodSettings):
    """What methods on the model's own parameters have."""

    quantized_base: ClassVar[bool] = False
    usual_rates: ClassVar[tuple[float, float]] = (1e-5, 1e-2)

    def conflicts(self, config: RunConfig) -> Iterator[tuple[str, str]]:
        if config.model.dtype != "float32":
            yield "model.dtype", f"must be float32 for {self.type}: {config.model.dtype} weights swallow small updates"


class LayernormSettings(OwnParameters):
    type: Literal["layernorm"] = method_name("layernorm")
    """The adapter method (`ghosttune show methods`)."""


@METHODS.register("layernorm", LayernormSettings)
def layernorm(settings: LayernormSettings, targets: Targets) -> peft.LNTuningConfig:
    """The model's own normalisation layers (arXiv 2312.11420): few parameters, a strong control."""
    import peft

    if not targets.norms:
        message = "layernorm has nothing to train: this model's normalisation layers have no weights"
        raise ConfigError([Problem("method.type", message)])
    return peft.LNTuningConfig(target_modules=targets.norms)


class BitfitSettings(OwnParameters):
    type: Literal["bitfit"] = method_name("bitfit")
    """The adapter method (`ghosttune show methods`)."""


@METHODS.register("bitfit", BitfitSettings)
def bitfit(settings: BitfitSettings, targets: Targets) -> list[str]:
    """The model's own biases (arXiv 2106.10199), for models that have some; a control."""
    biases = [name for name in targets.parameters if name.rpartition(".")[2] == "bias"]
    if not biases:
        message = "bitfit has nothing to train: this model has no biases; layernorm trains as few parameters"
        raise ConfigError([Problem("method.type", message)])
    return biases


class FullSettings(OwnParameters):
    usual_rates: ClassVar[tuple[float, float]] = (1e-7, 3e-4)
    type: Literal["full"] = method_name("full")
    """The adapter method (`ghosttune show methods`)."""


@METHODS.register("full", FullSettings)
def full(settings: FullSettings, targets: Targets) -> list[str]:
    """Every parameter of the model that writes: the most memory (16 bytes each), a tenth of LoRA's learning rate."""
    return targets.parameters
