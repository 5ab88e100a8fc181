"""Phases as a run uses them: which update belongs to which phase, and which tensors each phase trains."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ghosttune.config.facts import ParameterFacts
from ghosttune.errors import listed, nearest
from ghosttune.schedules.language import Mark, PlanError, Selection, Written, beyond, matching, read_plan


@dataclass(frozen=True)
class Choice:
    """What a phase trains, decided when it begins, from what was measured by then."""

    order: tuple[str, ...]
    """The parts of the model to choose from, in the phase language."""
    signal: str
    """`effective` or `ledger`."""

    def prefer(self, measured: Mapping[str, float], before: Sequence[str]) -> tuple[str, str]:
        """(the part that trains next, why); pure.

        The part with the largest signal. Before it come a part without a signal, and under `ledger` one that has
        rested for as many phases as there are parts: what it would do now is known only by training it.

        Args:
            measured: the signal of each part that has one.
            before: what each of the phases before it trained.
        """
        unknown = [part for part in self.order if part not in measured]
        if unknown:
            return unknown[0], f"{unknown[0]} has no {self.signal} signal yet"
        count = len(self.order)
        said = ", ".join(f"{part} {measured[part]:.3g}" for part in self.order)
        rested = [part for part in self.order if len(before) > count and part not in before[-count:]]
        if rested and self.signal == "ledger":
            return rested[0], f"{rested[0]} rested for {count} phases ({self.signal}: {said})"
        return max(self.order, key=lambda part: measured[part]), f"{self.signal}: {said}"


@dataclass(frozen=True)
class Phase:
    """A stretch of updates in which the same tensors train."""

    start: int
    end: int
    """Covers updates start + 1 … end."""
    selection: Selection | None
    """None where it is chosen when the phase begins."""
    learning_rate_factor: float = 1.0
    entry: str = "keep"
    """What becomes of the optimizer's state of tensors that enter: keep, reset or rewarm N."""
    choice: Choice | None = None
    mark: Mark = (0, 0)

    @property
    def steps(self) -> int:
        return self.end - self.start

    @property
    def rewarm(self) -> int:
        """Updates over which the learning rate rises when tensors enter."""
        return int(self.entry.split()[1]) if self.entry.startswith("rewarm") else 0


@dataclass(frozen=True)
class Schedule:
    """The phases of a run, which cover every update once."""

    phases: tuple[Phase, ...]
    text: str
    """In the phase language, as written or as the strategy wrote it."""
    equal_mass: bool = False
    """Whether each phase has a learning-rate curve of its own, all of equal mass."""

    def index(self, step: int) -> int:
        """Which phase update `step` (from 1) belongs to; steps beyond the run belong to the last one."""
        return min(bisect_left(self.phases, step, key=lambda phase: phase.end), len(self.phases) - 1)

    def name(self, index: int) -> str:
        """What the phase trains, in the language."""
        selection = self.phases[index].selection
        return str(selection) if selection else "chosen by what was measured"


def scheduled(text: str, steps: int, entry: str, equal_mass: bool = False) -> Schedule:
    """The phases of a plan for a run of `steps` updates; PlanError with everything that does not fit.

    `entry` is the policy of phases that name none.
    """
    written = read_plan(text)
    problems: list[tuple[str, Mark]] = []
    phases: list[Phase] = []
    for place, one in enumerate(written):
        before = phases[-1].end if phases else 0
        start = before if one.start is None else one.start.step(steps)
        end = _end(written, place, steps)
        if end is None:
            problems.append(("no end here and no start behind it: one of the two must say where", one.range_mark))
            end = steps
        else:
            problems += [(message, one.range_mark) for message in _range_problems(start, end, before, steps, place)]
        phase = Phase(int(start), int(end), one.selection, one.learning_rate_factor, one.entry or entry, mark=one.mark)
        if one.entry and phase.rewarm > max(phase.steps, 0):
            problems.append((f"{one.entry} is longer than the phase's {phase.steps} updates", one.mark))
        phases.append(phase)
    if not problems and phases[-1].end < steps:
        problems.append((f"nothing trains in updates {phases[-1].end + 1} to {steps}", written[-1].range_mark))
    if problems:
        raise PlanError(text, problems)
    return Schedule(tuple(phases), text, equal_mass)


def _end(written: Sequence[Written], place: int, steps: int) -> float | None:
    own = written[place].end
    if own is not None:
        return own.step(steps)
    if place + 1 == len(written):
        return steps
    following = written[place + 1].start
    return None if following is None else following.step(steps)


def _range_problems(start: float, end: float, before: float, steps: int, place: int) -> list[str]:
    if start != int(start) or end != int(end):
        return ["updates are whole numbers"]
    if start >= steps or end > steps:
        return [f"reaches outside the run's {steps} updates"]
    if end <= start:
        return [f"holds no update: it ends at {int(end)} and starts at {int(start)}"]
    if start > before:
        return [f"nothing trains in updates {int(before) + 1} to {int(start)}: it must start at {int(before)}"]
    if start < before and place:
        return [f"starts at {int(start)}, before the phase in front of it ends at {int(before)}; join the two with `,`"]
    return []


def active_names(
    schedule: Schedule, facts: Mapping[str, ParameterFacts], layers: int, seed: int, still_zero: frozenset[str]
) -> list[frozenset[str] | None]:
    """Names of the tensors that each phase trains; None for a phase that is chosen when it begins.

    Args:
        facts: of the tensors the method trains.
        layers: how many the model has.
        seed: of `random` layers.
        still_zero: tensors B that are zero before the run: while they are, their A has no gradient.

    Raises:
        PlanError: terms that mean nothing here, and phases in which nothing could move.
    """
    problems: list[tuple[str, Mark]] = []
    active: list[frozenset[str] | None] = []
    moved: set[str] = set()
    for place, phase in enumerate(schedule.phases):
        if phase.selection is None:
            active.append(None)
            moved |= still_zero
            continue
        names: set[str] = set()
        for term in phase.selection.terms:
            found = matching(term, facts, layers, (seed, phase.start))
            if wrong := beyond(term, layers) or (None if found else _no_match(str(term), facts)):
                problems.append((wrong, term.mark))
            names |= found
        if names and not problems and _stuck(names, facts, still_zero - moved):
            problems.append(
                (
                    f"phase {place + 1} trains lora_A alone while its lora_B is zero, so that nothing can move; "
                    "train lora_B first, or both",
                    phase.mark,
                )
            )
        moved |= names
        active.append(frozenset(names))
    if problems:
        raise PlanError(schedule.text, problems)
    return active


def names_of(
    selection: Selection, phase: Phase, facts: Mapping[str, ParameterFacts], layers: int, seed: int
) -> frozenset[str]:
    """Names of the tensors that a selection, made when the phase began, means."""
    return frozenset().union(*(matching(term, facts, layers, (seed, phase.start)) for term in selection.terms))


def _stuck(names: set[str], facts: Mapping[str, ParameterFacts], zero: frozenset[str] | set[str]) -> bool:
    """Whether every one of the tensors is an A whose B is zero and stays so."""
    resting = {facts[name].module for name in zero - names}
    return all(facts[name].factor == "A" and facts[name].module in resting for name in names)


def _no_match(term: str, facts: Mapping[str, ParameterFacts]) -> str:
    groups = sorted({fact.group for fact in facts.values()})
    roles = list(dict.fromkeys(fact.role for fact in facts.values() if fact.role))
    factors = sorted({fact.factor for fact in facts.values()})
    known = [*groups, *roles, *factors, *{fact.module.rpartition(".")[2] for fact in facts.values()}]
    word = re.split(r"\s", term)[-1]
    return (
        f"{term} means none of the trained tensors{nearest(word, known)} (they are {listed(groups)} with roles "
        f"{listed(roles)}); widen method.target_modules, or name others"
    )
