"""Where a sandbox's cgroup and processes are reached from: one interface, and the choice of the vantage.

``host``: this kernel runs the containers and this process may write their cgroups. ``agent``: a container beside them does
it, on the kernel that runs them. ``api``: nothing but the engine's API.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.context import RequestContext
from harness.invocation import PeakMethod
from harness.tiers import Tier

if TYPE_CHECKING:
    # Types alone: what is in here also runs where neither the engine's SDK nor the rest of the harness is.
    from harness.engine.containers import Container
    from harness.memory_watch import MemorySeen
    from harness.rie import Answer
    from harness.watch import Exchange, Tell


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the kernel (or the engine) says of one invocation. None: it could not be measured."""

    cpu_ms: float | None = None
    throttled_ms: float | None = None
    throttled_periods: int | None = None
    peak_rss_bytes: int | None = None
    peak_memory_bytes: int | None = None
    peak_method: PeakMethod | None = None
    resident_after_bytes: int | None = None
    anonymous_after_bytes: int | None = None
    page_cache_bytes: int | None = None
    processes: int | None = None
    threads: int | None = None
    open_files: int | None = None
    tmp_bytes: int | None = None
    oom_kills: int | None = None
    memory_limit_bytes: int | None = None
    """The limit in force, where it was raised since the sandbox began (the RIE had grown)."""
    notes: tuple[str, ...] = ()


NOT_PINNED = (
    "the sandbox is not pinned to CPUs, as the engine was not handed the controller cpuset: the function sees all CPUs of its "
    "machine, and several threads of it use up the quota faster; 'lambda-harness doctor' says what helps"
)
"""The note where `Granted.cpuset` is None. CPU time in all is limited none the less."""


@dataclass(frozen=True, kw_only=True)
class Granted:
    """The limits of a sandbox as read back from the kernel (or from the engine)."""

    cpu_quota_us: int | None
    cpu_period_us: int | None
    cpuset: str | None
    memory_limit_bytes: int | None
    cgroup_version: int | None
    cpu_capped: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TmpVolume:
    """What is mounted at /tmp: a host path or a volume name; ``exact`` if writing beyond the size fails with ENOSPC."""

    source: str
    exact: bool
    mounted: Callable[[], None]
    """To be called once the container has started: the vantage lets go of its own hold on it."""
    discard: Callable[[], None]
    """To be called at the end, or when the container could not be started. Safe to call twice."""
    note: str = ""


def anonymous_tmp(size_mb: int) -> TmpVolume:
    """An anonymous volume on the engine's disk: it goes with its container, but nothing limits its size."""
    return TmpVolume(
        source="",
        exact=False,
        mounted=lambda: None,
        discard=lambda: None,
        note=f"/tmp is not limited to {size_mb} MB: engines have no volumes of a given size",
    )


def tmp_notes(tmp_bytes: int | None, size_mb: int) -> tuple[str, ...]:
    """What is to be said where nothing limits /tmp, and what lies there was only counted."""
    if tmp_bytes is None or tmp_bytes <= size_mb * 1024 * 1024:
        return ()
    return (
        f"/tmp holds more than its {size_mb} MB: on Lambda a write had failed with ENOSPC (no space left on device)",
    )


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """What is to listen on a sandbox's 127.0.0.1."""

    tcp: Mapping[str, int]
    """Ports by name; 0 takes a free one."""
    udp: str | None = None
    """The one of them whose port takes datagrams, too."""


class SocketServer(Protocol):
    """Serves what a function sends to the endpoints of its sandbox. Methods may be called from any thread, and do not wait."""

    def serve(self, listeners: Mapping[str, socket.socket], datagrams: socket.socket | None) -> None:
        """Accept from these, and read those; they are the server's from now on."""

    def connected(self, name: str, connection: socket.socket) -> None:
        """Serve this connection to the endpoint ``name``; it is the server's from now on."""

    def received(self, datagrams: Sequence[bytes], done: Callable[[], None]) -> None:
        """Take these; ``done`` is called when they have been taken, and not at all where the server has ended."""

    def lost(self, datagrams: int) -> None:
        """So many more came faster than they were taken."""


class Listening(Protocol):
    """The open endpoints of one sandbox. Safe to use from threads, and after the sandbox or its agent is gone."""

    addresses: dict[str, tuple[str, int]]
    """By name, as seen in the sandbox's namespace."""

    def settle(self, timeout_s: float) -> None:
        """Return once the server has been given everything that the function had sent before, or the time is up."""

    def close(self) -> None:
        """Nothing comes in any more. Safe to call twice."""


class Reach(Protocol):
    """One running container, as seen from a vantage."""

    def prepare(self, tier: Tier, cpus: tuple[int, ...]) -> Granted:
        """Set every limit, read each back; `LimitError` if one is not what was asked for."""

    def mark(self) -> None:
        """An invocation begins: reset the peaks, remember the counters."""

    def observe(self) -> Observation:
        """What happened since `mark`."""

    def resident_bytes(self) -> int | None:
        """The resident memory of the runtime's processes now; None where it cannot be read at once."""

    def charged_bytes(self) -> int | None:
        """What the sandbox is charged now, the RIE's share taken off; None where that cannot be told quickly."""

    def watch_memory(self) -> MemoryWatching | None:
        """To be entered around one request; None where nothing shows what a sandbox is charged while it runs."""

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...

    def release(self) -> None:
        """Leave the sandbox in a state in which the engine can remove it."""


class LimitingReach(Reach, Protocol):
    """A reach that a watch in the same process writes through, at instants of an invocation."""

    @property
    def relay_pid(self) -> int | None:
        """The process in whose network namespace sockets can be opened (the relay's, receivers'), or None where they cannot."""

    def boost(self) -> None:
        """Init begins: no quota."""

    def restrict(self) -> None:
        """Init is over: the tier's quota holds from now on."""

    def throttled_init(self) -> None:
        """A suppressed init begins: Lambda does not boost it."""

    def sample(self) -> None:
        """Look at what cannot be known afterwards."""

    def kill_runtime(self) -> None:
        """Kill every process of the sandbox but the RIE."""


class MemoryWatching(Protocol):
    """A context manager over a sandbox's memory; see `harness.memory_watch.MemoryWatch`. Never raises."""

    @property
    def found(self) -> MemorySeen:
        """Complete once the watch has been stopped."""

    def __enter__(self) -> MemoryWatching: ...

    def __exit__(self, *_: object) -> None: ...

    def stop(self) -> None:
        """What leaving it does, too. Safe to call twice."""


class Rie(Protocol):
    """The RIE of one container; see `harness.rie.RieClient`."""

    def wait_until_ready(self, timeout_s: float) -> None: ...

    def invoke(self, event: bytes, *, timeout_s: float, client_context: str | None = None) -> Answer: ...

    def close(self) -> None: ...


class Watching(Protocol):
    """The watch over one sandbox; see `harness.watch.Watch`."""

    failure: BaseException | None
    log_lines: list[str]

    @property
    def current(self) -> Exchange | None: ...

    @property
    def relayed(self) -> bool: ...

    def begin_watching(self) -> None: ...

    def expect(
        self, *, timeout_s: float, init_limit_s: float, context: RequestContext | None = None, ahead: bool = False
    ) -> Exchange: ...

    def release(self, event: bytes) -> None: ...

    def settle(self, exchange: Exchange, *, timeout_s: float) -> None: ...

    def finish(self, exchange: Exchange) -> None: ...

    def stop(self) -> None: ...


class Attendant(Protocol):
    """What attends to one started container: its RIE, its reach, its watch, all in the same place."""

    @property
    def rie(self) -> Rie: ...

    def reach(self) -> Reach:
        """To be asked once the RIE listens: not before has it the memory whose share is to be measured."""

    def watch(
        self,
        *,
        name: str,
        log: socket.socket,
        tell: Tell,
        event_headers: Callable[[RequestContext], dict[bytes, bytes]],
        sample_s: float,
    ) -> Watching:
        """A watch that has not begun, over the reach that was asked for before; it takes ``log`` over."""

    def listen(self, endpoints: Endpoints, server: SocketServer) -> Listening:
        """Open endpoints in the sandbox's network; to be asked after the reach.

        Raises:
            OSError, EngineError: they cannot be opened there; a port is taken, say.
            NotMeasurable: on this vantage there is no way into the sandbox's network.
        """

    def close(self) -> None:
        """After reach and watch have been given back."""


class Vantage(Protocol):
    """Opens sandboxes; one for a whole command. Whoever made it closes it."""

    name: str
    relays: bool
    """Whether sockets can be opened in the sandboxes' networks: the Runtime API is relayed (exact instants, deadlines and ids,
    inits ahead of requests), and receivers can listen."""
    in_process: bool
    """Whether this process itself looks at the sandboxes, on its own kernel: a look costs next to nothing, and the CPU time of
    this host is theirs."""
    sees_files: bool
    """Whether the engine can mount this host's files, or they have to be carried to it."""

    def describe(self) -> dict[str, Any]:
        """What is known of the containers' kernel beside what the engine says: ``hz``, ``cpu_model``, None where unknown."""

    def spare_memory_bytes(self) -> int | None:
        """Memory that is available now where the containers run; None where only the engine's total is known."""

    def carry(self, binds: Mapping[str, tuple[str, str]], image_id: str) -> dict[str, tuple[str, str]]:
        """The same binds with sources that the engine can mount: host paths, or volumes that hold the same files."""

    def tmp(self, size_mb: int, sandbox_id: str, work_dir: Path) -> TmpVolume:
        """Storage for a sandbox's /tmp, of exactly this size where the vantage allows."""

    def attend(self, container: Container, tmp_mb: int) -> Attendant:
        """For the started container; ``tmp_mb`` is what its /tmp should hold at most."""

    def cpus(self) -> tuple[int, ...]:
        """The CPUs that sandboxes may use."""

    def let_go(self, container_id: str, pid: int) -> None:
        """Make a container of a dead owner removable (thaw it); quiet if there is nothing to do."""

    def close(self) -> None: ...
