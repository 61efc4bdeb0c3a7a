"""Serving the app with uvicorn: its socket, its signals, and clients that are too slow. Must not know what the app does.

uvicorn times out connections that are idle between requests and no others: a client that sends a header byte by byte,
stops in the middle of a body, or reads its answer never, keeps a connection and its memory for ever. `Connection` does
the rest.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from harness.errors import Interrupted, InvalidInput

if TYPE_CHECKING:
    import asyncio

    from starlette.types import ASGIApp

HEADERS_S = 20.0
"""How long a request's head may take, from the first byte (or from the connection, which sends none)."""
BODY_PAUSE_S = 20.0
"""How long a body may pause."""
BODY_S = 300.0
"""How long a body may take in all: 70 MB at 2 Mbit/s."""
READER_S = 60.0
"""How long a client may leave an answer unread."""
KEEP_ALIVE_S = 65
"""Longer than clients keep connections (botocore: until they are used): they, not we, should end them."""
GRACE_S = 5
"""What requests under way get to finish when the service ends."""
_CHECK_EVERY_S = 1.0
_MAX_HEAD_BYTES = 64 * 1024
_SPARE_CONNECTIONS = 512
"""Beside the invocations: pages, deployers, and those that wait for their 429."""


class Connection(H11Protocol):
    """uvicorn's protocol, with a watch over slow clients."""

    headers_s, body_pause_s, body_s, reader_s = HEADERS_S, BODY_PAUSE_S, BODY_S, READER_S
    check_every_s = _CHECK_EVERY_S

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base class
        super().connection_made(transport)
        now = self.loop.time()
        self._began: float | None = now
        """When the head that is awaited began; None between requests, where the keep-alive time-out rules."""
        self._heard = now
        self._body_began: float | None = None
        self._unread_since: float | None = None
        self._watch: asyncio.TimerHandle | None = self.loop.call_later(self.check_every_s, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._unset_keepalive_if_required()  # uvicorn (0.54) leaves the timer, and with it the connection, after an error
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        now = self._heard = self.loop.time()
        super().data_received(data)
        state = self.conn.their_state
        self._body_began = (self._body_began or now) if state is h11.SEND_BODY else None
        if state is not h11.IDLE:
            self._began = None
        elif self._began is None:
            self._began = now

    def on_response_complete(self) -> None:
        self._began = None
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._began = self.loop.time()  # the head of a pipelined request has begun to arrive

    def _check(self) -> None:
        self._watch = self.loop.call_later(self.check_every_s, self._check)
        now = self.loop.time()
        if not self.transport.get_write_buffer_size():
            self._unread_since = None
        elif not self.flow.write_paused and not self.transport.is_closing() and self._answering():
            self._unread_since = None  # an answer is being made, and what is unread of it is little
        elif self._unread_since is None:
            self._unread_since = now
        slow = (
            self._passed(self._unread_since, self.reader_s)
            or self._passed(self._began, self.headers_s)
            or self._passed(self._body_began, self.body_s)
            or (
                self._body_began is not None
                and not self.flow.read_paused
                and self._passed(self._heard, self.body_pause_s)
            )
        )
        if slow:
            self.transport.abort()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _passed(self, since: float | None, limit_s: float) -> bool:
        return since is not None and self.loop.time() - since > limit_s


class _Server(uvicorn.Server):
    """uvicorn's server, which keeps the signals to itself until everything has been given back."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number in numbers:
                # After the first signal containers are being given back: a second one must not stop that half-way.
                signal.signal(number, signal.SIG_IGN if self._captured_signals else before[number])

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        if len(self._captured_signals) > 1:
            self.force_exit = True  # whoever asks twice does not want to wait for requests under way

    @property
    def ended_by(self) -> int | None:
        """The signal that ended it, if one did."""
        return self._captured_signals[0] if self._captured_signals else None


class _Messages(logging.Handler):
    """uvicorn's own warnings as lines; tracebacks and what requests hold stay out of the log."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        lines = record.getMessage().strip().splitlines()
        text = lines[0] if lines else record.name
        if record.exc_info and record.exc_info[0]:
            text += f": {record.exc_info[0].__name__}"
        self._say(f"http: {text}")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `InvalidInput` where that cannot be."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, OverflowError, UnicodeError) as error:
        raise InvalidInput(f"--host {host}: no such address ({error})", remedy="use 127.0.0.1") from error
    family, kind, number, _, address = found[0]
    listening = socket.socket(family, kind, number)
    try:
        # A port that a service just left is free: without this the kernel keeps it for a minute.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(1024)
        listening.setblocking(False)  # noqa: FBT003  # its signature
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise InvalidInput(
                f"port {port} on {host} is in use by another program",
                remedy="stop it, or choose another port with --port (0 takes a free one)",
            ) from error
        raise InvalidInput(
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            remedy="use --host 127.0.0.1 and a port from 1024 to 65535",
        ) from error
    return listening


def run(
    app: ASGIApp,
    listening: socket.socket,
    *,
    connections: int = 1000,
    grace_s: int = GRACE_S,
    say: Callable[[str], None] = lambda _: None,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Serve until a signal comes, then give requests under way their grace; raises `Interrupted`, signals ignored by then.

    To be called in the main thread. ``connections``: how many invocations there may be at once.
    """
    _raise_descriptor_limit(2 * connections + _SPARE_CONNECTIONS)
    log = logging.getLogger("uvicorn.error")
    messages = _Messages(say)
    log.addHandler(messages)
    log.propagate = False
    config = uvicorn.Config(
        app,
        http=Connection,
        loop="asyncio",  # not uvloop where it is there: a connection that is aborted lives on in it with what was not read
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=grace_s,
        h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        limit_concurrency=connections + _SPARE_CONNECTIONS,
    )
    server = _Server(config, started)
    try:
        server.run(sockets=[listening])
    finally:
        log.removeHandler(messages)
        listening.close()
    if server.ended_by is not None:
        raise Interrupted(server.ended_by)


def _raise_descriptor_limit(wanted: int) -> None:
    """A connection and a sandbox need descriptors; many systems grant 1024 unless asked for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < ceiling:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
