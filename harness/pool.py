"""Concurrent invocations over sandboxes: each takes the idle one that was used last, or a new one, or is throttled.

One request per sandbox, as on Lambda, so a burst makes as many sandboxes as there are requests at once: up to a number,
and never more than memory holds. Sandboxes may be provisioned, which is to say initialised ahead of requests; those are
taken first, replaced when they die, and never given up for another function's sake. Owns its sandboxes: closing the pool
ends them all. Must not know plans, schedules, versions or quotas.

Ending a container takes 150 ms, so no request does it: `MemoryBudget` has a few threads for that, and the memory of a
sandbox counts until it has ended.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol

from harness import lifecycle
from harness.context import RequestContext
from harness.engine.client import EngineFacts
from harness.errors import EngineError, HarnessError
from harness.function import Function
from harness.invocation import Invocation, Outcome, not_run
from harness.sandbox import Sandbox
from harness.stand import Stand
from harness.vantage import Vantage

LAMBDA_MAX_SANDBOXES = 1000
"""Lambda's default quota of concurrent executions in a region [AWS Lambda quotas]."""

MEMORY_SHARE = 0.7
"""Share of the available memory that sandboxes may have together; the rest is the host's."""

THROTTLED_TYPE = "TooManyRequestsException"
THROTTLED_MESSAGE = "Rate Exceeded."
FUNCTION_LIMIT = "ReservedFunctionConcurrentInvocationLimitExceeded"
"""AWS's reason for a throttle: the concurrency that is reserved for the function is in use."""
ACCOUNT_LIMIT = "ConcurrentInvocationLimitExceeded"
"""AWS's reason for a throttle: the account's concurrency is in use; here memory may stand for it."""

_MIB = 1024 * 1024
_RIE_BYTES = 16 * _MIB
"""What a sandbox costs besides its memory size: the RIE and what the engine keeps for a container."""
_STARTS_AT_ONCE = 4
"""How many containers may be starting at a time: the engine is no faster with more, and each of them gets slower."""
_ENDS_AT_ONCE = 4
_CLOSE_AT_ONCE = 8
_START_PATIENCE_S = 60.0
_ENDING_PATIENCE_S = 30.0


class Where(Protocol):
    """What there is to know about where sandboxes run; `Stand` and `Ground` know it."""

    facts: EngineFacts
    vantage: Vantage


def spare_memory_bytes(where: Where) -> int:
    """What sandboxes may have together without overcommitting the host that runs them."""
    available = where.vantage.spare_memory_bytes()
    # Of an engine's machine that nobody can look into the total is known alone.
    return int((where.facts.memory_bytes if available is None else available) * MEMORY_SHARE)


def sandbox_bytes(function: Function) -> int:
    """What one sandbox of this function counts for in a `MemoryBudget`."""
    return function.memory_mb * _MIB + _RIE_BYTES


class MemoryBudget:
    """The memory that the sandboxes of all pools of a process may have together, and the threads that end sandboxes.

    Where a new sandbox finds no room, idle ones that were not provisioned make room, the one used longest ago first,
    whichever pool they are in. One sandbox is always allowed, as no harness could run without it.
    """

    def __init__(
        self,
        total_bytes: int | Callable[[], int],
        *,
        ends_first: bool = False,
        on_trouble: Callable[[str], None] = lambda _: None,
    ) -> None:
        """A budget of 0 allows one sandbox at a time.

        ``total_bytes`` may be a function, asked when a second sandbox is wanted. ``ends_first``: no container is started
        before those that made room for it have ended (they may hold a port, too). ``on_trouble`` hears what went wrong in
        the end of a sandbox.
        """
        self.changed = threading.Condition()
        """The one lock of all pools that share the budget: whose sandbox makes room is decided in one step."""
        self._total = total_bytes
        self.ends_first = ends_first
        self._on_trouble = on_trouble
        self._held_bytes = 0
        self._idle: dict[Sandbox, Pool] = {}
        self._ending: dict[Future[None], int] = {}
        self._starts = threading.BoundedSemaphore(_STARTS_AT_ONCE)
        self._ends: ThreadPoolExecutor | None = None
        self._ahead: ThreadPoolExecutor | None = None
        self._starters: ThreadPoolExecutor | None = None

    @property
    def total_bytes(self) -> int:
        with self.changed:
            if not isinstance(self._total, int):
                self._total = self._total()
            return self._total

    @property
    def held_bytes(self) -> int:
        """What sandboxes have now, those that are being ended not counted."""
        with self.changed:
            return self._held_bytes

    def close(self) -> None:
        """Wait until every sandbox that is being ended has ended. To be called when the pools have been closed."""
        with self.changed:
            executors = [each for each in (self._ahead, self._starters, self._ends) if each is not None]
            self._ahead = self._starters = self._ends = None
        for each in executors:
            each.shutdown(wait=True)

    # -- for pools, who hold `changed` ------------------------------------------------------------------------------

    def claim(self, size_bytes: int) -> tuple[Future[None], ...] | None:
        """Take this much, giving up idle sandboxes where needed; None where that cannot be.

        What is returned must have ended before the function of the new sandbox runs.
        """
        room = self._held_bytes if self._held_bytes == 0 else self._held_bytes + size_bytes - self.total_bytes
        if room > 0:
            given_up: list[Sandbox] = []
            for sandbox in self._idle:
                if room <= 0:
                    break
                given_up.append(sandbox)
                room -= sandbox_bytes(sandbox.function)
            if room > 0 and self._held_bytes > sum(sandbox_bytes(each.function) for each in given_up):
                return None
            for sandbox in given_up:
                self._idle[sandbox]._give_up(sandbox)  # noqa: SLF001  # pools and their budget are one thing in two halves
        self._held_bytes += size_bytes
        crowded = bool(self._ending) and self._held_bytes + sum(self._ending.values()) > self.total_bytes
        return tuple(self._ending) if crowded else ()

    def release(self, size_bytes: int) -> None:
        self._held_bytes -= size_bytes

    def rest(self, sandbox: Sandbox, pool: Pool) -> None:
        """This sandbox is idle, and was used last of all."""
        self._idle[sandbox] = pool

    def wake(self, sandbox: Sandbox) -> None:
        """This sandbox is idle no longer."""
        self._idle.pop(sandbox, None)

    def end(self, sandbox: Sandbox) -> Future[None]:
        """End a sandbox in one of the budget's threads; its bytes are free for others to claim at once."""
        if self._ends is None:
            self._ends = ThreadPoolExecutor(max_workers=_ENDS_AT_ONCE, thread_name_prefix="end-sandbox")
        size_bytes = sandbox_bytes(sandbox.function)
        self.release(size_bytes)
        ending = self._ends.submit(self._shut_down, sandbox)
        self._ending[ending] = size_bytes
        ending.add_done_callback(self._ended)
        return ending

    def ahead(self, work: Callable[[], None]) -> None:
        """Do something for a pool that no request waits for."""
        if self._ahead is None:
            self._ahead = ThreadPoolExecutor(max_workers=_STARTS_AT_ONCE, thread_name_prefix="provision")
        self._ahead.submit(work)

    def start(self, work: Callable[[], None]) -> None:
        """Start a container for a request of a service, in one of a few threads, and wait for it.

        Each thread has its own connection to the engine: those of a service's requests are many, and come and go.
        """
        with self.changed:
            if self._starters is None:
                self._starters = ThreadPoolExecutor(max_workers=_STARTS_AT_ONCE, thread_name_prefix="start-sandbox")
            started = self._starters.submit(work)
        started.result()

    def starting(self) -> threading.BoundedSemaphore:
        return self._starts

    def _shut_down(self, sandbox: Sandbox) -> None:
        try:
            sandbox.shut_down()
        except Exception as error:  # noqa: BLE001  # nobody waits for it who could be told otherwise
            self._on_trouble(f"sandbox {sandbox.id} did not end in good order: {error}")

    def _ended(self, ending: Future[None]) -> None:
        with self.changed:
            self._ending.pop(ending, None)


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
    """How long requests waited for a container to start, for others that were starting too: the engine's time, not Lambda's.

    The last `_KEPT_STARTS` of them.
    """


@dataclass(frozen=True, kw_only=True)
class Provisioned:
    """How far a pool is with the sandboxes that are to be initialised ahead."""

    requested: int
    ready: int
    """Initialised; with a request or without."""
    pending: int
    failure: HarnessError | None
    """Why no more are being made; None where nothing went wrong."""


@dataclass(frozen=True, kw_only=True)
class PoolView:
    """One sandbox of a pool, as it stands now."""

    sandbox: Sandbox
    busy: bool
    provisioned: bool
    idle_s: float | None
    """How long it has been idle; None while it is not."""


_KEPT_STARTS = 100_000


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

    def invoke(self, event: bytes, *, context: RequestContext | None = None) -> Invocation:
        """The invocation; afterwards the sandbox is idle again, or out of the pool if its container went away."""
        begun = time.monotonic()
        self.start()
        try:
            record = self.sandbox.invoke(event, context=context)
            telling_ms = self.sandbox.telling_ms  # before it is another's
        finally:
            self._pool._give_back(self.sandbox)  # noqa: SLF001
        return replace(record, pool_ms=(time.monotonic() - begun) * 1000 - telling_ms)


class Pool:
    """Sandboxes of one function at one memory size. Safe to use from several threads.

    ``max_sandboxes`` None: Lambda's own quota. ``budget`` None: one of its own, of ``memory_bytes``; that None: what
    `spare_memory_bytes` says when a second sandbox is wanted.
    """

    def __init__(
        self,
        stand: Stand,
        function: Function | None = None,
        *,
        max_sandboxes: int | None = None,
        memory_bytes: int | None = None,
        budget: MemoryBudget | None = None,
    ) -> None:
        self._stand = stand
        self._function = function or stand.function
        self._max = LAMBDA_MAX_SANDBOXES if max_sandboxes is None else max_sandboxes
        self._shared = budget is not None
        self._budget = budget or MemoryBudget(
            (lambda: spare_memory_bytes(stand)) if memory_bytes is None else memory_bytes
        )
        self._bytes = sandbox_bytes(self._function)
        self._changed = self._budget.changed
        self._all: dict[Sandbox, int] = {}
        """Every sandbox that is not being ended -> the generation it is of."""
        self._idle: dict[Sandbox, float] = {}
        """In the order in which they were used -> since when."""
        self._spare: list[Sandbox] = []
        self._starting: set[Sandbox] = set()
        self._leased: set[Sandbox] = set()
        self._after: dict[Sandbox, tuple[Future[None], ...]] = {}
        self._ending: set[Future[None]] = set()
        self._ahead: set[Sandbox] = set()
        """Provisioned ones that are being initialised."""
        self._provisioned: set[Sandbox] = set()
        """Provisioned ones that are ready, busy or not."""
        self._ready: dict[Sandbox, float] = {}
        """Those of them that are idle -> since when."""
        self._wanted_ahead = 0
        self._failure: HarnessError | None = None
        self._generation = 0
        self._closed = False
        self._used = self._busiest = self._throttled = self._prepared = 0
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

    def views(self) -> tuple[PoolView, ...]:
        """Every sandbox and what it is at."""
        now = time.monotonic()
        with self._changed:
            return tuple(
                PoolView(
                    sandbox=each,
                    busy=each in self._leased or each in self._starting,
                    provisioned=each in self._provisioned or each in self._ahead,
                    idle_s=None if (since := self._idle.get(each, self._ready.get(each))) is None else now - since,
                )
                for each in self._all
            )

    @property
    def capacity(self) -> int:
        """How many sandboxes there may be at one time, with the memory for itself."""
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

    # -- requests ---------------------------------------------------------------------------------------------------

    def invoke(self, event: bytes, *, context: RequestContext | None = None) -> Invocation:
        """One invocation, in the sandbox that was used last of those that are idle, or in a new one, or throttled.

        A sandbox whose container went away is not used again. Raises `EngineError` when none can be started.
        """
        lease = self.lease()
        return self.throttled(context) if lease is None else lease.invoke(event, context=context)

    def lease(self) -> Lease | None:
        """A sandbox for one request, at once; None where all are busy and there may be no more: it is throttled then."""
        with self._changed:
            if self._closed:
                raise HarnessError("the pool is closed")
            fresh = False
            if self._ready:
                sandbox, _ = self._ready.popitem()
            elif self._idle:
                sandbox, _ = self._idle.popitem()
                self._budget.wake(sandbox)
            elif self._spare:
                sandbox = self._spare.pop()
                self._used += 1
            else:
                found = self._new()
                if found is None:
                    self._throttled += 1
                    return None
                sandbox, fresh = found, True
                self._used += 1
            self._leased.add(sandbox)
            self._busiest = max(self._busiest, len(self._leased))
            return Lease(self, sandbox, fresh=fresh)

    def prepare(self, count: int) -> None:
        """Start up to ``count`` containers ahead of the requests, as many as there may be; nothing of a function runs yet.

        Lambda keeps sandboxes ready too. Their init still belongs to the first invocation, which is a cold start.
        """
        with self._changed:
            missing = max(0, min(count, self._max, self._memory_holds()) - len(self._all))
            wanted = [each for each in (self._new() for _ in range(missing)) if each is not None]
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

    def throttled(
        self, context: RequestContext | None = None, *, reason: str | None = None, why: str | None = None
    ) -> Invocation:
        """The record of a request that found every sandbox busy, with Lambda's answer (HTTP status 429).

        ``reason`` is AWS's word and ``why`` ours, where it was another limit than the pool's own.
        """
        full = self._max <= self._memory_holds()
        if reason is None:
            # As AWS's API reference has it: the function's own limit, or that of the account, which memory stands for here.
            reason = FUNCTION_LIMIT if full else ACCOUNT_LIMIT
        if why is None:
            why = f"all {self._max} sandboxes that may be were busy"
            if not full and self._shared:
                why = f"all sandboxes were busy, and memory has no room for another of {self._function.memory_mb} MB"
            elif not full:
                why = (
                    f"all sandboxes were busy, and memory holds no more than {self._memory_holds()} of"
                    f" {self._function.memory_mb} MB"
                )
        return throttled(
            self._function,
            context or RequestContext(),
            reason=reason,
            why=why,
            image=self._stand.image.reference,
            rie_version=self._stand.rie_version,
            vantage=self._stand.vantage.name,
        )

    # -- the life of sandboxes --------------------------------------------------------------------------------------

    def provision(self, count: int) -> None:
        """Keep this many sandboxes initialised, from now on; returns at once, `provisioned` tells how far that is.

        Replaces those that die or are retired. A failure is tried again with the next call of this or `replenish`.
        """
        with self._changed:
            self._wanted_ahead = count
            for sandbox in list(self._ready)[: max(0, len(self._provisioned) - count)]:
                self._retire(sandbox)
            # Those that are busy go on as ordinary ones.
            for sandbox in list(self._provisioned)[: max(0, len(self._provisioned) - count)]:
                self._provisioned.discard(sandbox)
        self.replenish()

    def replenish(self) -> None:
        """Try again to have as many initialised sandboxes as are wanted; nothing to do where none is missing."""
        with self._changed:
            self._failure = None
            self._provide()

    @property
    def provisioned(self) -> Provisioned:
        with self._changed:
            return Provisioned(
                requested=self._wanted_ahead,
                ready=len(self._provisioned),
                pending=len(self._ahead),
                failure=self._failure,
            )

    def retire(self) -> None:
        """The code has changed: idle sandboxes end now, busy ones when they are done, and later requests get new ones."""
        with self._changed:
            self._generation += 1
            for sandbox in [*self._idle, *self._ready, *self._spare]:
                self._retire(sandbox)
            self._provisioned.clear()
            if not self._closed:
                self._failure = None
                self._provide()

    def end_idle(self, longer_than_s: float) -> int:
        """End what has been idle for longer than this, provisioned ones apart; returns how many."""
        before = time.monotonic() - longer_than_s
        with self._changed:
            over = [sandbox for sandbox, since in self._idle.items() if since < before]
            for sandbox in over:
                self._retire(sandbox)
            return len(over)

    def drop_dead(self, living: Iterable[str]) -> int:
        """End the idle sandboxes that are not among the living (ids); returns how many."""
        alive = set(living)
        with self._changed:
            dead = [each for each in [*self._idle, *self._ready, *self._spare] if each.id not in alive]
            for sandbox in dead:
                self._retire(sandbox)
            if dead:
                self._provide()
            return len(dead)

    def close(self) -> None:
        """End every sandbox, several at a time; what is under way in them ends with them. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._wanted_ahead = 0
            ended = [each for each in self._all if each not in self._starting]
            for each in ended:
                self._forget(each)
        try:
            if len(ended) == 1:
                ended[0].shut_down()
            elif ended:
                with ThreadPoolExecutor(min(_CLOSE_AT_ONCE, len(ended)), thread_name_prefix="close") as closing:
                    for done in [closing.submit(sandbox.shut_down) for sandbox in ended]:
                        done.result()
        finally:
            with self._changed:
                for _ in ended:
                    self._budget.release(self._bytes)
                # A container that is being started is its thread's alone, which ends it as soon as it can be ended.
                self._changed.wait_for(lambda: not self._starting and not self._ahead, timeout=_START_PATIENCE_S)
                ending = list(self._ending)
            wait(ending, timeout=_START_PATIENCE_S)
            if not self._shared:
                self._budget.close()

    # -- inside; all but what starts containers is called with `changed` held ------------------------------------------

    def _new(self, *, provisioned: bool = False) -> Sandbox | None:
        if len(self._all) >= self._max:
            return None
        after = self._budget.claim(self._bytes)
        if after is None:
            return None
        try:
            sandbox = self._stand.sandbox(self._function, provisioned=provisioned)
        except BaseException:
            self._budget.release(self._bytes)
            raise
        self._all[sandbox] = self._generation
        if after:
            self._after[sandbox] = after
        return sandbox

    def _memory_holds(self) -> int:
        return max(1, self._budget.total_bytes // self._bytes)

    def _provide(self) -> None:
        """Begin to initialise what is missing of the provisioned ones."""
        while (
            not self._closed
            and self._failure is None
            and len(self._provisioned) + len(self._ahead) < self._wanted_ahead
        ):
            sandbox = self._new(provisioned=True)
            if sandbox is None:
                most = len(self._provisioned) + len(self._ahead)
                self._failure = HarnessError(f"there is room for no more than {most} of {self._wanted_ahead} sandboxes")
                return
            self._ahead.add(sandbox)
            self._budget.ahead(functools.partial(self._initialise, sandbox))

    def _initialise(self, sandbox: Sandbox) -> None:
        failure: HarnessError | None = None
        try:
            self._start(sandbox)
            sandbox.initialise()
        except HarnessError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  # nobody waits for it who could be told otherwise
            failure = EngineError(f"a sandbox could not be initialised: {error}")
        with self._changed:
            self._ahead.discard(sandbox)
            current = self._all.get(sandbox) == self._generation and not self._closed
            if failure is None and current and len(self._provisioned) < self._wanted_ahead:
                self._provisioned.add(sandbox)
                self._ready[sandbox] = time.monotonic()
            elif sandbox in self._all:
                self._retire(sandbox)
            if failure is not None and current:
                self._failure = failure
            self._provide()
            self._changed.notify_all()

    def _start(self, sandbox: Sandbox) -> None:
        with self._budget.starting():
            with self._changed:
                if self._closed:
                    self._take_out(sandbox)
                    raise HarnessError("the pool was closed before a sandbox was started")
                self._starting.add(sandbox)
                after = self._after.pop(sandbox, ())
            if after and self._budget.ends_first:
                wait(after, timeout=_ENDING_PATIENCE_S)
            try:
                sandbox.start()
            except BaseException:
                self._drop(sandbox)
                raise
        if after:
            # Its container has been started meanwhile, which takes longer than the end of another; nothing of a function
            # has run in it yet.
            wait(after, timeout=_ENDING_PATIENCE_S)
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
            if self._shared:
                self._budget.start(functools.partial(self._start, sandbox))
            else:
                self._start(sandbox)
        except BaseException:
            with self._changed:
                self._leased.discard(sandbox)
            raise
        with self._changed:
            if len(self._start_ms) < _KEPT_STARTS:
                self._start_ms.append((time.monotonic() - begun) * 1000)

    def _drop(self, sandbox: Sandbox) -> None:
        """End a sandbox that was being started, here and now."""
        try:
            sandbox.shut_down()
        finally:
            with self._changed:
                self._starting.discard(sandbox)
                self._take_out(sandbox)
                self._changed.notify_all()

    def _give_back(self, sandbox: Sandbox) -> None:
        with self._changed:
            self._leased.discard(sandbox)
            if sandbox not in self._all:
                return  # the pool was closed meanwhile
            if isinstance(sandbox.phase, lifecycle.ShutDown):
                self._take_out(sandbox)
                self._provide()
            elif self._all[sandbox] != self._generation:
                self._retire(sandbox)
            elif sandbox in self._provisioned:
                self._ready[sandbox] = time.monotonic()
            else:
                self._idle[sandbox] = time.monotonic()
                self._budget.rest(sandbox, self)
            self._changed.notify_all()

    def _give_up(self, sandbox: Sandbox) -> None:
        """Make room for a sandbox of whichever pool."""
        self._retire(sandbox)

    def _retire(self, sandbox: Sandbox) -> None:
        """End a sandbox that has no request, elsewhere."""
        self._forget(sandbox)
        ending = self._budget.end(sandbox)
        self._ending.add(ending)
        ending.add_done_callback(self._ended)

    def _ended(self, ending: Future[None]) -> None:
        with self._changed:
            self._ending.discard(ending)

    def _take_out(self, sandbox: Sandbox) -> None:
        """A sandbox that is over leaves the pool."""
        if sandbox in self._all:
            self._forget(sandbox)
            self._budget.release(self._bytes)

    def _forget(self, sandbox: Sandbox) -> None:
        self._all.pop(sandbox, None)
        self._after.pop(sandbox, None)
        self._idle.pop(sandbox, None)
        self._ready.pop(sandbox, None)
        self._provisioned.discard(sandbox)
        self._budget.wake(sandbox)
        with contextlib.suppress(ValueError):
            self._spare.remove(sandbox)


def throttled(
    function: Function,
    context: RequestContext,
    *,
    reason: str,
    why: str,
    image: str = "",
    rie_version: str | None = None,
    vantage: str,
) -> Invocation:
    """The record of a request that was throttled, with Lambda's answer (HTTP status 429).

    Nothing of it ran: it has no sandbox, and no figures.
    """
    return not_run(
        function,
        vantage=vantage,
        outcome=Outcome.THROTTLED,
        request_id=context.request_id,
        image=image,
        rie_version=rie_version,
        error_type=THROTTLED_TYPE,
        error_message=THROTTLED_MESSAGE,
        response={"Reason": reason, "Type": "User", "message": THROTTLED_MESSAGE},
        notes=(why,),
    )
