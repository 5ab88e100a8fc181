"""The rule of T5's relative attention bias, which is computed once for all examples.

The table's output has no example dimension, so at the embedding itself the examples' gradients are already summed.
The tap therefore sits on `compute_bias`, whose [1, heads, queries, keys] output the engine expands to one per example.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ghostgrad.forms import Dense, ExampleGradient, widen
from ghostgrad.rules import RULES, LayerIO


@RULES.register(
    "transformers.models.t5.modeling_t5.T5Attention",
    "transformers.models.mt5.modeling_mt5.MT5Attention",
    "transformers.models.umt5.modeling_umt5.UMT5Attention",
    keep="arguments",
    method="compute_bias",
    owns=lambda layer: ("relative_attention_bias.weight",) if layer.has_relative_attention_bias else (),
)
def relative_attention_bias(layer: Any, io: LayerIO) -> dict[str, ExampleGradient]:
    """relative_attention_bias.weight [buckets, heads]: each bucket sums the distances that fall into it.

    The bucket of every (query, key) pair is read off the layer itself, by lending it a table of row numbers.
    """
    table = layer.relative_attention_bias.weight
    numbers = torch.arange(len(table), dtype=torch.float32, device=table.device).unsqueeze(1).expand_as(table)
    biases = torch.func.functional_call(_Bias(layer), {"layer.relative_attention_bias.weight": numbers}, (io,))
    grad = widen(io.grad_output).permute(2, 3, 0, 1).flatten(0, 1)
    sums = grad.new_zeros(len(table), *grad.shape[1:]).index_add_(0, biases[0, 0].long().flatten(), grad)
    return {"relative_attention_bias.weight": Dense(sums.transpose(0, 1))}


class _Bias(nn.Module):
    """`compute_bias` as a module's forward, so that `functional_call` can lend it a table."""

    def __init__(self, layer: Any):
        super().__init__()
        self.layer = layer

    def forward(self, io: LayerIO) -> torch.Tensor:
        return type(self.layer).compute_bias(self.layer, *io.args, **io.kwargs)
