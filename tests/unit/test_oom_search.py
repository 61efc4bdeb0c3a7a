"""The search for the smallest size, the fates that are told apart, and the story of a kill; without a container."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from fakes import ENGINE_TROUBLE, MIB, FakeCell, FakeReach, event
from hypothesis import given
from hypothesis import strategies as st
from test_invocation import record
from test_pool import FakeStand, stand_of

from harness.analysis.oom import SURVIVING, Fate, fate, fate_of, growth_bytes_per_s, last_output, oom_findings, thinned
from harness.errors import EngineError, InvalidInput, UsageError
from harness.experiments.oom import Oom, OomPlan, Search, Try, Watched, largest_mb
from harness.invocation import Outcome
from harness.memory_watch import Killed, MemoryPoint, MemorySeen

# -- the search --------------------------------------------------------------------------------------------------------


def searched(
    survives: Callable[[int], bool], from_mb: int, to_mb: int, confirm: int = 2
) -> tuple[Search, list[tuple[int, bool]]]:
    search = Search(from_mb, to_mb, confirm)
    tried: list[tuple[int, bool]] = []
    while (memory_mb := search.next()) is not None:
        assert from_mb <= memory_mb <= to_mb
        assert len(tried) < 500, "it does not end"
        lived = survives(memory_mb)
        tried.append((memory_mb, lived))
        search.tell(memory_mb, survived=lived)
    return search, tried


@given(st.integers(128, 10240), st.integers(128, 10240), st.integers(100, 10400), st.integers(1, 4))
def test_the_smallest_size_is_found_to_the_megabyte(one: int, other: int, needs_mb: int, confirm: int) -> None:
    from_mb, to_mb = sorted((one, other))
    search, tried = searched(lambda size: size >= needs_mb, from_mb, to_mb, confirm)
    if needs_mb > to_mb:
        assert search.smallest is None
        assert tried[-1] == (to_mb, False)
    else:
        assert search.smallest == max(needs_mb, from_mb)
        assert tried.count((search.smallest, True)) == confirm
        assert search.died == (needs_mb - 1 if needs_mb > from_mb else None)


@given(st.integers(130, 2000), st.integers(0, 60), st.integers(0, 2**31), st.integers(1, 3))
def test_a_size_that_dies_now_and_then_is_too_small(needs_mb: int, fuzzy_mb: int, seed: int, confirm: int) -> None:
    chance = random.Random(seed)  # noqa: S311  # a test's luck
    search, tried = searched(
        lambda size: size >= needs_mb + fuzzy_mb or (size >= needs_mb and chance.random() < 0.7), 128, 4096, confirm
    )
    assert search.smallest is not None
    assert tried.count((search.smallest, True)) == confirm
    assert (search.smallest, False) not in tried
    assert (search.smallest - 1, False) in tried
    assert all(size < search.smallest for size, lived in tried if not lived)


def test_sizes_are_doubled_until_one_survives() -> None:
    _, tried = searched(lambda size: size >= 2000, 128, 10240, 1)
    assert [size for size, _ in tried[:5]] == [128, 256, 512, 1024, 2048]


def test_a_function_that_nothing_kills_is_tried_at_the_smallest_size_alone() -> None:
    assert searched(lambda _: True, 128, 10240)[1] == [(128, True)] * 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"from_mb": 100}, InvalidInput),
        ({"to_mb": 20000}, InvalidInput),
        ({"from_mb": 512, "to_mb": 256}, UsageError),
        ({"confirm": 0}, UsageError),
        ({"count": 0}, UsageError),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes: dict[str, int], error: type[Exception]) -> None:
    with pytest.raises(error):
        plan(**changes)


def test_the_search_ends_where_this_hosts_memory_does() -> None:
    stand = FakeStand()
    stand.facts.memory_bytes = 1000 * MIB
    assert largest_mb(stand_of(stand), None, 128) == 700
    assert largest_mb(stand_of(stand), 512, 128) == 512
    with pytest.raises(InvalidInput, match="800 MB does not fit"):
        largest_mb(stand_of(stand), 800, 128)
    with pytest.raises(InvalidInput, match="900 MB does not fit"):
        largest_mb(stand_of(stand), None, 900)


# -- the experiment ----------------------------------------------------------------------------------------------------


def plan(**changes: Any) -> OomPlan:
    settings: dict[str, Any] = {"events": (event(),), "to_mb": 1024}
    return OomPlan(**(settings | changes))


class Hungry(FakeCell):
    """Is killed below so many MB, whatever the event says."""

    def __init__(self, stand: FakeStand, needs_mb: int) -> None:
        super().__init__()
        self.stand, self.needs_mb, self.memory_mb = stand, needs_mb, 0

    def _handle(self, exchange: Any, what: str) -> Any:
        return super()._handle(exchange, what if self.memory_mb >= self.needs_mb else "run_out_of_memory")


class HungryStand(FakeStand):
    def __init__(self, needs_mb: int) -> None:
        super().__init__()
        self.needs_mb = needs_mb

    def sandbox(self, asked: Any = None, *, provisioned: bool = False) -> Any:
        self.make_cell = lambda: Hungry(self, self.needs_mb)
        sandbox = super().sandbox(asked)
        cell = self.cells[-1]
        assert isinstance(cell, Hungry)
        cell.memory_mb = asked.memory_mb
        return sandbox


def survives(watched: Watched) -> bool:
    return fate_of(watched) in SURVIVING


def test_every_try_is_a_fresh_sandbox_that_is_given_back() -> None:
    stand = HungryStand(300)
    search = Oom(stand_of(stand), plan(), survives)
    records = list(search.records())
    assert search.search.smallest == 300
    assert all(each.cold for each in records)
    assert [cell.closed for cell in stand.cells] == [1] * len(records)
    assert all((each.outcome is Outcome.OUT_OF_MEMORY) == (each.memory_mb < 300) for each in records)
    assert {each.memory_mb for each in search.tries} == {each.memory_mb for each in records}


def test_a_try_is_over_with_the_first_invocation_that_does_not_survive() -> None:
    events = (event(), event("run_out_of_memory"), event())
    search = Oom(stand_of(FakeStand()), plan(events=events, count=3, from_mb=128, to_mb=128), survives)
    assert [each.outcome for each in search.records()] == [Outcome.SUCCESS, Outcome.OUT_OF_MEMORY]
    assert [each.survived for each in search.tries] == [False]


def test_where_the_cgroup_is_out_of_reach_the_exit_line_tells_of_the_kill() -> None:
    search = Oom(stand_of(HungryStand(300)), plan(), survives)
    list(search.records())
    story = findings(search)["kill"]
    assert story["memory_mb"] == 299
    assert story["killed"] == [
        {
            "name": "the runtime",
            "source": "exit_line",
            "pid": None,
            "runtime": True,
            "anon_bytes": None,
            "file_bytes": None,
        }
    ]
    assert story["timeline"] == []
    assert "does not show the cgroup" in story["timeline_reason"]
    assert story["growth_bytes_per_s"] is None


class SeenWatch:
    """A watch that saw this, once it has been left."""

    def __init__(self, seen: MemorySeen) -> None:
        self._seen = seen
        self.found = MemorySeen()

    def __enter__(self) -> SeenWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.found = self._seen


def watched_by(monkeypatch: pytest.MonkeyPatch, *seen: MemorySeen) -> dict[str, Any]:
    """The findings of a search in which each request was watched and this seen, the last of them again and again."""
    rest = list(seen)
    monkeypatch.setattr(
        FakeReach, "watch_memory", lambda _: SeenWatch(rest.pop(0) if len(rest) > 1 else rest[0]), raising=True
    )
    search = Oom(stand_of(HungryStand(300)), plan(from_mb=299, to_mb=300, confirm=1), survives)
    list(search.records())
    return findings(search)


def test_what_the_watch_saw_is_the_story(monkeypatch: pytest.MonkeyPatch) -> None:
    victim = Killed(name="python3.13", source="process_list", pid=7, runtime=True, anon_bytes=290 * MIB)
    seen = MemorySeen(points=(point(0, 10), point(2, 290)), oom_kills=1, killed_at_ms=2, killed=(victim,))
    story = watched_by(monkeypatch, seen, MemorySeen())["kill"]
    assert [each["memory_bytes"] for each in story["timeline"]] == [10 * MIB, 290 * MIB]
    assert (story["killed_process"], story["killed"][0]["source"]) == ("python3.13", "process_list")
    assert (story["killed_at_ms"], story["timeline_reason"]) == (2, None)


def test_a_child_that_was_seen_killed_counts_though_the_function_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    child = Killed(name="sh", source="process_list", pid=8, runtime=False)
    found = watched_by(monkeypatch, MemorySeen(oom_kills=1, killed=(child,)))
    assert found["verdict"] == "no_size_saves_it"
    assert found["tries"][-1]["fate"] == "child_killed"


def test_a_watch_that_ended_too_early_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    story = watched_by(monkeypatch, MemorySeen(ended_by="the agent is gone"), MemorySeen())["kill"]
    assert story["killed"][0]["source"] == "exit_line"
    assert story["timeline_reason"] == "nothing could be sampled: the agent is gone"


def test_an_engine_that_fails_once_says_nothing_about_a_size() -> None:
    stand = FakeStand()
    troubles: list[Exception | None] = [ENGINE_TROUBLE, None, None]
    stand.make_cell = lambda: FakeCell(settle_trouble=troubles.pop(0))
    search = Oom(stand_of(stand), plan(), survives)
    assert [each.outcome for each in search.records()] == [Outcome.ENGINE_ERROR, Outcome.SUCCESS, Outcome.SUCCESS]
    assert [each.survived for each in search.tries] == [True, True]


def test_an_engine_that_fails_twice_ends_the_search() -> None:
    stand = FakeStand(make_cell=lambda: FakeCell(settle_trouble=ENGINE_TROUBLE))
    with pytest.raises(EngineError, match="went away"):
        list(Oom(stand_of(stand), plan(), survives).records())
    assert [cell.closed > 0 for cell in stand.cells] == [True, True]


# -- fates -------------------------------------------------------------------------------------------------------------

FULL = int(0.95 * 128 * MIB)


@pytest.mark.parametrize(
    ("changes", "seen", "expected"),
    [
        ({}, {}, Fate.SURVIVED),
        ({"outcome": Outcome.OUT_OF_MEMORY}, {}, Fate.KILLED),
        ({}, {"oom_kills": 1}, Fate.CHILD_KILLED),
        ({"outcome": Outcome.FUNCTION_ERROR}, {"oom_kills": 1, "runtime_killed": True}, Fate.KILLED),
        ({"outcome": Outcome.TIMEOUT}, {"held_bytes": FULL}, Fate.RECLAIM),
        ({"outcome": Outcome.TIMEOUT}, {"held_bytes": 50 * MIB}, Fate.TIMED_OUT),
        ({"outcome": Outcome.INIT_TIMEOUT, "peak_rss_bytes": FULL}, {}, Fate.RECLAIM),
        ({"outcome": Outcome.TIMEOUT, "peak_rss_bytes": FULL}, {"held_bytes": 50 * MIB}, Fate.TIMED_OUT),
        ({"outcome": Outcome.TIMEOUT}, {}, Fate.TIMED_OUT),
        ({"outcome": Outcome.FUNCTION_ERROR, "error_type": "ValueError"}, {}, Fate.FAILED_BY_ITSELF),
        ({"outcome": Outcome.FUNCTION_ERROR, "error_type": "MemoryError"}, {}, Fate.HEAP_LIMIT),
        (
            {
                "outcome": Outcome.FUNCTION_ERROR,
                "error_type": "RangeError",
                "error_message": "Array buffer allocation failed",
            },
            {},
            Fate.HEAP_LIMIT,
        ),
        (
            {"outcome": Outcome.RUNTIME_EXIT, "log_tail": "FATAL ERROR: Reached heap limit Allocation failed"},
            {},
            Fate.HEAP_LIMIT,
        ),
        ({"outcome": Outcome.RUNTIME_EXIT}, {}, Fate.ENDED),
        ({"outcome": Outcome.INIT_ERROR}, {}, Fate.ENDED),
        ({"outcome": Outcome.RESPONSE_TOO_LARGE}, {}, Fate.FAILED_BY_ITSELF),
    ],
)
def test_ways_to_end_are_told_apart(changes: dict[str, Any], seen: dict[str, Any], expected: Fate) -> None:
    assert fate(record(**changes), **seen) is expected


def test_page_cache_at_the_limit_is_no_shortage() -> None:
    timeline = [
        point(0, 10),
        MemoryPoint(ms=5, memory_bytes=128 * MIB, anon_bytes=30 * MIB, file_bytes=97 * MIB, kernel_bytes=MIB),
    ]
    assert fate_of(Watched(record=record(outcome=Outcome.TIMEOUT), timeline=timeline)) is Fate.TIMED_OUT
    timeline = [MemoryPoint(ms=5, memory_bytes=128 * MIB, anon_bytes=118 * MIB, file_bytes=9 * MIB, kernel_bytes=MIB)]
    assert fate_of(Watched(record=record(outcome=Outcome.TIMEOUT), timeline=timeline)) is Fate.RECLAIM


# -- findings ----------------------------------------------------------------------------------------------------------


def point(ms: float, mb: float) -> MemoryPoint:
    return MemoryPoint(ms=ms, memory_bytes=int(mb * MIB), anon_bytes=int(mb * MIB), file_bytes=0, kernel_bytes=0)


def findings(search: Oom, configured_mb: int | None = None) -> dict[str, Any]:
    made = search._plan
    return oom_findings(
        search.tries,
        search.search,
        from_mb=made.from_mb,
        to_mb=made.to_mb,
        confirm=made.confirm,
        configured_mb=configured_mb,
    )


def judged(outcome_at: Callable[[int], dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """The findings of a search in which each size gives a record with these fields."""
    made = plan(**changes)
    search, tries = Search(made.from_mb, made.to_mb, made.confirm), []
    while (memory_mb := search.next()) is not None:
        fields = outcome_at(memory_mb)
        watched = Watched(
            record=record(memory_mb=memory_mb, **fields),
            timeline=[point(0, 10), point(10, 20), point(20, min(memory_mb, 300))],
            killed=[Killed(name="python3.13", source="kernel_log", pid=7, runtime=True)]
            if fields.get("outcome") is Outcome.OUT_OF_MEMORY
            else [],
        )
        tries.append(Try(memory_mb=memory_mb, invocations=(watched,), survived=fate_of(watched) in SURVIVING))
        search.tell(memory_mb, survived=tries[-1].survived)
    return oom_findings(tries, search, from_mb=made.from_mb, to_mb=made.to_mb, confirm=made.confirm, configured_mb=128)


KILLED = {"outcome": Outcome.OUT_OF_MEMORY, "report": "REPORT", "log_tail": "hello", "response": {"errorType": "x"}}


def test_the_story_is_that_of_the_largest_size_that_dies() -> None:
    found = judged(lambda size: {} if size >= 300 else KILLED)
    assert (found["verdict"], found["smallest_memory_mb"], found["flaky_mb"]) == ("found", 300, [])
    story = found["kill"]
    assert (story["memory_mb"], story["killed_process"], story["outcome"]) == (299, "python3.13", "out_of_memory")
    assert (story["report"], story["response"], story["last_output"]) == ("REPORT", {"errorType": "x"}, ["hello"])
    assert max(each["memory_bytes"] for each in story["timeline"]) == 299 * MIB
    assert story["timeline_gap_ms"] == {"median": 10, "max": 10}
    assert found["reason"].startswith(
        "300 MB is the smallest memory size that survives (tried 2 times); at 299 MB python3.13"
    )
    assert found["reason"].endswith("its own memory size of 128 MB is too small")


def test_a_function_that_no_size_saves_is_said_so() -> None:
    found = judged(lambda _: KILLED)
    assert (found["verdict"], found["smallest_memory_mb"]) == ("no_size_saves_it", None)
    assert found["reason"].startswith("no memory size up to 1024 MB saves it")
    assert found["reason"].endswith("it takes all that it gets")
    assert found["kill"]["memory_mb"] == 1024


def test_a_function_that_no_size_kills_is_said_so() -> None:
    found = judged(lambda _: {})
    assert (found["verdict"], found["smallest_memory_mb"], found["kill"]) == ("no_size_kills_it", None, None)
    assert (
        found["reason"] == "no memory size from 128 MB on kills it: at 128 MB it succeeded with 128 MB in use at most"
    )


def test_an_error_of_its_own_is_not_blamed_on_memory() -> None:
    found = judged(lambda _: {"outcome": Outcome.INIT_ERROR, "error_type": "Runtime.ImportModuleError"})
    assert (found["verdict"], found["kill"]) == ("no_size_saves_it", None)
    assert "nothing says that memory was the reason" in found["reason"]
    found = judged(
        lambda size: KILLED if size < 300 else {"outcome": Outcome.FUNCTION_ERROR, "error_type": "ValueError"}
    )
    assert found["smallest_memory_mb"] == 300
    assert "but the function fails there: ValueError" in found["reason"]


def test_a_timeout_below_is_told_from_a_kill() -> None:
    def slow(size: int) -> dict[str, Any]:
        return {} if size >= 600 else {"outcome": Outcome.TIMEOUT}

    found = judged(slow)
    assert found["smallest_memory_mb"] == 600
    assert "too little CPU or too short a timeout" in found["reason"]
    assert [each["memory_mb"] for each in found["near_limit"]] == [128, 256], "the curve stops at 300 MB"
    assert found["kill"]["fate"] == "reclaim"
    assert found["kill"]["killed_process"] is None


def test_a_search_that_was_interrupted_says_what_it_knows() -> None:
    search = Search(128, 1024, 2)
    assert oom_findings([], search, from_mb=128, to_mb=1024, confirm=2)["reason"] == "nothing was tried"
    search.tell(128, survived=False)
    tries = [Try(memory_mb=128, invocations=(Watched(record=record(**KILLED)),), survived=False)]
    found = oom_findings(tries, search, from_mb=128, to_mb=1024, confirm=2)
    assert (found["verdict"], found["smallest_memory_mb"]) == ("unfinished", None)
    assert found["kill"]["memory_mb"] == 128


# -- the curve ---------------------------------------------------------------------------------------------------------


def test_growth_is_that_of_the_last_climb_to_the_peak() -> None:
    idle = [point(ms, 10) for ms in range(0, 1000, 10)]
    climb = [point(1000 + ms, 10 + ms) for ms in range(0, 101, 10)]
    found = growth_bytes_per_s([*idle, *climb, point(1200, 5)])
    assert found == pytest.approx(1000 * MIB, rel=0.01), "1 MB a millisecond"


@pytest.mark.parametrize("timeline", [[], [point(0, 1)], [point(0, 5), point(0, 9)]])
def test_growth_is_not_guessed(timeline: list[MemoryPoint]) -> None:
    assert growth_bytes_per_s(timeline) is None


@given(st.lists(st.integers(0, 1000), max_size=300), st.integers(4, 100))
def test_a_thinned_curve_keeps_its_peak_its_end_and_its_order(values: list[int], most: int) -> None:
    timeline = [point(float(ms), mb) for ms, mb in enumerate(values)]
    kept = thinned(timeline, most)
    assert len(kept) <= most
    assert [each.ms for each in kept] == sorted({each.ms for each in kept})
    assert max((each.memory_bytes for each in kept), default=None) == max(
        (each.memory_bytes for each in timeline), default=None
    )
    assert kept[-(most // 2) :] == timeline[-(most // 2) :]


def test_last_output_is_the_functions_own() -> None:
    message = "RequestId: 1 Error: Runtime exited with error: signal: killed"
    lambdas = "Runtime.ExitError\nEND RequestId: 1\nREPORT RequestId: 1\n"
    log = f"START RequestId: 1 Version: $LATEST\none\n\ntwo\n{message}\n{lambdas}"
    killed = record(log_tail=log, error_type="Runtime.ExitError", error_message=message)
    assert last_output(killed) == ["one", "two"]
