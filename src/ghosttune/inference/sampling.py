"""How the next token is chosen: the likeliest, or drawn with a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ghosttune.errors import InputError

if TYPE_CHECKING:
    import torch

Choose = Callable[["torch.Tensor", list[int]], "torch.Tensor"]
"""(logits [B, V], which row of the whole batch each one is) -> the token of each row, [B]."""


SMALLEST = 1e-5
"""Of a temperature and of `top_p`: below it both mean the likeliest token, and float32 soon has no such numbers."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; InputError for values that mean nothing."""

    temperature: float = 0.0
    """Logits are divided by it; 0 is greedy: the likeliest token, whatever the rest says."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    top_k: int = 0
    """Draw from this many of the likeliest tokens; 0 for all."""
    seed: int = 0
    """Equal seeds, prompts and settings give equal answers."""

    def __post_init__(self) -> None:
        accepted = {
            "temperature": (
                self.temperature == 0 or SMALLEST <= self.temperature <= 100,
                f"0 (greedy), or {SMALLEST:.5f} to 100",
            ),
            "top_p": (SMALLEST <= self.top_p <= 1, f"{SMALLEST:.5f} to 1"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "seed": (0 <= self.seed < 2**63, "0 to 2^63 - 1"),
        }
        wrong = [
            f"{name} is {getattr(self, name)}, accepted is {range_}"
            for name, (fits, range_) in accepted.items()
            if not fits
        ]
        if wrong:
            raise InputError("; ".join(wrong))

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


GREEDY = Sampling()


def chooser(sampling: Sampling, prompts: Sequence[int] = (0,)) -> Choose:
    """The choice for a batch; the row that answers prompt n draws with its own generator, seeded with `seed + n`.

    A generator of its own makes an answer independent of the batch it is written in.
    """
    import torch

    if sampling.is_greedy:
        return lambda logits, rows: logits.argmax(dim=-1)
    generators = [torch.Generator().manual_seed((sampling.seed + prompt) % 2**63) for prompt in prompts]

    def draw(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        shares = _shares(logits.float().cpu(), sampling)
        drawn = [torch.multinomial(some, 1, generator=generators[row]) for some, row in zip(shares, rows, strict=True)]
        return torch.cat(drawn).to(logits.device)

    return draw


def _shares(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """[B, V] probabilities, 0 for the tokens that `top_k` and `top_p` leave out."""
    import torch

    ordered, tokens = (logits / sampling.temperature).sort(dim=-1, descending=True, stable=True)
    shares = ordered.softmax(dim=-1)
    if sampling.top_k:
        shares[:, sampling.top_k :] = 0
        shares = shares / shares.sum(dim=-1, keepdim=True)
    before = shares.cumsum(dim=-1) - shares
    shares = torch.where(before < sampling.top_p, shares, 0.0)
    return torch.zeros_like(shares).scatter(-1, tokens, shares)
