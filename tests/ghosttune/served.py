"""A server in a thread of this process, and raw requests to it; everything has a limit."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ghosttune.inference.access import Access
from ghosttune.inference.connections import Listener
from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.serving import create_app
from ghosttune.inference.voices import Limits

SECONDS = 300.0


class Served:
    """Where a server listens, and one way to ask it anything."""

    def __init__(self, port: int):
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        """Status, and the body as JSON where it is that."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            reply = connection.getresponse()
            text = reply.read().decode()
            is_json = reply.headers.get_content_type() == "application/json"
            return reply.status, json.loads(text) if is_json else text
        finally:
            connection.close()

    def post(self, path: str, value: Any) -> tuple[int, Any]:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask("POST", path, body, content_type="application/json")

    def health(self) -> dict[str, Any]:
        return self.ask("GET", "/health")[1]


@contextmanager
def served(
    pipeline: Pipeline | dict[str, Pipeline],
    limits: Limits | None = None,
    access: Access | None = None,
    most: int = 128,
    reasons: dict[str, Any] | None = None,
) -> Iterator[Served]:
    """A server of one model, called `tiny`, or of several on a free port, stopped at the end."""
    pipelines = pipeline if isinstance(pipeline, dict) else {"tiny": pipeline}
    app = create_app(pipelines, limits or Limits(), access, reasons)
    server = Listener(app, most, timeout_graceful_shutdown=2)
    opened = socket.socket()
    opened.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield Served(opened.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(timeout=150)
        opened.close()
        assert not thread.is_alive()


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Waits until it holds; AssertionError past the limit."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
