"""What a check finds, and what every check has: a name, a meaning, and why it matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Found = Iterator[tuple[str, str, Sequence[str]]]
"""(what is wrong, with its values; what to do; ids of the rows concerned) of each case."""


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at before training, though training would go on."""

    check: str
    message: str
    """What is wrong, with which value and which rows."""
    why: str
    do: str
    rows: tuple[str, ...] = ()
    """Ids of all rows concerned; empty when it is not about rows."""

    def __str__(self) -> str:
        return f"{self.check}: {self.message}. {self.why}. {self.do}"


@dataclass(frozen=True)
class Check:
    """One thing that `ghosttune check` looks for."""

    name: str
    meaning: str
    """What it finds, in one line."""
    why: str
    spoils: str
    """What is wrong with each row it finds, for which `--fix` leaves it out; empty where rows can be used."""
    find: Callable[[Any], Found]

    def findings(self, case: Any) -> list[Finding]:
        """Everything the check finds in a case of its kind."""
        return [Finding(self.name, message, self.why, do, tuple(rows)) for message, do, rows in self.find(case)]


class Checks(list[Check]):
    """The checks of one kind of case, in the order in which they are made."""

    def add(self, why: str, spoils: str = "") -> Callable[[Callable[[Any], Found]], Callable[[Any], Found]]:
        """Decorator that enters a function; its name names the check and its docstring says what it finds."""

        def enter(find: Callable[[Any], Found]) -> Callable[[Any], Found]:
            meaning = " ".join((find.__doc__ or "").split())
            self.append(Check(find.__name__.replace("_", " "), meaning, why, spoils, find))
            return find

        return enter

    def found(self, case: Any) -> Iterator[tuple[Check, Finding]]:
        """What each of them finds."""
        return ((check, finding) for check in self for finding in check.findings(case))

    def findings(self, case: Any) -> list[Finding]:
        """What all of them find."""
        return [finding for _, finding in self.found(case)]
