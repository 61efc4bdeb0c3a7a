"""Who may talk to the service, and how much: names of the host, origins of pages, sizes of bodies. No business logic.

The service runs code on the user's machine for anybody who reaches it. A web page that the user visits can make the
browser send requests to 127.0.0.1, and, by pointing a name of its own there (DNS rebinding), even read the answers. So
a request has to name a host that is ours, and one that a page sent has to come from our own page. Function URLs are
made for other sites' pages: there the origin is the function's business.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

MAX_DISCARDED_BYTES = 128 * 1024 * 1024
"""What is read and thrown away of a body that is too large: a client that is cut off would not see the answer."""

URL_PATH_PREFIX = "/_harness/url/"
_URL_HOST = re.compile(r"^([a-z0-9]{32})\.lambda-url\.[a-z0-9-]+\.localhost$")
_NAME = re.compile(r"^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*$")
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104  # compared with, not bound to


class BodyTooLarge(Exception):
    """A request's body is larger than its operation allows. ``drained``: all of it was read, so a client sees the answer."""

    def __init__(self, limit_bytes: int, *, drained: bool) -> None:
        super().__init__(limit_bytes)
        self.limit_bytes = limit_bytes
        self.drained = drained


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that name (lower case), or None."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value).decode("latin-1")
    return None


def host_name(text: str) -> str | None:
    """The name or address in a Host header, lower case, without port and brackets; None where it is not one."""
    host, bracket, rest = text.strip().lower().partition("]")
    if bracket:
        port = rest
        host = host.removeprefix("[")
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return None
    else:
        host, colon, digits = host.partition(":")
        port = colon + digits
        host = host.removesuffix(".")
        if not _NAME.match(host):
            return None
    if port and not re.fullmatch(r":\d{1,5}", port):
        return None
    return host


def url_id(scope: Scope) -> str | None:
    """The id of the function URL that a request is for, by its host or by its path; None where it is for neither."""
    named = host_name(header(scope, b"host") or "")
    if named and (found := _URL_HOST.match(named)):
        return found[1]
    path: str = scope["path"]
    if path.startswith(URL_PATH_PREFIX):
        return path[len(URL_PATH_PREFIX) :].partition("/")[0]
    return None


class Guard:
    """ASGI middleware: refuses what is not meant for us, with status 403 and the reason."""

    def __init__(self, app: ASGIApp, *, host: str, refused: Callable[[str], None] = lambda _: None) -> None:
        self._app = app
        self._host = host.strip("[]").lower()
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        why = self._why_not(scope)
        if why is None:
            await self._app(scope, receive, send)
            return
        self._refused(why)
        body = {"Type": "User", "message": f"{why}. The service answers requests to its own address alone."}
        answer = JSONResponse(body, status_code=403, headers={"x-amzn-ErrorType": "AccessDeniedException"})
        await answer(scope, receive, send)

    def allows_host(self, host: str) -> bool:
        """Whether a Host header may name this. An address is never the work of DNS; a name is, unless it is ours."""
        if host in ("localhost", "127.0.0.1", "::1", self._host) or host.endswith(".localhost"):
            return True
        if self._host in _WILDCARDS:
            try:
                ipaddress.ip_address(host)
            except ValueError:
                return False
            return True
        return False

    def _why_not(self, scope: Scope) -> str | None:
        given = [value for key, value in scope["headers"] if key == b"host"]
        named = host_name(given[0].decode("latin-1")) if len(given) == 1 else None
        if named is None or not self.allows_host(named):
            return "the Host header names another host"
        if url_id(scope) is not None:
            return None
        origin = header(scope, b"origin")
        if origin is not None and origin.lower() != f"{scope['scheme']}://{given[0].decode('latin-1').lower()}":
            return "the request comes from a page of another origin"
        # Browsers say where a request without Origin comes from; a link that leads here is no harm [Fetch Metadata].
        site, mode = header(scope, b"sec-fetch-site"), header(scope, b"sec-fetch-mode")
        followed = mode == "navigate" and scope["method"] == "GET"
        if site in ("cross-site", "same-site") and not followed:
            return "the request comes from a page of another site"
        return None


async def read_body(scope: Scope, receive: Receive, *, limit_bytes: int) -> bytes:
    """The whole body. `BodyTooLarge` beyond the limit, of which nothing more is kept; `ClientDisconnect` if it ends early.

    A body that announces itself as too large is not kept at all.
    """
    announced = header(scope, b"content-length")
    # The protocol has checked the header's form (h11 refuses all but digits).
    length = int(announced) if announced else 0
    if length > MAX_DISCARDED_BYTES:
        raise BodyTooLarge(limit_bytes, drained=False)
    kept: list[bytes] = []
    size, too_large = 0, length > limit_bytes
    async for chunk in _chunks(receive):
        size += len(chunk)
        if size > MAX_DISCARDED_BYTES:
            raise BodyTooLarge(limit_bytes, drained=False)
        if too_large or size > limit_bytes:
            too_large = True
            kept.clear()
        else:
            kept.append(chunk)
    if too_large:
        raise BodyTooLarge(limit_bytes, drained=True)
    return b"".join(kept)


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        if chunk:
            yield chunk
        if not message.get("more_body", False):
            return
