"""The optimizers that a run can have, by Transformers' names: what each keeps, where it runs, and what it can train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ghosttune.config.schema import RunConfig
from ghosttune.errors import Problem, listed
from ghosttune.models.loading import device_of


@dataclass(frozen=True)
class Kept:
    """What an optimizer keeps, and what it needs."""

    bytes: float
    """Per trained number, between updates; quantized states with their scales, one per 256 numbers."""
    bitsandbytes: bool = False
    paged: bool = False
    """States can be moved to the host while a GPU's memory is short."""


OPTIMIZERS = {
    "adamw_torch_fused": Kept(8),
    "adamw_torch": Kept(8),
    "adamw_8bit": Kept(2.04, bitsandbytes=True),
    "paged_adamw_8bit": Kept(2.04, bitsandbytes=True, paged=True),
    "paged_adamw_32bit": Kept(8, bitsandbytes=True, paged=True),
    "lion_32bit": Kept(4, bitsandbytes=True),
    "lion_8bit": Kept(1.02, bitsandbytes=True),
    "adafactor": Kept(0),  # a row and a column of each matrix
    "muon": Kept(4),
    "schedule_free_adamw": Kept(12),  # z, the second moment, and while rows are answered the weights that train
    "sgd": Kept(0),
}

MUON, SCHEDULE_FREE = "muon", "schedule_free_adamw"


def unmet_by_optimizer(config: RunConfig) -> Iterator[Problem]:
    """What `train.optim` needs and this machine has not got."""
    name, device = config.train.optim, device_of(config.model)
    kept = OPTIMIZERS[name]
    if kept.bitsandbytes and find_spec("bitsandbytes") is None:
        yield config.problem("train.optim", f"{name} needs bitsandbytes: pip install 'ghosttune[quant]'")
    if name == SCHEDULE_FREE and find_spec("schedulefree") is None:
        yield config.problem("train.optim", f"{name} needs schedulefree: pip install 'ghosttune[schedulefree]'")
    if kept.paged and device.type == "cpu":
        yield config.problem("train.optim", f"{name} pages a GPU's memory, and the run is on the CPU: use adamw_8bit")


def unfit_for_optimizer(config: RunConfig, model: Any) -> Iterator[Problem]:
    """What of the model `train.optim` cannot train."""
    if config.train.optim != MUON:
        return
    others = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.ndim != 2]
    if others:
        message = (
            f"muon moves matrices, and {len(others)} trained tensors are none: {listed(others, 3)}; use adamw_torch"
        )
        yield config.problem("train.optim", message)


def made_here(config: RunConfig) -> tuple[type, dict[str, Any]] | None:
    """Class and arguments of an optimizer that the Trainer does not make as it is used here; None for all others."""
    train = config.train
    if train.optim == MUON:
        from torch.optim import Muon

        return Muon, {"lr": train.learning_rate, "adjust_lr_fn": "match_rms_adamw"}
    if train.optim == SCHEDULE_FREE:
        from ghosttune.training.schedule_free import ScheduleFreeAdamW

        moments = {"betas": (train.adam_beta1, train.adam_beta2), "eps": train.adam_epsilon}
        return ScheduleFreeAdamW, {"lr": train.learning_rate, **moments}
    return None
