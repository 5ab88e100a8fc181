"""Ctrl-C at a step of a run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any


def interrupt_at(step: int) -> Callable[[dict[str, Any]], None]:
    """A listener that interrupts the run when it has made this update."""

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == step:
            signal.raise_signal(signal.SIGINT)

    return listen
