"""Models in which rules see something else than what the parameter does, each small and in plain torch.

`MODELS[name]()` is (model, input): its output has one row per example, and rows do not mix.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

B, T, D = 4, 4, 6
"""As many positions as examples: what is one per position looks as if it were one per example."""


class Outside(nn.Module):
    """Uses a convolution's weight and not its call, as LFM2 and Mamba do."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(D, D)
        self.conv = nn.Conv1d(D, D, 3, groups=D, padding=2)

    def forward(self, values: Tensor) -> Tensor:
        flat = self.up(values).mT
        return F.conv1d(F.pad(flat, (2, 0)), self.conv.weight, self.conv.bias, groups=D).mT


class Partly(nn.Module):
    """Multiplies with a table in two ways, one of which is the module's call."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(D, D, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        return F.linear(self.table(values).relu(), self.table.weight)


class TimeFirst(nn.Module):
    """Has the positions first inside, [T, B, d]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)

    def forward(self, values: Tensor) -> Tensor:
        return self.inner(values.transpose(0, 1)).transpose(0, 1)


class Reordered(nn.Module):
    """Sorts the examples inside, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)

    def forward(self, values: Tensor) -> Tensor:
        return self.inner(values.flip(0)).flip(0)


class Distances(nn.Module):
    """A table of relative positions, [T, T, heads], as MPNet's: the first size happens to be the number of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Embedding(2 * T, D)

    def forward(self, values: Tensor) -> Tensor:
        places = torch.arange(T)
        bias = self.bias(places.unsqueeze(0) - places.unsqueeze(1) + T).permute(2, 0, 1)  # [heads, T, T]
        return torch.einsum("dts,bsd->btd", bias, values)


class Scattered(nn.Module):
    """Sends positions to experts by their values: an expert sees some positions, in no order of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(D, D) for _ in range(2)])

    def forward(self, values: Tensor) -> Tensor:
        flat = values.flatten(0, 1)
        first = flat.sum(1) > flat.sum(1).median()
        out = torch.zeros_like(flat)
        for expert, chosen in zip(self.experts, (first, ~first), strict=True):
            out = out.index_add(0, chosen.nonzero().flatten(), expert(flat[chosen]))
        return out.unflatten(0, values.shape[:2])


class WeightNormed(nn.Module):
    """Makes a weight of two parameters in a hook, the old way."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.inner = nn.utils.weight_norm(nn.Linear(D, D))

    def forward(self, values: Tensor) -> Tensor:
        return self.inner(values)


class Attending(nn.Module):
    """nn.MultiheadAttention, which uses its output projection's weight and not its call."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)

    def forward(self, values: Tensor) -> Tensor:
        return self.attention(values, values, values)[0]


class Recurrent(nn.Module):
    """Layers that give a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(D, D, batch_first=True)
        self.second = nn.GRU(D, D)

    def forward(self, values: Tensor) -> Tensor:
        return self.second(self.first(values)[0].transpose(0, 1))[0].transpose(0, 1)


class ExpandedLater(nn.Module):
    """Computes something once for all examples, [1, T, d], and repeats it itself, as DeBERTa does."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Buffer(torch.randn(1, T, D))
        self.inner = nn.Linear(D, D)

    def forward(self, values: Tensor) -> Tensor:
        return self.inner(values) * self.inner(self.places).repeat(values.shape[0], 1, 1)


class Dropping(nn.Module):
    """Draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(D, D, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, values: Tensor) -> Tensor:
        return F.dropout(self.inner(values)[0], 0.5)


SILENT: dict[str, Callable[[], nn.Module]] = {
    "weight used outside its module": Outside,
    "weight used inside and outside": Partly,
    "positions first": TimeFirst,
    "rows in another order": Reordered,
    "a table of distances": Distances,
    "experts by value": Scattered,
    "expanded later": ExpandedLater,
}
"""Wrong under rules that look at shapes, or not seen at all."""

UNRULED: dict[str, Callable[[], nn.Module]] = {
    "weight norm": WeightNormed,
    "multihead attention": Attending,
    "LSTM and GRU": Recurrent,
    "random draws": Dropping,
}
"""Layers without a rule."""


def inputs(examples: int = B) -> Tensor:
    """[B, T, D] float64."""
    return torch.randn(examples, T, D, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def row_losses(model: nn.Module, values: Tensor) -> Tensor:
    """[B] not linear in the output; the same draws at every call."""
    torch.manual_seed(3)
    output = model(values)
    mask = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return ((output + 0.3 * output.square()) * mask).flatten(1).sum(1)


def made(name: str) -> nn.Module:
    """The model, in float64 with a seed."""
    torch.manual_seed(0)
    return (SILENT | UNRULED)[name]().double()
