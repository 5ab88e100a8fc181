"""The optimizers that a run can have, by Transformers' names: what each keeps, and where it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from ghosttune.config.schema import RunConfig
from ghosttune.errors import Problem
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
    "sgd": Kept(0),
}


def unmet_by_optimizer(config: RunConfig) -> Iterator[Problem]:
    """What `train.optim` needs and this machine has not got."""
    name, device = config.train.optim, device_of(config.model)
    kept = OPTIMIZERS[name]
    if kept.bitsandbytes and find_spec("bitsandbytes") is None:
        yield config.problem("train.optim", f"{name} needs bitsandbytes: pip install 'ghosttune[quant]'")
    if kept.paged and device.type == "cpu":
        yield config.problem("train.optim", f"{name} pages a GPU's memory, and the run is on the CPU: use adamw_8bit")
