"""Strategies: named ways to write a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from ghosttune.config.setting import Count, PhasesSettings, Section, Text, setting, strategy_name
from ghosttune.registry import STRATEGIES
from ghosttune.schedules.language import PlanError, read_plan, read_selection
from ghosttune.schedules.phases import Choice, Phase, Schedule, scheduled

Boundary = Count | Annotated[str, Field(pattern=r"^\d+(\.\d+)?%$")]
"""An update, or a per cent of the run."""

MOST_PHASES = 10_000
"""A table with more rows than this tells nobody anything."""


class NoPhases(PhasesSettings):
    strategy: Literal["none"] = strategy_name("none")
    """How the phases are found (`ghosttune show strategies`); none: everything trains in every update."""


class Phased(PhasesSettings):
    """What every strategy with phases has."""

    optimizer_state: Annotated[str, Field(pattern=r"^(keep|reset|rewarm [1-9]\d*)$")] = setting(
        "rewarm 10",
        why="moments from before a freeze point where the loss no longer falls",
        benefit="`rewarm` lets a group come back without a jump",
        cost="so many updates at a lower learning rate after every return",
    )
    """What becomes of Adam's state of tensors that enter with a phase: `keep`, `reset`, or `rewarm N`: reset, and the
    learning rate rises over N updates. A phase of a plan may name its own."""
    learning_rate_mass: Literal["run", "equal"] = setting(
        "run",
        why="on one falling curve late phases get a fraction of the learning rate, and look useless",
        benefit="with `equal` phases can be compared by what they did",
        cost="the last phase no longer ends as gently as a whole run does",
    )
    """`run`: one curve over the run; `equal`: each phase has a curve of its own, all of equal summed learning rate."""


class PhaseEntry(Section):
    """A phase of a plan that is written as a list."""

    train: Text
    start: Annotated[int, Field(ge=0)] | str | None = None
    end: Boundary | None = None
    lr: Annotated[float, Field(gt=0)] = 1.0
    optimizer_state: str | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> PhaseEntry:
        if self.start and str(self.end).endswith("%") and not str(self.start).endswith("%"):
            raise ValueError("start counts updates and end is per cent; leave start out where the phase before it ends")
        return self

    def __str__(self) -> str:
        options = [f"lr {self.lr:g}"] if self.lr != 1 else []
        options += [self.optimizer_state] if self.optimizer_state else []
        ends = ("" if self.start is None else self.start, "" if self.end is None else self.end)
        return " ".join([f"{self.train}@{ends[0]}-{ends[1]}", *options])


def _as_text(plan: Any) -> Any:
    """A plan given as a list, in the language; ValueError for what is no plan."""
    if isinstance(plan, list) and plan:
        try:
            plan = " > ".join(str(PhaseEntry.model_validate(entry)) for entry in plan)
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            known = ", ".join(PhaseEntry.model_fields)
            raise ValueError(f"must be a list of phases, each with {known} ({'; '.join(faults)})") from error
    if isinstance(plan, str):
        try:
            read_plan(plan)
        except PlanError as error:
            raise ValueError(f"is no plan: {error}") from error
    return plan


class Plan(Phased):
    strategy: Literal["plan"] = strategy_name("plan")
    """How the phases are found (`ghosttune show strategies`)."""
    plan: Annotated[Text, BeforeValidator(_as_text)] = setting(
        "all@0-",
        why="an order that you want to try, exactly as you mean it",
        benefit="every group, layer and learning rate of every phase is yours to say",
        cost="the updates in it fit one length of run; per cents fit any",
    )
    """The phases in order: `both@0-300 > mlp@300-600 > attention@600-`, or a list of {train, start, end, lr,
    optimizer_state}."""


class Successive(Phased):
    strategy: Literal["attn->mlp->both", "both->mlp->attn", "both->mlp->both", "early->late"] = strategy_name(
        "both->mlp->attn"
    )
    """How the phases are found (`ghosttune show strategies`)."""
    boundaries: list[Boundary] | None = setting(
        None,
        unit="optimizer updates, or per cent of the run",
        why="groups need not learn at the same speed",
        benefit="more updates for the phase that still lowers the loss",
        cost="longer for one is shorter for the others",
    )
    """Where one phase ends and the next begins; unset: phases of equal length."""


class Cycle(Phased):
    strategy: Literal["cycle"] = strategy_name("cycle")
    """How the phases are found (`ghosttune show strategies`)."""
    order: Annotated[list[Text], Field(min_length=2)] = setting(
        ["attention", "mlp"],
        why="a turn for each, over and over",
        benefit="no group waits long, as it does in one long phase",
        cost="at any time the others' progress stands still",
    )
    """What trains in turn, in the phase language."""
    period: Count = setting(
        50,
        unit="optimizer updates",
        why="how long a group keeps its turn",
        benefit="long turns let AdamW's moments settle",
        cost="short ones spend much of their time warming up again",
    )
    """Updates of each turn."""


class Lisa(Phased):
    strategy: Literal["lisa"] = strategy_name("lisa")
    """How the phases are found (`ghosttune show strategies`)."""
    layers: Count = setting(
        2,
        why="few layers at a time can still reach all of them in turn",
        benefit="fewer layers need less optimizer state and less backward",
        cost="more layers learn faster in updates, and slower in time",
    )
    """Layers that train at a time."""
    period: Count = setting(
        20,
        unit="optimizer updates",
        why="a draw of layers needs some updates to show in the loss",
        benefit="short periods give every layer its turn in a short run",
        cost="every draw starts with moments that are old or empty (`phases.optimizer_state`)",
    )
    """Updates until other layers are drawn."""


class TopDown(Phased):
    strategy: Literal["top-down"] = strategy_name("top-down")
    """How the phases are found (`ghosttune show strategies`)."""
    parts: Annotated[int, Field(ge=2)] = setting(
        4,
        why="the layers near the output answer first to a new task",
        benefit="early updates stop their backward pass high up, and are cheap",
        cost="the lowest layers train only in the last part",
    )
    """In how many parts of the layers the run unfreezes the model, and of its updates."""


class Guided(Phased):
    strategy: Literal["guided"] = strategy_name("guided")
    """How the phases are found (`ghosttune show strategies`)."""
    order: Annotated[list[Text], Field(min_length=2)] = setting(
        ["attention", "mlp"],
        why="what may be chosen among",
        benefit="a choice between few groups is easier to read afterwards",
        cost="groups that are not named are never chosen",
    )
    """Groups of modules among which each phase chooses."""
    signal: Literal["effective", "ledger"] = setting(
        "effective",
        why="effective norms say where the loss asks for change, the ledger where change has helped",
        benefit="the run itself decides what trains next, by a rule that is written down",
        cost="`ledger` needs guide rows, `effective` its measured steps",
    )
    """What decides: effective norms, or each group's share of the drop of the guide loss per update it trained."""
    period: Count = setting(
        50,
        unit="optimizer updates",
        why="a choice holds until the next look",
        benefit="long periods judge by more than the noise of a few updates",
        cost="a wrong choice lasts as long",
    )
    """Updates until the next choice; the first phase trains all groups."""


@STRATEGIES.register("none", NoPhases)
def none(settings: NoPhases, steps: int) -> None:
    """Everything trains in every update."""


@STRATEGIES.register("plan", Plan)
def plan(settings: Plan, steps: int) -> Schedule:
    """Phases as you write them."""
    return written(settings.plan, settings, steps)


@STRATEGIES.register("attn->mlp->both", Successive)
def attention_mlp_both(settings: Successive, steps: int) -> Schedule:
    """Attention first, then the MLP, then both together."""
    return successive(("attention", "mlp", "both"), settings, steps)


@STRATEGIES.register("both->mlp->attn", Successive)
def both_mlp_attention(settings: Successive, steps: int) -> Schedule:
    """Both together, then the MLP, then attention."""
    return successive(("both", "mlp", "attention"), settings, steps)


@STRATEGIES.register("both->mlp->both", Successive)
def both_mlp_both(settings: Successive, steps: int) -> Schedule:
    """Both together, the MLP alone in between, then both again."""
    return successive(("both", "mlp", "both"), settings, steps)


@STRATEGIES.register("early->late", Successive)
def early_late(settings: Successive, steps: int) -> Schedule:
    """The lower half of the layers, then the upper half."""
    return successive(("early", "late"), settings, steps)


def successive(parts: Sequence[str], settings: Successive, steps: int) -> Schedule:
    """The parts one after the other; PlanError when the boundaries do not fit them."""
    inner = settings.boundaries
    if inner is None:
        inner = [round(steps * place / len(parts)) for place in range(1, len(parts))]
    if len(inner) != len(parts) - 1:
        text = " > ".join(parts)
        raise PlanError(text, [(f"needs {len(parts) - 1} boundaries, and has {len(inner)}", (0, len(text)))])
    ends = [0, *inner, ""]
    text = " > ".join(f"{part}@{_ends(ends[place], ends[place + 1])}" for place, part in enumerate(parts))
    return written(text, settings, steps)


def _starts(first: int, steps: int, period: int) -> range:
    starts = range(first, steps, period)
    if len(starts) > MOST_PHASES:
        text = f"period {period}"
        message = f"makes {len(starts):,} phases of {steps:,} updates, and {MOST_PHASES:,} are the most; lengthen it"
        raise PlanError(text, [(message, (0, len(text)))])
    return starts


def _ends(start: int | str, end: int | str) -> str:
    """A range; an update before a per cent is left open, because a % behind a range is meant for both ends."""
    mixed = str(end).endswith("%") and not str(start).endswith("%")
    return f"{'' if mixed else start}-{end}"


@STRATEGIES.register("cycle", Cycle)
def cycle(settings: Cycle, steps: int) -> Schedule:
    """Parts of the model by turns, every so many updates."""
    return _turns(lambda turn: settings.order[turn % len(settings.order)], settings, steps, settings.period)


@STRATEGIES.register("lisa", Lisa)
def lisa(settings: Lisa, steps: int) -> Schedule:
    """A few random layers at a time, drawn anew every so many updates (Pan et al. 2024, arXiv 2403.17919)."""
    return _turns(lambda _: f"random {settings.layers}", settings, steps, settings.period)


@STRATEGIES.register("top-down", TopDown)
def top_down(settings: TopDown, steps: int) -> Schedule:
    """The top layers first, then more and more below them (Howard and Ruder 2018, arXiv 1801.06146)."""
    shares = [f"{100 * (part + 1) / settings.parts:g}%" for part in range(settings.parts)]
    text = " > ".join(
        f"top {share}@{steps * part // settings.parts}-{steps * (part + 1) // settings.parts}"
        for part, share in enumerate(shares)
    )
    return written(text, settings, steps)


def written(text: str, settings: Phased, steps: int) -> Schedule:
    """The schedule of a text, with the settings that all strategies share."""
    return scheduled(text, steps, settings.optimizer_state, settings.learning_rate_mass == "equal")


def _turns(part: Any, settings: Phased, steps: int, period: int) -> Schedule:
    starts = _starts(0, steps, period)
    text = " > ".join(f"{part(turn)}@{start}-{min(start + period, steps)}" for turn, start in enumerate(starts))
    return written(text, settings, steps)


@STRATEGIES.register("guided", Guided)
def guided(settings: Guided, steps: int) -> Schedule:
    """Chosen from what was measured: the group that the loss asks to change most, or that has helped most."""
    every = Phase(0, min(settings.period, steps), read_selection(", ".join(settings.order)))
    choice = Choice(tuple(settings.order), settings.signal)
    later = [
        Phase(start, min(start + settings.period, steps), None, entry=settings.optimizer_state, choice=choice)
        for start in _starts(settings.period, steps, settings.period)
    ]
    text = f"{every.selection}@0-{every.end}"
    text += f", then every {settings.period} updates what {settings.signal} prefers"
    return Schedule((every, *later), text, settings.learning_rate_mass == "equal")
