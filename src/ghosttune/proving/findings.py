"""What a proof is, and what it found: a figure, the bar it has to meet, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghosttune.stages.runs import Run


@dataclass(frozen=True)
class Finding:
    """One figure of a proof."""

    what: str
    measured: float | str
    bar: str = ""
    """What is expected; empty for a figure that stands beside the others and is not judged."""
    passed: bool | None = None
    """None where nothing is judged."""


def at_most(what: str, measured: float, bar: float) -> Finding:
    """Judged by `measured <= bar`; not a number fails."""
    return Finding(what, measured, f"<= {bar:.3g}", bool(measured <= bar))


def at_least(what: str, measured: float, bar: float) -> Finding:
    """Judged by `measured >= bar`; not a number fails."""
    return Finding(what, measured, f">= {bar:.3g}", bool(measured >= bar))


def within(what: str, measured: float, low: float, high: float) -> Finding:
    """Judged by `low <= measured <= high`; not a number fails."""
    return Finding(what, measured, f"{low:.3g} to {high:.3g}", bool(low <= measured <= high))


def every(what: str, held: Sequence[bool] | Mapping[Any, bool]) -> Finding:
    """How many of the cases hold, all of which have to; the first that does not is named where they have names."""
    cases = held if isinstance(held, Mapping) else dict(enumerate(held))
    failed = [str(name) for name, holds in cases.items() if not holds]
    named = f" (not {failed[0]})" if failed and isinstance(held, Mapping) else ""
    return Finding(what, f"{len(cases) - len(failed)} of {len(cases)}{named}", "all", bool(cases) and not failed)


def equal(what: str, measured: str, expected: str) -> Finding:
    """Judged by being the same word."""
    return Finding(what, measured, expected, measured == expected)


def beside(what: str, measured: float | str) -> Finding:
    """A control or a circumstance, printed and not judged."""
    return Finding(what, measured)


class Bench:
    """Where proofs work: a folder of their own, how thorough they are, and the run that several of them look at."""

    def __init__(self, folder: Path, quick: bool = False):
        self.folder = folder
        self.quick = quick

    @cached_property
    def learned(self) -> Run:
        """The built-in model, trained on the shipped rows when it is first asked for."""
        from ghosttune.proving.learned import learn

        return learn(self.folder / "learned", self.quick)


@dataclass(frozen=True)
class Proof:
    """A statement whose truth is known beforehand, and how it is tried."""

    number: int
    claim: str
    check: Callable[[Bench], list[Finding]]


@dataclass(frozen=True)
class Proved:
    """A proof that was tried."""

    number: int
    claim: str
    findings: list[Finding]
    seconds: float
    error: str | None = None
    """What ended it before it was through."""

    @property
    def passed(self) -> bool:
        judged = [finding.passed for finding in self.findings if finding.passed is not None]
        return self.error is None and bool(judged) and all(judged)
