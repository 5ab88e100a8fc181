"""What a user can mend, as exceptions. The command line turns each into a message and an exit code.

GhosttuneError            the work failed: exit 1 (NoSpace: the disk is full; NotANumber: a loss is none)
└── InputError            the user's input is wrong: exit 2
    ├── ConfigError       settings: every problem of every source at once
    ├── DataError         rows and the files they come from (TooFewRows: not enough of them)
    ├── ModelError        a model, tokenizer or adapter that cannot be used as asked
    └── RunError          a run directory that is used, damaged or of another run
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


class GhosttuneError(Exception):
    """The work failed for a reason the message names; nothing already written is lost."""

    exit_code = 1


class NoSpace(GhosttuneError):
    """A disk is full, or a file may not grow; `remedy` is what to do once there is space."""

    def __init__(self, path: object, reason: str | None, remedy: str = "give the command again"):
        super().__init__(
            f"no space left for {path} ({reason}). Nothing already written is lost: free some space and {remedy}."
        )
        self.path, self.reason = path, reason


class NotANumber(GhosttuneError):
    """A loss is infinite or not a number, so that training cannot go on."""


class InputError(GhosttuneError):
    """The user's input is wrong; the message says what would be accepted."""

    exit_code = 2


class DataError(InputError):
    """Rows, or the file they come from, cannot be used."""

    def __init__(self, message: str, rows: Mapping[str, str] | None = None):
        super().__init__(message)
        self.rows = dict(rows or {})
        """Place of each row that cannot be used -> why, where the others could be used without them."""


class TooFewRows(DataError):
    """Not enough rows for what is asked."""


class ModelError(InputError):
    """A model, tokenizer or adapter cannot be used as asked."""


class RunError(InputError):
    """A run directory is in use, damaged, or belongs to another run."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one setting."""

    setting: str
    """Dotted path, such as `train.max_steps`."""
    message: str
    """What is wrong, with the value, and what would be accepted."""
    origin: str = ""
    """Where the value was given: `run.yaml:12`, `--set`, `preset e2e_attention`; empty for a default."""

    def __str__(self) -> str:
        place = f" [{self.origin}]" if self.origin else ""
        return f"{self.setting}: {self.message}{place}"


SHOWN_PROBLEMS = 100
"""A message names so many; a file with more is not a configuration."""


class ConfigError(InputError):
    """Settings are wrong; holds every problem found, not only the first."""

    def __init__(self, problems: Sequence[Problem], source: str = "the configuration"):
        self.problems = list(problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        lines = [f"  {problem}" for problem in self.problems[:SHOWN_PROBLEMS]]
        more = len(self.problems) - SHOWN_PROBLEMS
        super().__init__(
            "\n".join([f"{count} in {source}:", *lines, *([f"  … and {more:,} more"] if more > 0 else [])])
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name closest to `name`, or an empty string when none is close."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {match[0]}?" if match else ""


def listed(names: Iterable[object], limit: int = 12) -> str:
    """The names joined by commas; beyond `limit` the rest is counted."""
    shown = [str(name) for name in names]
    more = len(shown) - limit
    return ", ".join(shown[:limit]) + (f" and {more} more" if more > 0 else "")


SHOWN_FAULTS = 10


def listed_faults(title: str, faults: Sequence[str]) -> str:
    """A title and the first faults below it; the rest is counted."""
    more = [f"… and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
    return "\n  ".join([f"{title}:", *faults[:SHOWN_FAULTS], *more])
