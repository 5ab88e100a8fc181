"""Who may ask a server: under which names it is reached, from which pages, and with which key.

A page of another site cannot read answers from here, but its author may point his own name at 127.0.0.1 (DNS
rebinding); the browser then takes this server for his. It still sends his name as Host, which is why names are checked.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from ghosttune.errors import InputError
from ghosttune.inference.answers import refusal
from ghosttune.inference.protocol import RequestError


@dataclass(frozen=True)
class Access:
    """What a request must show. InputError for an address that others can reach without a key, and for odd names."""

    listening_at: str = "127.0.0.1"
    api_key: str | None = None
    """Asked for under /v1; None asks for none."""
    named: tuple[str, ...] = ()
    """Further names and addresses that this server is reached by, behind a proxy say."""

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key.strip():
            raise InputError("the API key is empty: give one, or leave out --api-key and GHOSTTUNE_API_KEY")
        if self.api_key is None and not _is_loopback(self.listening_at):
            raise InputError(
                f"--host {self.listening_at or repr('')} can be reached from other machines: give --api-key or, which "
                "no list of processes shows, GHOSTTUNE_API_KEY; or listen at 127.0.0.1, this machine only"
            )
        for name in self.named:
            if not (_is_address(name) or (name and _host_of(name) == name.lower())):
                raise InputError(f"--allow-host takes a name or an address without scheme and port, got {name!r}")

    def require_place(self, request: HTTPConnection) -> None:
        """RequestError unless the request is meant for this server and comes from its page, or from no page."""
        asked, origin = request.headers.get("host", ""), request.headers.get("origin")
        host = _host_of(asked)
        if not self._is_here(host):
            raise RequestError(
                f"the host {asked!r} is not this server's; if it is, start it with --allow-host {host or 'NAME'}", 403
            )
        if origin is not None and not self._is_own_page(origin, asked):
            raise RequestError(
                f"the page is of {origin!r}, accepted is this server's own; if that is where it is reached, start it "
                "with --allow-host",
                403,
            )

    def require_key(self, request: HTTPConnection) -> None:
        """RequestError when a key is asked for and another one, or none, is shown."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        shown = given.strip().encode("latin-1") if scheme.lower() == "bearer" else b""  # headers are latin-1
        if self.api_key is not None and not hmac.compare_digest(shown, self.api_key.encode()):
            raise RequestError("the API key is missing or wrong", 401, kind="authentication_error")

    def _is_here(self, host: str) -> bool:
        if host in (self.listening_at.lower(), *map(str.lower, self.named)) or (host and _is_loopback(host)):
            return True
        # An address in place of a name cannot be pointed elsewhere; which ones this machine has, it need not know.
        return _is_wildcard(self.listening_at) and _is_address(host)

    def _is_own_page(self, origin: str, asked: str) -> bool:
        try:
            page = urlsplit(origin)
            return page.netloc.lower() == asked.lower() or (page.hostname or "") in map(str.lower, self.named)
        except ValueError:
            return False


class Guarded:
    """An application that only hears requests of the right host and page."""

    def __init__(self, app: ASGIApp, access: Access):
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self.access.require_place(HTTPConnection(scope))
            except RequestError as error:
                await refusal(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _host_of(asked: str) -> str:
    """The name or address in a Host header, in small letters, without port and brackets; empty when it has none."""
    try:
        parts = urlsplit(f"//{asked}")
        has_more = parts.netloc != asked or "@" in asked or parts.port == 0
        return "" if has_more else parts.hostname or ""
    except ValueError:  # brackets without an address, a port that is no number
        return ""


def _is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def _is_wildcard(host: str) -> bool:
    return not host or (_is_address(host) and ip_address(host).is_unspecified)


def _is_address(host: str) -> bool:
    try:
        return bool(ip_address(host))
    except ValueError:
        return False
