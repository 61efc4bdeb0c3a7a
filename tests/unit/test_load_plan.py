"""Loads over fake sandboxes: who asks when, what callers wait for, what is counted; and the findings of made-up records."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import asdict
from typing import Any

import pytest
from fakes import ENGINE_TROUBLE, FakeCell, FakeReach, event, function
from hypothesis import given
from hypothesis import strategies as st
from test_invocation import record
from test_pool import FakeStand, stand_of, waits_for

from harness.analysis.load import load_findings, spread
from harness.errors import EngineError, InvalidInput, UsageError
from harness.experiments import load as experiment
from harness.experiments.load import Load, LoadPlan, arrivals
from harness.invocation import Invocation, Outcome, PhaseInit

MIB = 1024 * 1024


def plan(**changes: Any) -> LoadPlan:
    return LoadPlan(**({"events": (event(),)} | changes))


@pytest.mark.parametrize(
    ("changes", "needle"),
    [
        ({"requests": 1}, "number of clients or a rate"),
        ({"requests": 1, "concurrency": 1, "rate_per_s": 1.0}, "number of clients or a rate"),
        ({"concurrency": 1}, "no end"),
        ({"concurrency": 0, "requests": 1}, "--concurrency 0"),
        ({"rate_per_s": -1.0, "requests": 1}, "--rate -1"),
        ({"concurrency": 1, "duration_s": 0.0}, "--for 0"),
        ({"concurrency": 1, "requests": 1, "max_sandboxes": 0}, "--max-sandboxes 0"),
        ({"concurrency": 1, "requests": 1, "poisson": True}, "--poisson"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes: dict[str, Any], needle: str) -> None:
    with pytest.raises(UsageError, match=needle):
        plan(**changes)


def test_a_sandbox_that_memory_cannot_hold_is_refused_before_anything_runs() -> None:
    stand = FakeStand(function=function(memory_mb=10240))
    stand.facts.memory_bytes = 1024 * MIB
    with pytest.raises(InvalidInput, match="10240 MB does not fit"):
        Load(stand_of(stand), plan(concurrency=1, requests=1))


@given(st.floats(0.1, 1000), st.floats(0.1, 20))
def test_arrivals_at_a_constant_rate_keep_their_distance_to_the_end(rate: float, seconds: float) -> None:
    due = list(itertools.islice(arrivals(plan(rate_per_s=rate, duration_s=seconds)), 500))
    assert due[0] == 0
    assert all(at < seconds for at in due)
    assert due == [number / rate for number in range(len(due))]
    assert len(due) == 500 or len(due) / rate >= seconds


@given(st.integers(0, 2**31))
def test_poisson_arrivals_are_those_of_their_seed_and_have_the_rate(seed: int) -> None:
    made = plan(rate_per_s=50.0, requests=2000, poisson=True, seed=seed)
    due = list(arrivals(made))
    assert due == list(arrivals(made))
    assert due == sorted(due)
    assert len(due) == 2000
    assert 30 < due[-1] < 50, "2000 at 50 a second take 40 s, give or take six standard deviations"


def measured(stand: FakeStand, made: LoadPlan) -> tuple[list[Invocation], Load]:
    with Load(stand_of(stand), made) as load:
        return list(load.records()), load


def test_a_closed_loop_has_one_sandbox_a_client_and_one_record_a_request() -> None:
    stand = FakeStand()
    records, load = measured(stand, plan(concurrency=3, requests=20, max_sandboxes=7, events=(event(), event("raise"))))
    assert len(records) == 20
    assert len(stand.cells) == 3
    assert sum(each.cold for each in records) == 3
    assert sum(each.outcome is Outcome.FUNCTION_ERROR for each in records) == 10, "the events come in turn"
    assert all(cell.closed for cell in stand.cells)
    seen = load.observed()
    assert (seen.loop, seen.pool.sandboxes, len(seen.lateness_ms), seen.capacity) == ("closed", 3, 17, 7), (
        "a first request cannot be late"
    )


def test_no_client_is_without_a_request() -> None:
    stand = FakeStand()
    records, _ = measured(stand, plan(concurrency=8, requests=2))
    assert len(records) == 2
    assert len(stand.cells) == 2


def test_a_closed_loop_ends_after_its_time() -> None:
    records, _ = measured(FakeStand(), plan(concurrency=1, duration_s=0.05))
    assert records
    assert all(each.outcome is Outcome.SUCCESS for each in records)


def test_a_client_that_is_throttled_asks_again_later() -> None:
    stand = FakeStand()
    loads: list[Load] = []

    def until_another_was_turned_away() -> None:
        deadline = time.monotonic() + 10
        while loads[0]._pool.statistics().throttled < 2:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    stand.make_cell = lambda: FakeCell(while_requesting=until_another_was_turned_away)
    with Load(stand_of(stand), plan(concurrency=2, requests=4, max_sandboxes=1)) as load:
        loads.append(load)
        records = list(load.records())
    outcomes = [each.outcome for each in records]
    assert outcomes.count(Outcome.THROTTLED) >= 2
    assert len(records) == 4
    assert len(stand.cells) == 1
    assert all(each.client_ms is not None for each in records)


def test_a_client_that_is_throttled_does_not_ask_again_at_once() -> None:
    stand = FakeStand(make_cell=lambda: FakeCell(while_requesting=lambda: time.sleep(0.2)))
    with Load(stand_of(stand), plan(concurrency=2, requests=1000, max_sandboxes=1)) as load:
        outcomes = [each.outcome for each in itertools.islice(load.records(), 10)]
    assert outcomes.count(Outcome.SUCCESS) >= 2, "a request took 200 ms, and pauses are 50, 100, 200 ... ms"


def test_an_open_loop_sends_each_request_whatever_became_of_those_before() -> None:
    stand = FakeStand(make_cell=waits_for(threading.Barrier(5, timeout=10)))
    records, load = measured(stand, plan(rate_per_s=200.0, requests=5))
    assert len({each.sandbox_id for each in records}) == 5, "none waited for another"
    assert load.observed().loop == "open"


def test_an_open_loop_throttles_what_finds_no_sandbox() -> None:
    stand, turned_away = FakeStand(), threading.Event()

    def wait() -> None:
        assert turned_away.wait(10)

    stand.make_cell = lambda: FakeCell(while_requesting=wait)
    with Load(stand_of(stand), plan(rate_per_s=500.0, requests=6, max_sandboxes=1)) as load:
        records = []
        for each in load.records():
            records.append(each)
            if len(records) == 5:
                turned_away.set()
    assert [each.outcome for each in records] == [Outcome.THROTTLED] * 5 + [Outcome.SUCCESS]
    assert {each.sandbox_id for each in records[:5]} == {""}


class SlowStart(FakeCell):
    def start(self) -> None:
        super().start()
        time.sleep(0.03)


def test_client_time_counts_from_when_a_request_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "_MOST_READY", 0)  # nothing is prepared: the first request waits for its container
    stand = FakeStand(make_cell=SlowStart)
    (first,), load = measured(stand, plan(rate_per_s=1.0, requests=1))
    assert first.client_ms is not None
    assert first.client_ms >= 30
    assert any("for its container to start" in note for note in first.notes)
    assert load.observed().waited_ms[0] >= 30
    assert len(load.observed().pool.start_ms) == 1


def test_containers_are_prepared_so_that_no_request_waits_for_one() -> None:
    stand = FakeStand(make_cell=SlowStart)
    _, load = measured(stand, plan(rate_per_s=500.0, requests=5))
    assert load.observed().pool.prepared == 5
    assert load.observed().pool.start_ms == ()


def test_an_engine_that_fails_ends_the_load_with_its_error() -> None:
    cells = [FakeCell(), FakeCell(start_trouble=ENGINE_TROUBLE)]
    stand = FakeStand(make_cell=cells.copy().pop)
    with pytest.raises(EngineError, match="went away"):
        measured(stand, plan(concurrency=2, requests=50))
    assert cells[0].closed == cells[0].starts


def test_what_is_under_way_when_a_load_is_left_ends_with_its_sandbox() -> None:
    stand = FakeStand()
    with Load(stand_of(stand), plan(concurrency=2, duration_s=60.0)) as load:
        for number, _ in enumerate(load.records()):
            if number == 5:
                break
    assert all(cell.closed for cell in stand.cells)
    assert not [each for each in threading.enumerate() if each.name.startswith(("client-", "load", "memory-watch"))]


# -- findings --------------------------------------------------------------------------------------------------------


def observed(**changes: Any) -> dict[str, Any]:
    return {
        "loop": "open",
        "wall_s": 10.0,
        "lateness_ms": (0.2,),
        "waited_ms": (),
        "start_ms": (),
        "capacity": 4,
        "most_busy": 2,
        "generator_cpu_s": 1.0,
        "host_cpus": 2,
        "host_busy_share": 0.5,
        "peak_memory_bytes": None,
        "memory_samples": 0,
    } | changes


def some(count: int, **changes: Any) -> list[Invocation]:
    return [
        record(
            request_id=f"r{number}",
            cold=False,
            phase_init=None,
            sequence=number + 2,
            duration_ms=float(number),
            **changes,
        )
        for number in range(count)
    ]


def test_requests_errors_throttles_and_sandboxes_are_counted_apart() -> None:
    records = [
        *some(5, cost_usd=0.001),
        record(duration_ms=1.0, cost_usd=0.002, sandbox_id="other"),
        record(cold=False, phase_init=PhaseInit.SUPPRESSED, duration_ms=1.0),
        *some(2, outcome=Outcome.OUT_OF_MEMORY),
        *[record(outcome=Outcome.THROTTLED, cold=False, phase_init=None, sandbox_id="", sequence=0)] * 3,
    ]
    found = load_findings(records, observed())
    assert found["requests"] == len(records) == 12
    assert found["errors"] == 2
    assert found["throttled"] == 3
    assert found["outcomes"] == {"success": 7, "throttled": 3, "out_of_memory": 2}
    assert found["sandboxes"] == 2
    assert found["cold_starts"] == 1
    assert found["resets"] == 1
    assert found["throughput_per_s"] == 0.7
    assert found["cost_usd"] == pytest.approx(0.007)
    assert found["cost_unknown"] == 3
    assert {each["kind"] for each in found["warnings"]} == {"throttled", "out_of_memory"}


def test_times_are_of_successes_alone() -> None:
    records = [*some(3, client_ms=5.0), *some(1, outcome=Outcome.TIMEOUT, client_ms=3000.0)]
    found = load_findings(records, observed())
    assert found["duration_ms"]["n"] == 3
    assert found["client_ms"]["max"] == 5.0
    assert found["cold"]["duration_ms"] is None


@pytest.mark.parametrize(
    ("count", "known"), [(49, []), (50, ["p90"]), (100, ["p90", "p95"]), (500, ["p90", "p95", "p99"])]
)
def test_a_percentile_needs_enough_values(count: int, known: list[str]) -> None:
    found = spread(range(count))
    assert found is not None
    assert [name for name in ("p90", "p95", "p99") if found[name] is not None] == known


def test_memory_is_that_of_all_sandboxes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: set[int] = set()
    at_both = threading.Event()

    def charge(reach: FakeReach) -> int:
        looked_at.add(id(reach))
        if len(looked_at) == 2:
            at_both.set()
        return 20 * MIB

    def wait() -> None:
        assert at_both.wait(10)

    monkeypatch.setattr(FakeReach, "charged_bytes", charge)
    _, load = measured(FakeStand(make_cell=lambda: FakeCell(while_requesting=wait)), plan(concurrency=2, requests=2))
    assert load.observed().peak_memory_bytes == 40 * MIB


def test_a_sandbox_that_is_on_its_way_out_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def charge(_: FakeReach) -> int:
        if asked.is_set():
            answered.set()
            return 20 * MIB
        asked.set()
        raise ENGINE_TROUBLE

    def wait() -> None:
        assert answered.wait(10)

    answered = threading.Event()
    monkeypatch.setattr(FakeReach, "charged_bytes", charge)
    _, load = measured(FakeStand(make_cell=lambda: FakeCell(while_requesting=wait)), plan(concurrency=1, requests=1))
    assert load.observed().peak_memory_bytes == 20 * MIB


def test_memory_of_all_sandboxes_is_no_less_than_what_one_reached() -> None:
    records = some(2, peak_memory_bytes=90 * MIB)
    assert load_findings(records, observed(peak_memory_bytes=80 * MIB))["peak_memory_bytes"] == 90 * MIB
    assert load_findings(records, observed(peak_memory_bytes=170 * MIB))["peak_memory_bytes"] == 170 * MIB


def test_memory_of_all_sandboxes_is_not_guessed_where_nothing_was_sampled() -> None:
    one = some(2, peak_memory_bytes=90 * MIB)
    assert load_findings(one, observed())["peak_memory_bytes"] == 90 * MIB, "of one sandbox its own peak is exact"
    two = [*one, *some(1, peak_memory_bytes=1, sandbox_id="other")]
    assert load_findings(two, observed())["peak_memory_bytes"] is None


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"generator_cpu_s": 6.0}, "generator_busy"),
        ({"lateness_ms": (40.0, 50.0, 60.0)}, "generator_late"),
        ({"host_busy_share": 0.95}, "host_busy"),
        ({"start_ms": (350.0,)}, "waited_for_containers"),
        ({"most_busy": 40}, "host_too_few_cpus"),
    ],
)
def test_a_measurement_that_is_not_lambdas_says_so(changes: dict[str, Any], kind: str) -> None:
    assert load_findings(some(3), observed())["warnings"] == []
    found = load_findings(some(3), observed(**changes))["warnings"]
    assert [each["kind"] for each in found] == [kind]
    assert found[0]["remedy"]


def test_what_the_closed_loop_does_between_requests_is_not_lateness() -> None:
    found = load_findings(some(3), observed(loop="closed", lateness_ms=(40.0, 50.0, 60.0)))
    assert found["warnings"] == []
    assert found["generator"]["lateness_ms"]["p50"] == 50.0


def test_a_load_without_a_single_request_has_findings() -> None:
    found = load_findings([], observed(wall_s=0.0))
    assert (found["requests"], found["throughput_per_s"], found["error_share"], found["cost_usd"]) == (
        0,
        None,
        None,
        None,
    )


def test_what_a_load_observed_is_what_its_findings_take() -> None:
    records, load = measured(FakeStand(), plan(concurrency=1, requests=3))
    seen = asdict(load.observed())
    found = load_findings(records, seen | seen.pop("pool"))
    assert found["requests"] == 3
    assert found["generator"]["lateness_ms"]["n"] == 2, "the first request is due when it is sent"
