"""Connections that end: a client has a time to send its request and to take its answer, and they are never too many.

uvicorn ends connections that are idle between requests, and no others: a client that sends half a head or half a body,
or reads nothing, would keep its connection for ever.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from http import HTTPStatus
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from ghosttune.inference.answers import error_body
from ghosttune.inference.protocol import RequestError

UNSENT = (h11.IDLE, h11.SEND_BODY)
"""States of a client that has not sent its request, or not all of it."""

UNANSWERED = (h11.IDLE, h11.SEND_RESPONSE)
"""States of a server that has not begun to answer."""

TAKEN_AT_ONCE = 16
"""New connections that are accepted before those there are get their turn."""

QUEUED = 256
"""New connections that the system keeps until they are accepted."""


class Connection(H11Protocol):
    """One client."""

    sending_seconds = 10.0
    """From connecting, or the end of the last answer, to the end of the request."""
    taking_seconds = 10.0
    """In which a client takes some of an answer that waits for it."""
    most = 128
    """Connections. When there are more, the one that has been sending its request for the longest goes: a process has
    some 1,000 sockets, and with none left nobody would be heard."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._began = self.loop.time()
        self._sends: asyncio.TimerHandle | None = None
        self._takes: asyncio.TimerHandle | None = None
        self._is_dropped = False
        self._watch()
        if len(self.connections) > self.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._sends, self._takes):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state is h11.DONE and self.conn.trailing_data[0] and self.cycle is not None:
            self.cycle.keep_alive = False  # it asks before it has listened; only one who reads answers may ask again
        self._watch()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, f"this is not HTTP: {msg}")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._takes = self.loop.call_later(self.taking_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._takes is not None:
            self._takes.cancel()

    def shutdown(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "the server is being ended")
        else:
            super().shutdown()

    def _watch(self) -> None:
        """Runs the time to send in while there is something to be sent."""
        if self.conn.their_state not in UNSENT:
            if self._sends is not None:
                self._sends.cancel()
            self._sends = None
        elif self._sends is None:
            self._began = self.loop.time()
            self._sends = self.loop.call_later(self.sending_seconds, self._give_up)

    def _give_up(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self.transport.close()  # nothing was asked: a browser that connected ahead, say
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request was not sent within {self.sending_seconds:g} s")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Says why, where nothing has been said yet, and closes the connection."""
        if self.conn.our_state in UNANSWERED and not self.transport.is_closing():
            body = json.dumps(error_body(RequestError(message))).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
            head = h11.Response(status_code=status, headers=list(headers.items()), reason=status.phrase)
            for part in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
        if self.cycle is not None and not self.cycle.response_complete:  # the application reads or answers it
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _make_room(self) -> None:
        """Drops who has been sending for the longest, or takes its time to leave; the newest where all are answered."""
        droppable = [one for one in self.connections if isinstance(one, Connection) and one._is_droppable]
        oldest = min(droppable, key=lambda one: one._began, default=self)
        oldest._is_dropped = True
        oldest.transport.abort()

    @property
    def _is_droppable(self) -> bool:
        return not self._is_dropped and (self.conn.their_state in UNSENT or self.transport.is_closing())


class Listener(uvicorn.Server):
    """Hears an application's clients until it is told to end; at most so many at once.

    SIGTERM lets it answer, for `drain_seconds`, those who have asked; Ctrl-C ends it at once.
    """

    def __init__(self, app: Starlette, most: int, drain_seconds: float = 0, **settings: Any):
        self._drain, self._close = app.state.drain, app.state.close
        self._drain_seconds, self._drains = drain_seconds, False
        client = type("Client", (Connection,), {"most": most})
        quiet = {
            "log_level": "error",
            "server_header": False,
            "proxy_headers": False,
        }  # what clients do wrong they hear
        config = uvicorn.Config(app, loop="asyncio", http=client, ws="none", backlog=TAKEN_AT_ONCE, **quiet, **settings)
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._drains = sig == signal.SIGTERM and not self.should_exit
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._drains:
            await asyncio.to_thread(self._drain, self._drain_seconds, lambda: not self._drains)
        await asyncio.to_thread(self._close)  # first: whoever waits for an answer keeps its connection open
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or []:
            one.listen(QUEUED)  # asyncio takes as many at once as it lets wait
