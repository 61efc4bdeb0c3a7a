"""Asynchronous invocations: accepted events wait in the store, are tried, tried again, and end at a destination.

AWS's rules [developer guide, "Asynchronous invocation"]: an error of the function is tried again twice, after one minute
and after two; a throttled request or a failure of the service goes back into the queue, for one second at first, doubled
up to five minutes; an event that would be older than six hours then is over. Fewer attempts and a smaller age can be
configured. The request id stays the same. An event is in the store before `AsyncQueue.put` returns and until its end has
been told, so that it outlives the process; as on Lambda it may therefore run twice.

Must not know sandboxes: it is given a way to invoke.
"""

from __future__ import annotations

import base64
import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.api.destinations import Condition, Destinations, Ended
from harness.api.faults import Fault
from harness.context import RequestContext, Trace
from harness.errors import HarnessError
from harness.invocation import Invocation, Outcome

if TYPE_CHECKING:
    from harness.api.model import EventInvokeConfig, Target
    from harness.store import Store

COLLECTION = "queue"
MAX_RETRIES = 2
MAX_AGE_S = 6 * 3600
MAX_HOPS = 16
"""After so many functions that invoked one another Lambda takes it for a loop [developer guide, "Recursive loop detection"]."""

_LEAST_S = 0.1
"""Between two refusals, however the waits are scaled: what is refused at once must not keep the machine busy."""
_RETRY_S = 60.0
"""Times the number of attempts so far: one minute, then two."""
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 1.0, 300.0
_WORKERS = 32


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the queue asks the registry."""

    resolve: Callable[[str, str], Target]
    """By name and qualifier; raises `Fault` where there is none any more."""
    event_invoke_config: Callable[[str, str], EventInvokeConfig | None]
    reserved_concurrency: Callable[[str], int | None]


@dataclass(frozen=True, kw_only=True)
class _Item:
    """An event that waits, as the store has it. Times are seconds since 1970."""

    request_id: str
    function: str
    qualifier: str
    invoked_arn: str
    event: bytes
    accepted_at: float
    due_at: float
    trace: str | None = None
    attempts: int = 0
    """That ended with an error of the function."""
    refusals: int = 0
    """One after the other that did not reach the function."""
    hops: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "event": base64.b64encode(self.event).decode()}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> _Item:
        return cls(**{**found, "event": base64.b64decode(found["event"])})

    @property
    def context(self) -> RequestContext:
        trace = Trace.parse(self.trace) if self.trace else None
        return RequestContext(
            request_id=self.request_id,
            # No client context: Lambda hands it to synchronous invocations alone.
            invoked_arn=self.invoked_arn,
            trace=trace,
        )


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """How an attempt ended: a record, or what kept it from being made."""

    executed_version: str = ""
    dead_letter_arn: str | None = None
    record: Invocation | None = None
    failure: str | None = None


class AsyncQueue:
    """See the module. Takes up what the store holds when it is started; `close` leaves there what is not over.

    ``retry_scale`` shortens (or stretches) the waits before retries; the age that an event may reach stays.
    """

    def __init__(
        self,
        store: Store,
        rules: Rules,
        invoke: Callable[[Target, bytes, RequestContext], Invocation],
        destinations: Destinations,
        *,
        retry_scale: float = 1.0,
        workers: int = _WORKERS,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._rules = rules
        self._invoke = invoke
        self._destinations = destinations
        self._scale = retry_scale
        self._most = workers
        self._say = say
        self._changed = threading.Condition()
        self._order = itertools.count()
        self._waiting: list[tuple[float, int, str]] = []
        self._running = 0
        self._closing = False
        self._workers = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="async")
        self._scheduler = threading.Thread(target=self._schedule, name="async-queue", daemon=True)

    def start(self) -> None:
        """Begin, with what an earlier process left in the store."""
        for key, found in self._store.documents(COLLECTION).items():
            self._put_into_order(float(found["due_at"]), key)
        self._scheduler.start()

    def put(self, target: Target, event: bytes, context: RequestContext, *, hops: int = 0) -> None:
        """Accept an event; it is in the store on return."""
        now = time.time()
        version = target.version
        item = _Item(
            request_id=context.request_id,
            function=version.function_name,
            qualifier=target.alias or version.version,
            invoked_arn=context.invoked_arn or target.invoked_arn,
            event=event,
            accepted_at=now,
            due_at=now,
            trace=context.trace.header if context.trace is not None else None,
            hops=hops,
        )
        self._keep(item)

    def __len__(self) -> int:
        """How many events are not over."""
        with self._changed:
            return len(self._waiting) + self._running

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until everything that was accepted is over; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._running, timeout=timeout_s)

    def stop(self) -> None:
        """Take up nothing more. What is under way, and what waits, stays in the store unless it comes to its end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._scheduler.is_alive():
            self._scheduler.join()

    def close(self) -> None:
        """`stop`, and wait for what is under way."""
        self.stop()
        self._workers.shutdown(wait=True)

    # -- in the scheduler's thread ----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        while (key := self._next()) is not None:
            self._workers.submit(self._work, key)

    def _next(self) -> str | None:
        with self._changed:
            while not self._closing:
                wait_s = self._waiting[0][0] - time.time() if self._waiting else None
                if wait_s is not None and wait_s <= 0 and self._running < self._most:
                    self._running += 1
                    return heapq.heappop(self._waiting)[2]
                # The wall clock may be set: an event must not wait for long because of that.
                self._changed.wait(None if wait_s is None or wait_s <= 0 else min(wait_s, 60.0))
        return None

    # -- in the workers' threads ------------------------------------------------------------------------------------

    def _work(self, key: str) -> None:
        try:
            found = None if self._closing else self._store.get_document(COLLECTION, key)
            if found is not None:
                self._try(_Item.from_dict(found))
        except Exception as error:  # noqa: BLE001  # nobody waits for it; the event is still in the store
            self._say(f"asynchronous invocation {key}: {type(error).__name__}: {error}")
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _try(self, item: _Item) -> None:
        if self._rules.reserved_concurrency(item.function) == 0:
            attempt = self._describe(item)
            if attempt is not None:
                self._end(item, Condition.ZERO_RESERVED_CONCURRENCY, attempt)
            return
        if time.time() > self._deadline(item):
            attempt = self._describe(item)
            if attempt is not None:
                self._end(item, Condition.EVENT_AGE_EXCEEDED, attempt)
            return
        attempt = self._attempt(item)
        if attempt is None:
            return
        outcome = attempt.record.outcome if attempt.record is not None else Outcome.ENGINE_ERROR
        if outcome is Outcome.SUCCESS:
            self._end(replace(item, attempts=item.attempts + 1), Condition.SUCCESS, attempt)
        elif outcome in (Outcome.THROTTLED, Outcome.ENGINE_ERROR):
            if self._closing and outcome is Outcome.ENGINE_ERROR:
                return  # its sandbox was ended under it, by us: the next process begins anew
            self._again(replace(item, refusals=item.refusals + 1), _backoff_s(item.refusals), attempt, least_s=_LEAST_S)
        else:
            item = replace(item, attempts=item.attempts + 1, refusals=0)
            if item.attempts > self._retries(item):
                self._end(item, Condition.RETRIES_EXHAUSTED, attempt)
            else:
                self._again(item, _RETRY_S * item.attempts, attempt)

    def _describe(self, item: _Item) -> _Attempt | None:
        """What is known of the function without an attempt; None where it is gone, and the event with it."""
        try:
            target = self._rules.resolve(item.function, item.qualifier)
        except Fault as fault:
            return self._refused(item, fault)
        return _attempted(target)

    def _attempt(self, item: _Item) -> _Attempt | None:
        try:
            target = self._rules.resolve(item.function, item.qualifier)
            attempt = _attempted(target)
        except Fault as fault:
            return self._refused(item, fault)
        try:
            return replace(attempt, record=self._invoke(target, item.event, item.context))
        except (HarnessError, Fault) as error:
            return replace(attempt, failure=str(error))
        except Exception as error:  # noqa: BLE001  # a bug of ours must not strand an event that was accepted
            self._say(f"{item.function}: a bug of the harness: {type(error).__name__}: {error}")
            return replace(attempt, failure="a bug of the harness; its log says more")

    def _refused(self, item: _Item, fault: Fault) -> _Attempt | None:
        if fault.status == 404:
            self._forget(item)
            self._say(f"{item.function}: an asynchronous invocation was dropped, its function is gone")
            return None
        return _Attempt(failure=str(fault))

    def _again(self, item: _Item, wait_s: float, attempt: _Attempt, *, least_s: float = 0.0) -> None:
        due_at = time.time() + max(wait_s * self._scale, least_s)
        if due_at > self._deadline(item):
            self._end(item, Condition.EVENT_AGE_EXCEEDED, attempt)
        else:
            self._keep(replace(item, due_at=due_at))

    def _end(self, item: _Item, condition: Condition, attempt: _Attempt) -> None:
        config = self._config(item)
        ended = Ended(
            request_id=item.request_id,
            function_arn=_qualified(item),
            executed_version=attempt.executed_version or item.qualifier,
            condition=condition,
            attempts=item.attempts,
            event=item.event,
            record=attempt.record,
            failure=attempt.failure,
            hops=item.hops,
        )
        succeeded = condition is Condition.SUCCESS
        to = None if config is None else (config.on_success if succeeded else config.on_failure)
        try:
            if to:
                self._destinations.deliver(ended, to=to)
            if not succeeded and attempt.dead_letter_arn:
                self._destinations.bury(ended, to=attempt.dead_letter_arn)
        except (HarnessError, Fault) as error:
            self._say(f"{item.function}: the end of an asynchronous invocation could not be told: {error}")
        if not succeeded:
            self._say(f"{item.function}: asynchronous invocation {item.request_id} failed: {condition}")
        self._forget(item)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _config(self, item: _Item) -> EventInvokeConfig | None:
        return self._rules.event_invoke_config(item.function, item.qualifier)

    def _retries(self, item: _Item) -> int:
        config = self._config(item)
        return MAX_RETRIES if config is None or config.maximum_retry_attempts is None else config.maximum_retry_attempts

    def _deadline(self, item: _Item) -> float:
        config = self._config(item)
        age_s = MAX_AGE_S if config is None or config.maximum_event_age_s is None else config.maximum_event_age_s
        return item.accepted_at + age_s

    def _keep(self, item: _Item) -> None:
        self._store.put_document(COLLECTION, item.request_id, item.as_dict())
        self._put_into_order(item.due_at, item.request_id)

    def _forget(self, item: _Item) -> None:
        self._store.delete_document(COLLECTION, item.request_id)

    def _put_into_order(self, due_at: float, key: str) -> None:
        with self._changed:
            heapq.heappush(self._waiting, (due_at, next(self._order), key))
            self._changed.notify_all()


def _backoff_s(refusals: int) -> float:
    """Up to twice as long, by chance: events that were refused together would be refused together again."""
    least_s = min(_FIRST_BACKOFF_S * float(2 ** min(refusals, 30)), _LONGEST_BACKOFF_S / 2)
    return least_s * (1.0 + random.random())  # noqa: S311  # nothing is kept secret by it


def _attempted(target: Target) -> _Attempt:
    return _Attempt(
        executed_version=target.version.version,
        dead_letter_arn=target.version.configuration.dead_letter_arn,
    )


def _qualified(item: _Item) -> str:
    """The ARN as destinations tell it: always with a qualifier."""
    return item.invoked_arn if item.invoked_arn.count(":") > 6 else f"{item.invoked_arn}:{item.qualifier}"
