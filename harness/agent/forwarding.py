"""What a function sends to the endpoints of its sandbox, forwarded from the agent to the harness, and the answers back.

Each connection is a channel with a window in either direction, as in SSH (RFC 4254, 5): an end sends no more than the other
has room for, so a function that floods a connection, or does not read its answers, is held up itself and fills nobody's memory.
Datagrams share one window; what is too much stays in the kernel's buffer, which lets the rest go, as UDP does.

Messages, as told over the link: ``open`` {channel, endpoint}, ``data`` {channel} with bytes, ``window`` {channel, bytes},
``eof`` {channel}: no more data, ``close`` {channel}: the connection is over; ``datagrams`` {sizes} with bytes,
``datagram_window`` {bytes}, ``lost`` {datagrams}. Must not know what is sent. Travels: needs Python's standard library alone.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.errors import EngineError
from harness.vantage import SocketServer
from harness.vantage.listening import Sockets, lost_datagrams

WINDOW_BYTES = 128 * 1024
DATAGRAM_WINDOW_BYTES = 4 * 1024 * 1024
CHANNELS = 128
"""Twice as many as the receivers serve of one sandbox: those that they refuse are open for a moment, too."""
_DATAGRAM_COST_BYTES = 128
"""What a datagram takes of memory beside its bytes."""
_CHUNK = 64 * 1024
_DATAGRAM = 65_535
_DATAGRAMS_AT_ONCE = 256
_ROUNDS = 256
"""How often what has come is looked for again while somebody waits for it: a function may never stop to send."""
_JOIN_S = 5.0

Send = Callable[[str, dict[str, Any], bytes], None]
"""Tells the other end; `OSError` or `EngineError` where it is gone."""


@dataclass(kw_only=True, eq=False)
class _Channel:
    number: int
    sock: socket.socket
    room: int = WINDOW_BYTES
    """How many bytes more the other end has room for."""
    out: bytearray = field(default_factory=bytearray)
    taken: int = 0
    """Bytes that the socket took, and the other end has not been told of."""
    read_over: bool = False
    write_over: bool = False
    eof: bool = False
    """The other end sends no more: what is left goes out, then the socket is told."""
    closing: bool = False
    """The other end is over: what is left goes out, then the socket is closed."""
    events: int = 0


@dataclass(kw_only=True, eq=False)
class _Settling:
    done: threading.Event = field(default_factory=threading.Event)
    rounds: int = _ROUNDS


class Forwarder(threading.Thread):
    """One end; see the module. `put`, `settle` and `close` may be called from any thread."""

    def __init__(self, name: str, send: Send) -> None:
        super().__init__(name=name, daemon=True)
        self._send = send
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._woken)
        self._channels: dict[int, _Channel] = {}
        self._guard = threading.Lock()
        self._orders: deque[Callable[[], None]] = deque()
        self._settling: list[_Settling] = []
        self._stopping = False
        self._closed = False

    # -- called from other threads --------------------------------------------------------------------------------------

    def put(self, what: str, about: dict[str, Any], body: bytes) -> None:
        """What the other end tells; waits for nothing."""
        self._order(functools.partial(self._hear, what, about, body))

    def settle(self, timeout_s: float) -> bool:
        """Whether everything that had come to this end before has been passed on, before the time was up."""
        asked = _Settling()
        with self._guard:
            if self._stopping or threading.current_thread() is self:
                return False
            self._settling.append(asked)
            self._wake()
        return asked.done.wait(max(0.0, timeout_s)) and not self._closed

    def end(self) -> None:
        """Tell the thread to close every socket and end; waits for nothing."""
        with self._guard:
            if not self._stopping:
                self._stopping = True
                self._wake()

    def close(self) -> None:
        """End the thread and close every socket. Safe to call twice, and before it was started."""
        self.end()
        if self.ident is None:
            self._close_all()
        elif self is not threading.current_thread():
            self.join(_JOIN_S)

    def _order(self, order: Callable[[], None]) -> None:
        with self._guard:
            if not self._stopping:
                self._orders.append(order)
                self._wake()

    def _wake(self) -> None:
        """With the guard held: afterwards the pipe's number may be another file's."""
        with contextlib.suppress(BlockingIOError):  # it is awake
            os.write(self._wake_write, b"x")

    # -- the thread -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            while not self._stopping:
                self._round()
        except (OSError, EngineError):
            pass  # the other end is gone: whoever waits for it is told by the link
        finally:
            self._close_all()

    def _round(self) -> None:
        asked = list(self._settling)
        looks = bool(asked) and not self._held_up()
        found = self._selector.select(0 if looks else None)
        for key, events in found:
            key.data(events)
        while self._orders:
            self._orders.popleft()()
        if looks:
            quiet = all(key.fd == self._wake_read for key, _ in found) and not self._held_up()
            self._let_go(asked, quiet=quiet)

    def _let_go(self, asked: Sequence[_Settling], *, quiet: bool) -> None:
        for each in asked:
            each.rounds -= 1
            if quiet or each.rounds <= 0:
                self._settled()
                with self._guard:
                    self._settling.remove(each)
                each.done.set()

    def _held_up(self) -> bool:
        """Whether something has come that cannot be passed on before the other end, or a socket, has taken more."""
        raise NotImplementedError

    def _settled(self) -> None:
        """Everything has been passed on."""

    def _hear(self, what: str, about: dict[str, Any], body: bytes) -> None:
        channel = self._channels.get(about.get("channel", -1))
        if channel is None:
            return  # it has been closed meanwhile
        if what == "data":
            if not channel.write_over:
                channel.out += body
        elif what == "window":
            channel.room += about["bytes"]
        elif what == "eof":
            channel.eof = True
        elif what == "close":
            channel.closing = channel.read_over = True
        self._write(channel)

    def _woken(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _close_all(self) -> None:
        with self._guard:
            self._stopping = True
            if self._closed:
                return
            self._closed = True
            self._orders.clear()
            waiting, self._settling = self._settling, []
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
        for channel in self._channels.values():
            channel.sock.close()
        self._channels.clear()
        self._close_sockets()
        for each in waiting:
            each.done.set()

    def _close_sockets(self) -> None:
        """Those that are no channels."""

    # -- channels -------------------------------------------------------------------------------------------------------

    def _add(self, number: int, sock: socket.socket) -> None:
        sock.settimeout(0)
        channel = _Channel(number=number, sock=sock)
        self._channels[number] = channel
        self._watch(channel)

    def _drop(self, channel: _Channel) -> None:
        if self._channels.pop(channel.number, None) is None:
            return
        if channel.events:
            self._selector.unregister(channel.sock)
        channel.sock.close()

    def _watch(self, channel: _Channel) -> None:
        """Ask the selector for what the channel waits for now."""
        if channel.number not in self._channels:
            return
        reads = not channel.read_over and channel.room > 0
        wanted = (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if channel.out else 0)
        if wanted == channel.events:
            return
        serve = functools.partial(self._serve, channel)
        if not channel.events:
            self._selector.register(channel.sock, wanted, serve)
        elif not wanted:
            self._selector.unregister(channel.sock)
        else:
            self._selector.modify(channel.sock, wanted, serve)
        channel.events = wanted

    def _serve(self, channel: _Channel, events: int) -> None:
        if channel.number not in self._channels:
            return  # closed by an earlier event of the same round
        if events & selectors.EVENT_READ:
            self._read(channel)
        if events & selectors.EVENT_WRITE:
            self._write(channel)

    def _read(self, channel: _Channel) -> None:
        if channel.read_over or channel.room <= 0:
            return
        try:
            data = channel.sock.recv(min(_CHUNK, channel.room))
        except BlockingIOError:
            return
        except OSError:  # reset
            self._end(channel)
            return
        if data:
            channel.room -= len(data)
            self._send("data", {"channel": channel.number}, data)
        else:
            channel.read_over = True
            self._read_to_end(channel)
        self._watch(channel)

    def _read_to_end(self, channel: _Channel) -> None:
        """The socket's other end sends no more."""
        raise NotImplementedError

    def _write(self, channel: _Channel) -> None:
        while channel.out:
            try:
                sent = channel.sock.send(channel.out)
            except BlockingIOError:
                break
            except OSError:
                # Nobody is there any more; what had been said before may still be read.
                channel.out.clear()
                channel.write_over = True
                break
            del channel.out[:sent]
            channel.taken += sent
        if channel.taken >= WINDOW_BYTES // 4:
            self._send("window", {"channel": channel.number, "bytes": channel.taken}, b"")
            channel.taken = 0
        if not channel.out:
            if channel.closing:
                self._drop(channel)
            elif channel.write_over and channel.read_over:
                self._end(channel)
            elif channel.eof and not channel.write_over:
                channel.write_over = True
                with contextlib.suppress(OSError):  # nobody is there any more
                    channel.sock.shutdown(socket.SHUT_WR)
        self._watch(channel)

    def _end(self, channel: _Channel) -> None:
        """The connection is over, and the other end is told."""
        self._drop(channel)
        self._send("close", {"channel": channel.number}, b"")


class SandboxEnd(Forwarder):
    """The agent's: accepts connections and reads datagrams in a sandbox's network. ``sockets`` are its own from now on."""

    def __init__(self, name: str, send: Send, sockets: Sockets) -> None:
        super().__init__(name, send)
        self._sockets = sockets
        self._numbers = itertools.count()
        self._accepting = False
        self._datagram_room = DATAGRAM_WINDOW_BYTES
        self._reading_datagrams = False
        self._lost = 0
        for sock in (sockets.datagrams, *sockets.listeners.values()):
            if sock is not None:
                sock.settimeout(0)
        self._watch_listeners()
        self._watch_datagrams()

    def _held_up(self) -> bool:
        return (self._sockets.datagrams is not None and not self._reading_datagrams) or any(
            not channel.read_over and channel.room <= 0 for channel in self._channels.values()
        )

    def _settled(self) -> None:
        if self._sockets.datagrams is None:
            return
        lost = lost_datagrams(self._sockets.datagrams)
        if lost > self._lost:
            self._send("lost", {"datagrams": lost - self._lost}, b"")
            self._lost = lost

    def _hear(self, what: str, about: dict[str, Any], body: bytes) -> None:
        if what == "datagram_window":
            self._datagram_room += about["bytes"]
            self._watch_datagrams()
        else:
            super()._hear(what, about, body)

    def _close_sockets(self) -> None:
        self._sockets.close()

    def _read_to_end(self, channel: _Channel) -> None:
        """It may still read: a client that has sent its request whole may say so."""
        if channel.write_over:
            self._end(channel)
        else:
            self._send("eof", {"channel": channel.number}, b"")

    def _drop(self, channel: _Channel) -> None:
        super()._drop(channel)
        self._watch_listeners()

    def _watch_listeners(self) -> None:
        """Where too many channels are open, the next wait in the kernel's backlog."""
        accepting = len(self._channels) < CHANNELS
        if accepting == self._accepting:
            return
        self._accepting = accepting
        for endpoint, listener in self._sockets.listeners.items():
            if accepting:
                accept = functools.partial(self._accept, endpoint, listener)
                self._selector.register(listener, selectors.EVENT_READ, accept)
            else:
                self._selector.unregister(listener)

    def _accept(self, endpoint: str, listener: socket.socket, _: int) -> None:
        try:
            sock, _address = listener.accept()
        except OSError:  # it hung up already
            return
        # Answers are small, and a client waits for each.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = next(self._numbers)
        self._add(number, sock)
        self._send("open", {"channel": number, "endpoint": endpoint}, b"")
        self._watch_listeners()

    def _watch_datagrams(self) -> None:
        sock, reading = self._sockets.datagrams, self._datagram_room > 0
        if sock is None or reading == self._reading_datagrams:
            return
        self._reading_datagrams = reading
        if reading:
            self._selector.register(sock, selectors.EVENT_READ, functools.partial(self._read_datagrams, sock))
        else:
            self._selector.unregister(sock)

    def _read_datagrams(self, sock: socket.socket, _: int) -> None:
        found: list[bytes] = []
        while len(found) < _DATAGRAMS_AT_ONCE and self._datagram_room > 0:
            try:
                found.append(sock.recv(_DATAGRAM))
            except OSError:  # none left
                break
            self._datagram_room -= _cost_bytes(found[-1])
        if found:
            self._send("datagrams", {"sizes": [len(each) for each in found]}, b"".join(found))
        self._watch_datagrams()


class HarnessEnd(Forwarder):
    """The harness's: gives the server a socket for each connection, and the datagrams."""

    def __init__(self, name: str, send: Send, server: SocketServer) -> None:
        super().__init__(name, send)
        self._server = server

    def _held_up(self) -> bool:
        return any(channel.out for channel in self._channels.values())

    def _hear(self, what: str, about: dict[str, Any], body: bytes) -> None:
        if what == "open":
            self._open(about["channel"], about["endpoint"])
        elif what == "datagrams":
            self._take_datagrams(about["sizes"], body)
        elif what == "lost":
            self._server.lost(about["datagrams"])
        else:
            super()._hear(what, about, body)

    def _open(self, number: int, endpoint: str) -> None:
        try:
            ours, theirs = socket.socketpair()
        except OSError:  # too many files are open
            self._send("close", {"channel": number}, b"")
            return
        self._add(number, ours)
        self._server.connected(endpoint, theirs)

    def _read_to_end(self, channel: _Channel) -> None:
        """The server never closes one direction alone."""
        self._end(channel)

    def _take_datagrams(self, sizes: Sequence[int], body: bytes) -> None:
        datagrams, start = [], 0
        for size in sizes:
            datagrams.append(body[start : start + size])
            start += size
        about = {"bytes": sum(map(_cost_bytes, datagrams))}
        send = functools.partial(self._send, "datagram_window", about, b"")
        self._server.received(datagrams, lambda: self._order(send))


def _cost_bytes(datagram: bytes) -> int:
    return len(datagram) + _DATAGRAM_COST_BYTES
