"""The studio as a process: where it listens, and the address by which it is opened."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ghosttune.cli.terminal import say
from ghosttune.errors import InputError

PLACES = 128
"""Connections at once: pages that are open, each with a stream."""


def studio(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="The folder of run directories; runs/ if not given.")
    ] = None,
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 8765,
    device: Annotated[str, typer.Option("--device", help="Where models answer: auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Watch runs in the browser, ask why, change rows, train again; listens at 127.0.0.1 only."""
    try:
        from ghosttune.inference.access import Access
        from ghosttune.inference.connections import QUEUED, Listener
        from ghosttune.studio.app import create_app
        from ghosttune.studio.folder import Folder
    except ModuleNotFoundError as error:
        raise InputError(f"the studio needs {error.name}: pip install 'ghosttune[studio]'") from error

    if folder is None:
        folder = Path("runs")
        folder.mkdir(exist_ok=True)
    token = secrets.token_urlsafe(24)
    host = "127.0.0.1"
    app = create_app(Folder(folder), token, Access(host), device)
    listener = Listener(app, PLACES, host=host, port=port, timeout_graceful_shutdown=2)
    try:
        opened: Any = listener.config.bind_socket()
    except SystemExit:
        raise InputError(f"{host}:{port} cannot be listened at; give another --port") from None
    opened.listen(QUEUED)
    say(f"The studio of {folder}: http://{host}:{opened.getsockname()[1]}/{token}/")
    say("Open this address in a browser of this machine; whoever has it may start runs. Ctrl-C ends, runs go on.")
    with suppress(KeyboardInterrupt):
        listener.run(sockets=[opened])
