"""Whether a model passes over padding in front of a row."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

_KNOWN: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def counts_padding(model: Any) -> bool:
    """Whether positions that are masked change what the model says: RWKV's state runs through them.

    Asked of the model itself, once: a mask that changes nothing is not looked at. Rows of such a model are answered one
    by one; that of Transformers mixes the rows of a batch behind its first token, also where they have one length.
    """
    import torch

    if model not in _KNOWN:
        ids = torch.tensor([[0, 1, 2]], device=model.device)
        mask = torch.ones_like(ids)
        masked = mask.clone()
        masked[0, 0] = 0
        with torch.no_grad():
            seen, passed_over = (
                model(input_ids=ids, attention_mask=one, use_cache=False).logits[0, -1].float()
                for one in (mask, masked)
            )
        _KNOWN[model] = torch.equal(seen, passed_over)
    return _KNOWN[model]
