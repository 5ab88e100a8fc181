"""The rule of relative attention biases, T5's kind and MPNet's, which are computed once for all examples.

The table's output has no example dimension, so at the embedding itself the examples' gradients are already summed.
The tap therefore sits on the method that makes the bias: [B, heads, queries, keys], or [1, ...], which is expanded.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ghostgrad.forms import Dense, ExampleGradient, widen
from ghostgrad.rules import RULES, LayerIO


@RULES.register(
    "transformers.models.t5.modeling_t5.T5Attention",
    "transformers.models.mt5.modeling_mt5.MT5Attention",
    "transformers.models.umt5.modeling_umt5.UMT5Attention",
    "transformers.models.longt5.modeling_longt5.LongT5Attention",
    "transformers.models.pop2piano.modeling_pop2piano.Pop2PianoAttention",
    "transformers.models.switch_transformers.modeling_switch_transformers.SwitchTransformersAttention",
    "transformers.models.udop.modeling_udop.UdopAttention",
    keep="arguments",
    method="compute_bias",
    owns=lambda layer: ("relative_attention_bias.weight",) if layer.has_relative_attention_bias else (),
)
def relative_attention_bias(layer: Any, io: LayerIO) -> dict[str, ExampleGradient]:
    """relative_attention_bias.weight [buckets, heads]: each bucket sums the distances that fall into it."""
    return _by_bucket(layer, io, type(layer).compute_bias)


@RULES.register(
    "transformers.models.mpnet.modeling_mpnet.MPNetEncoder",
    keep="arguments",
    method="compute_position_bias",
    owns=lambda encoder: ("relative_attention_bias.weight",),
)
def bias_of_the_encoder(encoder: Any, io: LayerIO) -> dict[str, ExampleGradient]:
    """relative_attention_bias.weight [buckets, heads], of which the bias is made for each example."""
    return _by_bucket(encoder, io, type(encoder).compute_position_bias)


def _by_bucket(layer: Any, io: LayerIO, method: Callable[..., Tensor]) -> dict[str, ExampleGradient]:
    """The bucket of every (query, key) pair is read off the layer itself, by lending it a table of row numbers."""
    table = layer.relative_attention_bias.weight
    numbers = torch.arange(len(table), dtype=torch.float32, device=table.device).unsqueeze(1).expand_as(table)
    lent = {"layer.relative_attention_bias.weight": numbers}
    buckets = torch.func.functional_call(_Bias(layer, method), lent, (io,))[:, 0].long()
    grad = widen(io.grad_output).transpose(1, 3).flatten(1, 2)
    places = buckets.transpose(1, 2).flatten(1).expand(len(grad), -1)
    sums = grad.new_zeros(len(grad), *table.shape)
    return {"relative_attention_bias.weight": Dense(sums.scatter_add_(1, places.unsqueeze(2).expand_as(grad), grad))}


class _Bias(nn.Module):
    """The method as a module's forward, so that `functional_call` can lend it a table."""

    def __init__(self, layer: Any, method: Callable[..., Tensor]):
        super().__init__()
        self.layer, self.method = layer, method

    def forward(self, io: LayerIO) -> Tensor:
        return self.method(self.layer, *io.args, **io.kwargs)
