"""The command that looks at the machine and the installation."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ghosttune.cli.rows import Json
from ghosttune.cli.terminal import say


def doctor(
    network: Annotated[
        bool, typer.Option("--network", help="Ask the package index and the hub whether they answer: 5 s each at most.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Describe machine and installation for a report of a bug: versions, devices, memory, disk, extras."""
    from ghosttune.workflows.doctor import as_lines
    from ghosttune.workflows.doctor import doctor as examined

    found = examined(network)
    say(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(as_lines(found)))
