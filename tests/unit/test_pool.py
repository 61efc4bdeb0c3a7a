"""Scale-out as Lambda does it: one request a sandbox, the one used last first, throttles where there may be no more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakes import ENGINE_TROUBLE, MIB, FakeCell, event, function, surroundings

from harness import pool as pools
from harness.errors import EngineError, HarnessError
from harness.function import Function
from harness.invocation import Outcome, PhaseInit
from harness.pool import Pool
from harness.sandbox import Sandbox
from harness.stand import Stand


@dataclass
class FakeStand:
    """Gives sandboxes over fake cells, and keeps the cells."""

    function: Function = field(default_factory=function)
    cells: list[FakeCell] = field(default_factory=list)
    make_cell: Callable[[], FakeCell] = FakeCell
    facts: Any = field(default_factory=lambda: SimpleNamespace(memory_bytes=64 * 1024 * MIB, cpus=2))

    def __post_init__(self) -> None:
        self._around = surroundings()
        self.vantage = self._around.vantage
        self.image = self._around.image
        self.rie_version = self._around.rie_version

    def sandbox(self, function: Function | None = None) -> Sandbox:
        self.cells.append(self.make_cell())
        return Sandbox(function or self.function, self._around, cell=self.cells[-1])

    def variant(self, *, memory_mb: int) -> Function:
        from dataclasses import replace

        return replace(self.function, memory_mb=memory_mb)


def stand_of(fake: FakeStand) -> Stand:
    return cast("Stand", fake)


@pytest.fixture
def stand() -> FakeStand:
    return FakeStand()


@contextmanager
def at_once(stand: FakeStand, count: int) -> Iterator[None]:
    """Requests return only when ``count`` of them are under way together."""
    stand.make_cell = waits_for(threading.Barrier(count, timeout=10))
    yield


def waits_for(barrier: threading.Barrier) -> Callable[[], FakeCell]:
    def wait() -> None:
        barrier.wait()

    return lambda: FakeCell(while_requesting=wait)


def test_a_burst_makes_as_many_sandboxes_as_there_are_requests(stand: FakeStand) -> None:
    with at_once(stand, 4), Pool(stand_of(stand)) as pool, ThreadPoolExecutor(4) as callers:
        records = list(callers.map(lambda _: pool.invoke(event()), range(4)))
        assert len({each.sandbox_id for each in records}) == 4
        assert all(each.cold for each in records)
        assert pool.statistics().most_busy == 4
    assert [cell.closed for cell in stand.cells] == [1] * 4


def test_one_after_the_other_share_one_sandbox(stand: FakeStand) -> None:
    with Pool(stand_of(stand)) as pool:
        records = [pool.invoke(event()) for _ in range(3)]
    assert len(stand.cells) == 1
    assert [each.sequence for each in records] == [1, 2, 3]


def test_of_the_idle_sandboxes_the_one_used_last_is_taken(stand: FakeStand) -> None:
    with Pool(stand_of(stand)) as pool:
        first, second = pool.lease(), pool.lease()
        assert first is not None
        assert second is not None
        second.invoke(event())
        first.invoke(event())
        assert pool.invoke(event()).sandbox_id == first.sandbox.id


def test_beyond_the_most_sandboxes_a_request_is_throttled_with_lambdas_answer(stand: FakeStand) -> None:
    with Pool(stand_of(stand), max_sandboxes=1) as pool:
        busy = pool.lease()
        record = pool.invoke(event())
        assert record.outcome is Outcome.THROTTLED
        assert record.error_type == "TooManyRequestsException"
        assert record.error_message == "Rate Exceeded."
        assert record.response["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
        assert (record.duration_ms, record.billed_ms, record.cost_usd, record.cold) == (None, None, None, False)
        assert record.image == "image:tag"
        assert busy is not None
        busy.invoke(event())
        assert pool.invoke(event()).outcome is Outcome.SUCCESS
        assert pool.statistics().throttled == 1


def test_memory_is_not_overcommitted(stand: FakeStand) -> None:
    with Pool(stand_of(stand), memory_bytes=3 * 300 * MIB) as pool:
        assert pool.capacity == 3
        leases = [pool.lease() for _ in range(4)]
        assert [each is None for each in leases] == [False, False, False, True]
        assert pool.throttled().response["Reason"] == "ConcurrentInvocationLimitExceeded"
        assert "memory holds no more than 3 of 256 MB" in pool.throttled().notes[0]


def test_the_first_sandbox_is_allowed_however_little_memory_there_is(stand: FakeStand) -> None:
    with Pool(stand_of(stand), memory_bytes=MIB) as pool:
        assert pool.invoke(event()).outcome is Outcome.SUCCESS


def test_an_engine_elsewhere_is_asked_for_its_memory_and_not_this_host(stand: FakeStand) -> None:
    stand.facts.memory_bytes = 1000 * MIB
    assert pools.spare_memory_bytes(stand_of(stand)) == 700 * MIB


def test_prepared_containers_are_taken_first_and_are_cold_nonetheless(stand: FakeStand) -> None:
    with Pool(stand_of(stand), max_sandboxes=3) as pool:
        pool.prepare(5)
        assert [cell.starts for cell in stand.cells] == [1, 1, 1]
        assert pool.statistics().sandboxes == 0
        record = pool.invoke(event())
        assert record.cold
        assert record.phase_init is PhaseInit.INIT
        assert len(stand.cells) == 3
        found = pool.statistics()
        assert (found.sandboxes, found.prepared, found.start_ms) == (1, 3, ())
    assert [cell.closed for cell in stand.cells] == [1, 1, 1]


def test_a_sandbox_whose_container_went_away_is_not_used_again(stand: FakeStand) -> None:
    with Pool(stand_of(stand), max_sandboxes=1) as pool:
        assert pool.invoke(event("lose")).outcome is Outcome.ENGINE_ERROR
        assert pool.invoke(event()).outcome is Outcome.SUCCESS
        assert len(stand.cells) == 2


def test_a_sandbox_that_ran_out_of_memory_is_reset_and_goes_on(stand: FakeStand) -> None:
    with Pool(stand_of(stand)) as pool:
        killed, after = pool.invoke(event("run_out_of_memory")), pool.invoke(event())
    assert killed.outcome is Outcome.OUT_OF_MEMORY
    assert after.sandbox_id == killed.sandbox_id
    assert after.phase_init is PhaseInit.SUPPRESSED
    assert not after.cold


def test_a_container_that_does_not_start_takes_no_place(stand: FakeStand) -> None:
    troubles = [ENGINE_TROUBLE, None]
    stand.make_cell = lambda: FakeCell(start_trouble=troubles.pop(0))
    with Pool(stand_of(stand), max_sandboxes=1) as pool:
        with pytest.raises(EngineError, match="went away"):
            pool.invoke(event())
        assert pool.sandboxes == ()
        assert pool.invoke(event()).outcome is Outcome.SUCCESS
        assert pool.statistics().most_busy == 1


def test_a_pool_that_is_closed_gives_no_sandbox(stand: FakeStand) -> None:
    pool = Pool(stand_of(stand))
    pool.close()
    pool.close()
    with pytest.raises(HarnessError, match="closed"):
        pool.invoke(event())


class SlowCell(FakeCell):
    """Starts when it is told to."""

    def __init__(self, starting: threading.Event, go: threading.Event) -> None:
        super().__init__()
        self.starting, self.go = starting, go

    def start(self) -> None:
        super().start()
        self.starting.set()
        assert self.go.wait(10)


def test_closing_waits_for_containers_that_are_being_started_and_ends_them(stand: FakeStand) -> None:
    starting, go = threading.Event(), threading.Event()
    stand.make_cell = lambda: SlowCell(starting, go)
    pool = Pool(stand_of(stand))
    with ThreadPoolExecutor(2) as threads:
        request = threads.submit(pool.invoke, event())
        assert starting.wait(10)
        closing = threads.submit(pool.close)
        assert not closing.done()
        go.set()
        closing.result(10)
        with pytest.raises(HarnessError, match="closed while a sandbox was starting"):
            request.result(10)
    assert stand.cells[0].closed
