"""The server as a process: where it listens, and how it ends."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghosttune.cli.terminal import say
from ghosttune.errors import InputError, listed

if TYPE_CHECKING:
    from ghosttune.choosing.reasons import RunReasons
    from ghosttune.inference.pipeline import Pipeline

SPARE = 111
"""Connections beside those of requests that wait or are answered: clients that send, pages left open."""

SWITCH_SECONDS = 0.0005
"""After which a thread that computes lets another one in. An answer takes a dozen calls to the system, and each waits
for that: at Python's five milliseconds a crowd waits for seconds."""


@dataclass(frozen=True)
class Models:
    """What is served."""

    given: Sequence[str]
    """Runs or models."""
    device: str = "auto"
    trust_remote_code: bool = False
    why: bool = True
    """Whether the rows behind an answer are told."""

    @property
    def names(self) -> dict[str, str]:
        """Name for clients -> run or model, in order. InputError where two have one name."""
        names = [Path(given).resolve().name if Path(given).exists() else given for given in self.given]
        for name in names:
            if names.count(name) > 1:
                same = listed([given for given, own in zip(self.given, names, strict=True) if own == name])
                raise InputError(f"{same} would both be called {name!r}: serve one of them, or rename a folder")
        return dict(zip(names, self.given, strict=True))

    def opened(self) -> dict[str, Pipeline]:
        """Each under its name; runs on one base share its weights in memory."""
        from ghosttune.inference.bases import Bases
        from ghosttune.inference.pipeline import Pipeline

        bases = Bases() if len(self.given) > 1 else None
        return {
            name: Pipeline.open(given, self.device, self.trust_remote_code, bases) for name, given in self.names.items()
        }

    def reasons(self) -> dict[str, RunReasons]:
        """What tells the rows behind their answers."""
        from ghosttune.choosing.reasons import RunReasons

        named = self.names.items() if self.why else ()
        return {name: RunReasons(given, self.device, self.trust_remote_code) for name, given in named}


def listen(
    models: Models,
    host: str,
    port: int,
    api_key: str | None,
    allowed_hosts: Sequence[str],
    waiting: int,
    batch: int,
    max_tokens: int,
    drain: float,
) -> None:
    """Serves the models until Ctrl-C, or until SIGTERM and at most `drain` seconds behind it.

    InputError without the extra, for an address that others can reach without a key, and when it cannot be had.
    """
    try:
        from ghosttune.inference.access import Access
        from ghosttune.inference.connections import QUEUED, Listener
        from ghosttune.inference.serving import create_app
        from ghosttune.inference.voices import Limits
    except ModuleNotFoundError as error:
        raise InputError(f"serving needs {error.name}: pip install 'ghosttune[serve]'") from error

    access = Access(host, api_key, tuple(allowed_hosts))
    limits = Limits(waiting=waiting, together=batch, max_new_tokens=max_tokens)
    app = create_app(models.opened(), limits, access, models.reasons())
    for alone, reason in app.state.alone.items():
        if batch > 1:
            say(f"{alone} answers one request at a time: {reason}")
    listener = Listener(app, waiting + batch + SPARE, drain, host=host, port=port, timeout_graceful_shutdown=5)
    try:
        opened: Any = listener.config.bind_socket()
    except SystemExit:
        raise InputError(f"{host}:{port} cannot be listened at; give another --port or --host") from None
    opened.listen(QUEUED)  # from here on nobody is turned away
    address = f"http://{f'[{host}]' if ':' in host else host}:{opened.getsockname()[1]}"
    who = f"{listed(models.names)} {'answers' if len(models.given) == 1 else 'answer'}"
    say(f"{who} at {address} (OpenAI clients: {address}/v1). Ctrl-C ends.")
    gc.collect()
    gc.freeze()  # a look through the model's half a million objects takes a third of a second
    sys.setswitchinterval(SWITCH_SECONDS)
    with suppress(KeyboardInterrupt):  # the way it ends
        listener.run(sockets=[opened])
