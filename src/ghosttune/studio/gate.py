"""Who may ask the studio: whoever has its address, from its own page.

The token is the first part of every path, so that nothing answers without it: no file, no stream, no error page. It is
not a cookie, which a browser would send to every server of 127.0.0.1, whatever its port.
"""

from __future__ import annotations

import hmac
import json

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ghosttune.inference.access import Access
from ghosttune.inference.protocol import RequestError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a browser may do with the studio's page: run and load what the studio itself answers, and nothing else."""

REPORT_POLICY = "sandbox allow-downloads; default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:"
"""A report comes from a run directory, which may be a stranger's: nothing in it runs."""

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Gate:
    """The application behind its token, for requests of the right host and page; all else gets 403 or 404."""

    def __init__(self, app: ASGIApp, token: str, access: Access):
        self.app, self.token, self.access = app, token, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                have = {name for name, _ in message["headers"]}
                own = {**HEADERS, "Content-Security-Policy": POLICY}
                added = [(n.lower().encode(), v.encode()) for n, v in own.items() if n.lower().encode() not in have]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        try:
            self.access.require_place(HTTPConnection(scope))
        except RequestError:
            await _refuse(guarded, 403, "the studio answers its own page at 127.0.0.1, and no other host or page")
            return
        shown, _, rest = scope["path"].removeprefix("/").partition("/")
        if not hmac.compare_digest(shown.encode(), self.token.encode()):
            await _refuse(guarded, 404, "nothing is here; open the address that `ghosttune studio` printed")
            return
        path = "/" + rest
        await self.app({**scope, "path": path, "raw_path": path.encode()}, receive, guarded)


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
