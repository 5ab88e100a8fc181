"""One vector per text from the hidden states of a layer; padding counts for nothing."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ghosttune.data.templates import Template
from ghosttune.errors import DataError, InputError
from ghosttune.inference.generating import batches
from ghosttune.models.loading import longest_input

if TYPE_CHECKING:
    import torch

POOLINGS = ("mean", "cls", "max")


def embed(
    model: Any, template: Template, texts: Sequence[str | Sequence[int]], pooling: str, layer: int
) -> torch.Tensor:
    """[B, width] float32 on the CPU, of texts or of token ids as they are.

    `layer` counts as in a list: 0 the embeddings, -1 the last one. Raises as `require_layer` and `text_ids`.
    """
    require_layer(model, pooling, layer)
    return vectors_of(model, text_ids(model, template, texts), pooling, layer)


def require_layer(model: Any, pooling: str, layer: int) -> None:
    """InputError for an unknown pooling or layer."""
    if pooling not in POOLINGS:
        raise InputError(f"pooling is {pooling!r}, accepted are {', '.join(POOLINGS)}")
    layers = model.config.get_text_config().num_hidden_layers + 1
    if not -layers <= layer < layers:
        raise InputError(f"layer is {layer}, accepted are {-layers} to {layers - 1}")


def text_ids(model: Any, template: Template, texts: Sequence[str | Sequence[int]]) -> list[list[int]]:
    """The tokens of each text, behind what opens a row of this model; ids stay as they are.

    DataError for an empty text, one that is longer than the model's positions, and ids that the model has not.
    """
    limit, vocabulary = longest_input(model), model.get_input_embeddings().num_embeddings
    rows = [
        template.tokenizer(template.opening + text, add_special_tokens=False).input_ids
        if isinstance(text, str)
        else list(text)
        for text in texts
    ]
    for number, row in enumerate(rows):
        if not row:
            raise DataError(f"text {number} is empty: there is nothing to embed")
        if limit is not None and len(row) > limit:
            raise DataError(f"text {number} has {len(row)} tokens, the model reads {limit}; shorten or split it")
        if not 0 <= min(row) <= max(row) < vocabulary:
            raise DataError(f"text {number} has tokens that the model has not; it has 0 to {vocabulary - 1}")
    return rows


def vectors_of(model: Any, ids: Sequence[list[int]], pooling: str = "mean", layer: int = -1) -> torch.Tensor:
    """[B, width] float32 on the CPU of rows of token ids; costs a forward of them."""
    import torch

    vectors: dict[int, torch.Tensor] = {}
    for positions in batches(ids):
        hidden, mask = _hidden(model, [ids[position] for position in positions], layer)
        vectors.update(zip(positions, _pooled(hidden, mask, pooling), strict=True))
    if not ids:
        return torch.empty(0, model.config.get_text_config().hidden_size)
    return torch.stack([vectors[position] for position in range(len(ids))]).float().cpu()


def _hidden(model: Any, rows: list[list[int]], layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states [B, T, width] and which positions are text [B, T, 1]; padded on the right."""
    import torch

    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    frugal = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False, **frugal)
    hidden = output.hidden_states[layer][:, -width:]  # behind a prompt that the adapter has learned
    return hidden, mask.bool().unsqueeze(-1)


def _pooled(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return hidden.masked_fill(~mask, float("-inf")).amax(dim=1)
    return hidden.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1)
