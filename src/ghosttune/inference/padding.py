"""Whether a model passes over padding in front of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ghosttune.inference.decoding import decode

if TYPE_CHECKING:
    from torch import Tensor

ROW = [0, 1, 2] * 4
"""Long enough for blocks of four positions (DeepSeek-V4), and below what models share in front (`sharing.py`)."""

APART = {"float32": 1e-3, "half": 0.1}
"""Shares of the spread of the logits that rounding stays below."""

_KNOWN: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def counts_padding(model: Any) -> bool:
    """Whether padding in front of a row changes what the model says behind it.

    RWKV's state runs through padding, DeepSeek-V4 sums up blocks of positions that padding shifts. Asked of the model
    itself, once: one row alone, and beside another that is longer by a token. Rows of such a model are answered one by
    one; RWKV's code in Transformers mixes the rows of a batch behind its first token, also where they have one length.
    """
    import torch

    if model not in _KNOWN:
        alone, padded = (_said(model, rows) for rows in ([ROW], [ROW, [2, *ROW]]))
        share = APART["float32" if model.dtype == torch.float32 else "half"]
        _KNOWN[model] = not bool((alone - padded).abs().max() <= share * alone.std())  # NaN too
    return _KNOWN[model]


def _said(model: Any, rows: list[list[int]]) -> Tensor:
    """[V] what stands behind the first row, as rows are answered."""
    seen = []

    def look(logits: Tensor, places: list[int]) -> Tensor:
        seen.append(logits[0].float())
        return logits.argmax(dim=-1)

    decode(model, rows, [0], 1, look)
    return seen[0]
