"""The gradient engine: shows every parameter's per-example gradient to observers during an ordinary backward pass.

    engine = GradientEngine(model)
    norms = Norms()
    with engine.observe(norms):
        loss(model(**batch)).backward()
    norms.total()                                        # [B]

A row's gradient is that row's contribution to whatever was differentiated: for a mean over N tokens each row carries
the divisor N, and the contributions add up to `p.grad`. The divisor is the caller's.

Each layer is tapped where it gives its output (`ghostgrad.tap`). Nothing is kept on modules, no `requires_grad` is
touched, and after the `with` block the model is as it was. This file knows rules and observers, not layer types.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # pyright: ignore[reportPrivateUsage]

from ghostgrad.layers import exact
from ghostgrad.observation import Observation
from ghostgrad.observers import Observer
from ghostgrad.rules import RULES, Entry, RuleRegistry, UnsupportedLayer, makes_its_weights, own_parameters
from ghostgrad.verifying import Verification

Select = Callable[[str, nn.Parameter], bool] | Sequence[str]


def TRAINABLE(name: str, parameter: nn.Parameter) -> bool:
    """Selects every parameter that requires a gradient."""
    return parameter.requires_grad


@dataclass(frozen=True)
class Site:
    """A module whose output is tapped, its rule, and the model-wide name of each parameter the rule answers for."""

    name: str
    module: nn.Module
    entry: Entry
    parameters: Mapping[str, str]


class GradientEngine:
    """Per-example gradients of the selected parameters of `model`.

    Args:
        model: any module; its forward's first tensor has one row per example.
        select: which parameters; a function of name and parameter, or name patterns (`fnmatch`), each of which must
            match. A tied parameter goes by the first of its names.
        rules: the layer rules.
        unsupported: "raise" where a selected parameter has no rule; "exact" to call its module again and differentiate
            that call once per example, slower and never wrong; "leave_out" to show the others only.
        verify: in the first pass, and in a later one with calls of another form, compare what the rows add up to, as
            they are and under weights, with autograd's own gradient, and raise with the names of the parameters
            that differ. With `unsupported="exact"` these are differentiated one example at a time from then on. Costs
            one more backward pass, or two with "exact". "sums" leaves out the weights and the pass, for observers that
            only add rows up, to which it does not matter whose a position is; False verifies nothing.
        together: of several processes that share parts of the model out (FSDP), whether any of them says yes: each
            must then make as many backward passes as the others, so that all verify a pass, or none.

    Attributes:
        parameters: those that are shown, by name.
        exact: names of those that have no rule and are differentiated one example at a time.
        left_out: those that have no rule and are not shown, by name; what a first pass finds besides stands in
            `verification.left_out`.

    Raises:
        UnsupportedLayer: selected parameters without a rule, all of them named, or sharded ones; a compiled model.
        ValueError: a pattern that matches nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        select: Select = TRAINABLE,
        rules: RuleRegistry = RULES,
        unsupported: str = "raise",
        verify: bool | Literal["sums"] = True,
        together: Callable[[bool], bool] | None = None,
    ):
        if unsupported not in ("raise", "exact", "leave_out"):
            raise ValueError(f'unsupported is {unsupported!r}; accepted are "raise", "exact" and "leave_out"')
        self.model = model
        selected = _selected(model, select)
        _refuse_compiled_or_sharded(model, selected)
        level = "sums" if verify == "sums" else "rows" if verify else None
        self.verification = Verification(level, unsupported, together)
        self.mixing = [(path, m) for path, m in model.named_modules() if isinstance(m, BatchNorm)]
        self.sites, without = _sites(model, selected, rules)
        uncalled = _uncalled(selected, [*self.sites, *without])
        if unsupported == "exact":
            self.sites, without = [*self.sites, *without], []
        if unsupported != "leave_out" and (without or uncalled):
            raise UnsupportedLayer(_missing(without, uncalled))
        names = {*uncalled, *(name for site in without for name in site.parameters.values())}
        self.left_out = {name: parameter for name, parameter in selected.items() if name in names}
        self.parameters = {name: parameter for name, parameter in selected.items() if name not in names}
        self.exact = [name for site in self.sites if site.entry is exact.ENTRY for name in site.parameters.values()]
        self.unlike_autograd = {
            name
            for site in self.sites
            if not site.entry.like_autograd(site.module)
            for name in site.parameters.values()
        }

    @property
    def unseen(self) -> set[str]:
        """Names of selected parameters that observers are not shown: without a rule, or found wrong in a first pass."""
        return {*self.left_out, *self.verification.left_out}

    @contextmanager
    def observe(
        self,
        *observers: Observer,
        examples: int | Tensor | None = None,
        selected: Mapping[str, Tensor] | None = None,
        frozen: bool = False,
    ) -> Generator[None]:
        """Observe one forward and its backward; without observers nothing is installed.

        Args:
            observers: what to compute; all share one set of taps. Each is reset here and holds its result afterwards.
            examples: the number of examples, where it is not the leading dimension of the model's first tensor, or
                for packed rows [R, T] (the leading dimensions) the example (0, 1, ...) of each position, -1 for
                positions that belong to none.
            selected: for layers that see chosen positions only, [N, d]: module name to the example of each, [N].
                Verification needs that of the last one too, where no parameter of it is selected.
            frozen: also observe selected parameters that are frozen now, such as the weight below an adapter; their
                gradient is not made for the optimizer. The backward then reaches down to the lowest of them.

        Raises:
            UnsupportedLayer: a layer whose output cannot be assigned to examples, or that mixes them; a failed
                verification.
            RuntimeError: a second forward after the backward, or no backward at all.
        """
        if not observers or not self.sites:
            for observer in observers:
                observer.begin(self.parameters)
            yield
            return
        _refuse_mixing(self.mixing)
        observation = Observation(self, observers, examples, selected or {}, frozen)
        with observation.installed():
            yield
        observation.close()

    @contextmanager
    def probe(
        self,
        *observers: Observer,
        examples: int | Tensor | None = None,
        selected: Mapping[str, Tensor] | None = None,
    ) -> Generator[Callable[[Tensor], None]]:
        """Observe without a training step: yields what to call with the loss [] in place of `loss.backward()`.

        The backward stops at the lowest selected layer and makes no parameter's own gradient, so that it costs less
        than a training step; `p.grad` is not touched, and selected parameters may be frozen. `examples` [R, T],
        `selected` [N] by module name, and errors are those of `observe`; there must be an observer. In a pass that is
        verified parameters' gradients are made too.

        Raises:
            NotFinite: rows whose gradient is not finite, by their places in the batch.
        """
        if not observers:
            raise ValueError("probe() without observers computes nothing")
        _refuse_mixing(self.mixing)
        observation = Observation(self, observers, examples, selected or {}, frozen=True, probing=True)
        with observation.installed():
            yield observation.backward
        observation.close()

    def explained(self, faults: Mapping[str, str]) -> str:
        """What to read where the rows' gradients of these parameters are not theirs."""
        owners = {name: site for site in self.sites for name in site.parameters.values()}
        lines = [
            f"  {owners[name].name or '(the model itself)'}: {_qualified(owners[name].module)} ({name}): {fault}"
            if name in owners
            else f"  {name}: {fault}"
            for name, fault in faults.items()
        ]
        remedy = 'Pass unsupported="exact" to differentiate such parameters one example at a time'
        if self.verification.unsupported == "exact":
            remedy = (
                "They would be differentiated one example at a time from an output of the model with one row per "
                "example: compute the loss outside the model"
            )
        return (
            f"the gradients of single rows are not right for {len(faults)} parameters:\n"
            + "\n".join(lines)
            + "\nThe parameter is used outside its module's call, its rows are not in the order of the model's, "
            f"or its rule is wrong. {remedy}, leave them out with `select`, or freeze them."
        )


def _selected(model: nn.Module, select: Select) -> dict[str, nn.Parameter]:
    named = dict(model.named_parameters())
    if callable(select):
        return {name: parameter for name, parameter in named.items() if select(name, parameter)}
    whole = {name for name in select if name in named}  # of a list of names each would be compared with each
    patterns = [pattern for pattern in select if pattern not in whole]
    unmatched = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in named)]
    if unmatched:
        raise ValueError(f"patterns that match no parameter: {unmatched}; names look like {list(named)[:3]}")
    return {n: p for n, p in named.items() if n in whole or any(fnmatchcase(n, pattern) for pattern in patterns)}


def _sites(
    model: nn.Module, selected: Mapping[str, nn.Parameter], rules: RuleRegistry
) -> tuple[list[Site], list[Site]]:
    """The modules with a rule for their selected parameters, and those without one."""
    names = {id(parameter): name for name, parameter in selected.items()}
    ruled: list[Site] = []
    without: list[Site] = []
    owned: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(module, nn.ParameterDict | nn.ParameterList) and path:
            continue  # its parent answers for it
        below = f"{path}." if path else ""
        entry = None if makes_its_weights(module) else rules.find(module)
        parameters = {own: names[id(p)] for own, p in own_parameters(module) if id(p) in names}
        parameters = {own: name for own, name in parameters.items() if below + own not in owned}
        if entry is not None and (owns := entry.owns(module)):
            children = dict(module.named_parameters())
            parameters |= {own: names[id(children[own])] for own in owns if id(children[own]) in names}
            owned |= {below + own for own in owns}
        owned |= {below + own for own in parameters if own.startswith("parametrizations.")}
        if parameters and entry is not None:
            ruled.append(Site(path, module, entry, parameters))
        elif parameters:
            without.append(Site(path, module, exact.ENTRY, parameters))
    return ruled, without


def _uncalled(selected: Mapping[str, nn.Parameter], sites: Sequence[Site]) -> list[str]:
    """Names of parameters that no module's own call uses."""
    seen = {name for site in sites for name in site.parameters.values()}
    return [name for name in selected if name not in seen]


def _missing(without: Sequence[Site], uncalled: Sequence[str]) -> str:
    lines = [
        f"  {site.name or '(the model itself)'}: {_qualified(site.module)} ({', '.join(site.parameters)})"
        for site in without
    ]
    lines += [f"  {name}: belongs to no module that is called" for name in uncalled]
    return (
        f"{len(lines)} layers with selected parameters have no per-example gradient rule:\n"
        + "\n".join(lines)
        + "\nFreeze them, leave them out with `select`, add a rule with @RULES.register, or pass "
        + 'unsupported="exact" or "leave_out".'
    )


def _qualified(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _refuse_compiled_or_sharded(model: nn.Module, selected: Mapping[str, nn.Parameter]) -> None:
    for path, module in model.named_modules():
        # Hooks added after compilation are silently not called: the gradients would come out as zeros.
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise UnsupportedLayer(f"{path or 'the model'} is compiled; give the engine the model before torch.compile")
    for name, parameter in selected.items():  # others may be: they are whole while their layer is called
        if hasattr(parameter, "device_mesh"):
            raise UnsupportedLayer(f"{name} is sharded (a DTensor); per-example gradients of shards are not supported")


def _refuse_mixing(batch_norms: Sequence[tuple[str, BatchNorm]]) -> None:
    for path, module in batch_norms:
        if module.training or module.running_mean is None:
            raise UnsupportedLayer(
                f"{path} is a {type(module).__name__} that mixes the examples of a batch: no example has a gradient of "
                "its own. Put it in eval mode or use GroupNorm."
            )
