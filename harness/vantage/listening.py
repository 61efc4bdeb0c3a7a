"""Sockets on a sandbox's own 127.0.0.1, where nobody but its function finds them.

A socket stays in the network namespace in which it was made, whoever uses it: a thread that lives for a moment enters the
sandbox's and opens them. Runs where the sandbox's kernel is, so it needs Python's standard library alone.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass

from harness.vantage import Endpoints, SocketServer
from harness.watch import in_network_namespace

HOST = "127.0.0.1"
_BACKLOG = 16
_DATAGRAM_BUFFER = 4 * 1024 * 1024
_SO_RCVBUFFORCE, _SO_MEMINFO = 33, 55
"""Linux's numbers; Python does not name them."""
_MEMINFO = struct.Struct("9I")


@dataclass(frozen=True, kw_only=True)
class Sockets:
    """Open sockets; they belong to whoever has them, who closes them."""

    listeners: dict[str, socket.socket]
    datagrams: socket.socket | None

    @property
    def addresses(self) -> dict[str, tuple[str, int]]:
        """By name, as seen in the sandbox's namespace."""
        return {name: listener.getsockname()[:2] for name, listener in self.listeners.items()}

    def close(self) -> None:
        for sock in (self.datagrams, *self.listeners.values()):
            if sock is not None:
                sock.close()


def open_sockets(pid: int, endpoints: Endpoints) -> Sockets:
    """In the network namespace of a process; `OSError` where it cannot be entered, or a port is taken."""
    undo = contextlib.ExitStack()

    def open_there() -> Sockets:
        listeners = {
            name: undo.enter_context(socket.create_server((HOST, port), backlog=_BACKLOG))
            for name, port in endpoints.tcp.items()
        }
        datagrams = None
        if endpoints.udp is not None:
            datagrams = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            _enlarge(datagrams)
            datagrams.bind((HOST, listeners[endpoints.udp].getsockname()[1]))
        return Sockets(listeners=listeners, datagrams=datagrams)

    with undo:
        found = in_network_namespace(pid, open_there)
        undo.pop_all()
    return found


def _enlarge(sock: socket.socket) -> None:
    """Room for many datagrams at once: a function that is about to end sends them faster than they are read."""
    try:
        # Beyond net.core.rmem_max; needs CAP_NET_ADMIN, which root has and an agent does without.
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _DATAGRAM_BUFFER)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _DATAGRAM_BUFFER)


def lost_datagrams(sock: socket.socket) -> int:
    """How many have not fitted into a socket's buffer since it was opened; 0 where the kernel (before 4.12) does not say."""
    try:
        drops: int = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[-1]
    except (OSError, struct.error):
        return 0
    return drops


class LocalListening:
    """See `harness.vantage.Listening`: the sockets are the server's, which reads them itself."""

    def __init__(self, pid: int, endpoints: Endpoints, server: SocketServer) -> None:
        sockets = open_sockets(pid, endpoints)
        self.addresses = sockets.addresses
        self._server, self._datagrams, self._lost = server, sockets.datagrams, 0
        server.serve(sockets.listeners, sockets.datagrams)

    def settle(self, timeout_s: float) -> None:  # noqa: ARG002  # the same call as elsewhere
        if self._datagrams is None:
            return
        lost = lost_datagrams(self._datagrams)
        if lost > self._lost:
            self._server.lost(lost - self._lost)
            self._lost = lost

    def close(self) -> None:
        """Nothing is held."""
