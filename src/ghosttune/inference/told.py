"""What a job tells from its thread, heard on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from ghosttune.inference.queueing import Job

Made = Callable[[Callable[[str, Any], None]], Job]
"""The job, by whom it tells."""

Note = Callable[[Any], None]
"""Hears the result in the job's thread, whoever has left."""


class Told:
    """A job, and who hears of it."""

    def __init__(self, job: Made, note: Note | None = None):
        self.job = job(self._tell)
        self._note = note
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def _tell(self, kind: str, value: Any) -> None:
        if kind == "result" and self._note:
            self._note(value)
        with suppress(RuntimeError):  # the loop has ended, and with it everybody who could hear
            self._loop.call_soon_threadsafe(self._heard.put_nowait, (kind, value))

    async def next(self) -> tuple[str, Any]:
        """`piece`, `result` or `error`, and what it is."""
        return await self._heard.get()

    async def result(self, request: HttpRequest) -> Any:
        """What the job gives; raises its error, and ClientDisconnect as soon as nobody waits for it."""
        leaving = asyncio.create_task(self._hear_leaving(request))
        try:
            while True:
                kind, value = await self.next()
                if kind == "error":
                    raise value
                if kind == "result":
                    return value
        finally:
            leaving.cancel()

    async def _hear_leaving(self, request: HttpRequest) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._heard.put_nowait(("error", ClientDisconnect()))
