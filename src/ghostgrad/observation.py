"""One observed forward and backward: installs the taps, assembles each parameter's uses, feeds the observers.

A parameter that is used several times (tied tables, a layer called twice) is complete when autograd has made its own
gradient: a hook on the parameter fires exactly then, whatever the uses were. Observers that are linear in the gradient
need not wait and see each use as it comes, so that a tied output head's gradient is not held through the backward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ghostgrad.forms import ExampleGradient
from ghostgrad.observers import Observer
from ghostgrad.positions import Layout
from ghostgrad.rules import LayerIO, UnsupportedLayer
from ghostgrad.tap import Tap, inside_backward

if TYPE_CHECKING:
    from ghostgrad.engine import GradientEngine, Site


Fill = Callable[[LayerIO, tuple[Tensor, ...]], None]


class Observation:
    """State of one `GradientEngine.observe` block."""

    def __init__(
        self,
        engine: GradientEngine,
        observers: Sequence[Observer],
        examples: int | Tensor | None,
        selected: Mapping[str, Tensor],
        frozen: bool = False,
        probing: bool = False,
    ):
        self.engine = engine
        self.anchor: Tensor | None = None
        self.active = [name for name, p in engine.parameters.items() if frozen or p.requires_grad]
        # Parameters of which autograd makes a gradient, and so says when their uses are complete.
        self.signalled = set() if probing else {n for n in self.active if engine.parameters[n].requires_grad}
        self.uses: Counter[str] = Counter()
        if frozen:
            some = next(iter(engine.parameters.values()))
            self.anchor = torch.zeros((), device=some.device, requires_grad=True)
        self.piecewise = [observer for observer in observers if not observer.whole]
        self.whole = [observer for observer in observers if observer.whole]
        self.verifying = engine.unverified and not probing
        self.pieces: dict[str, ExampleGradient] = {}
        self.complete: set[str] = set()
        self.delivered = False
        self.differing: list[str] = []
        self.rounding: dict[str, float] = {}
        self.paused = False
        self.selected = selected
        self.layouts: dict[str, Layout] = {}
        self.layout: Layout | None = None
        unknown = sorted(set(selected) - {site.name for site in engine.sites})
        if unknown:
            raise ValueError(f"`selected` names modules without selected parameters: {unknown}")
        if examples is not None:
            self._start(examples)
        for observer in observers:
            observer.begin(engine.parameters)

    def _start(self, examples: int | Tensor, axes: int | None = None) -> None:
        if isinstance(examples, int):
            self.layout = Layout(examples, axes=axes)
        else:
            # The only wait for the device: the number of examples must be known to size the results.
            count = int(examples.max()) + 1 if examples.numel() else 0
            self.layout = Layout(count, examples)
        self.layouts = {name: Layout(self.layout.examples, index) for name, index in self.selected.items()}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Hooks in place inside the block, and gone after it, also when it raises."""
        active = set(self.active)
        with ExitStack() as stack:
            stack.callback(self.engine.model.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
            for site in self.engine.sites:
                wanted = {own: name for own, name in site.parameters.items() if name in active}
                if wanted:
                    own = site if len(wanted) == len(site.parameters) else replace(site, parameters=wanted)
                    stack.callback(self._install(own))
            if self.whole or self.verifying:
                for name in self.signalled:
                    stack.callback(_hook_parameter(self.engine.parameters[name], name, self._completed))
            yield

    def backward(self, loss: Tensor) -> None:
        """Runs the backward pass of a probe: contributions alone, no parameter's own gradient."""
        assert self.anchor is not None  # a probe has one
        torch.autograd.grad(loss, [self.anchor], allow_unused=True)

    def _install(self, site: Site) -> Any:
        if site.entry.method == "forward":

            def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
                return self._tapped(site, args, kwargs, output)

            return site.module.register_forward_hook(hook, with_kwargs=True).remove
        method = getattr(site.module, site.entry.method)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return self._tapped(site, args, kwargs, method(*args, **kwargs))

        setattr(site.module, site.entry.method, wrapped)
        return lambda: delattr(site.module, site.entry.method)

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Learns the number of examples from the model's own input."""
        if self.paused or not torch.is_grad_enabled() or inside_backward():
            return
        if self.delivered:
            raise RuntimeError("a second forward after the backward: open one observe() per micro-batch")
        if self.layout is None:
            first = _first_tensor((args, kwargs))
            if first is None:
                raise ValueError("the model's input holds no tensor; pass `examples` to observe()")
            self._start(first.shape[0], first.dim())

    def _tapped(self, site: Site, args: tuple, kwargs: dict, output: Any) -> Any:
        if self.paused or not torch.is_grad_enabled():
            return output
        if not isinstance(output, Tensor):
            raise UnsupportedLayer(f"{site.name}: its output is a {type(output).__name__}, not one tensor")
        if self.anchor is None and not output.requires_grad:
            return output
        layout = self.layouts.get(site.name, self.layout)
        if layout is None:
            raise RuntimeError("call the model that was given to the engine, or pass `examples` to observe()")
        if output.shape[0] == 1 != layout.leading:
            # Computed once for all examples (position embeddings): each must get a gradient of its own.
            output = output.expand(layout.leading, *output.shape[1:])
        if (self.whole or self.verifying) and not inside_backward():
            self.uses.update(site.parameters.values())
        kept, fill = _kept(site.entry.keep(site.parameters), args, kwargs)

        def deliver(grad_output: Tensor, tensors: tuple[Tensor, ...]) -> None:
            io = LayerIO(None, grad_output, layout, site.parameters)
            fill(io, tensors)
            with _plainly(grad_output):
                self._deliver(site, io)

        return Tap.apply(output, deliver, self.anchor, *kept)

    def _deliver(self, site: Site, io: LayerIO) -> None:
        self.delivered = True
        self.paused = True  # a rule may run its layer again
        try:
            gradients = site.entry.rule(site.module, io)
        except ValueError as error:
            raise UnsupportedLayer(f"{site.name} ({type(site.module).__name__}): {error}") from error
        finally:
            self.paused = False
        for own, gradient in gradients.items():
            name = site.parameters.get(own)
            if name is None:
                continue
            for observer in self.piecewise:
                observer.see(name, gradient)
            if self.verifying:
                self.rounding[name] = self.rounding.get(name, 0.0) + _rounding(io.grad_output)
            if self.whole or self.verifying:
                earlier = self.pieces.get(name)
                self.pieces[name] = gradient if earlier is None else earlier.merge(gradient)
                if name not in self.signalled and self.uses[name] == 1:
                    self._show(name)  # no other use can come: nothing need be held until the end

    def _completed(self, name: str, grad: Tensor) -> None:
        """Autograd has summed all uses of a parameter: so have we."""
        with _plainly(grad):
            if self.verifying and not _agrees(self.pieces.get(name), grad, self.rounding.get(name, 0.0)):
                self.differing.append(name)
            if name in self.pieces:
                self._show(name)

    def _show(self, name: str) -> None:
        gradient = self.pieces.pop(name)
        if self.whole and name in self.complete:
            raise RuntimeError(f"{name} received two gradients: open one observe() per backward pass")
        self.complete.add(name)
        for observer in self.whole:
            observer.see(name, gradient)

    def close(self) -> None:
        """Checks that the block was one whole observation.

        Raises:
            RuntimeError: a forward without backward; contributions that do not add up to the gradient.
        """
        for name in [name for name in self.pieces if name not in self.signalled]:
            with _plainly(self.engine.parameters[name]):
                self._show(name)
        if not self.delivered:
            raise RuntimeError("observe() saw no backward pass: run forward and backward inside it")
        if self.verifying:
            if self.differing:
                raise RuntimeError(
                    "contributions of the examples do not add up to the gradient of: "
                    + ", ".join(self.differing)
                    + ". The parameter is used outside its module, or its layer's rule is wrong."
                )
            self.engine.unverified = False


def _hook_parameter(parameter: nn.Parameter, name: str, completed: Any) -> Any:
    fresh = parameter._backward_hooks is None
    handle = parameter.register_hook(lambda grad: completed(name, grad))

    def remove() -> None:
        handle.remove()
        if fresh:
            parameter._backward_hooks = None  # as it was: an empty dict is a trace

    return remove


def _rounding(grad_output: Tensor) -> float:
    """How far sums over the positions of a layer may differ by rounding alone: all there is of the gradient of a bias
    that moves nothing, such as one in front of a softmax over positions."""
    precise = torch.promote_types(grad_output.dtype, torch.float32)
    size = torch.linalg.vector_norm(grad_output.detach(), dtype=precise)
    return float(torch.finfo(precise).eps * grad_output[..., 0].numel() ** 0.5 * size)


def _agrees(gradient: ExampleGradient | None, grad: Tensor, rounding: float) -> bool:
    """True where contributions add up to autograd's gradient within rounding; the bound is on norms, so that entries
    near zero in half precision cannot fail it, and a missing use or factor cannot pass it."""
    if grad.is_sparse:
        grad = grad.to_dense()
    if not torch.isfinite(grad).all():
        return True  # a loss scaler's overflow: nothing to compare with
    # float64 models have layers that compute in float32 (Gemma's norms); float32 may be TensorFloat-32.
    bound = {torch.float64: 1e-5, torch.float32: 1e-2}.get(grad.dtype, 5e-2)
    size = torch.linalg.vector_norm(grad.double())
    if gradient is None:
        return bool(size == 0)
    return bool(torch.linalg.vector_norm(gradient.sum().double() - grad.double()) <= bound * size + rounding + 1e-12)


def _kept(keep: str, args: tuple, kwargs: dict) -> tuple[list[Tensor], Fill]:
    """Tensors to save, and a function that puts them back into a LayerIO in backward."""
    if keep == "nothing":
        return [], _fill_nothing
    if keep == "input":
        first = args[0] if args and isinstance(args[0], Tensor) else _first_tensor((args, kwargs))
        if first is None:
            raise UnsupportedLayer("a tapped layer was called without a tensor")
        return [first.detach()], _fill_input
    values = [*args, *kwargs.values()]
    places = [place for place, value in enumerate(values) if isinstance(value, Tensor)]
    others = [None if isinstance(value, Tensor) else value for value in values]
    names, count = list(kwargs), len(args)

    def fill(io: LayerIO, tensors: tuple[Tensor, ...]) -> None:
        filled = list(others)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        io.input = tensors[0] if tensors else None
        io.args, io.kwargs = tuple(filled[:count]), dict(zip(names, filled[count:], strict=True))

    return [values[place].detach() for place in places], fill


def _fill_nothing(io: LayerIO, tensors: tuple[Tensor, ...]) -> None:
    pass


def _fill_input(io: LayerIO, tensors: tuple[Tensor, ...]) -> None:
    io.input = tensors[0]


def _first_tensor(value: Any) -> Tensor | None:
    """The first tensor with at least one dimension in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return value if value.dim() else None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((found for item in value if (found := _first_tensor(item)) is not None), None)
    return None


_PLAIN = nullcontext()


def _plainly(grad: Tensor) -> Any:
    """No graph of the engine's own products, and no autocast: sums must not be made in half precision because
    `backward()` was called inside an autocast block. Nothing to do in an ordinary backward, and nothing is done."""
    kind = grad.device.type
    autocast = torch.is_autocast_enabled(kind)
    if not autocast and not torch.is_grad_enabled():
        return _PLAIN
    stack = ExitStack()
    stack.enter_context(torch.no_grad())
    if autocast:
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack
