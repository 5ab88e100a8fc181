"""One observed forward and backward: installs the taps, assembles each parameter's uses, feeds the observers.

A parameter that is used several times (tied tables, a layer called twice) is complete when autograd has made its own
gradient: a hook on the parameter fires exactly then, whatever the uses were. Observers that are linear in the gradient
need not wait and see each use as it comes, so that a tied output head's gradient is not held through the backward.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ghostgrad.forms import Dense, ExampleGradient
from ghostgrad.observers import Observer
from ghostgrad.positions import Layout
from ghostgrad.replay import Moment, tensors_in
from ghostgrad.rules import LayerIO, NotFinite, UnsupportedLayer
from ghostgrad.tap import Tap, inside_backward, is_rule_at_work, rule_at_work
from ghostgrad.verifying import (
    Arrived,
    Boundary,
    arrived,
    fault_of,
    hooked,
    listener,
    owner_of,
    random_state,
    row_weights,
    set_random_state,
)

if TYPE_CHECKING:
    from ghostgrad.engine import GradientEngine, Site


Fill = Callable[[LayerIO, tuple[Tensor, ...]], None]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]


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
        self.signalled: set[str] = set() if probing else {n for n in self.active if engine.parameters[n].requires_grad}
        self.uses: Counter[str] = Counter()
        self.stack = ExitStack()
        self.probing = probing
        self.melted: list[str] = []
        """Frozen parameters that take part in this pass, so that autograd makes their gradients to compare with."""
        if frozen:
            some = next(iter(engine.parameters.values()))
            self.anchor = torch.zeros((), device=some.device, requires_grad=True)
        self.piecewise = [observer for observer in observers if not observer.whole]
        self.whole = [observer for observer in observers if observer.whole]
        self.verifying = bool(engine.verification.level) and not engine.verification.forms
        self.forms: set[Form] = set()
        self.expanding, self.expanded = True, set[str]()
        self.skipping = set(engine.verification.without_rows)
        """Parameters of which no rule was asked when the pass began; a checkpoint must tap the same layers again."""
        self.references: dict[str, Tensor] = {}
        self.weights: Tensor | None = None
        self.alone: dict[str, ExampleGradient] = {}
        """Gradients that were made one example at a time."""
        self.looked = not probing
        self.pieces: dict[str, ExampleGradient] = {}
        self.complete: set[str] = set()
        self.delivered = False
        self.faults: dict[str, str] = {}
        self.nonzero: set[str] = set()
        self.rounding: dict[str, float] = {}
        self.selected = selected
        self.layouts: dict[str, Layout] = {}
        self.layout: Layout | None = None
        unknown = sorted(set(selected) - {name for name, _ in engine.model.named_modules()}) if selected else []
        if unknown:
            raise ValueError(f"`selected` names what is no module of the model: {unknown}")
        if examples is not None:
            self._start(examples)
        for observer in observers:
            observer.begin(engine.parameters)

    def _start(self, examples: int | Tensor, axes: int | None = None, length: int | None = None) -> None:
        sums = self.engine.verification.level == "sums"
        if isinstance(examples, int):
            self.layout = Layout(examples, axes=axes, length=length, only_sums=sums)
        else:
            # The only wait for the device: the number of examples must be known to size the results.
            count = int(examples.max()) + 1 if examples.numel() else 0
            self.layout = Layout(count, examples, only_sums=sums)
        count = self.layout.examples
        self.layouts = {name: Layout(count, index, only_sums=sums) for name, index in self.selected.items()}

    @contextmanager
    def installed(self) -> Generator[None]:
        """Hooks in place inside the block, and gone after it, also when it raises."""
        active = set(self.active)
        active -= self.engine.verification.without_rows.keys()
        with self.stack as stack:
            stack.callback(self._shield())
            stack.callback(self.engine.model.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
            for site in self.engine.sites:
                wanted = {own: name for own, name in site.parameters.items() if name in active}
                if wanted:
                    own = site if len(wanted) == len(site.parameters) else replace(site, parameters=wanted)
                    stack.callback(self._install(own))
            stack.callback(self.engine.model.register_forward_hook(self._leave).remove)
            self.hooked: set[str] = set()
            if self.whole or self.verifying:
                self._hook(self.signalled)
            yield

    def _shield(self) -> Callable[[], None]:
        """Lets the model be called again where it fails on what the engine expanded for it.

        A layer whose result is computed once for all examples is expanded to one per example. A model that repeats the
        result itself fails on that (DeBERTa). Nothing has been changed by then but the random state.
        """
        model, verification = self.engine.model, self.engine.verification
        own, forward = vars(model).get("forward"), model.forward

        @wraps(forward)
        def called(*args: Any, **kwargs: Any) -> Any:
            if is_rule_at_work() or not torch.is_grad_enabled() or inside_backward():
                return forward(*args, **kwargs)
            before = random_state(self.engine.parameters.values())
            try:
                return forward(*args, **kwargs)
            except Exception:
                if not self.expanded:
                    raise
                self._forget()
                self.expanding = False
                set_random_state(before)
                found = forward(*args, **kwargs)  # and if that fails too, the fault is another
                faults = dict.fromkeys(self.expanded, "it is computed once for all examples, and repeated by the model")
                if verification.unsupported == "raise":
                    raise UnsupportedLayer(self.engine.explained(faults)) from None
                self._take_out(faults)
                self._forget()
                self.expanding = True
                set_random_state(before)
                del found
            return forward(*args, **kwargs)

        model.forward = called  # type: ignore[method-assign]
        return lambda: setattr(model, "forward", own) if own is not None else delattr(model, "forward")

    def _take_out(self, faults: dict[str, str]) -> None:
        self.engine.verification.take_out(faults)
        self.skipping |= faults.keys()

    def _forget(self) -> None:
        """The forward pass under way did not happen."""
        self.uses.clear()
        self.forms.clear()
        self.expanded.clear()

    def _hook(self, names: Collection[str]) -> None:
        for name in sorted(set(names) - self.hooked):
            parameter = self.engine.parameters[name]
            self.stack.callback(hooked(parameter, lambda grad, name=name: self._completed(name, grad)))
            self.hooked.add(name)

    def backward(self, loss: Tensor) -> None:
        """Runs the backward pass of a probe: contributions alone, and parameters' own gradients only to verify them."""
        assert self.anchor is not None  # a probe has one
        compared = [self.engine.parameters[name] for name in sorted(self.signalled)] if self.verifying else []
        torch.autograd.grad(loss, [self.anchor, *compared], allow_unused=True)

    def _install(self, site: Site) -> Any:
        if site.entry.again:
            return self._install_with_moments(site)
        if site.entry.method == "forward":

            def hook(module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
                return self._tapped(site, args, kwargs, output)

            return site.module.register_forward_hook(hook, with_kwargs=True).remove
        method = getattr(site.module, site.entry.method)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return self._tapped(site, args, kwargs, method(*args, **kwargs))

        setattr(site.module, site.entry.method, wrapped)
        return lambda: delattr(site.module, site.entry.method)

    def _install_with_moments(self, site: Site) -> Any:
        """Taps every tensor that the layer gives, and keeps what a call that gives the same again needs."""
        device = next(site.module.parameters()).device
        moments: list[Moment] = []

        def before(module: nn.Module, args: Args) -> None:
            if not is_rule_at_work():
                moments[:] = [Moment(device)]

        def after(module: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
            if is_rule_at_work():
                return output
            (moment,) = moments
            moment.over()
            places = {id(tensor): place for place, tensor in enumerate(tensors_in(output))}
            if not places:
                fault = f"its output, a {type(output).__name__}, holds no tensor"
                self._take_out(dict.fromkeys(site.parameters.values(), fault))
                return output

            def tapped(leaf: Any) -> Any:
                if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or not leaf.dim():
                    return leaf
                return self._tapped(site, args, kwargs, leaf, moment, places[id(leaf)])

            return tree_map(tapped, output)

        handles = [site.module.register_forward_pre_hook(before, prepend=True)]
        handles.append(site.module.register_forward_hook(after, with_kwargs=True))
        return lambda: [handle.remove() for handle in handles]

    def _enter(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Learns the number of examples from the model's own input."""
        if is_rule_at_work() or not torch.is_grad_enabled() or inside_backward():
            return
        if self.delivered:
            raise RuntimeError("a second forward after the backward: open one observe() per micro-batch")
        if self.layout is None:
            first = _first_tensor((args, kwargs))
            if first is None:
                raise ValueError("the model's input holds no tensor; pass `examples` to observe()")
            self._start(first.shape[0], first.dim(), first.shape[1] if first.dim() > 1 else None)
        self._melt()

    def _melt(self) -> None:
        """Lets frozen parameters require a gradient until the end of the block, where that is needed to verify them or
        to differentiate them one example at a time."""
        verification, compared = self.engine.verification, self._compared()
        if self.anchor is None or self.melted:
            return
        due = verification.level and (self.probing or any(map(verification.is_due, compared)) or verification.pending)
        for name in self.active if due else verification.by_autograd:
            parameter = self.engine.parameters[name]
            if parameter.requires_grad or not parameter.is_floating_point() or name not in self.active:
                continue
            if name not in compared and name not in verification.by_autograd:
                continue
            parameter.requires_grad_(True)
            self.melted.append(name)
            self.stack.callback(parameter.requires_grad_, False)
            if not self.probing:  # the caller's backward must leave no gradient behind
                self.stack.callback(setattr, parameter, "grad", parameter.grad)
                parameter.grad = None
                drop = parameter.register_post_accumulate_grad_hook(_forget_gradient)
                self.stack.callback(drop.remove)

    def _compared(self) -> list[str]:
        """Names whose gradients autograd can be asked for."""
        return [name for name in self.active if name not in self.engine.unlike_autograd]

    def _leave(self, module: nn.Module, args: Args, output: Any) -> Any:
        """Passes what the model gives through a boundary, in a pass that is verified or has rows to be made alone."""
        if is_rule_at_work() or not torch.is_grad_enabled() or inside_backward():
            return None
        verification = self.engine.verification
        self.verifying = verification.needed(self.forms, self._compared())
        signalled = {name for name in self._compared() if self.engine.parameters[name].requires_grad}
        verification.pending = self.verifying and not self.melted and len(signalled) < len(self._compared())
        if self.verifying:
            self.signalled |= signalled
        self.signalled |= signalled & verification.summed.keys()
        if self.whole or self.verifying or verification.summed:
            self._hook(self.signalled)
        names = [name for name in self.active if name in verification.alone]
        if not names and not (self.verifying and verification.level == "rows"):
            return None
        leaves, structure = tree_flatten(output)
        places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
        raw = [leaves[place] for place in places]
        if not raw:
            return None
        found = Boundary.apply(partial(self._arrived, raw), self.anchor, *raw)
        for place, tensor in zip(places, found if isinstance(found, tuple) else [found], strict=True):
            leaves[place] = tensor
        return tree_unflatten(leaves, structure)

    def _arrived(self, outputs: list[Tensor], grads: tuple[Tensor | None, ...]) -> None:
        """Compares, and makes rows alone, while the graph is whole: before the backward pass enters the model."""
        assert self.layout is not None
        self.delivered = True
        verification, compared = self.engine.verification, sorted(self.signalled)
        parameters = [self.engine.parameters[name] for name in compared]
        indices = [*self.selected.values(), *([] if self.layout.index is None else [self.layout.index])]
        with _plainly(next(grad for grad in grads if grad is not None)):
            ends = arrived(outputs, grads, self.layout, indices, parameters)
            if ends is None:
                verification.notes["rows of the model's output"] += 1
                if self.engine.verification.alone:
                    raise UnsupportedLayer(
                        f"gradients of {', '.join(verification.alone)} are made one example at a time, from the output "
                        "of the model, whose rows cannot be told: compute the loss outside the model, from an output "
                        "with one row per example"
                    )
                return
            if self.verifying and verification.level == "rows":
                self.weights = row_weights(ends.examples, ends.grads[0])
                for name, found in zip(compared, ends.weighted(self.weights, parameters), strict=True):
                    if found is not None:
                        earlier = self.references.get(name)
                        self.references[name] = found if earlier is None else earlier + found
                if verification.unsupported != "raise":
                    self._rehearse(ends, dict(zip(compared, parameters, strict=True)))
            self._make_alone(ends)

    def _rehearse(self, ends: Arrived, parameters: Mapping[str, nn.Parameter]) -> None:
        """Runs the backward pass for nobody but the verification, and takes out what is wrong in it."""
        rehearsal = Rehearsal(self)
        ends.rehearse(parameters, rehearsal)
        unseen = {n for n, found in self.references.items() if n not in rehearsal.seen and bool(found.any())}
        faults = rehearsal.faults | {name: "it was not seen" for name in unseen}
        self.engine.verification.take_out({name: faults[name] for name in parameters if name in faults})

    def _make_alone(self, ends: Arrived) -> None:
        names = [n for n in self.active if n in self.engine.verification.alone]
        parameters = [self.engine.parameters[name] for name in names]
        missing = [name for name, p in zip(names, parameters, strict=True) if not p.requires_grad]
        if missing:
            raise UnsupportedLayer(f"frozen parameters of which autograd makes no gradient: {', '.join(missing)}")
        for name, rows in zip(names, ends.rows(parameters) if names else [], strict=True):
            self.pieces.pop(name, None)
            earlier = self.alone.get(name)
            self.alone[name] = Dense(rows) if earlier is None else earlier.merge(Dense(rows))

    def _tapped(
        self, site: Site, args: Args, kwargs: Kwargs, output: Any, moment: Moment | None = None, place: int = 0
    ) -> Any:
        if is_rule_at_work() or not torch.is_grad_enabled():
            return output
        if self.skipping and self.skipping.issuperset(site.parameters.values()):
            return output
        if not isinstance(output, Tensor):
            fault = f"its output is a {type(output).__name__}, not one tensor"
            if self.engine.verification.unsupported == "raise":
                raise UnsupportedLayer(f"{site.name}: {fault}")
            self._take_out(dict.fromkeys(site.parameters.values(), fault))
            return output
        if self.anchor is None and not output.requires_grad:
            return output
        layout = self.layouts.get(site.name, self.layout)
        if layout is None:
            raise RuntimeError("call the model that was given to the engine, or pass `examples` to observe()")
        if not inside_backward():
            self.forms.add(_form(site.name, output.shape, layout))
            self.uses.update(site.parameters.values())
        if output.shape[0] == 1 != layout.leading and not layout.only_sums:
            # Computed once for all examples (position embeddings): each must get a gradient of its own.
            self.expanded |= set(site.parameters.values())
            if self.expanding:
                output = output.expand(layout.leading, *output.shape[1:])
        kept, fill = _kept(site.entry.keep(site.parameters), args, kwargs)

        def deliver(grad_output: Tensor, tensors: tuple[Tensor, ...]) -> None:
            listens = listener(self)
            if getattr(listens, "observation", listens) is not self:
                return  # the pass is of another's making
            io = LayerIO(None, grad_output, layout, site.parameters, moment=moment, place=place)
            fill(io, tensors)
            with _plainly(grad_output):
                listens.deliver(site, io)

        return Tap.apply(output, deliver, self.anchor, *kept)

    def deliver(self, site: Site, io: LayerIO) -> None:
        """The gradient of one call's output has come."""
        self.delivered = True
        self._look(io)
        skipped = self.engine.verification.without_rows
        if skipped and all(name in skipped for name in site.parameters.values()):
            return
        try:
            gradients = self.ruled(site, io)
        except ValueError as error:
            raise UnsupportedLayer(f"{site.name} ({type(site.module).__name__}): {error}") from error
        for own, gradient in gradients.items():
            name = site.parameters.get(own)
            if name is None or name in skipped:
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

    def ruled(self, site: Site, io: LayerIO) -> dict[str, ExampleGradient]:
        with rule_at_work():
            return site.entry.rule(site.module, io)

    def _look(self, io: LayerIO) -> None:
        """Refuses rows of which the loss is not a number, at the layer that the gradient of a probe reaches first."""
        if self.looked:
            return
        self.looked = True
        grad = io.grad_output
        if bool(torch.isfinite(grad).all()):
            return
        owner = owner_of(grad, io.layout, [] if io.layout.index is None else [io.layout.index])
        found = [] if owner is None else owner.expand_as(grad)[~torch.isfinite(grad)].unique().tolist()
        raise NotFinite(found)

    def _completed(self, name: str, grad: Tensor) -> None:
        """Autograd has summed all uses of a parameter: so have we."""
        with _plainly(grad):
            if name in self.engine.verification.summed:
                self._correct(name, grad)
            elif self.verifying and name not in self.engine.unlike_autograd:
                self._judge(name, self.alone.get(name, self.pieces.get(name)), grad)
            if name in self.pieces:
                self._show(name)

    def _correct(self, name: str, grad: Tensor) -> None:
        """Adds what is missing from the sum of the rows to the first of them."""
        assert self.layout is not None
        self.delivered = True
        made = self.pieces.get(name)
        rows = grad.new_zeros(self.layout.examples, *grad.shape)
        rows[0] = grad if made is None else grad - made.sum()
        for observer in self.piecewise:
            observer.see(name, Dense(rows))
        self.pieces[name] = Dense(rows) if made is None else made.merge(Dense(rows))

    def _judge(self, name: str, made: ExampleGradient | None, grad: Tensor) -> None:
        if grad.any():
            self.nonzero.add(name)
        if name not in self.engine.verification.left_out:
            rounding = self.rounding.get(name, 0.0)
            fault = fault_of(made, grad, self.references.get(name), self.weights, rounding)
            if fault is None and self.weights is not None and name in self.nonzero and name not in self.references:
                fault = UNREACHED
            if fault and self.engine.verification.only_sums:
                self.engine.verification.summed[name] = fault
                self._correct(name, grad)
            elif fault:
                self.faults[name] = fault

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
            RuntimeError: a forward without backward.
            UnsupportedLayer: contributions that are not the rows' own.
        """
        for name in [name for name in self.pieces if name not in self.signalled]:
            with _plainly(self.engine.parameters[name]):
                self._show(name)
        for name, gradient in self.alone.items():
            with _plainly(self.engine.parameters[name]):
                for observer in [*self.piecewise, *self.whole]:
                    observer.see(name, gradient)
        if not self.delivered:
            raise RuntimeError("observe() saw no backward pass: run forward and backward inside it")
        if self.faults:
            raise UnsupportedLayer(self.engine.explained(self.faults))
        verification = self.engine.verification
        if self.verifying:
            verification.settle(self.forms)
            verification.seen(sorted(self.signalled), self.nonzero)
        verification.passed()


@dataclass
class Rehearsal:
    """A backward pass before the caller's: which parameters' rows would be wrong in it."""

    observation: Observation
    pieces: dict[str, ExampleGradient] = field(default_factory=dict[str, ExampleGradient])
    rounding: dict[str, float] = field(default_factory=dict[str, float])
    faults: dict[str, str] = field(default_factory=dict[str, str])
    seen: set[str] = field(default_factory=set[str])

    def deliver(self, site: Site, io: LayerIO) -> None:
        """The gradient of one call's output has come."""
        names = set(site.parameters.values()) - self.observation.engine.verification.without_rows.keys()
        if names <= self.faults.keys():
            return
        try:
            gradients = self.observation.ruled(site, io)
        except Exception as error:  # whatever a rule fails with here, it would fail with in the pass itself
            self.faults |= dict.fromkeys(names, f"{type(site.module).__name__}: {error}")
            return
        for own, gradient in gradients.items():
            name = site.parameters.get(own)
            if name in names and name not in self.faults:
                earlier = self.pieces.get(name)
                self.pieces[name] = gradient if earlier is None else earlier.merge(gradient)
                self.rounding[name] = self.rounding.get(name, 0.0) + _rounding(io.grad_output)

    def completed(self, name: str, grad: Tensor) -> None:
        """All contributions to a parameter's gradient have come."""
        self.seen.add(name)
        made, observation = self.pieces.pop(name, None), self.observation
        if name not in self.faults | observation.engine.verification.without_rows:
            reference, rounding = observation.references.get(name), self.rounding.get(name, 0.0)
            if fault := fault_of(made, grad, reference, observation.weights, rounding):
                self.faults[name] = fault


UNREACHED = (
    "its rows cannot be compared, because a reentrant activation checkpoint hides it from the model's output: pass "
    "use_reentrant=False to the checkpoint"
)

Form = tuple[Any, ...]


def _form(name: str, shape: tuple[int, ...], layout: Layout) -> Form:
    """What the assignment of a call's positions to examples rests on. A form that was verified once holds in every
    batch: where a leading size happens to be the number of examples it is another form."""
    rows, index = layout.leading, layout.index
    if index is not None:
        return (name, rows == 1, *(shape[n : n + 1] == index.shape[-1:] for n in range(3)), shape[0] == rows)
    flags = (name, rows == 1, rows == layout.length)
    if shape[0] in (1, rows):
        return (*flags, "shared" if shape[0] == 1 != rows else "examples")
    # The length of the batch may differ from step to step, and what is known of [B * T] holds for each.
    return (*flags, "length" if shape[0] == rows * (layout.length or 0) else shape[0] / max(1, rows))


def _rounding(grad_output: Tensor) -> float:
    """How far sums over the positions of a layer may differ by rounding alone: all there is of the gradient of a bias
    that moves nothing, such as one in front of a softmax over positions."""
    precise = torch.promote_types(grad_output.dtype, torch.float32)
    size = torch.linalg.vector_norm(grad_output.detach(), dtype=precise)
    return float(torch.finfo(precise).eps * grad_output[..., 0].numel() ** 0.5 * size)


def _kept(keep: str, args: Args, kwargs: Kwargs) -> tuple[list[Tensor], Fill]:
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


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


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
