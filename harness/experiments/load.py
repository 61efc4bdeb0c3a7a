"""Load: many requests at once, over sandboxes that scale out as Lambda's do. A plan in, records out as they are measured.

Closed loop: N clients, each asks again as soon as it has its answer. Open loop: requests arrive at a rate, whatever
became of those before; what a caller waits is counted from the moment at which its request was due, not from when the
generator came round to it (leaving that out is known as coordinated omission). The generator watches itself: its own
CPU time and lateness are in `Observed`.
"""

from __future__ import annotations

import contextlib
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType

import psutil

from harness.errors import HarnessError, InvalidInput, UsageError
from harness.invocation import Invocation, Outcome
from harness.pool import Lease, Pool, PoolStatistics, spare_memory_bytes
from harness.sandbox import Sandbox
from harness.stand import Stand

_MIB = 1024 * 1024
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
"""How long a throttled client of the closed loop waits before it asks again: doubled each time, as AWS's SDKs do."""

_SAMPLE_S = 0.025
_SAMPLE_SHARE = 0.02
"""The most of one CPU that watching the memory of all sandboxes may take: with many of them it looks less often."""
_LOOK_S, _ASKED_LOOK_S = 0.00005, 0.0005
"""CPU time of one look at one sandbox, as measured: at the kernel's files, and by asking for it, all processes on the way
included. Not timed while it runs: on the busy host that a load makes, waiting for a CPU takes a hundred times as long."""

_NOTED_WAIT_MS = 1.0

_READY_S = 1.0
_MOST_READY = 64
"""An open loop begins with containers for the arrivals of this many seconds, at most so many of them."""


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """One of ``concurrency`` (closed loop) and ``rate_per_s`` (open loop); ends after ``duration_s`` or ``requests``.

    Whichever end comes first counts. Requests that are under way at the end are waited for. ``max_sandboxes`` None:
    Lambda's own quota; memory may hold fewer.
    """

    events: tuple[bytes, ...]
    concurrency: int | None = None
    rate_per_s: float | None = None
    duration_s: float | None = None
    requests: int | None = None
    poisson: bool = False
    seed: int = 0
    max_sandboxes: int | None = None

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate_per_s is None):
            raise UsageError(
                "a load has either a number of clients or a rate",
                remedy="give --concurrency N (each asks again when answered) or --rate R (requests a second, come what may)",
            )
        if self.duration_s is None and self.requests is None:
            raise UsageError("the load has no end", remedy="give --for S, --requests N, or both")
        for name, value in (
            ("concurrency", self.concurrency),
            ("rate", self.rate_per_s),
            ("for", self.duration_s),
            ("requests", self.requests),
            ("max-sandboxes", self.max_sandboxes),
        ):
            if value is not None and value <= 0:
                raise UsageError(f"--{name} {value:g}", remedy="give more than 0")
        if self.poisson and self.rate_per_s is None:
            raise UsageError("--poisson goes with --rate", remedy="a closed loop has no arrival times to choose")
        if not self.events:
            raise InvalidInput("a load without an event", remedy="give at least one")


def arrivals(plan: LoadPlan) -> Iterator[float]:
    """When the requests of an open loop are due, in seconds from its begin: at a constant distance, or as a Poisson
    process (independent requests of many callers) that depends on the seed alone.
    """  # noqa: D205
    assert plan.rate_per_s is not None  # noqa: S101  # of an open loop alone
    rng = random.Random(plan.seed)  # noqa: S311  # a schedule, not a secret
    number, due = 0, 0.0
    while plan.requests is None or number < plan.requests:
        # A multiple, not a sum: the error of a sum would grow.
        due = due + rng.expovariate(plan.rate_per_s) if plan.poisson else number / plan.rate_per_s
        if plan.duration_s is not None and due >= plan.duration_s:
            return
        yield due
        number += 1


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What was seen of a load beside its records."""

    loop: str
    """``closed`` or ``open``."""
    wall_s: float
    """From the first request to the last answer."""
    lateness_ms: tuple[float, ...]
    """Of each request: how long after it was due the generator took it up; in the closed loop, after the last answer."""
    waited_ms: tuple[float, ...]
    """Of each request: how long it waited for a container to start; Lambda's own time for that is another."""
    pool: PoolStatistics
    capacity: int
    """How many sandboxes there might have been."""
    generator_cpu_s: float
    """CPU time of this process: the generator, the watches over the sandboxes, the storing of records."""
    host_cpus: int
    host_busy_share: float | None
    """Share of all CPUs that was busy meanwhile, with whatever; None where that is not this host's to tell."""
    peak_memory_bytes: int | None
    """The most that all sandboxes were charged for at one time, without their RIEs."""
    memory_samples: int


class Load:
    """One load. A context manager: what is still under way when it is left ends with its sandboxes."""

    def __init__(self, stand: Stand, plan: LoadPlan) -> None:
        function = stand.function
        if function.memory_mb * _MIB > (spare := spare_memory_bytes(stand)):
            raise InvalidInput(
                f"a sandbox of {function.memory_mb} MB does not fit into this host's memory: "
                f"{spare / _MIB:.0f} MB may be given to sandboxes",
                remedy="choose a smaller memory size with -m, or free memory",
            )
        self._stand = stand
        self._plan = plan
        self._pool = Pool(stand, max_sandboxes=plan.max_sandboxes, memory_bytes=spare)
        self._records: queue.SimpleQueue[Invocation | BaseException | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._taken = 0
        self._lateness_ms: list[float] = []
        self._waited_ms: list[float] = []
        self._memory = _MemoryWatch(self._pool, _LOOK_S if stand.vantage.in_process else _ASKED_LOOK_S)
        self._cpu_before_s = self._cpu_s = 0.0
        self._host_before: _HostCpu | None = None
        self._host_busy_share: float | None = None
        self._begun_ns = self._ended_ns = 0
        self._driver: threading.Thread | None = None

    def __enter__(self) -> Load:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._memory.stop()
        self._pool.close()
        if self._driver is not None:
            self._driver.join()

    def records(self) -> Generator[Invocation, None, None]:
        """The records in the order in which they were done; once. Raises `EngineError` when no sandbox can be started.

        Containers are started before the clock is: a cold start is the function's init, as the engine's work for it is
        not Lambda's, and would keep requests waiting so long that far more sandboxes were needed than on Lambda.
        """
        self._pool.prepare(self._wanted())
        self._host_before, self._cpu_before_s = _HostCpu.now(self._stand), time.process_time()
        self._begun_ns = self._ended_ns = time.monotonic_ns()
        self._memory.start()
        work = self._closed_loop if self._plan.rate_per_s is None else self._open_loop
        self._driver = threading.Thread(target=self._drive, args=(work,), name="load", daemon=True)
        self._driver.start()
        try:
            while (found := self._records.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            self._memory.stop()
            self._cpu_s = time.process_time() - self._cpu_before_s
            self._host_busy_share = _HostCpu.busy_share(self._host_before, _HostCpu.now(self._stand))

    def _wanted(self) -> int:
        plan = self._plan
        most = min(plan.requests or _MOST_READY, self._pool.capacity)
        if plan.rate_per_s is None:
            return min(plan.concurrency or 1, most)
        return min(2 + math.ceil(plan.rate_per_s * _READY_S), _MOST_READY, most)

    def observed(self) -> Observed:
        """To be asked when `records` has been exhausted or closed."""
        with self._lock:
            return Observed(
                loop="closed" if self._plan.rate_per_s is None else "open",
                wall_s=(self._ended_ns - self._begun_ns) / 1e9,
                lateness_ms=tuple(self._lateness_ms),
                waited_ms=tuple(self._waited_ms),
                pool=self._pool.statistics(),
                capacity=self._pool.capacity,
                generator_cpu_s=self._cpu_s,
                host_cpus=self._stand.facts.cpus,
                host_busy_share=self._host_busy_share,
                peak_memory_bytes=self._memory.peak_bytes,
                memory_samples=self._memory.samples,
            )

    # -- in threads of their own ------------------------------------------------------------------------------------

    def _drive(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # handed to the thread that reads the records
            self._fail(error)
        self._records.put(None)

    def _fail(self, error: BaseException) -> None:
        if not self._stop.is_set():  # what breaks because everything is being ended is no failure
            self._stop.set()
            self._records.put(error)

    def _closed_loop(self) -> None:
        clients = []
        for number in range(self._plan.concurrency or 1):
            if (event := self._next_event()) is None:
                break
            # All clients have theirs before the first is served: a quick function's first sandbox would serve them all.
            first = (event, self._pool.lease())
            clients.append(threading.Thread(target=self._client, args=first, name=f"client-{number}", daemon=True))
        for client in clients:
            client.start()
        for client in clients:
            client.join()

    def _client(self, first_event: bytes, lease: Lease | None) -> None:
        answered_ns, pause_s = 0, _FIRST_PAUSE_S
        event: bytes | None = first_event
        try:
            while event is not None:
                asked_ns = time.monotonic_ns()
                late_ms = (asked_ns - answered_ns) / 1e6 if answered_ns else None
                if lease is None:
                    self._throttle(asked_ns, late_ms)
                    self._stop.wait(pause_s)
                    answered_ns, pause_s = 0, min(2 * pause_s, _LONGEST_PAUSE_S)
                else:
                    answered_ns, pause_s = self._serve(lease, event, asked_ns, late_ms), _FIRST_PAUSE_S
                event = self._next_event()
                lease = self._pool.lease() if event is not None else None
        except BaseException as error:  # noqa: BLE001
            self._fail(error)

    def _next_event(self) -> bytes | None:
        plan = self._plan
        with self._lock:
            over = plan.duration_s is not None and time.monotonic_ns() - self._begun_ns >= plan.duration_s * 1e9
            if over or self._stop.is_set() or (plan.requests is not None and self._taken >= plan.requests):
                return None
            self._taken += 1
            return plan.events[(self._taken - 1) % len(plan.events)]

    def _open_loop(self) -> None:
        plan = self._plan
        # A sandbox is free again a moment before the thread that used it is: hence a few more threads.
        with ThreadPoolExecutor(max_workers=self._pool.capacity + 8, thread_name_prefix="request") as threads:
            for number, due_s in enumerate(arrivals(plan)):
                due_ns = self._begun_ns + int(due_s * 1e9)
                if self._stop.wait(max(0.0, (due_ns - time.monotonic_ns()) / 1e9)):
                    return
                # Who gets a sandbox is decided in the order of arrival.
                lease = self._pool.lease()
                if lease is None:
                    self._throttle(due_ns, (time.monotonic_ns() - due_ns) / 1e6)
                else:
                    threads.submit(self._request, lease, plan.events[number % len(plan.events)], due_ns)

    def _request(self, lease: Lease, event: bytes, due_ns: int) -> None:
        try:
            self._serve(lease, event, due_ns, (time.monotonic_ns() - due_ns) / 1e6)
        except BaseException as error:  # noqa: BLE001
            self._fail(error)

    def _throttle(self, due_ns: int, late_ms: float | None) -> None:
        record = self._pool.throttled()
        now_ns = time.monotonic_ns()
        self._done(replace(record, client_ms=(now_ns - due_ns) / 1e6), late_ms, None, now_ns)

    def _serve(self, lease: Lease, event: bytes, due_ns: int, late_ms: float | None) -> int:
        """One request in its sandbox; returns when its answer was there."""
        before_ns = time.monotonic_ns()
        lease.start()
        asked_ns = time.monotonic_ns()
        record = lease.invoke(event)
        waited_ms, since_due_ms = (asked_ns - before_ns) / 1e6, (asked_ns - due_ns) / 1e6
        answered_ns = time.monotonic_ns()
        if record.client_ms is not None:
            answered_ns = asked_ns + int(record.client_ms * 1e6)
            record = replace(record, client_ms=since_due_ms + record.client_ms)
        if since_due_ms >= _NOTED_WAIT_MS:
            record = replace(record, notes=(*record.notes, _waiting(since_due_ms, waited_ms)))
        self._done(record, late_ms, waited_ms, answered_ns)
        return answered_ns

    def _done(self, record: Invocation, late_ms: float | None, waited_ms: float | None, answered_ns: int) -> None:
        if self._stop.is_set() and record.outcome is Outcome.ENGINE_ERROR:
            return  # its sandbox was ended under it, by us
        with self._lock:
            # A first request is due when it is sent, and a throttled one waits for no sandbox: nothing to measure.
            if late_ms is not None:
                self._lateness_ms.append(late_ms)
            if waited_ms is not None:
                self._waited_ms.append(waited_ms)
            self._ended_ns = max(self._ended_ns, answered_ns)
        self._records.put(record)


def _waiting(since_due_ms: float, waited_ms: float) -> str:
    return (
        f"client_ms counts {since_due_ms:.1f} ms before the sandbox was asked, "
        f"{waited_ms:.1f} ms of them for its container to start"
    )


@dataclass(frozen=True, kw_only=True)
class _HostCpu:
    busy_s: float
    total_s: float

    @classmethod
    def now(cls, stand: Stand) -> _HostCpu | None:
        if not stand.vantage.in_process:
            return None
        times = psutil.cpu_times()
        # guest time is in user time already.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return cls(busy_s=total - times.idle - getattr(times, "iowait", 0.0), total_s=total)

    @staticmethod
    def busy_share(before: _HostCpu | None, after: _HostCpu | None) -> float | None:
        if before is None or after is None or after.total_s <= before.total_s:
            return None
        return (after.busy_s - before.busy_s) / (after.total_s - before.total_s)


class _MemoryWatch:
    """Samples what all sandboxes of a pool are charged for together, where the vantage can tell that quickly."""

    def __init__(self, pool: Pool, look_s: float) -> None:
        self._pool, self._look_s = pool, look_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        self.peak_bytes: int | None = None
        self.samples = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        pause_s = _SAMPLE_S
        while not self._over.wait(pause_s):
            charged = [self._charged(sandbox) for sandbox in self._pool.sandboxes]
            known = [each for each in charged if each is not None]
            if known:
                self.samples += 1
                self.peak_bytes = max(self.peak_bytes or 0, sum(known))
            pause_s = max(_SAMPLE_S, len(charged) * self._look_s / _SAMPLE_SHARE)

    @staticmethod
    def _charged(sandbox: Sandbox) -> int | None:
        with contextlib.suppress(HarnessError):  # it may be on its way out
            return sandbox.cell.reach.charged_bytes()
        return None
