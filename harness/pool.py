"""Concurrent invocations over sandboxes: each takes the idle one that was used last, or a new one, or is throttled.

One request per sandbox, as on Lambda, so a burst makes as many sandboxes as there are requests at once: up to a number,
and never more than memory holds. Owns its sandboxes: closing the pool ends them all. Must not know plans or schedules.
"""

from __future__ import annotations

import datetime
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import psutil

from harness import lifecycle
from harness.errors import HarnessError
from harness.function import Function
from harness.invocation import Invocation, Outcome
from harness.sandbox import Sandbox
from harness.stand import Stand

LAMBDA_MAX_SANDBOXES = 1000
"""Lambda's default quota of concurrent executions in a region [AWS Lambda quotas]."""

MEMORY_SHARE = 0.7
"""Share of the available memory that sandboxes may have together; the rest is the host's."""

THROTTLED_TYPE = "TooManyRequestsException"
THROTTLED_MESSAGE = "Rate Exceeded."

_MIB = 1024 * 1024
_RIE_BYTES = 16 * _MIB
"""What a sandbox costs besides its memory size: the RIE and what the engine keeps for a container."""
_STARTS_AT_ONCE = 4
"""How many containers may be starting at a time: the engine is no faster with more, and each of them gets slower."""
_CLOSE_AT_ONCE = 8
_START_PATIENCE_S = 60.0


def spare_memory_bytes(stand: Stand) -> int:
    """What sandboxes may have together without overcommitting the host that runs them."""
    if stand.vantage.name == "host":
        return int(psutil.virtual_memory().available * MEMORY_SHARE)
    # The engine may be in a virtual machine: of its memory only the total is known.
    return int(stand.facts.memory_bytes * MEMORY_SHARE)


@dataclass(frozen=True, kw_only=True)
class PoolStatistics:
    """What a pool did so far."""

    sandboxes: int
    """Those that were given a request."""
    most_busy: int
    """With a request, or starting for one, at one time."""
    throttled: int
    prepared: int
    """Started before a request asked for them."""
    start_ms: tuple[float, ...]
    """How long requests waited for a container to start, for others that were starting too: the engine's time, not Lambda's."""


class Lease:
    """A sandbox that is one request's until `invoke` returns, or `start` fails. To be used once, by one thread."""

    def __init__(self, pool: Pool, sandbox: Sandbox, *, fresh: bool) -> None:
        self._pool = pool
        self._fresh = fresh
        self.sandbox = sandbox

    def start(self) -> None:
        """Start a new sandbox's container; nothing to do for one that was used before. Raises `EngineError`."""
        if self._fresh:
            self._fresh = False
            self._pool._start_for_request(self.sandbox)  # noqa: SLF001  # one class in two halves

    def invoke(self, event: bytes) -> Invocation:
        """The invocation; afterwards the sandbox is idle again, or out of the pool if its container went away."""
        self.start()
        try:
            return self.sandbox.invoke(event)
        finally:
            self._pool._give_back(self.sandbox)  # noqa: SLF001


class Pool:
    """Sandboxes of one function at one memory size. Safe to use from several threads.

    ``max_sandboxes`` None: Lambda's own quota. ``memory_bytes`` None: what `spare_memory_bytes` says when a second
    sandbox is wanted; the first one is always allowed, as no harness could run without it.
    """

    def __init__(
        self,
        stand: Stand,
        function: Function | None = None,
        *,
        max_sandboxes: int | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        self._stand = stand
        self._function = function or stand.function
        self._max = LAMBDA_MAX_SANDBOXES if max_sandboxes is None else max_sandboxes
        self._memory_bytes = memory_bytes
        self._idle: list[Sandbox] = []
        self._spare: list[Sandbox] = []
        self._all: list[Sandbox] = []
        self._starting: set[Sandbox] = set()
        self._changed = threading.Condition()
        self._starts = threading.BoundedSemaphore(_STARTS_AT_ONCE)
        self._closed = False
        self._used = self._busy = self._busiest = self._throttled = self._prepared = 0
        self._start_ms: list[float] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def sandboxes(self) -> tuple[Sandbox, ...]:
        """Those that have been started, idle or not."""
        with self._changed:
            return tuple(
                each
                for each in self._all
                if each not in self._starting and not isinstance(each.phase, lifecycle.Created)
            )

    @property
    def capacity(self) -> int:
        """How many sandboxes there may be at one time."""
        with self._changed:
            return min(self._max, self._memory_holds())

    def statistics(self) -> PoolStatistics:
        with self._changed:
            return PoolStatistics(
                sandboxes=self._used,
                most_busy=self._busiest,
                throttled=self._throttled,
                prepared=self._prepared,
                start_ms=tuple(self._start_ms),
            )

    def invoke(self, event: bytes) -> Invocation:
        """One invocation, in the sandbox that was used last of those that are idle, or in a new one, or throttled.

        A sandbox whose container went away is not used again. Raises `EngineError` when none can be started.
        """
        lease = self.lease()
        return self.throttled() if lease is None else lease.invoke(event)

    def lease(self) -> Lease | None:
        """A sandbox for one request, at once; None where all are busy and there may be no more: it is throttled then."""
        with self._changed:
            if self._closed:
                raise HarnessError("the pool is closed")
            fresh = not self._idle and not self._spare
            if self._idle:
                sandbox = self._idle.pop()
            elif self._spare:
                sandbox = self._spare.pop()
                self._used += 1
            elif self._full():
                self._throttled += 1
                return None
            else:
                sandbox = self._new()
                self._used += 1
            self._busy += 1
            self._busiest = max(self._busiest, self._busy)
            return Lease(self, sandbox, fresh=fresh)

    def prepare(self, count: int) -> None:
        """Start up to ``count`` containers ahead of the requests, as many as there may be; nothing of a function runs yet.

        Lambda keeps sandboxes ready too. Their init still belongs to the first invocation, which is a cold start.
        """
        with self._changed:
            wanted = [self._new() for _ in range(min(count, self._max, self._memory_holds()) - len(self._all))]
        if not wanted:
            return
        with ThreadPoolExecutor(max_workers=_STARTS_AT_ONCE, thread_name_prefix="prepare") as starting:
            pending = [starting.submit(self._start, sandbox) for sandbox in wanted]
        started = [sandbox for sandbox, each in zip(wanted, pending, strict=True) if each.exception() is None]
        with self._changed:
            self._prepared += len(started)
            self._spare += started
        for each in pending:
            each.result()

    def throttled(self) -> Invocation:
        """The record of a request that found every sandbox busy, with Lambda's answer (HTTP status 429).

        Nothing of it ran: it has no sandbox, and no figures.
        """
        function, full = self._function, self._max <= self._memory_holds()
        # As AWS's API reference has it: the function's own limit, or that of the account, which memory stands for here.
        reason = "ReservedFunctionConcurrentInvocationLimitExceeded" if full else "ConcurrentInvocationLimitExceeded"
        why = f"all {self._max} sandboxes that may be were busy"
        if not full:
            why = f"all sandboxes were busy, and memory holds no more than {self._memory_holds()} of {function.memory_mb} MB"
        return Invocation(
            request_id=str(uuid.uuid4()),
            function=function.name,
            runtime=function.runtime,
            memory_mb=function.memory_mb,
            architecture=function.architecture,
            image=self._stand.image.reference,
            rie_version=self._stand.rie_version,
            sandbox_id="",
            sequence=0,
            cold=False,
            phase_init=None,
            started_at=datetime.datetime.now(datetime.UTC).isoformat(),
            outcome=Outcome.THROTTLED,
            error_type=THROTTLED_TYPE,
            error_message=THROTTLED_MESSAGE,
            vantage=self._stand.vantage.name,
            response={"Reason": reason, "Type": "User", "message": THROTTLED_MESSAGE},
            notes=(why,),
        )

    def close(self) -> None:
        """End every sandbox, several at a time; what is under way in them ends with them. Safe to call twice."""
        with self._changed:
            self._closed = True
            ended = [each for each in self._all if each not in self._starting]
            self._all, self._idle, self._spare = [], [], []
        if len(ended) == 1:
            ended[0].shut_down()
        elif ended:
            with ThreadPoolExecutor(max_workers=min(_CLOSE_AT_ONCE, len(ended)), thread_name_prefix="close") as closing:
                for each in [closing.submit(sandbox.shut_down) for sandbox in ended]:
                    each.result()
        with self._changed:
            # A container that is being started is its thread's alone, which ends it as soon as it can be ended.
            self._changed.wait_for(lambda: not self._starting, timeout=_START_PATIENCE_S)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _new(self) -> Sandbox:
        sandbox = self._stand.sandbox(self._function)
        self._all.append(sandbox)
        return sandbox

    def _full(self) -> bool:
        alive = len(self._all)
        return alive >= self._max or (alive >= 1 and alive >= self._memory_holds())

    def _memory_holds(self) -> int:
        if self._memory_bytes is None:
            self._memory_bytes = spare_memory_bytes(self._stand)
        return max(1, self._memory_bytes // (self._function.memory_mb * _MIB + _RIE_BYTES))

    def _start(self, sandbox: Sandbox) -> None:
        with self._starts:
            with self._changed:
                if self._closed:
                    raise HarnessError("the pool was closed before a sandbox was started")
                self._starting.add(sandbox)
            try:
                sandbox.start()
            except BaseException:
                self._drop(sandbox)
                raise
        if not self._has_started(sandbox):
            self._drop(sandbox)
            raise HarnessError("the pool was closed while a sandbox was starting")

    def _has_started(self, sandbox: Sandbox) -> bool:
        """Take note of it; False where the pool has been closed meanwhile and nobody else will end it."""
        with self._changed:
            if not self._closed:
                self._starting.discard(sandbox)
            return not self._closed

    def _start_for_request(self, sandbox: Sandbox) -> None:
        begun = time.monotonic()
        try:
            self._start(sandbox)
        except BaseException:
            with self._changed:
                self._busy -= 1
            raise
        with self._changed:
            self._start_ms.append((time.monotonic() - begun) * 1000)

    def _drop(self, sandbox: Sandbox) -> None:
        try:
            sandbox.shut_down()
        finally:
            with self._changed:
                self._starting.discard(sandbox)
                if sandbox in self._all:
                    self._all.remove(sandbox)
                self._changed.notify_all()

    def _give_back(self, sandbox: Sandbox) -> None:
        with self._changed:
            self._busy -= 1
            if self._closed:
                return
            if isinstance(sandbox.phase, lifecycle.ShutDown):
                self._all.remove(sandbox)
            else:
                self._idle.append(sandbox)
