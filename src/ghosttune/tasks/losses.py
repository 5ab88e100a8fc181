"""Losses of preferences, from the log-probabilities of answers: one function each, in nats per row.

Names, defaults and signs are TRL's, whose trainers give the same numbers (tests/ghosttune/preferences).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Said:
    """What a model and the base say of the answers of one side, [B] each."""

    logps: Tensor
    """Log-probability of the answer, stop token included."""
    tokens: Tensor
    reference: Tensor | None = None
    """Log-probability under the base."""
    whole: Tensor | None = None
    """Log-probability of prompt and answer per token."""

    @property
    def ratio(self) -> Tensor:
        """How much likelier than under the base."""
        assert self.reference is not None
        return self.logps - self.reference.to(self.logps.dtype)

    @property
    def mean(self) -> Tensor:
        """Log-probability per token."""
        return self.logps / self.tokens


Loss = Callable[[Said, Said, Any], "Tensor"]


@dataclass(frozen=True)
class PairLoss:
    """A loss of pairs, and what it is made of."""

    loss: Loss
    source: str
    reference: bool = False
    """Whether it compares with the base."""
    per_token: bool = False
    """Whether the reward of an answer is a mean over its tokens."""
    whole: bool = False
    """Whether it trains the prompt of the chosen answer too."""
    defaults: Mapping[str, float] = field(default_factory=lambda: {"beta": 0.1})
    """Its settings, and what they are where nobody chose."""

    def reward(self, said: Said, settings: Any) -> Tensor:
        """[B] what the policy holds an answer worth."""
        if self.reference:
            return settings.beta * said.ratio
        return settings.beta * (said.mean if self.per_token else said.logps)


def _log_sigmoid(values: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(values)


def _dpo(chosen: Said, rejected: Said, settings: Any) -> Tensor:
    return -_log_sigmoid(settings.beta * (chosen.ratio - rejected.ratio))


def _robust(chosen: Said, rejected: Said, settings: Any) -> Tensor:
    logits, flipped = settings.beta * (chosen.ratio - rejected.ratio), settings.label_smoothing
    return (flipped * _log_sigmoid(-logits) - (1 - flipped) * _log_sigmoid(logits)) / (1 - 2 * flipped)


def _ipo(chosen: Said, rejected: Said, settings: Any) -> Tensor:
    margin = chosen.ratio / chosen.tokens - rejected.ratio / rejected.tokens
    return (margin - 1 / (2 * settings.beta)).square()


def _simpo(chosen: Said, rejected: Said, settings: Any) -> Tensor:
    margin = settings.beta * (chosen.mean - rejected.mean) - settings.simpo_gamma
    return -_log_sigmoid(margin) - settings.cpo_alpha * chosen.mean


def _cpo(chosen: Said, rejected: Said, settings: Any) -> Tensor:
    return -_log_sigmoid(settings.beta * (chosen.logps - rejected.logps)) - settings.cpo_alpha * chosen.mean


def _orpo(chosen: Said, rejected: Said, settings: Any) -> Tensor:
    assert chosen.whole is not None
    odds = (chosen.mean - rejected.mean) - (_log_one_minus_exp(chosen.mean) - _log_one_minus_exp(rejected.mean))
    return -chosen.whole - settings.beta * _log_sigmoid(odds)


def _log_one_minus_exp(values: Tensor) -> Tensor:
    """log(1 - exp(v)) of v < 0, without cancellation at either end (Maechler 2012)."""
    import math

    import torch

    small = values > -math.log(2)
    near = torch.where(small, values, -1.0)
    far = torch.where(small, -1.0, values)
    return torch.where(small, torch.log(-torch.expm1(near)), torch.log1p(-torch.exp(far)))


def kto(said: Said, wanted: Tensor, divergence: Tensor, settings: Any) -> Tensor:
    """[S] the loss of answers that are wanted or not (Ethayarajh et al. 2024, arXiv 2402.01306, equation 7).

    `divergence` is how far the policy is from the base, which no gradient goes through.
    """
    import torch

    above = settings.beta * (said.ratio - divergence)
    weights = (above.new_tensor(weight) for weight in (settings.desirable_weight, settings.undesirable_weight))
    gained = torch.where(wanted, *weights)
    return gained * (1 - torch.sigmoid(torch.where(wanted, above, -above)))


def _not_of_pairs(chosen: Said, rejected: Said, settings: Any) -> Tensor:
    raise TypeError("kto is a loss of single answers")


def preferred(worth: float) -> str:
    """Which answer has the higher reward, by how much the chosen one's is above; `neither` of the untouched base's."""
    return "neither" if not worth else "chosen" if worth > 0 else "rejected"


WEIGHTS = {"desirable_weight": 1.0, "undesirable_weight": 1.0}

PAIR_LOSSES: dict[str, PairLoss] = {
    "dpo": PairLoss(_dpo, "Rafailov et al. 2023, arXiv 2305.18290, equation 7", reference=True),
    "ipo": PairLoss(_ipo, "Azar et al. 2023, arXiv 2310.12036, equation 17, per token", reference=True),
    "robust_dpo": PairLoss(
        _robust,
        "Chowdhury et al. 2024, arXiv 2403.00409, equation 12",
        reference=True,
        defaults={"beta": 0.1, "label_smoothing": 0.1},
    ),
    "simpo": PairLoss(
        _simpo,
        "Meng et al. 2024, arXiv 2405.14734, equation 6",
        per_token=True,
        defaults={"beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
    ),
    "orpo": PairLoss(_orpo, "Hong et al. 2024, arXiv 2403.07691, equation 6", per_token=True, whole=True),
    "cpo": PairLoss(_cpo, "Xu et al. 2024, arXiv 2401.08417, equation 5", defaults={"beta": 0.1, "cpo_alpha": 1.0}),
    "kto": PairLoss(
        _not_of_pairs,
        "Ethayarajh et al. 2024, arXiv 2402.01306, equation 7",
        reference=True,
        defaults={"beta": 0.1, **WEIGHTS},
    ),
}
"""Name in `task.loss` -> the loss."""
