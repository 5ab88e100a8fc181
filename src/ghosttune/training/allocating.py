"""AdaLoRA's part in training: ranks go where they matter, and the factors are kept orthogonal (arXiv 2303.10512)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ghosttune.training.instruments import Instrument, MicroBatch

AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What PEFT's allocator remembers of each parameter's importance."""


def is_allocated(model: Any) -> bool:
    """Whether the model's ranks are moved while it trains."""
    return hasattr(getattr(model, "base_model", None), "rankallocator")


class RankAllocation(Instrument):
    """Lets PEFT take ranks away after each update, and adds the penalty's gradient to that of the rows.

    It uses the places of an instrument in a step and in a checkpoint, and unlike all others it changes the weights. It
    stands before all others: the penalty is no row's, and so none may see it in the backward pass of the rows.

    Args:
        model: a PEFT model under AdaLoRA.
        steps: of the run.
    """

    def __init__(self, model: nn.Module, steps: int):
        self.model = model
        self.tuner: Any = model.base_model
        self.tuner.rankallocator.set_total_step(steps)

    @property
    def configuration(self) -> Any:
        return self.tuner.peft_config[self.tuner.trainable_adapter_name]

    def before_step(self, step: int) -> None:
        self.penalised = False

    @contextmanager
    def observing(self, batch: MicroBatch) -> Iterator[None]:
        yield
        if not self.penalised:
            parameters = dict(self.model.named_parameters())
            for name, gradient in orthogonality(self.model).items():
                parameter = parameters[name]
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        self.penalised = True

    def after_update(self, step: int) -> None:
        self.tuner.update_and_allocate(step)

    def tensors(self) -> dict[str, Tensor]:
        allocator = self.tuner.rankallocator
        averages = {
            f"ranks.{kind}|{name}": tensor for kind in AVERAGES for name, tensor in getattr(allocator, kind).items()
        }
        pattern = self.configuration.rank_pattern or {}
        return averages | {f"ranks.pattern|{name}": torch.tensor(kept) for name, kept in pattern.items()}

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        for kind in AVERAGES:
            setattr(self.tuner.rankallocator, kind, _below(tensors, f"ranks.{kind}|"))
        pattern = {name: kept.tolist() for name, kept in _below(tensors, "ranks.pattern|").items()}
        self.configuration.rank_pattern = pattern or None


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def orthogonality(model: Any) -> dict[str, Tensor]:
    """Gradient of AdaLoRA's penalty by parameter: of the mean of ‖AAᵀ − I‖ and ‖BᵀB − I‖, times its weight."""
    factors = {n: p for n, p in model.named_parameters() if ".lora_A." in n or ".lora_B." in n}
    with torch.enable_grad():
        products = [p @ p.T if ".lora_A." in name else p.T @ p for name, p in factors.items()]
        distances = [torch.linalg.matrix_norm(one - torch.eye(len(one), device=one.device)) for one in products]
        penalty = model.peft_config["default"].orth_reg_weight * torch.stack(distances).mean()
    return dict(zip(factors, torch.autograd.grad(penalty, list(factors.values())), strict=True))
