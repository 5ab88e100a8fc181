"""A studio in a thread of this process, and how it is asked."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ghosttune.inference.access import Access
from ghosttune.inference.connections import Listener
from ghosttune.studio import processes
from ghosttune.studio.app import create_app
from ghosttune.studio.folder import Folder

TOKEN = "a-token-of-this-test"

NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)>"
"""What a row may say, and what must stay text."""


class Studio:
    """Where a studio listens, and how it is asked."""

    def __init__(self, port: int, folder: Path):
        self.port, self.folder = port, folder
        self.url = f"http://127.0.0.1:{port}/{TOKEN}/"

    def raw(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, str]:
        """(status, headers, body) of exactly this path."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            reply = connection.getresponse()
            return reply.status, reply.headers, reply.read().decode()
        finally:
            connection.close()

    def get(self, call: str, **given: Any) -> Any:
        return json.loads(self.raw("GET", f"/{TOKEN}/api/{call}?{urlencode(given)}")[2])

    def post(self, call: str, **given: Any) -> Any:
        body = json.dumps(given).encode()
        return json.loads(self.raw("POST", f"/{TOKEN}/api/{call}", body, content_type="application/json")[2])

    def ask(self, **given: Any) -> list[tuple[str, Any]]:
        """The events of an answer: (kind, value)."""
        body = json.dumps(given).encode()
        status, headers, text = self.raw("POST", f"/{TOKEN}/api/ask", body, content_type="application/json")
        assert (status, headers.get_content_type()) == (200, "text/event-stream"), text
        events = [event.split("\n") for event in text.split("\n\n")[:-1]]
        return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in events]


@contextmanager
def opened(folder: Path) -> Iterator[Studio]:
    """A studio of the folder on a free port, ended behind the test."""
    app = create_app(Folder(folder), TOKEN, Access("127.0.0.1"), "cpu")
    server = Listener(app, 64, timeout_graceful_shutdown=2)
    place = socket.socket()
    place.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    for _ in range(600):
        if server.started:
            break
        time.sleep(0.05)
    assert server.started
    try:
        yield Studio(place.getsockname()[1], folder)
    finally:
        server.should_exit = True
        thread.join(30)
        place.close()
        for child in processes.CHILDREN.values():  # they would go on without us
            child.kill()
            child.wait(timeout=30)
        assert not thread.is_alive(), "a stream keeps the studio from ending"
