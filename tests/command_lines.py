"""Whether the real command line takes what a page tells the reader to type; nothing is run."""

from __future__ import annotations

import shlex

from typer.main import get_command

from ghosttune.cli.main import app
from ghosttune.config.loading import shipped

COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def fault_of_command(text: str) -> str | None:
    """Why `ghosttune …` is not taken; None where it is."""
    _, *words = shlex.split(text)
    if words[0] not in COMMANDS:
        return "no such command"
    try:
        parsed = COMMANDS[words[0]].make_context(words[0], words[1:]).params
    except Exception as error:
        return str(error)
    for kind in ("preset", "profile"):
        name = parsed.get(kind)
        if name and not any(name in (known, known.split("@")[0]) for known in shipped(kind)):
            return f"no such {kind}"
    return None
