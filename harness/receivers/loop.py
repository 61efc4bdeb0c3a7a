"""The sockets of all receivers, served by one thread: datagrams, connections, HTTP. Must not know any protocol of AWS.

What a request means is worked out by a small pool, so that a large one delays nobody's datagrams; sockets are touched by
the loop's thread alone. Everything is bounded: connections, sizes, waiting requests and times.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import h11

from harness.receivers.http_exchange import Reply, Request

_CHUNK = 64 * 1024
_DATAGRAM = 65_535
_DATAGRAMS_AT_ONCE = 256
_ROUNDS = 64
_HEAD_BYTES = 32 * 1024


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What one loop takes upon itself."""

    body_bytes: int = 4 * 1024 * 1024
    connections: int = 1024
    connections_a_sandbox: int = 64
    requests_waiting: int = 256
    workers: int = 4
    request_s: float = 15.0
    """From the first byte of a request to its last; and for the whole answer to be taken."""
    idle_s: float = 300.0
    """Of a connection between requests: SDKs keep theirs, and a frozen function can neither use nor close it."""


@dataclass(frozen=True, kw_only=True)
class Handlers:
    """What the loop calls. ``name`` is what the sockets were added under."""

    datagram: Callable[[str, bytes], None]
    """In the loop's thread."""
    request: Callable[[str, str, Request], Reply]
    """In the pool: name, service (what the listener was added for), request."""
    overloaded: Callable[[str, Request], Reply]
    """In the loop's thread: too many requests wait; service, request."""
    trouble: Callable[[str], None]
    """In any thread: a sentence for the user."""


@dataclass(kw_only=True, eq=False)
class _Connection:
    name: str
    service: str
    sock: socket.socket
    http: h11.Connection
    deadline: float
    """Of the function's next step; it does not count while the connection is busy."""
    head: h11.Request | None = None
    body: bytearray = field(default_factory=bytearray)
    out: bytearray = field(default_factory=bytearray)
    busy: bool = False
    """A request of it is being answered; nothing more is read meanwhile."""
    closing: bool = False
    """Ends when everything has been sent."""
    events: int = 0


class Loop(threading.Thread):
    """See the module. `add` and `remove` may be called from any thread; `stop` ends it and closes every socket."""

    def __init__(self, handlers: Handlers, bounds: Bounds | None = None) -> None:
        super().__init__(name="receivers", daemon=True)
        self._handlers, self._bounds = handlers, bounds or Bounds()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._woken)
        self._orders: deque[Callable[[], None]] = deque()
        self._open: dict[str, list[socket.socket]] = {}
        self._connections: set[_Connection] = set()
        self._waiting: Counter[str] = Counter()
        """Requests that are being answered, by the name that sent them."""
        self._pool = ThreadPoolExecutor(self._bounds.workers, thread_name_prefix="receivers")
        self._stopping = False
        self._closed = False
        self._guard = threading.Lock()

    # -- called from other threads ------------------------------------------------------------------------------------

    def add(
        self, name: str, datagrams: socket.socket | None = None, listeners: Mapping[str, socket.socket] | None = None
    ) -> None:
        """Serve a name, and these sockets, which are the loop's from now on. ``listeners``: by what they stand for."""
        listeners = listeners or {}
        for sock in (datagrams, *listeners.values()):
            if sock is not None:
                sock.settimeout(0)

        def order() -> None:
            opened = self._open.setdefault(name, [])
            if datagrams is not None:
                opened.append(datagrams)
                self._selector.register(
                    datagrams, selectors.EVENT_READ, lambda _: self._take_datagrams(name, datagrams)
                )
            for service, listener in listeners.items():
                opened.append(listener)
                accept = self._acceptor(name, service, listener)
                self._selector.register(listener, selectors.EVENT_READ, accept)

        if not self._tell(order):
            for sock in (datagrams, *listeners.values()):
                if sock is not None:
                    sock.close()

    def connect(self, name: str, service: str, sock: socket.socket) -> None:
        """Serve a connection that was accepted elsewhere, which is the loop's from now on."""
        if not self._tell(lambda: self._admit(name, service, sock)):
            sock.close()

    def receive(self, name: str, datagrams: Sequence[bytes], done: Callable[[], None]) -> None:
        """Handle datagrams that were read elsewhere; ``done`` is called afterwards, in the loop's thread."""

        def order() -> None:
            for data in datagrams:
                self._safely(functools.partial(self._handlers.datagram, name, data))
            done()

        self._tell(order)

    def remove(self, name: str, *, timeout_s: float) -> None:
        """Read what has arrived, then close the sockets of a name; returns when that is done or the time is up."""
        self._wait_for(lambda: self._remove(name), timeout_s)

    def settle(self, name: str | None = None, *, timeout_s: float) -> None:
        """Return once everything that a name (None: all) had sent to its sockets before has been handled, or the time is up."""
        deadline = time.monotonic() + timeout_s
        settled: list[bool] = []

        def look() -> None:
            self._drain()
            settled.append(not (self._waiting.total() if name is None else self._waiting[name]))

        while self._wait_for(look, deadline - time.monotonic()):
            if settled[-1] or time.monotonic() >= deadline:
                return
            time.sleep(0.002)  # a request is in the pool

    def stop(self) -> None:
        """End the thread and the pool; what has arrived is read first. Safe to call twice."""
        if self.ident is None:
            self._close_all()
        elif self.is_alive():
            self.settle(timeout_s=2.0)
            with self._guard:
                if not self._stopping:
                    self._stopping = True
                    self._wake()
            self.join(timeout=5)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _tell(self, order: Callable[[], None]) -> bool:
        with self._guard:
            if self._stopping:
                return False
            self._orders.append(order)
            self._wake()  # with the guard held: afterwards the number of the pipe may be another's
        return True

    def _wait_for(self, order: Callable[[], None], timeout_s: float) -> bool:
        done = threading.Event()

        def told() -> None:
            try:
                order()
            finally:
                done.set()

        return self.is_alive() and self._tell(told) and done.wait(max(timeout_s, 0.0))

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"x")

    # -- the thread ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            while not self._stopping:
                for key, events in self._selector.select(self._patience_s()):
                    self._safely(functools.partial(key.data, events))
                while self._orders:
                    self._safely(self._orders.popleft())
                self._end_the_slow()
        finally:
            self._close_all()

    def _safely(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001  # one sandbox's bytes must not end the receivers of all others
            self._handlers.trouble(f"a receiver failed at something: {type(error).__name__}: {error}")

    def _woken(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _patience_s(self) -> float | None:
        if self._orders:
            return 0.0
        deadlines = [one.deadline for one in self._connections if not one.busy]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _close_all(self) -> None:
        with self._guard:
            self._stopping = True
        while self._orders:  # sockets that were added last, say
            self._safely(self._orders.popleft())
        for name in list(self._open):
            self._remove(name)
        with self._guard:
            if self._closed:
                return
            self._closed = True
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _remove(self, name: str) -> None:
        self._drain()
        for sock in self._open.pop(name, []):
            self._selector.unregister(sock)
            sock.close()
        for connection in [one for one in self._connections if one.name == name]:
            self._drop(connection)

    def _drain(self) -> None:
        """Take what is there; not forever, where a function never stops to send."""
        for _ in range(_ROUNDS):
            ready = [(key, events) for key, events in self._selector.select(0) if key.fd != self._wake_read]
            if not ready:
                return
            for key, events in ready:
                self._safely(functools.partial(key.data, events))

    # -- datagrams ----------------------------------------------------------------------------------------------------

    def _take_datagrams(self, name: str, sock: socket.socket) -> None:
        """So many at once; what is left is told again by the selector."""
        for _ in range(_DATAGRAMS_AT_ONCE):
            try:
                data = sock.recv(_DATAGRAM)
            except OSError:  # none left
                return
            self._handlers.datagram(name, data)

    # -- connections --------------------------------------------------------------------------------------------------

    def _acceptor(self, name: str, service: str, listener: socket.socket) -> Callable[[int], None]:
        def accept(_: int) -> None:
            try:
                sock, _address = listener.accept()
            except OSError:
                return
            self._admit(name, service, sock)

        return accept

    def _admit(self, name: str, service: str, sock: socket.socket) -> None:
        held = sum(one.name == name for one in self._connections)
        if len(self._connections) >= self._bounds.connections or held >= self._bounds.connections_a_sandbox:
            self._handlers.trouble(f"a connection of sandbox {name} was refused: too many are open")
            sock.close()
            return
        if name not in self._open:  # it is gone meanwhile
            sock.close()
            return
        sock.settimeout(0)
        connection = _Connection(
            name=name,
            service=service,
            sock=sock,
            http=h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES),
            deadline=time.monotonic() + self._bounds.request_s,
        )
        self._connections.add(connection)
        self._watch(connection)

    def _watch(self, connection: _Connection) -> None:
        """Ask the selector for what the connection waits for now."""
        wanted = (0 if connection.busy or connection.closing else selectors.EVENT_READ) | (
            selectors.EVENT_WRITE if connection.out else 0
        )
        if wanted == connection.events:
            return
        if not connection.events:
            self._selector.register(connection.sock, wanted, lambda events: self._serve(connection, events))
        elif not wanted:
            self._selector.unregister(connection.sock)
        else:
            self._selector.modify(connection.sock, wanted, lambda events: self._serve(connection, events))
        connection.events = wanted

    def _drop(self, connection: _Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        if connection.events:
            self._selector.unregister(connection.sock)
        connection.sock.close()

    def _serve(self, connection: _Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                data = connection.sock.recv(_CHUNK)
                connection.http.receive_data(data)
                self._advance(connection)
            self._send(connection)
        except BlockingIOError:
            pass
        except (OSError, h11.LocalProtocolError):
            self._drop(connection)
        except BaseException:
            self._drop(connection)
            raise

    def _advance(self, connection: _Connection) -> None:
        """Take in what has been read, until a request is complete or more is needed."""
        while not connection.busy and not connection.closing:
            try:
                event = connection.http.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse(connection, error.error_status_hint, f"this is no HTTP request: {error}")
                return
            if event is h11.NEED_DATA:
                if connection.http.they_are_waiting_for_100_continue:
                    going_on = h11.InformationalResponse(status_code=100, headers=[])
                    connection.out += connection.http.send(going_on) or b""
                return
            if isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                connection.closing = True
                return
            self._take(connection, event)

    def _take(self, connection: _Connection, event: object) -> None:
        if isinstance(event, h11.Request):
            connection.head, connection.body = event, bytearray()
            connection.deadline = time.monotonic() + self._bounds.request_s
        elif isinstance(event, h11.Data):
            connection.body += event.data
            if len(connection.body) > self._bounds.body_bytes:
                self._refuse(connection, 413, f"a body may have {self._bounds.body_bytes} bytes")
        elif isinstance(event, h11.EndOfMessage) and connection.head is not None:
            self._hand_over(connection, connection.head)

    def _hand_over(self, connection: _Connection, head: h11.Request) -> None:
        path, _, query = head.target.decode("latin-1").partition("?")
        request = Request(
            method=head.method.decode("latin-1"),
            path=path,
            query=query,
            headers={name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers},
            body=bytes(connection.body),
        )
        connection.body = bytearray()
        if self._waiting.total() >= self._bounds.requests_waiting:
            self._reply(connection, self._handlers.overloaded(connection.service, request))
            return
        connection.busy = True
        self._waiting[connection.name] += 1
        self._watch(connection)
        future = self._pool.submit(self._handlers.request, connection.name, connection.service, request)
        future.add_done_callback(lambda done: self._answered(connection, done))

    def _answered(self, connection: _Connection, done: Future[Reply]) -> None:
        """In a thread of the pool."""

        def order() -> None:
            self._waiting[connection.name] -= 1
            if not self._waiting[connection.name]:
                del self._waiting[connection.name]
            if connection not in self._connections:
                return  # its sandbox is gone meanwhile; what it sent has been kept
            connection.busy = False
            error = done.exception() if not done.cancelled() else None
            if done.cancelled() or error is not None:
                self._handlers.trouble(f"a receiver failed at a request: {type(error).__name__}: {error}")
                self._refuse(connection, 500, "the receiver failed")
            else:
                self._reply(connection, done.result())
            if connection in self._connections:
                self._serve(connection, 0)

        self._tell(order)

    def _refuse(self, connection: _Connection, status: int, message: str) -> None:
        """Answer below any protocol of AWS, and end the connection."""
        if connection.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            connection.closing = True
            return
        self._handlers.trouble(f"a receiver refused a request of sandbox {connection.name}: {message}")
        self._reply(connection, Reply(status=status, content_type="text/plain", body=message.encode()), last=True)

    def _reply(self, connection: _Connection, reply: Reply, *, last: bool = False) -> None:
        headers = [
            ("Content-Type", reply.content_type),
            ("Content-Length", str(len(reply.body))),
            *reply.headers.items(),
            *([("Connection", "close")] if last else []),
        ]
        http = connection.http
        connection.out += http.send(h11.Response(status_code=reply.status, headers=headers)) or b""
        connection.out += http.send(h11.Data(data=reply.body)) or b""
        connection.out += http.send(h11.EndOfMessage()) or b""
        connection.head = None
        connection.deadline = time.monotonic() + self._bounds.request_s
        if last or http.our_state is h11.MUST_CLOSE or http.their_state is not h11.DONE:
            connection.closing = True
            return
        http.start_next_cycle()

    def _send(self, connection: _Connection) -> None:
        """Send what there is; once it is gone, end the connection or take the next request."""
        while connection in self._connections:
            if not self._flush(connection):
                break
            if connection.closing:
                self._drop(connection)
                return
            if connection.busy or not connection.http.trailing_data[0]:
                break
            self._advance(connection)  # a pipelined request
            if not connection.out:
                break
        if connection in self._connections:
            self._watch(connection)

    def _flush(self, connection: _Connection) -> bool:
        """Whether everything has been sent."""
        while connection.out:
            try:
                sent = connection.sock.send(connection.out)
            except BlockingIOError:
                return False
            del connection.out[:sent]
            if not connection.out and not connection.busy:
                connection.deadline = time.monotonic() + self._bounds.idle_s
        return True

    def _end_the_slow(self) -> None:
        if not self._connections:
            return
        now = time.monotonic()
        for connection in [one for one in self._connections if one.deadline <= now and not one.busy]:
            self._drop(connection)
