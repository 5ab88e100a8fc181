"""The slow, obviously right reference, and `check_rule` for rules of one's own."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ghostgrad.engine import GradientEngine
from ghostgrad.observers import Dots, Gram, Kept, Norms, Sketches, WeightedSum
from ghostgrad.rules import RULES, RuleRegistry
from ghostgrad.sketch import Sketcher, SketchOptions


def one_backward_per_example(losses: Tensor, parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Gradient of each of `losses` [B] with respect to each parameter, by B backward passes: [B, *P] per name."""
    named = [(name, p) for name, p in parameters if p.requires_grad]
    rows = [
        cast(
            tuple[Tensor | None, ...],
            torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True),
        )
        for loss in losses.unbind()
    ]
    return {
        name: torch.stack([torch.zeros_like(p) if own is None else own.detach() for own in column])
        for (name, p), column in zip(named, zip(*rows, strict=True), strict=True)
    }


def compare(
    model: nn.Module,
    losses: Callable[[nn.Module], Tensor],
    *,
    rules: RuleRegistry = RULES,
    unsupported: str = "raise",
    verify: bool = True,
    rtol: float = 1e-10,
    **where: Any,
) -> dict[str, Tensor]:
    """Runs every operation through the engine and raises AssertionError where one differs from the reference.

    Args:
        model: in float64, with the parameters to check trainable.
        losses: makes each example's contribution [B] from the model; called twice.
        where: `examples` and `selected` of `GradientEngine.observe`.
        rtol: relative to the largest number of the reference, times the two norms for inner products.

    Returns:
        The reference gradients [B, *P] by name.
    """
    reference = one_backward_per_example(losses(model), model.named_parameters())
    operations = _Operations(reference)
    engine = GradientEngine(model, rules=rules, unsupported=unsupported, verify=verify)
    with engine.observe(*operations.observers, **where):
        losses(model).sum().backward()
    if problems := list(operations.differences(reference, rtol)):
        raise AssertionError("\n".join(problems))
    return reference


class _Operations:
    """Every operation once, with random directions, weights and projections."""

    def __init__(self, reference: Mapping[str, Tensor]):
        random = torch.Generator().manual_seed(0)
        like = next(iter(reference.values()))

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64).to(like)

        shapes = {name: tuple(value.shape[1:]) for name, value in reference.items()}
        options = SketchOptions(12, 2, ("*",), True, "gaussian", "even", 0, torch.float32)
        self.directions = [{name: noise(*shape) for name, shape in shapes.items()} for _ in range(2)]
        self.weights = noise(len(like))
        self.sketcher = Sketcher(shapes, options, frozenset())
        self.observers = (
            Norms(),
            Dots(self.directions[0]),
            Dots(directions=self.directions),
            Gram(),
            WeightedSum(self.weights),
            Sketches(self.sketcher),
            Kept(),
        )

    def differences(self, reference: Mapping[str, Tensor], rtol: float) -> Iterator[str]:
        """What was seen otherwise than it is, a line for each operation and parameter."""
        flat = {name: value.flatten(1).double() for name, value in reference.items()}
        # A gradient that is zero by symmetry (the bias of attention keys) holds nothing but rounding of larger ones.
        floor = 1e-4 * max(float(torch.linalg.vector_norm(rows, dim=1).max()) for rows in flat.values())
        for name, rows in flat.items():
            for what, found, wanted, scale in self._beside(name, rows, reference[name], floor):
                if fault := _fault(found, wanted, scale, rtol):
                    yield f"{what} of {name}: {fault}"

    def _beside(
        self, name: str, rows: Tensor, reference: Tensor, floor: float
    ) -> Iterator[tuple[str, Tensor | None, Tensor, Tensor]]:
        """(operation, what was seen, what is right, the size that its rounding is relative to) of one parameter."""
        seen = dict(zip(("norm", "dot", "dots", "gram", "sum", "sketch", "gradient"), self.observers, strict=True))
        found: dict[str, Any] = {what: observer.values.get(name) for what, observer in seen.items()}
        made = found["gradient"]
        largest = torch.linalg.vector_norm(rows, dim=1).max().clamp_min(floor)
        projection = self.sketcher[name]
        projected = projection.left(projection.right(rows.view(len(rows), *projection.shape)).mT).mT.flatten(1)
        towards = torch.stack([direction[name].double().flatten() for direction in self.directions], 1)
        total = (self.weights.double() @ rows).view(reference.shape[1:])
        yield "norm", found["norm"], torch.linalg.vector_norm(rows, dim=1).square(), largest.square()
        yield "dot", found["dot"], rows @ towards[:, 0], largest * towards.norm()
        yield "dots", found["dots"], rows @ towards, largest * towards.norm()
        yield "gram", found["gram"], rows @ rows.mT, largest.square()
        yield "sum", found["sum"], total, largest * self.weights.norm()
        yield "sketch", found["sketch"], projected, largest * 10
        yield "gradient", None if made is None else made.materialize(), reference.double(), largest


def _fault(found: Tensor | None, wanted: Tensor, scale: Tensor, rtol: float) -> str | None:
    if found is None:
        return "nothing was seen" if wanted.any() else None
    if found.shape != wanted.shape:
        return f"shape {list(found.shape)}, expected {list(wanted.shape)}"
    error = float(((found.double() - wanted).abs() / (scale + 1e-300)).max()) if wanted.numel() else 0.0
    return None if error <= rtol else f"off by {error:.1e}, allowed {rtol:.0e}"


def check_rule(
    module: nn.Module, *inputs: Any, rules: RuleRegistry = RULES, rtol: float = 1e-10, **kwargs: Any
) -> None:
    """Raises AssertionError unless the rule of `module` is exact on these inputs.

    Args:
        module: the layer; a float64 copy is checked, with random parameters, so that a 1 or a 0 hides nothing.
        inputs, kwargs: what the layer is called with; floating tensors are used in float64. The first tensor has one
            row per example.
        rules: where the rule is registered.
    """
    random = torch.Generator().manual_seed(0)
    twin = copy.deepcopy(module).double()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64) * 0.5 + 0.1)
    inputs = tuple(_double(value) for value in inputs)
    kwargs = {name: _double(value) for name, value in kwargs.items()}

    def losses(layer: nn.Module) -> Tensor:
        output = layer(*inputs, **kwargs)
        examples = next(value for value in (*inputs, *kwargs.values()) if isinstance(value, Tensor)).shape[0]
        mask = torch.randn(examples, *output.shape[1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        # Not linear in the output: the gradient differs from example to example also where inputs are equal.
        return ((output + 0.3 * output.square()) * mask).flatten(1).sum(1)

    compare(twin, losses, rules=rules, rtol=rtol)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
