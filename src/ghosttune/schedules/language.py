"""The phase language: what trains, and in which updates.

    both@0-300 > mlp@300-600 > attention@600-
    attention@0-30% > late mlp, q@30-60% lr 0.5 > top 4@60%- rewarm 20

A phase is a selection, `@` and a range of updates: `a-b` covers updates a+1 … b, counted or in per cent of the run (a
`%` behind the range is meant for both ends); an open end reaches to the next phase, or to the end of the run. Behind
the range may stand `lr X` (a factor on the learning rate) and what becomes of the optimizer's state of tensors that
enter: `keep`, `reset` or `rewarm N`. A selection is a union of terms, with commas; the words of one term all hold.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ghosttune.config.facts import ParameterFacts
from ghosttune.errors import nearest

GROUPS = {
    "attention": {"attention"},
    "attn": {"attention"},
    "mlp": {"mlp"},
    "both": {"attention", "mlp"},
    "embedding": {"embedding"},
    "head": {"head"},
    "norm": {"norm"},
}
FACTORS = {"lora_A": "A", "lora_B": "B", "bias": "bias", "magnitude": "magnitude", "scale": "scale", "prompt": "prompt"}
HALVES = ("early", "late")
COUNTED = ("top", "bottom", "random")
WORDS = ("all", *GROUPS, *FACTORS, *HALVES, *COUNTED, "layers")

COUNT = r"\d{1,9}"
NUMBER = rf"{COUNT}(?:\.\d+)?"

SHOWN_PROBLEMS = 10

Mark = tuple[int, int]
"""Where in the text something stands: from, to."""


class PlanError(ValueError):
    """What is wrong with a plan: the first ten problems, then the plan with all the offending parts marked."""

    def __init__(self, text: str, problems: Iterable[tuple[str, Mark]]):
        self.text, self.problems = text, list(problems)
        marked = {place for _, (start, stop) in self.problems for place in range(start, max(stop, start + 1))}
        arrows = "".join("^" if place in marked else " " for place in range(len(text) + 1)).rstrip()
        said = "; ".join(message for message, _ in self.problems[:SHOWN_PROBLEMS])
        said += f"; and {more} more" if (more := len(self.problems) - SHOWN_PROBLEMS) > 0 else ""
        super().__init__(f"{said}\n      {text}\n      {arrows}")


@dataclass(frozen=True)
class Words:
    """One term of a selection: words that all must hold."""

    words: tuple[str, ...]
    """In their normal spelling: `mlp`, `q`, `late`, `layers 0-10`, `top 4`, `top 25%`, `random 2`."""
    mark: Mark

    def __str__(self) -> str:
        return " ".join(self.words)


@dataclass(frozen=True)
class Selection:
    """Which of the trained tensors: a union of terms."""

    terms: tuple[Words, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.terms))


@dataclass(frozen=True)
class Boundary:
    """An end of a range, as written."""

    number: float
    percent: bool

    def step(self, steps: int) -> float:
        """In updates, of a run of `steps`."""
        return round(self.number * steps / 100) if self.percent else self.number


@dataclass(frozen=True)
class Written:
    """A phase as written."""

    selection: Selection
    start: Boundary | None
    end: Boundary | None
    learning_rate_factor: float
    entry: str | None
    """keep, reset or rewarm N; None where it is not said."""
    mark: Mark
    range_mark: Mark


def read_plan(text: str) -> list[Written]:
    """The phases of a plan; PlanError with everything that is not the language."""
    problems: list[tuple[str, Mark]] = []
    phases = []
    place = 0
    for part in text.split(">"):
        mark = _stripped(part, place)
        place += len(part) + 1
        if not part.strip():
            problems.append(("a phase is missing", (mark[0], mark[0] + 1)))
            continue
        try:
            phases.append(_phase(text, mark))
        except PlanError as error:
            problems += error.problems
    if problems:
        raise PlanError(text, problems)
    return phases


def read_selection(text: str, start: int = 0, stop: int | None = None) -> Selection:
    """The selection that stands in `text[start:stop]`; PlanError where it is none."""
    stop = len(text) if stop is None else stop
    terms, place = [], start
    for part in text[start:stop].split(","):
        mark = _stripped(part, place)
        place += len(part) + 1
        if not part.strip():
            raise PlanError(text, [("what trains is missing", (mark[0], mark[0] + 1))])
        terms.append(Words(_words(text, mark), mark))
    return Selection(tuple(terms))


def matching(term: Words, facts: Mapping[str, ParameterFacts], layers: int, draw: Collection[int]) -> set[str]:
    """Names of the tensors that a term means.

    Args:
        facts: of the trained tensors.
        layers: how many the model has.
        draw: seeds a `random N`.
    """
    found = set(facts)
    for word in term.words:
        found &= {name for name in found if _holds(word, facts[name], layers, facts, draw)}
    return found


def _holds(
    word: str, fact: ParameterFacts, layers: int, facts: Mapping[str, ParameterFacts], draw: Collection[int]
) -> bool:
    if word == "all":
        return True
    if word in GROUPS:
        return fact.group in GROUPS[word]
    if word in FACTORS:
        return fact.factor == FACTORS[word]
    if word in HALVES or word.split(" ")[0] in (*COUNTED, "layers"):
        return fact.layer in chosen_layers(word, layers, {one.layer for one in facts.values()} - {None}, draw)  # type: ignore[arg-type]
    last = fact.module.rpartition(".")[2]
    return word in (fact.role, last, last.removesuffix("_proj"), fact.module)


def chosen_layers(word: str, layers: int, trained: Collection[int], draw: Collection[int]) -> set[int]:
    """The layers that `early`, `late`, `layers a-b`, `top N`, `bottom N` or `random N` (of the trained ones) mean."""
    kind, _, rest = word.partition(" ")
    half = layers // 2
    if kind in HALVES:
        return set(range(half)) if kind == "early" else set(range(half, layers))
    if kind == "layers":
        first, _, last = rest.partition("-")
        return set(range(int(first), min(int(last or first) + 1, layers)))
    count = max(1, round(float(rest[:-1]) * layers / 100)) if rest.endswith("%") else int(rest)
    if kind == "random":
        drawn = np.random.default_rng(list(draw)).permutation(sorted(trained))
        return set(drawn[:count].tolist())
    return set(range(max(0, layers - count), layers)) if kind == "top" else set(range(min(count, layers)))


def beyond(term: Words, layers: int) -> str | None:
    """What is wrong with a term's layer numbers in a model of so many layers; None when nothing is."""
    for word in term.words:
        kind, _, rest = word.partition(" ")
        highest = rest.rpartition("-")[2]
        if kind == "layers" and int(highest) >= layers:
            return f"{word}: the model has layers 0 to {layers - 1}"
        if kind in COUNTED and not rest.endswith("%") and int(rest) > layers:
            return f"{word}: the model has {layers} layers"
    return None


def _phase(text: str, mark: Mark) -> Written:
    at = text.find("@", *mark)
    if at < 0:
        raise PlanError(text, [("`@` and a range of updates are missing, such as mlp@300-600", mark)])
    selection = read_selection(text, mark[0], at)
    behind = _stripped(text[at + 1 : mark[1]], at + 1)
    match = re.match(rf"((?:{NUMBER})?%?)\s*-\s*((?:{NUMBER})?%?)(?=\s|$)", text[slice(*behind)])
    if match is None or "%" in (match[1], match[2]):
        said = text[slice(*behind)]
        raise PlanError(text, [(f"{said!r} is no range of updates; write 300-600, 30-60% or 600-", behind)])
    range_mark = (behind[0], behind[0] + match.end())
    percent = match[2].endswith("%")
    start = _boundary(match[1], percent or match[1].endswith("%"))
    end = _boundary(match[2], percent)
    factor, entry = _options(text, _stripped(text[range_mark[1] : mark[1]], range_mark[1]))
    return Written(selection, start, end, factor, entry, mark, range_mark)


def _boundary(text: str, percent: bool) -> Boundary | None:
    return Boundary(float(text.rstrip("%")), percent) if text else None


def _options(text: str, mark: Mark) -> tuple[float, str | None]:
    """(learning-rate factor, what becomes of the state of entering tensors) behind a range."""
    said, factor, entry = text[slice(*mark)], 1.0, None
    pattern = (
        rf"\s*(?:lr\s+(?P<lr>{COUNT}(?:\.\d*)?(?:e-?\d\d?)?)|(?P<entry>keep|reset|rewarm\s+[1-9]\d{{0,8}}))(?=\s|$)"
    )
    place = 0
    while place < len(said):
        match = re.compile(pattern).match(said, place)
        if match is None or (match["lr"] and float(match["lr"]) <= 0):
            wrong = (mark[0] + place, mark[1])
            raise PlanError(
                text,
                [(f"{text[slice(*wrong)].strip()!r} is none of `lr 0.5`, `keep`, `reset` and `rewarm 20`", wrong)],
            )
        factor = float(match["lr"]) if match["lr"] else factor
        entry = " ".join(match["entry"].split()) if match["entry"] else entry
        place = match.end()
    return factor, entry


def _words(text: str, mark: Mark) -> tuple[str, ...]:
    pattern = re.compile(
        rf"\s*(?:(?P<layers>layers?\s+{COUNT}(?:\s*-\s*{COUNT})?)"
        rf"|(?P<counted>(?:top|bottom|random)\s+(?:{COUNT}|{NUMBER}%))"
        r"|(?P<word>[A-Za-z_][\w.]*))(?=\s|$)"
    )
    said, words, place = text[slice(*mark)], [], 0
    while place < len(said):
        match = pattern.match(said, place)
        if match is None or match["word"] in (*COUNTED, "layers", "layer"):
            wrong = (mark[0] + place, mark[1])
            raise PlanError(text, [(_not_understood(text[slice(*wrong)].strip()), wrong)])
        words.append(_normal(match["layers"] or match["counted"] or match["word"]))
        place = match.end()
    return tuple(words)


def _normal(word: str) -> str:
    if word == "attn":
        return "attention"
    return re.sub(r"\s*-\s*", "-", " ".join(word.split())).replace("layer ", "layers ")


def _not_understood(said: str) -> str:
    first = said.split()[0]
    if first in COUNTED:
        return f"{said!r} needs a number, such as {first} 4"
    if first in ("layer", "layers"):
        return f"{said!r} needs layer numbers, such as layers 0-10"
    return f"{said!r} names nothing that trains{nearest(first, WORDS)} (groups, roles such as q or gate, layers 0-10)"


def _stripped(part: str, place: int) -> Mark:
    """Where the part stands without the blanks around it."""
    start = place + len(part) - len(part.lstrip())
    return start, max(start, place + len(part.rstrip()))
