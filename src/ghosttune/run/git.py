"""The commit of the working directory, asked of git without running anything that its repository names."""

from __future__ import annotations

import os
import subprocess
from typing import Any

SECONDS = 30
"""How long git may take."""

INERT = (
    "--no-optional-locks",  # an index that is not written calls no hook
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.hooksPath=/dev/null",
)
"""A repository's own configuration names programs that git starts: monitors, hooks and filters."""

OFFLINE = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}
"""Nor does git fetch what a partial clone lacks, through whatever transport the repository names."""

FILTER_COMMANDS = ("clean", "smudge", "process")


def git_state() -> dict[str, Any] | None:
    """Commit of the working directory and whether it has changes; None outside a repository, or without git.

    Files under a filter of the repository, such as Git LFS, are compared as they lie there.
    """
    try:
        commit = _git("rev-parse", "HEAD")
        if commit is None:
            return None
        status = _git(*_without_filters(), "status", "--porcelain", "--ignore-submodules=dirty")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if status is None else {"commit": commit.strip(), "changed": bool(status.strip())}


def _without_filters() -> list[str]:
    """Options that empty the commands of every filter that any configuration of this repository defines."""
    names = (_git("config", "--list", "--name-only", "-z") or "").split("\0")
    drivers = {name.rpartition(".")[0] for name in names if name.startswith("filter.")}
    return [
        argument
        for driver in sorted(drivers)
        for value in (*(f"{command}=" for command in FILTER_COMMANDS), "required=false")
        for argument in ("-c", f"{driver}.{value}")
    ]


def _git(*arguments: str) -> str | None:
    """What git prints; None where it fails."""
    done = subprocess.run(
        ["git", *INERT, *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
        env=os.environ | OFFLINE,
    )
    return done.stdout if done.returncode == 0 else None
