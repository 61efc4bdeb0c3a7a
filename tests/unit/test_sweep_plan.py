"""What a sweep measures, in which order, beside what, and when it stops: with sandboxes that are none."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import fakes
import psutil
import pytest

from harness.errors import EngineError, InvalidInput
from harness.experiments import sweep
from harness.experiments.sweep import EventStream, SweepPlan, TimeLeft, Variant, WeightedEvent
from harness.function import Function
from harness.invocation import Invocation, Outcome
from harness.pricing import invocation_cost_usd
from harness.stand import Stand
from harness.tiers import billed_ms, tier


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits for fakes; what would have been waited is told."""
    waited: list[float] = []
    monkeypatch.setattr(sweep, "time", SimpleNamespace(sleep=waited.append, monotonic=time.monotonic))
    return waited


def test_pauses_spread_over_a_period_so_that_invocations_begin_anywhere_in_one(without_pauses: list[float]) -> None:
    list(sweep.run(cast("Stand", FakeStand()), plan(128, 256, count=40, pause_s=0.5)))
    assert len(without_pauses) >= 80
    assert 0.5 <= min(without_pauses) < 0.503
    assert 0.517 < max(without_pauses) < 0.52


GIB = 1024**3


def plan(*memory_mb: int, **changes: Any) -> SweepPlan:
    settings: dict[str, Any] = {
        "memory_mb": memory_mb or (128, 512),
        "count": 3,
        "events": (WeightedEvent(event=b"{}"),),
    }
    return SweepPlan(**(settings | {"seed": 7} | changes))


def record(memory_mb: int = 512, *, cold: bool = False, **changes: Any) -> Invocation:
    settings: dict[str, Any] = {
        "request_id": "r",
        "function": "probe",
        "runtime": "python3.13",
        "memory_mb": memory_mb,
        "architecture": "x86_64",
        "image": "image",
        "rie_version": None,
        "sandbox_id": "s",
        "sequence": 1 if cold else 2,
        "cold": cold,
        "phase_init": None,
        "started_at": "2026-01-01T00:00:00+00:00",
        "outcome": Outcome.SUCCESS,
        "duration_ms": 10.0,
    }
    return Invocation(**(settings | changes))


Behaviour = Callable[[Function, int, bytes], Outcome]
"""From the function, the number of the size's invocation (from 1) and the event."""


@dataclass
class FakeSandbox:
    function: Function
    stand: FakeStand
    number: int
    sequence: int = 0
    open: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.stand.starts(self)
        self.open = True

    def invoke(self, event: bytes) -> Invocation:
        assert self.open, "invoked after it was given back"
        self.sequence += 1
        return self.stand.invoked(self, event)

    def shut_down(self) -> None:
        if self.open:
            self.open = False
            self.ended.set()
            self.stand.held.remove(self)


@dataclass
class FakeStand:
    """Sandboxes that do as `behaviour` says; it notes what was open and what ran beside what."""

    behaviour: Behaviour = lambda function, number, event: Outcome.SUCCESS
    cpus: int = 8
    memory_bytes: int = 64 * GIB
    refuse: frozenset[int] = frozenset()
    error_type: str | None = "Odd"
    together: int = 0
    held: list[FakeSandbox] = field(default_factory=list)
    made: list[FakeSandbox] = field(default_factory=list)
    peak_mb: int = 0
    events: dict[int, list[bytes]] = field(default_factory=dict)
    seen: Counter[int] = field(default_factory=Counter)
    beside: list[frozenset[int]] = field(default_factory=list)
    cold_in: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.vantage = SimpleNamespace(name="host", cpus=lambda: tuple(range(self.cpus)))
        self.facts = SimpleNamespace(cpus=self.cpus, memory_bytes=self.memory_bytes)
        self._lock = threading.Lock()
        self._running: set[int] = set()

    def variant(self, *, memory_mb: int, environment: Mapping[str, str]) -> Function:
        return fakes.function(memory_mb=memory_mb, environment=dict(environment))

    def sandbox(self, function: Function) -> FakeSandbox:
        self.made.append(FakeSandbox(function=function, stand=self, number=len(self.made)))
        return self.made[-1]

    def starts(self, sandbox: FakeSandbox) -> None:
        if sandbox.function.memory_mb in self.refuse:
            raise EngineError("the engine refuses", remedy="ask another one")
        self.held.append(sandbox)
        self.peak_mb = max(self.peak_mb, sum(each.function.memory_mb for each in self.held))

    def invoked(self, sandbox: FakeSandbox, event: bytes) -> Invocation:
        memory = sandbox.function.memory_mb
        with self._lock:
            self._running.add(memory)
            if sandbox.sequence == 1:
                self.cold_in.add(threading.current_thread().name)
            self.beside.append(frozenset(self._running))
            self.seen[memory] += 1
            number = self.seen[memory]
            self.events.setdefault(memory, []).append(event)
        if self.together and sandbox.sequence > 1:
            self.barrier.wait(timeout=10)
        outcome = self.behaviour(sandbox.function, number, event)
        with self._lock:
            self._running.discard(memory)
        return record(
            memory,
            sandbox_id=str(sandbox.number),
            cold=sandbox.sequence == 1,
            sequence=sandbox.sequence,
            outcome=outcome,
            error_type=None if outcome is Outcome.SUCCESS else self.error_type,
            **self.figures(memory, number, cold=sandbox.sequence == 1),
        )

    def figures(self, memory_mb: int, number: int, *, cold: bool) -> dict[str, Any]:
        """What would have been measured: 100 ms of CPU, stretched by the quota, with some spread."""
        duration_ms = 100.0 * max(1.0, 1769 / memory_mb) + number % 3
        billed = billed_ms(50.5 if cold else None, duration_ms)
        return {
            "request_id": f"{memory_mb}-{number}",
            "duration_ms": duration_ms,
            "init_ms": 50.5 if cold else None,
            "billed_ms": billed,
            "cost_usd": invocation_cost_usd(memory_mb, billed),
            "cpu_ms": 100.0 + number % 2,
            "client_ms": duration_ms + 1.5,
            "throttled_ms": max(0.0, duration_ms - 103),
            "peak_rss_bytes": (30 + number % 4) << 20,
            "peak_memory_bytes": (40 + number % 4) << 20,
            "max_memory_used_mb": 30 + number % 4,
            "notes": ("a note",),
        }

    @property
    def barrier(self) -> threading.Barrier:
        with self._lock:
            if not hasattr(self, "_barrier"):
                self._barrier = threading.Barrier(self.together)
            return self._barrier


@pytest.fixture(autouse=True)
def _much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))


def measure(stand: FakeStand, asked: SweepPlan) -> list[Invocation]:
    return list(sweep.run(cast("Stand", stand), asked))


# -- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory_mb": ()}, "no memory sizes"),
        ({"memory_mb": (512, 128, 512)}, "512 MB stands twice"),
        ({"memory_mb": (127,)}, "127 MB is outside"),
        ({"memory_mb": (10241,)}, "10241 MB is outside"),
        ({"count": 0}, "0 invocations"),
        ({"events": ()}, "no event"),
        ({"pause_s": -1.0}, "pause of -1"),
        ({"pause_s": float("nan")}, "pause of nan"),
        ({"allowed_error_share": 1.5}, "share 1.5"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        plan(**({"memory_mb": (512,)} | changes))
    assert refused.value.remedy


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_an_event_has_a_weight_above_zero(weight: float) -> None:
    with pytest.raises(InvalidInput, match="weight"):
        WeightedEvent(event=b"{}", weight=weight)


def test_sizes_are_a_list_or_all_or_auto() -> None:
    assert sweep.sizes("128, 512,1769") == (128, 512, 1769)
    assert sweep.sizes(" auto ") is None
    every = sweep.sizes("all")
    assert every is not None
    assert (every[0], every[-1]) == (128, 10240)
    assert {b - a for a, b in pairwise(every)} == {64}


@pytest.mark.parametrize("text", ["", ",", "128,", "128,,512", "128.5", "-128", "many", "1e3"])
def test_what_is_no_list_of_sizes_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="no memory size"):
        sweep.sizes(text)


# -- order ------------------------------------------------------------------------------------------------------------


def test_each_size_has_one_cold_invocation_and_the_warm_ones_in_one_sandbox_of_its_own() -> None:
    stand = FakeStand()
    found = measure(stand, plan(128, 512, 1769, count=4))
    for size in (128, 512, 1769):
        of_size = [each for each in found if each.memory_mb == size]
        assert [each.cold for each in of_size] == [True, False, False, False, False]
        assert len({each.sandbox_id for each in of_size}) == 1
    assert len({each.sandbox_id for each in found}) == 3
    assert len(found) == plan(128, 512, 1769, count=4).total
    assert not stand.held


def test_every_round_visits_every_size_and_the_order_changes_from_round_to_round() -> None:
    sizes = (128, 256, 512, 1024, 1769)
    found = [each.memory_mb for each in measure(FakeStand(), plan(*sizes, count=9))]
    rounds = [tuple(found[at : at + len(sizes)]) for at in range(0, len(found), len(sizes))]
    assert all(sorted(each) == sorted(sizes) for each in rounds)
    assert len(set(rounds)) > 5


def test_the_seed_alone_decides_the_order() -> None:
    def order(seed: int) -> list[int]:
        return [each.memory_mb for each in measure(FakeStand(), plan(128, 256, 512, 1024, count=9, seed=seed))]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_variants_are_a_second_axis_with_variables_of_their_own() -> None:
    stand = FakeStand()
    variants = (Variant(name="plain"), Variant(name="big", environment={"HEAP": "512"}))
    found = measure(stand, plan(128, 512, variants=variants))
    assert Counter((each.memory_mb, each.variant) for each in found) == dict.fromkeys(
        [(128, "plain"), (128, "big"), (512, "plain"), (512, "big")], 4
    )
    heaps = {(s.function.memory_mb, s.function.environment.get("HEAP")) for s in stand.made}
    assert heaps == {(128, None), (128, "512"), (512, None), (512, "512")}


# -- events -----------------------------------------------------------------------------------------------------------


def test_events_come_in_proportion_to_their_weights_in_a_short_series_too() -> None:
    weighted = (WeightedEvent(event=b"1", weight=1), WeightedEvent(event=b"3", weight=3))
    stream = EventStream(weighted, random.Random(1))  # noqa: S311
    for _ in range(5):
        assert Counter(stream.next() for _ in range(4)) == {b"1": 1, b"3": 3}


def test_the_warm_events_are_in_proportion_whatever_the_cold_one_was() -> None:
    stand = FakeStand()
    measure(stand, plan(512, count=8, events=(WeightedEvent(event=b"1"), WeightedEvent(event=b"3", weight=3))))
    assert Counter(stand.events[512][1:]) == {b"1": 2, b"3": 6}


def test_every_size_gets_the_same_events_in_the_same_order() -> None:
    stand = FakeStand()
    measure(
        stand, plan(128, 512, 1769, count=5, events=tuple(WeightedEvent(event=each) for each in (b"1", b"2", b"3")))
    )
    assert len(set(map(tuple, stand.events.values()))) == 1


# -- memory and CPUs --------------------------------------------------------------------------------------------------


def test_sandboxes_that_are_open_together_never_have_more_than_the_share_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * GIB))
    stand = FakeStand()
    sizes = (512, 640, 768, 896, 1024, 1152, 2048)
    found = measure(stand, plan(*sizes, count=2))
    assert stand.peak_mb <= 4096 * 0.7
    assert stand.peak_mb > 2048, "more than one at a time"
    assert Counter(each.memory_mb for each in found) == dict.fromkeys(sizes, 3)


def test_the_memory_of_an_engine_in_a_virtual_machine_counts() -> None:
    stand = FakeStand(memory_bytes=2 * GIB)
    measure(stand, plan(512, 640, 768, 896, 1024, count=1))
    assert stand.peak_mb <= 2048 * 0.7


def test_a_size_that_cannot_fit_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * GIB))
    stand = FakeStand()
    with pytest.raises(InvalidInput, match="10240 MB do not fit"):
        next(sweep.run(cast("Stand", stand), plan(*range(128, 2048, 128), 10240)))
    assert not stand.made


def test_cold_starts_alone_have_no_two_sandboxes_at_a_time() -> None:
    stand = FakeStand()
    found = measure(stand, plan(128, 512, 1769, cold_only=True, count=4))
    assert stand.peak_mb == 1769
    assert all(each.cold for each in found)
    assert Counter(each.memory_mb for each in found) == {128: 4, 512: 4, 1769: 4}
    assert len(stand.made) == 12


def test_without_parallel_nothing_runs_beside_anything() -> None:
    stand = FakeStand()
    measure(stand, plan(128, 256, 512))
    assert {len(each) for each in stand.beside} == {1}


@pytest.mark.parametrize("cpus", [1, 2, 4, 16])
def test_side_by_side_are_sizes_whose_quotas_fit_the_cpus_but_one(cpus: int) -> None:
    sizes = (128, 256, 512, 768, 1024, 1769, 3008, 10240)
    cells = [cast("sweep._Cell", SimpleNamespace(function=fakes.function(memory_mb=size))) for size in sizes]
    groups = [[each.function.memory_mb for each in group] for group in sweep._side_by_side(cells, cpus)]
    assert sorted(size for group in groups for size in group) == sorted(sizes)
    for group in groups:
        assert len(group) == 1 or sum(tier(size).vcpus for size in group) <= max(1, cpus - 1)
    assert len(groups) < len(sizes), "some do fit"


def test_parallel_sizes_really_run_at_the_same_time_and_their_cold_starts_alone() -> None:
    stand = FakeStand(cpus=4, together=2)  # each warm invocation waits until the other one is there as well
    found = measure(stand, plan(128, 512, parallel=True, count=3))
    assert Counter(each.memory_mb for each in found) == {128: 4, 512: 4}
    assert frozenset({128, 512}) in stand.beside
    assert stand.cold_in == {threading.main_thread().name}


def test_where_one_of_the_parallel_sandboxes_breaks_the_others_are_not_waited_for() -> None:
    waited: list[bool] = []

    def behaviour(function: Function, number: int, event: bytes) -> Outcome:
        if number == 2 and function.memory_mb == 128:
            raise RuntimeError("a bug")
        if number == 2:
            sandbox = next(each for each in stand.made if each.function.memory_mb == function.memory_mb)
            waited.append(sandbox.ended.wait(timeout=20))
        return Outcome.SUCCESS

    stand = FakeStand(behaviour=behaviour)
    with pytest.raises(RuntimeError, match="a bug"):
        measure(stand, plan(128, 512, parallel=True))
    assert waited == [True]
    assert not stand.held


# -- failures ---------------------------------------------------------------------------------------------------------


def fails(memory_mb: int, outcome: Outcome, when: Callable[[int], bool] = lambda number: True) -> Behaviour:
    return lambda function, number, event: (
        outcome if function.memory_mb == memory_mb and when(number) else Outcome.SUCCESS
    )


def test_a_size_that_fails_is_given_up_and_the_others_go_on() -> None:
    found = measure(FakeStand(behaviour=fails(128, Outcome.OUT_OF_MEMORY)), plan(128, 512, count=5))
    assert Counter(each.memory_mb for each in found) == {128: 1, 512: 6}


def test_failures_up_to_the_allowed_share_do_not_end_a_size() -> None:
    stand = FakeStand(behaviour=fails(512, Outcome.FUNCTION_ERROR, lambda number: number in {2, 5}))
    assert len(measure(stand, plan(512, count=9, allowed_error_share=0.2))) == 10
    stand = FakeStand(behaviour=fails(512, Outcome.FUNCTION_ERROR, lambda number: number in {2, 4, 5}))
    assert len(measure(stand, plan(512, count=9, allowed_error_share=0.2))) == 5


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.RUNTIME_EXIT, Outcome.OUT_OF_MEMORY, Outcome.INIT_ERROR])
def test_a_sandbox_whose_runtime_was_lost_is_replaced(outcome: Outcome) -> None:
    stand = FakeStand(behaviour=fails(512, outcome, lambda number: number == 3))
    found = measure(stand, plan(512, count=5, allowed_error_share=0.5))
    assert [each.cold for each in found] == [True, False, False, True, False, False, False]
    assert found[2].sandbox_id != found[3].sandbox_id
    assert not stand.held


def test_a_cold_start_that_fails_once_is_tried_again_in_a_new_sandbox_where_a_failure_is_allowed() -> None:
    stand = FakeStand(behaviour=fails(512, Outcome.INIT_TIMEOUT, lambda number: number == 1))
    found = measure(stand, plan(512, count=4, allowed_error_share=0.2))
    assert [(each.cold, each.outcome is Outcome.SUCCESS) for each in found] == [
        (True, False), (True, True), (False, True), (False, True), (False, True), (False, True),
    ]  # fmt: skip


@pytest.mark.timeout(30)
def test_a_function_that_never_survives_ends_even_if_every_failure_is_allowed() -> None:
    found = measure(FakeStand(behaviour=fails(512, Outcome.RUNTIME_EXIT)), plan(512, count=10, allowed_error_share=1.0))
    assert len(found) == 22


def test_an_error_of_an_allowed_type_is_no_failure() -> None:
    stand = FakeStand(behaviour=fails(512, Outcome.FUNCTION_ERROR))
    asked = plan(512, count=5, allowed_error_types=("Odd",))
    found = measure(stand, asked)
    assert len(found) == 6
    assert {each.outcome for each in found} == {Outcome.FUNCTION_ERROR}, "the record says what happened"
    assert {each.outcome for each in sweep.with_allowed(found, ("Odd",))} == {Outcome.SUCCESS}
    assert len(measure(FakeStand(behaviour=stand.behaviour, error_type="Other"), asked)) == 1


def test_what_the_engine_loses_is_never_an_allowed_error() -> None:
    lost = record(outcome=Outcome.ENGINE_ERROR, error_type="EngineError")
    assert sweep.with_allowed([lost], ("EngineError",)) == [lost]


def test_an_invocation_that_the_engine_lost_is_measured_again() -> None:
    stand = FakeStand(behaviour=fails(512, Outcome.ENGINE_ERROR, lambda number: number == 3))
    found = measure(stand, plan(512, count=4))
    assert sum(not each.cold and each.outcome is Outcome.SUCCESS for each in found) == 4
    assert [each.outcome is Outcome.ENGINE_ERROR for each in found].count(True) == 1


def test_a_size_whose_sandbox_cannot_start_is_recorded_and_the_others_are_measured() -> None:
    stand = FakeStand(refuse=frozenset({10240}))
    found = measure(stand, plan(512, 10240, count=3))
    refused = [each for each in found if each.memory_mb == 10240]
    assert Counter(each.memory_mb for each in found)[512] == 4
    assert len(refused) == 3
    assert {each.outcome for each in refused} == {Outcome.ENGINE_ERROR}
    assert refused[0].error_message == "the engine refuses (ask another one)"
    assert refused[0].duration_ms is None


def test_leaving_a_sweep_early_gives_every_sandbox_back() -> None:
    for parallel in (False, True):
        stand = FakeStand()
        with contextlib.closing(sweep.run(cast("Stand", stand), plan(128, 256, 512, parallel=parallel))) as going:
            for _ in range(5):
                next(going)
            assert stand.held
        assert not stand.held


# -- auto -------------------------------------------------------------------------------------------------------------


def test_refinement_looks_half_way_to_the_neighbours_and_not_too_close() -> None:
    assert sweep.between(512, (128, 256, 512, 1024)) == (362, 724)
    assert sweep.between(128, (128, 256)) == (181,)
    assert sweep.between(512, (500, 512, 530)) == ()


def test_refinement_goes_up_from_the_largest_size_as_far_as_lambda_goes() -> None:
    assert sweep.between(3008, (1769, 3008)) == (2307, 6016)
    assert sweep.between(6016, (5900, 6016)) == (10240,)
    assert sweep.between(10240, (5000, 10240)) == (7155,)


def explored(
    best: Callable[[Sequence[Invocation]], int | None], *sizes: int, stand: FakeStand | None = None
) -> list[int]:
    on = cast("Stand", stand or FakeStand())
    found = sweep.explore(partial(sweep.run, on), plan(*sizes, count=1), best, room=partial(sweep.room_bytes, on))
    return list(dict.fromkeys(each.memory_mb for each in found))


def test_auto_refines_twice_around_the_best_and_measures_nothing_twice() -> None:
    found = explored(lambda records: 512, 128, 256, 512, 1024)
    assert set(found[:4]) == {128, 256, 512, 1024}
    assert set(found[4:6]) == {362, 724}
    assert set(found[6:]) == {431, 609}


def test_auto_goes_up_where_every_size_ran_out_of_memory_and_stops_where_the_function_is_at_fault() -> None:
    out = FakeStand(behaviour=lambda function, number, event: Outcome.OUT_OF_MEMORY)
    assert set(explored(lambda records: None, 128, 256, stand=out)) == {128, 256, 512, 1024}
    wrong = FakeStand(behaviour=lambda function, number, event: Outcome.FUNCTION_ERROR)
    assert set(explored(lambda records: None, 128, 256, stand=wrong)) == {128, 256}


def test_auto_does_not_refine_to_what_the_host_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * GIB))
    assert set(explored(lambda records: max(r.memory_mb for r in records), 1024, 2048)) == {1024, 2048, 1448, 1722}


# -- time left --------------------------------------------------------------------------------------------------------


def told(left: TimeLeft, records: Iterator[tuple[Invocation, float]]) -> None:
    for each, waited_s in records:
        left.add(each, waited_s)


def test_the_time_left_is_estimated_for_each_size_by_itself() -> None:
    left = TimeLeft()
    left.expect(plan(128, 1769, count=10))
    assert left.seconds() is None
    told(left, iter([(record(128, cold=True), 2.0), (record(1769, cold=True), 1.0)]))
    told(left, iter([(record(128), 10.0), (record(1769), 0.1)]))
    assert left.invocations == 18
    assert left.seconds() == pytest.approx(9 * 10.0 + 9 * 0.1)


def test_before_anything_warm_was_seen_the_handler_of_the_cold_one_is_the_guess() -> None:
    left = TimeLeft()
    left.expect(plan(128, 1769, count=10, pause_s=1.0))
    left.add(record(128, cold=True, duration_ms=5000.0), 7.0)
    # 10 warm ones at 5 + 1 s, and as many of the size that nothing is known of, after a cold start of 7 s.
    assert left.seconds() == pytest.approx(10 * 6.0 + 7.0 + 10 * 6.0)


def test_a_size_that_was_given_up_takes_no_more_time() -> None:
    left = TimeLeft()
    left.expect(plan(128, 512, count=10))
    told(left, iter([(record(512, cold=True), 1.0), (record(128, cold=True, outcome=Outcome.TIMEOUT), 60.0)]))
    assert left.invocations == 10


def test_sizes_that_auto_adds_are_in_the_estimate() -> None:
    left = TimeLeft()
    asked = plan(512, count=2)
    left.expect(asked)
    told(left, iter([(record(512, cold=True), 1.0), (record(512), 1.0), (record(512), 1.0)]))
    assert (left.invocations, left.seconds()) == (0, 0.0)
    left.expect(replace(asked, memory_mb=(362, 724)))
    assert left.invocations == 6
    assert left.seconds() == pytest.approx(6.0)
