"""The server as a process: where it listens, and how it ends."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ghosttune.cli.terminal import say
from ghosttune.errors import InputError

SPARE = 111
"""Connections beside those of requests that wait or are answered: clients that send, pages left open."""

SWITCH_SECONDS = 0.0005
"""After which a thread that computes lets another one in. An answer takes a dozen calls to the system, and each waits
for that: at Python's five milliseconds a crowd waits for seconds."""


def listen(
    run_or_model: str,
    host: str,
    port: int,
    api_key: str | None,
    allowed_hosts: Sequence[str],
    waiting: int,
    max_tokens: int,
    device: str,
    trust_remote_code: bool,
) -> None:
    """Serves the model until Ctrl-C.

    InputError without the extra, for an address that others can reach without a key, and when it cannot be had.
    """
    try:
        from ghosttune.inference.access import Access
        from ghosttune.inference.connections import QUEUED, Listener
        from ghosttune.inference.serving import Limits, create_app
    except ModuleNotFoundError as error:
        raise InputError(f"serving needs {error.name}: pip install 'ghosttune[serve]'") from error
    from ghosttune.inference.pipeline import Pipeline

    access = Access(host, api_key, tuple(allowed_hosts))
    pipeline = Pipeline.open(run_or_model, device, trust_remote_code)
    name = Path(run_or_model).resolve().name if Path(run_or_model).exists() else run_or_model
    app = create_app(pipeline, name, Limits(waiting=waiting, max_new_tokens=max_tokens), access)
    listener = Listener(app, waiting + 1 + SPARE, host=host, port=port, timeout_graceful_shutdown=5)
    try:
        opened: Any = listener.config.bind_socket()
    except SystemExit:
        raise InputError(f"{host}:{port} cannot be listened at; give another --port or --host") from None
    opened.listen(QUEUED)  # from here on nobody is turned away
    address = f"http://{f'[{host}]' if ':' in host else host}:{opened.getsockname()[1]}"
    say(f"{name} answers at {address} (OpenAI clients: {address}/v1). Ctrl-C ends.")
    gc.collect()
    gc.freeze()  # a look through the model's half a million objects takes a third of a second
    sys.setswitchinterval(SWITCH_SECONDS)
    with suppress(KeyboardInterrupt):  # the way it ends
        listener.run(sockets=[opened])
