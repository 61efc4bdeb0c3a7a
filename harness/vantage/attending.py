"""Attending to a container from the process that asks: its RIE over the network, its reach, and a watch in a thread here."""

from __future__ import annotations

import socket
from collections.abc import Callable

from harness.context import RequestContext
from harness.errors import NotMeasurable
from harness.rie import RieClient
from harness.vantage import Endpoints, LimitingReach, SocketServer
from harness.vantage.listening import LocalListening
from harness.watch import Tell, Watch


def watch_over(
    reach: LimitingReach,
    *,
    name: str,
    log: socket.socket,
    tell: Tell,
    event_headers: Callable[[RequestContext], dict[bytes, bytes]],
    sample_s: float,
) -> Watch:
    """A watch that writes the limits of a sandbox's phases through its reach, at the instants when they begin."""

    def init_begun() -> None:
        exchange = watch.current
        suppressed = exchange is not None and exchange.inits[-1:] not in ([], ["init"])
        tell.init_begun(suppressed)
        if suppressed:
            reach.throttled_init()
        else:
            reach.boost()

    watch = Watch(
        name=name,
        log=log,
        relay_pid=reach.relay_pid,
        on_init_begun=init_begun,
        on_init_done=reach.restrict,
        kill_runtime=reach.kill_runtime,
        event_headers=event_headers,
        on_event=tell.handed_over,
        on_output=tell.output,
        on_sample=reach.sample,
        sample_s=sample_s,
    )
    return watch


class LocalAttendant:
    """See `harness.vantage.Attendant`. ``address``: host:port of the RIE."""

    def __init__(self, address: str, make_reach: Callable[[], LimitingReach]) -> None:
        self.rie = RieClient(address)
        self._make_reach = make_reach
        self._reach: LimitingReach

    def reach(self) -> LimitingReach:
        self._reach = self._make_reach()
        return self._reach

    def watch(
        self,
        *,
        name: str,
        log: socket.socket,
        tell: Tell,
        event_headers: Callable[[RequestContext], dict[bytes, bytes]],
        sample_s: float,
    ) -> Watch:
        return watch_over(self._reach, name=name, log=log, tell=tell, event_headers=event_headers, sample_s=sample_s)

    def listen(self, endpoints: Endpoints, server: SocketServer) -> LocalListening:
        pid = self._reach.relay_pid
        if pid is None:
            raise NotMeasurable(
                "no sockets can be opened in the sandbox's network from here", remedy="use the vantage host or agent"
            )
        return LocalListening(pid, endpoints, server)

    def close(self) -> None:
        self.rie.close()
