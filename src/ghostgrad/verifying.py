"""Are these rows' gradients the model's own? One more backward pass answers it for every parameter and every row.

The gradient that arrives at the model's output is taken apart by rows there, where the caller's loss says whose each
number is, and sent through the same graph again with a weight w_i on row i. What autograd then makes of a parameter is
Σ w_i g_i, whatever the layers in between do. The rows that the rules found must give the same sum under the same
weights. Weights used outside their module, leading sizes that happen to equal the number of examples and rows in
another order do not: the w_i are drawn without an order, of eight values. They are powers of two, so that weighted
rows are rounded as rows are: where a saturated softmax leaves of a gradient little but rounding, that is the same too.

The same way one row alone is exact for any layer: all other rows get the weight 0. That costs a backward pass per row.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ghostgrad.forms import ExampleGradient
from ghostgrad.positions import Layout
from ghostgrad.rules import UnsupportedLayer
from ghostgrad.tap import backward_number

SAMPLED = 1 << 20
"""Numbers of a parameter that are kept to compare with: of a larger one, some of its columns."""

ROLES: dict[int, Any] = {}
"""Who listens to the taps and hooks in an inner backward pass, by autograd's number of the pass; None for nobody. The
taps of every engine lie in the same graph, so that all must know."""


def listener(default: Any) -> Any:
    """Who listens in the backward pass that is running: `default` where it is the caller's own."""
    return ROLES.get(backward_number(), default) if ROLES else default


class Boundary(torch.autograd.Function):
    """An identity on all tensors that the model gives; its backward calls `arrive(gradients)` before any layer's.

    `anchor` is that of `Tap`: with it a probe comes here also where no layer is tapped.
    """

    @staticmethod
    def forward(
        ctx: Any, arrive: Callable[[tuple[Tensor | None, ...]], None], anchor: Tensor | None, *outputs: Tensor
    ) -> Any:
        ctx.arrive = arrive
        ctx.set_materialize_grads(False)
        found = [output.detach() for output in outputs]
        return tuple(found) if len(found) > 1 else found[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if listener(ctx) is ctx:
            ctx.arrive(grads)
        return None, None, *grads


class Verification:
    """What an engine knows of its own numbers, over all passes that it has observed.

    Attributes:
        level: "rows", or "sums" to compare sums over the rows only; None for nothing.
        alone: name -> why, of parameters whose rows are differentiated one at a time.
        left_out: name -> why, of parameters that are not shown.
        summed: name -> why, of parameters whose gradient is autograd's own, where only sums are compared and a rule
            gave another: all of it stands for the first row.
        notes: what could not be told -> in how many passes that were to be verified.
    """

    def __init__(self, level: str | None, unsupported: str, together: Callable[[bool], bool] | None = None):
        self.level, self.unsupported, self.together = level, unsupported, together
        self.alone: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.summed: dict[str, str] = {}
        self.notes: Counter[str] = Counter()
        self.forms: set[Any] = set()
        """Ways of assigning positions to examples that were found right."""
        self.pending = False
        """Whether a pass was to be verified and frozen parameters made no gradient in it."""
        self._passes = 0
        self._due: dict[str, float] = {}

    @property
    def without_rows(self) -> dict[str, str]:
        """Parameters for which no rule is asked."""
        return self.alone | self.left_out | self.summed

    @property
    def by_autograd(self) -> dict[str, str]:
        """Parameters of which autograd must make a gradient in every pass, frozen ones too."""
        return self.alone | self.summed

    @property
    def only_sums(self) -> bool:
        """Whether a gradient that no rule finds can be autograd's own, whose rows nobody asks for."""
        return self.level == "sums" and self.unsupported == "exact"

    def is_due(self, name: str) -> bool:
        """Whether nothing but zeros has been seen of a parameter, and it is time to look again.

        A LoRA A has no gradient before B has moved, nor B before the learning rate is above 0. Passes 1, 2, 3, 30, 300…
        are looked at.
        """
        return self._passes >= self._due.get(name, 0)

    def needed(self, forms: set[Any], names: Sequence[str]) -> bool:
        """Whether a pass in which calls have these forms must be verified."""
        found = self.level is not None and (any(map(self._is_new, forms)) or any(map(self.is_due, names)))
        return self.together(found) if self.together and self.level is not None else found

    def settle(self, forms: set[Any]) -> None:
        """Calls in these forms were found right; a layer that was so in two multiples of the examples is in each."""
        self.forms |= forms
        kinds = Counter(form[:-1] for form in self.forms if isinstance(form[-1], float))
        self.forms |= {(*kind, "multiples") for kind, count in kinds.items() if count > 1}

    def _is_new(self, form: Any) -> bool:
        return form not in self.forms and not (isinstance(form[-1], float) and (*form[:-1], "multiples") in self.forms)

    def seen(self, names: Sequence[str], nonzero: Collection[str]) -> None:
        """A pass was verified; in it these parameters had a gradient."""
        later = self._passes + 1 if self._passes < 2 else 10 * (self._passes + 1) - 1
        self._due |= {name: float("inf") if name in nonzero else later for name in names if self.is_due(name)}

    def take_out(self, faults: dict[str, str]) -> None:
        """Parameters whose rows no rule finds; UnsupportedLayer where several processes had to look for them together.

        One example at a time means as many backward passes as a process has rows, and each may have another number.
        """
        if faults and self.together and self.unsupported != "leave_out":
            raise UnsupportedLayer(
                "rows of these would be differentiated one at a time, which processes that share a model out cannot do "
                "together:\n"
                + "\n".join(f"  {name}: {why}" for name, why in faults.items())
                + '\nLeave them out with unsupported="leave_out".'
            )
        (self.left_out if self.unsupported == "leave_out" else self.alone).update(faults)

    def passed(self) -> None:
        """One observation is over."""
        self._passes += 1


@dataclass(frozen=True)
class Arrived:
    """Outputs of the model with the gradient that arrived at each, and the example of each of its numbers."""

    outputs: list[Tensor]
    grads: list[Tensor]
    owners: list[Tensor]
    examples: int

    def weighted(self, weights: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """Σ w_i g_i of each parameter; of a large one, what `sampled` keeps."""
        found: list[Tensor | None] = [None] * len(parameters)

        def keep(place: int, grad: Tensor) -> Tensor:
            found[place] = sampled(grad)
            return grad.new_zeros(()).expand_as(grad)  # and nothing larger is held for the end of the pass

        padded = torch.cat([weights, weights.new_zeros(1)])  # -1, of no example, is the last
        grads = [grad * padded[owner].to(grad.dtype) for grad, owner in zip(self.grads, self.owners, strict=True)]
        inner_backward(self.outputs, grads, parameters, see=keep)
        return found

    def rehearse(self, parameters: Mapping[str, nn.Parameter], listener: Any) -> None:
        """The backward pass itself, for `listener` and no other."""
        names = list(parameters)

        def see(place: int, grad: Tensor) -> Tensor:
            listener.completed(names[place], grad)
            return grad.new_zeros(()).expand_as(grad)

        inner_backward(self.outputs, self.grads, list(parameters.values()), listener, see)

    def rows(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Gradient of every row alone, [B, *P] of each parameter."""
        found = [p.new_zeros(self.examples, *p.shape) for p in parameters]
        for row in range(self.examples):
            grads = [torch.where(owner == row, g, 0) for g, owner in zip(self.grads, self.owners, strict=True)]
            for own, grad in zip(found, inner_backward(self.outputs, grads, parameters), strict=True):
                if grad is not None:
                    own[row] = grad
        return found


def inner_backward(
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    inputs: Sequence[Tensor],
    listener: Any = None,
    see: Callable[[int, Tensor], Tensor] | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients with respect to `inputs` from within a backward pass of the same graph, which is left as it was.

    Args:
        listener: who is shown what arrives at the taps.
        see: is called with place and gradient of each of `inputs`; what it returns takes the gradient's place.
    """
    numbers: set[int] = set()

    def enter(*_: Any) -> None:
        numbers.add(backward_number())
        ROLES[backward_number()] = listener

    devices = {tensor.device for tensor in inputs if tensor.device.type == "cuda"}
    with ExitStack() as stack:
        stack.callback(lambda: [ROLES.pop(number, None) for number in numbers])
        for node in {output.grad_fn for output in outputs}:
            stack.callback(node.register_prehook(enter).remove)  # type: ignore[union-attr]
        for place, tensor in enumerate(inputs):
            if tensor.is_leaf:
                # Hooks that others have on a parameter are for its gradient, which this is not.
                stack.callback(setattr, tensor, "_backward_hooks", tensor._backward_hooks)
                tensor._backward_hooks = None
                if see is not None:
                    tensor.register_hook(partial(see, place))
        stack.enter_context(torch.random.fork_rng(devices))  # a rule may call its layer
        try:
            return torch.autograd.grad(outputs, inputs, grads, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise UnsupportedLayer(
                "reentrant activation checkpointing allows no inner backward pass: pass use_reentrant=False to it, or "
                'verify="sums" to the engine'
            ) from error


def arrived(
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    layout: Layout,
    indices: Sequence[Tensor],
    parameters: Sequence[nn.Parameter],
) -> Arrived | None:
    """What arrived at the outputs, by rows; None where it cannot be told whose it is.

    Args:
        outputs: of the model, with the gradient that arrived at each.
        indices: the example of each position, for outputs at chosen positions only.
        parameters: with respect to which all must come through these outputs.
    """
    reached = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
    owners = [owner_of(grad, layout, indices) for _, grad in reached]
    found = [one for one, owner in zip(reached, owners, strict=True) if owner is not None]
    loose = [one for one, owner in zip(reached, owners, strict=True) if owner is None]
    if loose:
        inside = _before_the_loss(outputs, loose, layout, indices, parameters)
        if inside is None:
            return None
        found.append(inside)
    return Arrived(
        [output for output, _ in found],
        [grad for _, grad in found],
        [owner for _, grad in found if (owner := owner_of(grad, layout, indices)) is not None],
        layout.examples,
    )


def _before_the_loss(
    outputs: Sequence[Tensor],
    loose: Sequence[tuple[Tensor, Tensor]],
    layout: Layout,
    indices: Sequence[Tensor],
    parameters: Sequence[nn.Parameter],
) -> tuple[Tensor, Tensor] | None:
    """The first output with rows that a loss made inside the model is made of, if it is made of nothing else."""
    losses, grads = [output for output, _ in loose], [grad for _, grad in loose]
    for output in outputs:
        if owner_of(output, layout, indices) is None:
            continue
        (inside,) = inner_backward(losses, grads, [output])
        if inside is None:
            continue
        whole = inner_backward(losses, grads, parameters)
        through = inner_backward([output], [inside], parameters)
        same = all(
            (one is None or not one.any())
            if other is None
            else one is not None and Difference.of(other, one).within(share_of(one))
            for one, other in zip(whole, through, strict=True)
        )
        return (output, inside) if same else None
    return None


def owner_of(values: Tensor, layout: Layout, indices: Sequence[Tensor]) -> Tensor | None:
    """The example of each number of an output, in a shape that broadcasts to it; None where it cannot be told."""
    for index in indices:
        if values.dim() >= index.dim() and values.shape[: index.dim()] == index.shape:
            return index.reshape(*index.shape, *(1 for _ in values.shape[index.dim() :]))
    if layout.examples == 1 and not indices:
        return torch.zeros((1,) * values.dim(), dtype=torch.long, device=values.device)
    if (
        layout.index is not None
        or not values.dim()
        or values.shape[0] not in (layout.examples, layout.examples * (layout.length or 1))
    ):
        return None
    owner = torch.arange(layout.examples, device=values.device).repeat_interleave(values.shape[0] // layout.examples)
    return owner.reshape(-1, *(1 for _ in values.shape[1:]))


def row_weights(examples: int, like: Tensor) -> Tensor:
    """[B] of ±½, ±1, ±2 and ±4 in no order, each as often as the others, the same at every call; 1 for a single row."""
    if examples == 1:
        return torch.ones(1, device=like.device)
    generator = torch.Generator().manual_seed(0)  # its own: the caller's draws stay as they are
    values = torch.tensor([1.0, -2.0, 0.5, 4.0, -1.0, 2.0, -0.5, -4.0]).repeat(-(-examples // 8))[:examples]
    return values[torch.randperm(examples, generator=generator)].to(like.device)


def sampled(values: Tensor) -> Tensor:
    """All of a small tensor; of a large one every n-th column, so that no row of a table is left out."""
    if values.is_sparse:
        values = values.to_dense()
    matrix = values.reshape(values.shape[0], -1) if values.dim() > 1 else values.reshape(1, -1)
    every = max(1, min(-(-values.numel() // SAMPLED), matrix.shape[1] // 8))
    return matrix[:, ::every].clone()


@dataclass(frozen=True)
class Difference:
    """Lengths of what was found, of what was expected, and of what lies between them."""

    found: float
    expected: float
    between: float

    @classmethod
    def of(cls, found: Tensor, expected: Tensor) -> Difference:
        found, expected = found.double(), expected.double()
        return cls(*(float(torch.linalg.vector_norm(one)) for one in (found, expected, found - expected)))

    def within(self, share: float, rounding: float = 0.0) -> bool:
        """The bound is on lengths, so that entries near zero in half precision cannot fail it, and a missing use or
        factor cannot pass it."""
        return self.between <= share * self.expected + rounding + 1e-12

    def __str__(self) -> str:
        if not self.expected:
            return f"a length of {self.found:.2g} where it is 0"
        return f"{self.found / self.expected:.3g} times the length, {self.between / self.expected:.2g} times it away"


def share_of(grad: Tensor) -> float:
    """How far two ways of adding up the same gradient may differ, as a share of its length."""
    # float64 models have layers that compute in float32 (Gemma's norms); float32 may be TensorFloat-32.
    return {torch.float64: 1e-5, torch.float32: 1e-2}.get(grad.dtype, 5e-2)


def fault_of(
    gradient: ExampleGradient | None, grad: Tensor, reference: Tensor | None, weights: Tensor | None, rounding: float
) -> str | None:
    """What is wrong with the contributions to `grad`, autograd's own gradient of a parameter; None: nothing.

    Args:
        reference: what `Arrived.weighted` made under `weights`; None where rows could not be told.
        rounding: length of what rounding alone may make.
    """
    if grad.is_sparse:
        grad = grad.to_dense()
    if not torch.isfinite(grad).all():
        return None  # a loss scaler's overflow: nothing to compare with
    if gradient is None:
        return "its rows are 0, its gradient is not" if grad.any() else None
    whole = Difference.of(gradient.sum(), grad)
    if not whole.within(share_of(grad), rounding):
        return f"its rows do not add up to its gradient: {whole}"
    if reference is None or weights is None or gradient.examples == 1:
        return None
    weighted = Difference.of(sampled(gradient.sum(weights)), reference)
    if not weighted.within(2 * share_of(grad), rounding * float(weights.abs().max())):
        return f"its rows add up to its gradient, but single rows are not those of the examples: {weighted}"
    return None


def hooked(parameter: nn.Parameter, hook: Callable[[Tensor], Tensor | None]) -> Callable[[], None]:
    """Registers a hook on a parameter's gradient; returns what removes it without a trace."""
    fresh = parameter._backward_hooks is None
    handle = parameter.register_hook(hook)

    def remove() -> None:
        handle.remove()
        if fresh:
            parameter._backward_hooks = None  # as it was: an empty dict is a trace

    return remove


def random_state(tensors: Iterable[Tensor]) -> dict[torch.device, Tensor]:
    """State of the generators that a model of these tensors draws from."""
    devices = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    return {torch.device("cpu"): torch.get_rng_state()} | {one: torch.cuda.get_rng_state(one) for one in devices}


def set_random_state(state: Mapping[torch.device, Tensor]) -> None:
    """Puts the generators back."""
    for device, one in state.items():
        torch.set_rng_state(one) if device.type == "cpu" else torch.cuda.set_rng_state(one, device)
