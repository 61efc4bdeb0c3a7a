"""Scale-out as Lambda does it: one request a sandbox, the one used last first, throttles where there may be no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakes import ENGINE_TROUBLE, MIB, FakeCell, event, function, surroundings
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from harness import lifecycle
from harness import pool as pools
from harness.context import RequestContext
from harness.errors import EngineError, HarnessError, InitFailed
from harness.function import Function
from harness.invocation import Outcome, PhaseInit
from harness.pool import Lease, MemoryBudget, Pool
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

    def sandbox(self, function: Function | None = None, *, provisioned: bool = False) -> Sandbox:
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


# -- sandboxes of many functions ----------------------------------------------------------------------------------------

ONE = 256 * MIB + 16 * MIB
"""What a sandbox of the fakes' function counts for."""


class SlowToEnd(FakeCell):
    """Ends when it may."""

    def __init__(self, may_end: threading.Event) -> None:
        super().__init__()
        self.may_end = may_end

    def close(self) -> None:
        assert self.may_end.wait(10)
        super().close()


def leased(pool: Pool) -> Lease:
    lease = pool.lease()
    assert lease is not None
    return lease


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.002)


@contextmanager
def two_pools(total_bytes: int) -> Iterator[tuple[Pool, Pool, FakeStand, FakeStand]]:
    budget = MemoryBudget(total_bytes)
    first, second = FakeStand(function=function(name="first")), FakeStand(function=function(name="second"))
    with Pool(stand_of(first), budget=budget) as one, Pool(stand_of(second), budget=budget) as other:
        yield one, other, first, second
    budget.close()
    assert budget.held_bytes == 0


def test_the_caller_names_the_request(stand: FakeStand) -> None:
    with Pool(stand_of(stand), max_sandboxes=1) as pool:
        context = RequestContext()
        assert pool.invoke(event(), context=context).request_id == context.request_id
        leased(pool)
        assert pool.invoke(event(), context=context).request_id == context.request_id


def test_an_idle_sandbox_of_another_function_makes_room_the_one_used_longest_ago_first() -> None:
    with two_pools(2 * ONE) as (one, other, first, second):
        one.invoke(event())
        other.invoke(event())
        one.invoke(event())
        third = Pool(stand_of(FakeStand(function=function(name="third"))), budget=one._budget)
        with third:
            assert third.invoke(event()).outcome is Outcome.SUCCESS
            assert (len(one.sandboxes), len(other.sandboxes)) == (1, 0)
            assert second.cells[0].closed
            assert not first.cells[0].closed


def test_busy_sandboxes_make_no_room_and_nothing_is_given_up_in_vain() -> None:
    large = FakeStand(function=function(name="large", memory_mb=512))
    with two_pools(2 * ONE) as (one, other, _, second), Pool(stand_of(large), budget=one._budget) as third:
        busy = leased(one)
        other.invoke(event())
        assert third.lease() is None
        assert not second.cells[0].closed
        assert "no room for another of 512 MB" in third.throttled().notes[0]
        busy.invoke(event())
        assert third.invoke(event()).outcome is Outcome.SUCCESS
        assert (one.sandboxes, other.sandboxes) == ((), ())


def test_no_function_runs_in_memory_that_another_has_not_given_back_yet() -> None:
    may_end = threading.Event()
    with two_pools(ONE) as (one, other, first, second), ThreadPoolExecutor(1) as caller:
        first.make_cell = lambda: SlowToEnd(may_end)
        one.invoke(event())
        record = caller.submit(other.invoke, event())
        until(lambda: second.cells and second.cells[0].starts, "the container starts meanwhile")
        assert not record.done()
        assert second.cells[0].exchange is None
        may_end.set()
        assert record.result(10).outcome is Outcome.SUCCESS
        assert first.cells[0].closed


def test_where_sandboxes_must_end_first_no_container_is_started_before() -> None:
    may_end = threading.Event()
    budget = MemoryBudget(0, ends_first=True)
    with Pool(stand_of(FakeStand()), budget=budget) as one, Pool(stand_of(FakeStand()), budget=budget) as other:
        cast("Any", one._stand).make_cell = lambda: SlowToEnd(may_end)
        one.invoke(event())
        with ThreadPoolExecutor(1) as caller:
            record = caller.submit(other.invoke, event())
            until(lambda: cast("Any", other._stand).cells, "it is on its way")
            assert cast("Any", other._stand).cells[0].starts == 0
            may_end.set()
            record.result(10)
    budget.close()


# -- the life of sandboxes ----------------------------------------------------------------------------------------------


def test_when_the_code_changes_idle_sandboxes_end_now_and_busy_ones_when_they_are_done(stand: FakeStand) -> None:
    with Pool(stand_of(stand)) as pool:
        busy, idle = leased(pool), leased(pool)
        idle.invoke(event())
        pool.retire()
        until(lambda: stand.cells[1].closed, "the idle one ends")
        assert not stand.cells[0].closed
        after = pool.invoke(event())
        assert after.cold
        assert busy.invoke(event()).outcome is Outcome.SUCCESS
        until(lambda: stand.cells[0].closed, "the busy one ends")
        assert pool.invoke(event()).sandbox_id == after.sandbox_id


def test_no_request_waits_for_the_end_of_a_sandbox(stand: FakeStand) -> None:
    may_end = threading.Event()
    stand.make_cell = lambda: SlowToEnd(may_end)
    with Pool(stand_of(stand)) as pool:
        pool.invoke(event())
        pool.retire()
        assert pool.invoke(event()).outcome is Outcome.SUCCESS
        may_end.set()
    assert [cell.closed for cell in stand.cells] == [1, 1]


def test_what_was_idle_for_too_long_ends(stand: FakeStand) -> None:
    with Pool(stand_of(stand)) as pool:
        first, second = leased(pool), leased(pool)
        first.invoke(event())
        assert pool.end_idle(60.0) == 0
        assert pool.end_idle(0.0) == 1
        until(lambda: stand.cells[0].closed, "it ends")
        second.invoke(event())
        assert not stand.cells[1].closed


def test_idle_sandboxes_whose_containers_are_gone_are_dropped(stand: FakeStand) -> None:
    with Pool(stand_of(stand)) as pool:
        first, second = leased(pool), leased(pool)
        first.invoke(event())
        second.invoke(event())
        assert pool.drop_dead([first.sandbox.id]) == 1
        assert pool.invoke(event()).sandbox_id == first.sandbox.id


def test_a_sandbox_that_does_not_end_in_good_order_is_told_of_and_its_memory_is_free() -> None:
    class Stuck(FakeCell):
        def close(self) -> None:
            raise ENGINE_TROUBLE

    told: list[str] = []
    budget = MemoryBudget(ONE, on_trouble=told.append)
    with Pool(stand_of(FakeStand(make_cell=Stuck)), budget=budget) as pool:
        pool.invoke(event())
        pool.retire()
        until(lambda: told, "it is told")
        assert "went away" in told[0]
        assert budget.held_bytes == 0
    budget.close()


# -- provisioned concurrency ----------------------------------------------------------------------------------------------


def provided(pool: Pool, count: int) -> None:
    pool.provision(count)
    until(lambda: pool.provisioned.ready == count, f"{count} are ready")


def test_provisioned_sandboxes_are_initialised_ahead_and_used_first(stand: FakeStand) -> None:
    with Pool(stand_of(stand)) as pool:
        provided(pool, 2)
        ahead = {each.id for each in pool.sandboxes}
        assert all(isinstance(each.phase, lifecycle.Frozen) for each in pool.sandboxes)
        leases = [leased(pool) for _ in range(3)]
        assert {each.sandbox.id for each in leases[:2]} == ahead
        spilled = leases[2].invoke(event())
        assert spilled.sandbox_id not in ahead
        assert spilled.phase_init is PhaseInit.INIT
        first = leases[0].invoke(event())
        assert first.phase_init is None
        # The ordinary one was used last but one, and still comes after what is provisioned.
        assert pool.invoke(event()).sandbox_id == first.sandbox_id


def test_a_provisioned_sandbox_that_dies_is_replaced(stand: FakeStand) -> None:
    with Pool(stand_of(stand)) as pool:
        provided(pool, 1)
        assert pool.invoke(event("lose")).outcome is Outcome.ENGINE_ERROR
        until(lambda: pool.provisioned.ready == 1, "there is one again")
        assert pool.invoke(event()).phase_init is None
        assert len(stand.cells) == 2


def test_when_the_code_changes_provisioned_sandboxes_are_initialised_anew(stand: FakeStand) -> None:
    with Pool(stand_of(stand)) as pool:
        provided(pool, 1)
        old = pool.sandboxes[0].id
        pool.retire()
        until(lambda: pool.provisioned.ready == 1, "there is one again")
        assert pool.invoke(event()).sandbox_id != old
        until(lambda: stand.cells[0].closed, "the old one ends")


def test_provisioned_sandboxes_stay_where_others_would_make_room_or_end() -> None:
    with two_pools(2 * ONE) as (one, other, _, second):
        provided(one, 1)
        other.invoke(event())
        assert one.end_idle(0.0) == 0
        with Pool(stand_of(FakeStand()), budget=one._budget) as third:
            leased(third).invoke(event())
            assert second.cells[0].closed
            assert one.provisioned.ready == 1
            leased(third)
            assert other.lease() is None


def test_fewer_provisioned_sandboxes_are_ended(stand: FakeStand) -> None:
    with Pool(stand_of(stand)) as pool:
        provided(pool, 3)
        pool.provision(1)
        until(lambda: sum(cell.closed for cell in stand.cells) == 2, "two end")
        assert pool.provisioned.ready == 1
        pool.provision(0)
        until(lambda: sum(cell.closed for cell in stand.cells) == 3, "all end")


def test_why_provisioned_sandboxes_cannot_be_made_is_told(stand: FakeStand) -> None:
    stand.make_cell = lambda: FakeCell(fail_inits_ahead=1)
    with Pool(stand_of(stand), memory_bytes=2 * ONE) as pool:
        pool.provision(1)
        until(lambda: pool.provisioned.failure, "it fails")
        assert isinstance(pool.provisioned.failure, InitFailed)
        assert len(stand.cells) == 1
        stand.make_cell = FakeCell
        pool.provision(3)
        until(lambda: pool.provisioned.ready == 2, "as many as there is room for")
        assert "no more than 2 of 3" in str(pool.provisioned.failure)


# -- whatever happens -----------------------------------------------------------------------------------------------------


class Crowd(RuleBasedStateMachine):
    """Requests to three functions of several sizes that share 1000 MB, in any order, while things go wrong."""

    TOTAL = 1000 * MIB

    def __init__(self) -> None:
        super().__init__()
        self.budget = MemoryBudget(self.TOTAL)
        sizes = (128, 256, 512)
        self.stands = [FakeStand(function=function(name=f"f{size}", memory_mb=size)) for size in sizes]
        self.pools = [Pool(stand_of(each), budget=self.budget, max_sandboxes=4) for each in self.stands]
        self.leases: list[Lease] = []

    @rule(which=st.integers(0, 2))
    def ask(self, which: int) -> None:
        until(lambda: not any(pool.provisioned.pending for pool in self.pools), "nothing changes by itself")
        lease = self.pools[which].lease()
        if lease is not None:
            lease.start()
            assert lease.sandbox not in [each.sandbox for each in self.leases], "one sandbox for two requests"
            self.leases.append(lease)
        else:
            idle = [view for pool in self.pools for view in pool.views() if not view.busy and not view.provisioned]
            pool = self.pools[which]
            needed = pool._bytes + self.budget.held_bytes - self.TOTAL
            could_have = sum(view.sandbox.function.memory_mb + 16 for view in idle) * MIB
            assert len(pool.views()) == 4 or could_have < needed, "throttled, though there was room to be made"

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 50), what=st.sampled_from(["succeed", "raise", "crash", "time_out", "lose"]))
    def answer(self, which: int, what: str) -> None:
        self.leases.pop(which % len(self.leases)).invoke(event(what))

    @rule(which=st.integers(0, 2))
    def retire(self, which: int) -> None:
        self.pools[which].retire()

    @rule(which=st.integers(0, 2))
    def end_idle(self, which: int) -> None:
        self.pools[which].end_idle(0.0)

    @rule(which=st.integers(0, 2), count=st.integers(0, 2))
    def provision(self, which: int, count: int) -> None:
        pool = self.pools[which]
        pool.provision(count)
        until(lambda: not pool.provisioned.pending, "it is done")

    @invariant()
    def memory_is_never_overcommitted(self) -> None:
        with self.budget.changed:
            held = sum(view.sandbox.function.memory_mb + 16 for pool in self.pools for view in pool.views()) * MIB
            assert held == self.budget.held_bytes
            assert held <= self.TOTAL

    @invariant()
    def no_sandbox_is_lost(self) -> None:
        for pool, stand in zip(self.pools, self.stands, strict=True):

            def kept_or_ended(cell: FakeCell, pool: Pool = pool) -> bool:
                return bool(cell.closed) or any(view.sandbox.cell is cell for view in pool.views())

            # What is in no pool has ended, or is about to; or is about to come into one, where it stands in for a retired one.
            for cell in stand.cells:
                if cell.starts:
                    until(lambda cell=cell: kept_or_ended(cell), "it ends")  # type: ignore[misc]

    def teardown(self) -> None:
        for pool in self.pools:
            pool.close()
        self.budget.close()
        assert self.budget.held_bytes == 0
        assert all(cell.closed for stand in self.stands for cell in stand.cells if cell.starts)


TestCrowd = Crowd.TestCase
TestCrowd.settings = settings(max_examples=40, stateful_step_count=25)
