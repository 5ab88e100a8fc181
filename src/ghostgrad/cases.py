"""Cases under which every number must be exact, and comparisons that take more than one batch."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ghostgrad.engine import GradientEngine
from ghostgrad.observers import Dots, Gram, Kept, Norms
from ghostgrad.testing import one_backward_per_example
from ghostgrad.tiny import Switches, losses, padded, tiny

ROWS = (1, 2, 4, 8)
"""Numbers of examples, and of guide rows, that each case is tried with."""

X = torch.randn
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "linear": (lambda: nn.Linear(5, 7), lambda b: X(b, 6, 5)),
    "linear without bias": (lambda: nn.Linear(5, 7, bias=False), lambda b: X(b, 6, 5)),
    "linear on vectors": (lambda: nn.Linear(5, 7), lambda b: X(b, 5)),
    "linear on two length axes": (lambda: nn.Linear(5, 7), lambda b: X(b, 3, 2, 5)),
    "linear, gradient smaller than its Gram": (lambda: nn.Linear(2, 2), lambda b: X(b, 40, 2)),
    "embedding": (lambda: nn.Embedding(6, 4), lambda b: torch.randint(0, 6, (b, 9))),
    "embedding with padding": (lambda: nn.Embedding(6, 4, padding_idx=2), lambda b: torch.randint(0, 6, (b, 9))),
    "embedding of one id": (lambda: nn.Embedding(6, 4), lambda b: torch.randint(0, 6, (b,))),
    "layer norm": (lambda: nn.LayerNorm(6), lambda b: X(b, 3, 6)),
    "layer norm over two axes": (lambda: nn.LayerNorm([3, 6]), lambda b: X(b, 3, 6)),
    "layer norm without bias": (lambda: nn.LayerNorm(6, bias=False), lambda b: X(b, 3, 6)),
    "rms norm": (lambda: nn.RMSNorm(6), lambda b: X(b, 3, 6)),
}
_CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "": {},
    ", strided": {"stride": 2, "padding": 1},
    ", dilated": {"dilation": 2, "bias": False},
    ", same": {"padding": "same"},
    ", grouped": {"groups": 2},
    ", circular": {"padding": 1, "padding_mode": "circular"},
}
for _name, _settings in _CONVOLUTIONS.items():
    LAYERS["conv1d" + _name] = (lambda s=_settings: nn.Conv1d(4, 6, 3, **s), lambda b: X(b, 4, 9))
    LAYERS["conv2d" + _name] = (lambda s=_settings: nn.Conv2d(4, 6, (3, 1), **s), lambda b: X(b, 4, 7, 8))

SWITCHES = [Switches(*values) for values in itertools.product((False, True), repeat=3)]


def compare_products(model: nn.Module, guides: int, examples: int = 6) -> None:
    """AssertionError unless products with the guide's gradient, and with each guide row, equal the slow ones."""
    guide, batch = padded(guides, seed=1), padded(examples, seed=2)
    one = one_backward_per_example(losses(model, batch, examples), model.named_parameters())
    other = one_backward_per_example(losses(model, guide, guides), model.named_parameters())
    dots, kept, engine = Dots({name: value.sum(0) for name, value in other.items()}), Kept(), GradientEngine(model)
    with engine.observe(kept):
        losses(model, guide, guides).sum().backward()
    gram = Gram(kept)
    with engine.observe(dots, gram):
        losses(model, batch, examples).sum().backward()
    pairs = torch.stack([one[name].flatten(1) @ other[name].flatten(1).mT for name in one]).sum(0)
    torch.testing.assert_close(gram.total(), pairs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dots.total(), pairs.sum(1), rtol=1e-10, atol=1e-12)


def compare_parts(parts: int, examples: int = 7) -> None:
    """AssertionError unless rows have the same norms and products in whatever micro-batch of a step they come."""
    model, batch = tiny(Switches(tied=True, reused=True)), padded(examples)
    divisor = int((batch["document"][:, 1:] >= 0).sum())
    reference = one_backward_per_example(losses(model, batch, examples, divisor), model.named_parameters())
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    engine = GradientEngine(model)
    found_norms: list[Tensor] = []
    found_dots: list[Tensor] = []
    for rows in torch.arange(examples).chunk(parts):  # the last one is shorter
        micro = {"ids": batch["ids"][rows], "document": batch["document"][rows]}
        micro["document"] = torch.where(micro["document"] < 0, -1, micro["document"] - rows[0])
        norms, dots = Norms(), Dots(direction)
        with engine.observe(norms, dots):
            losses(model, micro, len(rows), divisor).sum().backward()
        found_norms.append(norms.total())
        found_dots.append(dots.total())
    flat = torch.cat([value.flatten(1) for value in reference.values()], 1)
    towards = torch.cat([direction[name].flatten() for name in reference])
    torch.testing.assert_close(torch.cat(found_norms), flat.norm(dim=1), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(torch.cat(found_dots), flat @ towards, rtol=1e-10, atol=1e-12)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, reference[name].sum(0), rtol=1e-10, atol=1e-14)
