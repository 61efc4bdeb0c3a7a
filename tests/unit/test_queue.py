"""Asynchronous invocations: accepted for good, tried again as Lambda does, and told where they ended."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fakes import function
from fakes_service import FakeRegistry, until

from harness.api.destinations import Destinations
from harness.api.model import Target
from harness.api.queue import COLLECTION, AsyncQueue, Rules, _backoff_s
from harness.context import RequestContext, Trace
from harness.errors import EngineError
from harness.invocation import Invocation, Outcome
from harness.pool import throttled
from harness.store import Store

FAILURES = "arn:aws:sqs:us-east-1:000000000000:failures"
SUCCESSES = "arn:aws:sqs:us-east-1:000000000000:successes"
DEAD = "arn:aws:sqs:us-east-1:000000000000:dead"
QUICK = 1e-4
"""Scale of the queue's times: a minute takes 6 ms."""


@dataclass
class Invoker:
    """Ends invocations one after the other as it was told to; the last way is that of all others."""

    outcomes: list[Outcome | Exception] = field(default_factory=lambda: [Outcome.SUCCESS])
    seen: list[tuple[Target, bytes, RequestContext]] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def __call__(self, target: Target, event: bytes, context: RequestContext) -> Invocation:
        self.seen.append((target, event, context))
        self.at.append(time.time())
        self.meanwhile()
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        record = throttled(function(), context, reason="", why="", vantage="host")
        return replace(record, outcome=outcome, error_message="boom", response={"n": len(self.seen)})


@dataclass
class Lab:
    store: Store
    registry: FakeRegistry
    folder: Path
    invoker: Invoker = field(default_factory=Invoker)
    said: list[str] = field(default_factory=list)
    handed_on: list[Any] = field(default_factory=list)
    queues: list[AsyncQueue] = field(default_factory=list)

    def queue(self, scale: float = QUICK, **settings: Any) -> AsyncQueue:
        rules = Rules(
            resolve=self.registry.resolve,
            event_invoke_config=self.registry.event_invoke_config,
            reserved_concurrency=self.registry.reserved_concurrency,
        )
        destinations = Destinations(self.folder, lambda *found: self.handed_on.append(found))
        made = AsyncQueue(
            self.store, rules, self.invoker, destinations, retry_scale=scale, say=self.said.append, **settings
        )
        self.queues.append(made)
        made.start()
        return made

    def put(self, queue: AsyncQueue, **changes: Any) -> RequestContext:
        target = self.registry.resolve("probe")
        context = RequestContext(invoked_arn=target.invoked_arn, **changes)
        queue.put(target, b'{"a": 1}', context)
        return context

    def run(self, scale: float = QUICK) -> RequestContext:
        """One event, to its end."""
        queue = self.queue(scale)
        context = self.put(queue)
        assert queue.wait_until_empty(10)
        return context

    def told(self, arn: str) -> list[dict[str, Any]]:
        file = Destinations(self.folder, lambda *_: None).path(arn)
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Store(tmp_path / "runs.sqlite3") as store:
        lab = Lab(store=store, registry=FakeRegistry(), folder=tmp_path)
        lab.registry.add("probe", dead_letter_arn=DEAD)
        lab.registry.configure("probe", on_success=SUCCESSES, on_failure=FAILURES)
        yield lab
        for queue in lab.queues:
            queue.close()


def conditions(lab: Lab) -> list[tuple[str, int]]:
    contexts = [one["requestContext"] for one in lab.told(FAILURES)]
    return [(each["condition"], each["approximateInvokeCount"]) for each in contexts]


def test_a_success_is_told_to_its_destination_and_forgotten(lab: Lab) -> None:
    trace = Trace.begin(sampled=True)
    queue = lab.queue()
    context = lab.put(queue, client_context='{"custom": 1}', trace=trace)
    assert queue.wait_until_empty(10)
    [(target, event, seen)] = lab.invoker.seen
    without = replace(context, client_context=None)  # which Lambda hands to synchronous invocations alone
    assert (target.version.function_name, event, seen) == ("probe", b'{"a": 1}', without)
    [told] = lab.told(SUCCESSES)
    assert told["requestContext"]["requestId"] == context.request_id
    assert told["requestContext"]["functionArn"].endswith(":function:probe:$LATEST")
    assert told["requestContext"]["approximateInvokeCount"] == 1
    assert told["responsePayload"] == {"n": 1}
    assert lab.store.documents(COLLECTION) == {}
    assert lab.told(FAILURES) == lab.told(DEAD) == []


def test_an_error_of_the_function_is_tried_again_twice_after_one_minute_and_two(lab: Lab) -> None:
    lab.invoker.outcomes = [Outcome.FUNCTION_ERROR]
    context = lab.run(scale=2e-3)
    assert [seen.request_id for _, _, seen in lab.invoker.seen] == [context.request_id] * 3
    first, second, third = lab.invoker.at
    assert second - first >= 60 * 2e-3
    assert third - second >= 120 * 2e-3
    assert conditions(lab) == [("RetriesExhausted", 3)]
    [dead] = lab.told(DEAD)
    assert dead["MessageAttributes"]["ErrorMessage"]["StringValue"] == "boom"
    assert lab.store.documents(COLLECTION) == {}


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.OUT_OF_MEMORY, Outcome.RUNTIME_EXIT, Outcome.INIT_ERROR])
def test_whatever_the_function_does_wrong_counts(lab: Lab, outcome: Outcome) -> None:
    lab.invoker.outcomes = [outcome, Outcome.SUCCESS]
    lab.run()
    assert len(lab.invoker.seen) == 2
    assert lab.told(SUCCESSES)[0]["requestContext"]["approximateInvokeCount"] == 2


def test_fewer_retries_can_be_configured(lab: Lab) -> None:
    lab.registry.configure("probe", maximum_retry_attempts=0, on_failure=FAILURES)
    lab.invoker.outcomes = [Outcome.FUNCTION_ERROR]
    lab.run()
    assert conditions(lab) == [("RetriesExhausted", 1)]


@pytest.mark.parametrize("trouble", [Outcome.THROTTLED, Outcome.ENGINE_ERROR, EngineError("no engine")])
def test_what_did_not_reach_the_function_goes_back_into_the_queue(lab: Lab, trouble: Outcome | Exception) -> None:
    lab.invoker.outcomes = [trouble] * 5 + [Outcome.SUCCESS]
    lab.run(scale=2e-3)
    waits = [after - before for before, after in zip(lab.invoker.at, lab.invoker.at[1:], strict=False)]
    assert all(wait >= 2e-3 * 2**number for number, wait in enumerate(waits))
    assert lab.told(SUCCESSES)[0]["requestContext"]["approximateInvokeCount"] == 1


def test_events_that_were_refused_together_do_not_all_come_back_together(lab: Lab) -> None:
    lab.invoker.outcomes = [Outcome.THROTTLED]
    queue = lab.queue(scale=1000.0)
    for _ in range(20):
        lab.put(queue)
    until(lambda: len(lab.invoker.seen) == 20 and not queue._running, "each was tried once")
    waits = [found["due_at"] - found["accepted_at"] for found in lab.store.documents(COLLECTION).values()]
    assert all(1000 <= wait < 2100 for wait in waits)
    assert max(waits) - min(waits) > 100


def test_no_backoff_is_longer_than_five_minutes() -> None:
    assert all(150 <= _backoff_s(refusals) <= 300 for refusals in (9, 30, 5000))


def test_an_event_that_would_be_too_old_is_over(lab: Lab) -> None:
    lab.registry.configure("probe", maximum_event_age_s=60, on_failure=FAILURES)
    lab.invoker.outcomes = [Outcome.THROTTLED]
    # The waits are scaled, the age is not: the first wait, of 100 s at least, goes beyond the minute.
    lab.run(scale=100.0)
    assert conditions(lab) == [("EventAgeExceeded", 0)]
    assert len(lab.invoker.seen) == 1
    assert lab.told(FAILURES)[0]["responseContext"]["statusCode"] == 429


def test_where_nothing_may_run_an_event_is_over_at_once(lab: Lab) -> None:
    lab.registry.reserve("probe", 0)
    lab.run()
    assert lab.invoker.seen == []
    assert conditions(lab) == [("ZeroReservedConcurrency", 0)]
    assert "responseContext" not in lab.told(FAILURES)[0]
    assert lab.told(DEAD)[0]["Body"] == '{"a": 1}'


def test_events_of_a_function_that_is_gone_are_dropped(lab: Lab) -> None:
    lab.invoker.outcomes = [Outcome.FUNCTION_ERROR]
    lab.invoker.meanwhile = lab.registry.records.clear
    lab.run()
    assert len(lab.invoker.seen) == 1
    assert "its function is gone" in lab.said[-1]
    assert lab.store.documents(COLLECTION) == {}


def test_a_retry_runs_what_the_alias_points_to_by_then(lab: Lab) -> None:
    for number in ("1", "2"):
        lab.registry.publish("probe", number)
    lab.registry.alias("probe", "live", "1")
    lab.invoker.outcomes = [Outcome.FUNCTION_ERROR, Outcome.SUCCESS]
    lab.invoker.meanwhile = lambda: lab.registry.alias("probe", "live", "2")
    queue = lab.queue()
    queue.put(lab.registry.resolve("probe", "live"), b"{}", RequestContext())
    assert queue.wait_until_empty(10)
    assert [target.version.version for target, _, _ in lab.invoker.seen] == ["1", "2"]


def test_accepted_events_outlive_the_process(lab: Lab) -> None:
    lab.invoker.outcomes = [Outcome.FUNCTION_ERROR, Outcome.SUCCESS]
    before = lab.queue(scale=1.0)
    context = lab.put(before)
    until(lambda: len(lab.invoker.seen) == 1 and not before._running, "the first attempt")
    before.close()
    [kept] = lab.store.documents(COLLECTION).values()
    assert (kept["attempts"], kept["request_id"]) == (1, context.request_id)
    lab.store.put_document(COLLECTION, context.request_id, kept | {"due_at": time.time()})
    after = lab.queue()
    assert after.wait_until_empty(10)
    assert [seen.request_id for _, _, seen in lab.invoker.seen] == [context.request_id] * 2
    assert lab.told(SUCCESSES)[0]["requestContext"]["approximateInvokeCount"] == 2


def test_an_attempt_that_ends_with_the_service_is_made_again_by_the_next(lab: Lab) -> None:
    lab.invoker.outcomes = [Outcome.ENGINE_ERROR, Outcome.SUCCESS]
    begun, go = threading.Event(), threading.Event()

    def meanwhile() -> None:
        begun.set()
        assert go.wait(10)

    lab.invoker.meanwhile = meanwhile
    before = lab.queue()
    lab.put(before)
    assert begun.wait(10)
    before.stop()
    go.set()
    before.close()
    [kept] = lab.store.documents(COLLECTION).values()
    assert (kept["attempts"], kept["refusals"]) == (0, 0)
    assert lab.queue().wait_until_empty(10)
    assert len(lab.told(SUCCESSES)) == 1


def test_no_more_run_at_once_than_there_are_workers(lab: Lab) -> None:
    together, most, lock = 0, 0, threading.Lock()

    def meanwhile() -> None:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        time.sleep(0.002)
        with lock:
            together -= 1

    lab.invoker.meanwhile = meanwhile
    queue = lab.queue(workers=3)
    for _ in range(30):
        lab.put(queue)
    assert queue.wait_until_empty(10)
    assert len(lab.invoker.seen) == 30
    assert most <= 3


def test_a_destination_that_cannot_be_told_does_not_stop_the_queue(lab: Lab) -> None:
    lab.registry.configure("probe", on_success="no-arn")
    lab.run()
    assert any("could not be told" in line for line in lab.said)
    assert lab.store.documents(COLLECTION) == {}
