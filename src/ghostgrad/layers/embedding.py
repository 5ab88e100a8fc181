"""Rules of tables that are looked up: token and position embeddings, learned prompts and prefixes (PEFT's are plain
`nn.Embedding` modules), and the embedding form of LoRA."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ghostgrad.forms import ExampleGradient, OuterProduct, Rows, Transposed
from ghostgrad.positions import Positions
from ghostgrad.rules import RULES, LayerIO, UnsupportedLayer


def _ids(io: LayerIO, ids: Tensor) -> Tensor:
    """[N] row numbers, those shared by all examples repeated for each."""
    if ids.dim() == 1 and (io.layout.axes or 0) > 1:
        # With as many positions as examples nobody could tell, and rows would come out wrong without a sound.
        raise UnsupportedLayer(
            "it looks up a vector of row numbers where the model's input has two dimensions or more: one per example, "
            "or one per position? Say which with `selected`, or look up [1, T]"
        )
    leading = io.grad_output.shape[0]
    return (ids.expand(leading, *ids.shape[1:]) if ids.shape[0] == 1 != leading else ids).reshape(-1)


@RULES.register(nn.Embedding)
def embedding(layer: nn.Embedding, io: LayerIO) -> dict[str, ExampleGradient]:
    """weight [count, d]: the rows that were looked up."""
    ids = _ids(io, io.input)
    return {"weight": _rows(layer, ids, io.per_position(io.grad_output), io.positions(), layer.num_embeddings)}


def _scaled_table(layer: Any) -> bool:
    return isinstance(layer, nn.Embedding) and type(layer).__name__.endswith("TextScaledWordEmbedding")


@RULES.register_family(_scaled_table)
def scaled_embedding(layer: Any, io: LayerIO) -> dict[str, ExampleGradient]:
    """Gemma's kind: the looked-up row times `embed_scale`."""
    ids, scale = _ids(io, io.input), layer.embed_scale.to(layer.weight.dtype)
    grad = io.per_position(io.grad_output) * scale
    return {"weight": _rows(layer, ids, grad, io.positions(), layer.num_embeddings)}


def _rows(table: nn.Embedding, ids: Tensor, grad: Tensor, positions: Positions, count: int) -> Rows:
    """The looked-up rows under the settings of `table`."""
    if table.scale_grad_by_freq or table.max_norm is not None:
        raise UnsupportedLayer("an Embedding with max_norm or scale_grad_by_freq mixes the examples of a batch")
    if table.padding_idx is not None:
        grad = grad.masked_fill((ids == table.padding_idx).unsqueeze(1), 0)
    return Rows(ids, grad, positions, count)


@RULES.register("peft.tuners.lora.layer.Embedding")
def lora_embedding(layer: Any, io: LayerIO) -> dict[str, ExampleGradient]:
    """lora_embedding_A [r, count] and lora_embedding_B [d, r] of y = base(x) + scaling * A[:, x]ᵀ Bᵀ."""
    if layer.lora_variant:
        raise UnsupportedLayer(f"LoRA variants {sorted(layer.lora_variant)} of an embedding have no rule")
    ids, positions = _ids(io, io.input), io.positions()
    gradients: dict[str, ExampleGradient] = {}
    embed_scale = layer._get_embed_scale()
    for name in layer.active_adapters:
        if name not in layer.lora_embedding_A:
            continue
        first, second = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
        grad = io.per_position(io.grad_output) * layer.scaling[name]
        if embed_scale is not None:
            grad = grad * embed_scale.to(grad.dtype)
        looked_up = _rows(layer.get_base_layer(), ids, grad @ second.to(grad.dtype), positions, first.shape[1])
        gradients[f"lora_embedding_A.{name}"] = Transposed(looked_up)
        gradients[f"lora_embedding_B.{name}"] = OuterProduct(grad, first.mT[ids].to(grad.dtype), positions)
    return gradients
