"""The loss of completions that a model has drawn itself, by how much better each is than others of the same prompt.

Names, defaults and signs are TRL's, whose trainer gives the same numbers (tests/ghosttune/grpo).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NEAR_ZERO = 1e-4
"""Added to the standard deviation of a group that rewards are divided by; TRL's."""


@dataclass(frozen=True)
class PolicyLoss:
    """How rewards become advantages, and what a completion's tokens are divided by."""

    scaled: bool
    """Whether advantages are divided by the standard deviation of their group."""
    length: Callable[[Tensor, int], Tensor | int]
    """(tokens of each completion [S], the most there may be) -> what their sum is divided by."""
    source: str


POLICY_LOSSES: Mapping[str, PolicyLoss] = {
    "grpo": PolicyLoss(True, lambda tokens, most: tokens, "Shao et al. 2024, arXiv 2402.03300, equation 3"),
    "dr_grpo": PolicyLoss(False, lambda tokens, most: most, "Liu et al. 2025, arXiv 2503.20783, section 3.2"),
}
"""Name in `task.loss` -> the loss."""


def advantages(rewards: Tensor, scaled: bool) -> Tensor:
    """[B, G] by how much each completion is worth more than the mean of its group; in standard deviations if scaled."""
    above = rewards - rewards.mean(1, keepdim=True)
    return above / (rewards.std(1, keepdim=True) + NEAR_ZERO) if scaled else above


def clipped(logps: Tensor, drawn: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """[S, T] the loss of each token: -min(ratio · A, clip(ratio, 1 - ε, 1 + ε) · A).

    `logps` are under the policy, `drawn` under the one that drew the tokens, `advantage` [S] of the completions.
    """
    import torch

    ratio = torch.exp(logps - drawn)
    worth = advantage.to(logps.dtype)[:, None]
    return -torch.minimum(ratio * worth, ratio.clamp(1 - epsilon, 1 + epsilon) * worth)


def divergence(logps: Tensor, base: Tensor) -> Tensor:
    """[S, T] what each token says of how far the policy is from the base: r - log r - 1, at least 0 (Schulman 2020)."""
    import torch

    further = base - logps
    return torch.exp(further) - further - 1
