"""Which layer yields which form: rules, and the registry the engine looks them up in.

A rule is a function `(module, io) -> {parameter name: ExampleGradient}`; names are relative to the module. It is
registered by class, or by qualified class name for classes of packages that ghostgrad must not import:

    @RULES.register("somewhere.layers.Scale")
    def scale(module, io):
        return {"weight": Dense(io.total(io.grad_output * io.input))}

`ghostgrad.testing.check_rule(Scale(8), torch.randn(4, 5, 8))` compares every operation of what a rule returns with one
backward pass per example.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ghostgrad.forms import ExampleGradient, widen
from ghostgrad.positions import Layout, Positions


@dataclass(slots=True)
class LayerIO:
    """What one call of a layer saw: its first tensor, `grad_output` [B, ..., d] (the gradient of its output, in the
    output's shape), and whose positions they are.

    `input` is None and `args`, `kwargs` are empty unless the rule was registered to keep them. Under autocast `input`
    may be wider than `grad_output`; a rule that multiplies them casts as the layer did. `wanted` holds the names of the
    parameters that are observed; a rule may leave out the others.
    """

    input: Any
    grad_output: Tensor
    layout: Layout
    wanted: Collection[str] = ()
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    moment: Any = None
    """`ghostgrad.replay.Moment` of the call, for rules that call their layer again."""
    place: int = 0
    """Which tensor of the layer's output `grad_output` is of, where it has several."""

    def positions(self, feature_axes: int = 1) -> Positions:
        """Positions of `grad_output`, whose last `feature_axes` dimensions are features."""
        shape = self.grad_output.shape
        return self.layout.positions(shape[: len(shape) - feature_axes])

    def per_position(self, values: Tensor) -> Tensor:
        """`values` [B, ..., d] as [N, d]; a leading 1 that the layer shared between examples is expanded."""
        leading = self.grad_output.shape[0]
        if values.shape[0] == 1 != leading:
            values = values.expand(leading, *values.shape[1:])
        return values.reshape(-1, values.shape[-1])

    def total(self, values: Tensor) -> Tensor:
        """Sum of `values` [B, ..., d] over each example's positions, in at least float32: [B, d]."""
        return self.positions().total(self.per_position(widen(values)))


Rule = Callable[[Any, LayerIO], dict[str, ExampleGradient]]
Keep = Callable[[Collection[str]], str]
Owns = Callable[[nn.Module], tuple[str, ...]]


@dataclass(frozen=True)
class Entry:
    """A rule and how its layer is tapped.

    `keep` says what backward needs to have the wanted parameters: "input" (the first tensor), "arguments" (all tensors
    passed), or "nothing"; `method` is the method whose output is tapped; `owns` names parameters of children that the
    rule answers for in place of their own; `like_autograd` says whether the rule gives autograd's gradient of the
    parameter, with which it can be compared, or a quantity of its own.
    """

    rule: Rule
    keep: Keep
    method: str = "forward"
    owns: Owns = lambda module: ()
    like_autograd: Callable[[Any], bool] = lambda module: True
    again: bool = False
    """Whether the rule calls its layer again, whatever that gives: its output may hold several tensors."""


class UnsupportedLayer(ValueError):
    """A trainable parameter has no rule, or a layer is used in a way no rule can be exact for."""


class NotFinite(ArithmeticError):
    """Rows whose loss is not a number, or infinite: they have no gradient. `rows` holds their places in the batch."""

    def __init__(self, rows: Sequence[int]):
        self.rows = list(rows)
        which = f"rows {', '.join(map(str, rows))} of the batch have" if rows else "a row of the batch has"
        super().__init__(f"{which} a gradient that is not finite: look at the loss of each")


class RuleRegistry:
    """Rules by class or by qualified class name."""

    def __init__(self) -> None:
        self._entries: dict[type | str, Entry] = {}
        self._families: list[tuple[Callable[[nn.Module], bool], Entry]] = []

    def register(
        self,
        *layers: type | str,
        keep: str | Keep = "input",
        method: str = "forward",
        owns: Owns = lambda module: (),
    ) -> Callable[[Rule], Rule]:
        """A decorator that files a rule under the given classes or qualified class names; a later rule wins."""

        chosen = _chooser(keep)

        def file(rule: Rule) -> Rule:
            self._entries.update(dict.fromkeys(layers, Entry(rule, chosen, method, owns)))
            return rule

        return file

    def register_family(
        self,
        belongs: Callable[[nn.Module], bool],
        *,
        keep: str | Keep = "input",
        owns: Owns = lambda module: (),
        like_autograd: Callable[[Any], bool] = lambda module: True,
    ) -> Callable[[Rule], Rule]:
        """As `register`, for every module of which `belongs` says yes and that has no rule by class."""

        def file(rule: Rule) -> Rule:
            self._families.append((belongs, Entry(rule, _chooser(keep), owns=owns, like_autograd=like_autograd)))
            return rule

        return file

    def find(self, module: nn.Module) -> Entry | None:
        """The entry for `module`; None where there is none.

        A rule of a base class holds for a subclass only while the subclass keeps the tapped method, since what else
        it computes cannot be known.
        """
        kind = type(module)
        for base in kind.__mro__:
            entry = self._entries.get(base) or self._entries.get(f"{base.__module__}.{base.__qualname__}")
            if entry is not None:
                if getattr(kind, entry.method, None) is getattr(base, entry.method, None):
                    return entry
                break
        return next((entry for belongs, entry in self._families if belongs(module)), None)

    def copy(self) -> RuleRegistry:
        """A registry with the same rules, to add to without touching this one."""
        twin = RuleRegistry()
        twin._entries, twin._families = dict(self._entries), list(self._families)
        return twin


def _chooser(keep: str | Keep) -> Keep:
    if callable(keep):
        return keep
    if keep not in ("input", "arguments", "nothing"):
        raise ValueError(f'keep is {keep!r}; accepted are "input", "arguments", "nothing" or a function of the module')
    return lambda module: keep


def own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that `module` itself uses: its own, those in its parameter dicts and lists, and those its weights are
    made of (`torch.nn.utils.parametrize`)."""
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    for name, child in module.named_children():
        if isinstance(child, nn.ParameterDict | nn.ParameterList):
            for key, parameter in child.named_parameters(recurse=False, remove_duplicate=False):
                yield f"{name}.{key}", parameter
    if is_parametrized(module):
        made_of: Any = module.parametrizations
        for key, parameter in made_of.named_parameters(remove_duplicate=False):
            yield f"parametrizations.{key}", parameter


def makes_its_weights(module: nn.Module) -> bool:
    """Whether a weight of the module is made of other parameters for each call, so that a rule of its class has no say:
    parametrizations, and weight norms of before there were any."""
    return is_parametrized(module) or any(
        getattr(type(hook), "compute_weight", None)
        for hook in module._forward_pre_hooks.values()  # pyright: ignore[reportPrivateUsage]
    )


RULES = RuleRegistry()
"""The rules that ship with ghostgrad; `ghostgrad.layers` fills it."""
