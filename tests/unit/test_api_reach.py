"""Vantage api without an engine: what is read from files, what the engine is asked for, and what a record then says."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from harness.cgroup import CpuUsage
from harness.engine.client import EngineFacts
from harness.engine.containers import Container, Listed
from harness.errors import EngineError, LimitError
from harness.invocation import PeakMethod
from harness.procfs import Process, ReapedChildren
from harness.tiers import tier
from harness.vantage import NOT_PINNED, reading
from harness.vantage.api import ApiReach
from harness.vantage.reading import Seen

MIB = 1024 * 1024
RIE = 100
FACTS = EngineFacts(
    name="Docker Engine",
    version="28.0",
    api_version="1.48",
    cgroup_version=2,
    cgroup_driver="systemd",
    kernel=os.uname().release,
    architecture="x86_64",
    cpus=4,
    memory_bytes=8 << 30,
    operating_system="Linux",
    rootless=False,
)


def seen(**changes: Any) -> Seen:
    process = Process(
        pid=101,
        name="python3",
        rss_bytes=20 * MIB,
        peak_rss_bytes=20 * MIB,
        anon_bytes=8 * MIB,
        threads=2,
        open_files=None,
        start_ticks=7,
    )
    found = Seen(
        usage=CpuUsage(cpu_ns=50_000_000, throttled_ns=0, throttled_periods=0, periods=9),
        rie_cpu_ns={RIE: 4_000_000},
        oom_kills=0,
        peak_memory_bytes=30 * MIB,
        page_cache_bytes=2 * MIB,
        charged_bytes=4 * MIB,
        rie_anon_bytes=3 * MIB,
        processes={101: process},
        reaped={101: ReapedChildren(minor_faults=0, major_faults=0, cpu_ticks=0)},
        anonymous_bytes=8 * MIB,
    )
    return replace(found, **changes)


LATER = CpuUsage(cpu_ns=62_000_000, throttled_ns=5_000_000, throttled_periods=2, periods=12)


@dataclass
class FakeFiles:
    """As `harness.vantage.reading.Reading`; says what it is told to say."""

    version: int = 2
    now: Seen = field(default_factory=seen)
    held_quota: tuple[int | None, int] | None = None
    memory_held: bool | None = True
    cpus: str | None = "0-1"
    swap: bool | None = True
    resident: int | None = 20 * MIB

    def look(self) -> Seen:
        return self.now

    def quota(self) -> tuple[int | None, int] | None:
        return self.held_quota

    def cpuset(self) -> str | None:
        return self.cpus

    def holds_memory_limit(self, limit_bytes: int) -> bool | None:
        return self.memory_held

    def swap_limited(self) -> bool | None:
        return self.swap

    def resident_bytes(self) -> int | None:
        return self.resident


@dataclass
class FakeContainer:
    """Remembers what the engine was asked for."""

    id: str = "c" * 64
    pid: int = RIE
    asked: list[str] = field(default_factory=list)
    held: dict[str, Any] = field(default_factory=lambda: {"CpusetCpus": "0,1"})
    forgetful: bool = False
    """As Podman: goes on telling the limits of the beginning, which is to say none that were changed."""
    cpu_ns: int = 50_000_000

    def update(self, **limits: int) -> None:
        self.asked.append("update")
        names = {
            "mem_limit": "Memory",
            "memswap_limit": "MemorySwap",
            "cpu_quota": "CpuQuota",
            "cpu_period": "CpuPeriod",
        }
        if not self.forgetful:
            self.held |= {names[name]: value for name, value in limits.items()}

    def limits(self) -> dict[str, Any]:
        return self.held

    def stats(self) -> dict[str, Any]:
        self.asked.append("stats")
        return {
            "read": "2026-11-22T05:00:00.000000001Z",
            "cpu_stats": {
                "cpu_usage": {"total_usage": self.cpu_ns},
                "throttling_data": {"throttled_time": 0, "periods": 0, "throttled_periods": 0},
            },
            "memory_stats": {"usage": 9 * MIB, "stats": {"file": 3 * MIB}},
        }

    def processes(self) -> dict[int, Listed] | None:
        self.asked.append("processes")
        return {RIE: Listed(rss_bytes=9 * MIB, threads=8), 101: Listed(rss_bytes=21 * MIB, threads=3)}

    def oom_events(self, *, until_s: float) -> int:
        self.asked.append("events")
        raise EngineError("no events")

    def tree_bytes(self, path: str, *, up_to: int) -> int | None:
        return 0

    def pause(self) -> None: ...

    def unpause(self) -> None: ...


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> FakeFiles:
    found = FakeFiles()
    monkeypatch.setattr(reading, "open_reading", lambda *_, **__: found)
    return found


@pytest.fixture
def container() -> FakeContainer:
    return FakeContainer()


def reach_of(container: FakeContainer, memory_mb: int = 512) -> ApiReach:
    reach = ApiReach(cast("Container", container), FACTS, 512)
    reach.prepare(tier(memory_mb), (0, 1))
    return reach


def warm(reach: ApiReach) -> None:
    """Behind its first invocation, and frozen."""
    reach.mark()
    reach.boost()
    reach.restrict()
    reach.freeze()
    reach.observe()
    reach.mark()
    reach.thaw()


def test_what_files_tell_the_engine_is_not_asked_for(files: FakeFiles, container: FakeContainer) -> None:
    reach = reach_of(container)
    warm(reach)
    container.asked.clear()
    files.now = seen(usage=LATER, rie_cpu_ns={RIE: 5_000_000}, peak_memory_bytes=40 * MIB, oom_kills=1)
    found = reach.observe()
    assert container.asked == []
    assert found.cpu_ms == 11.0, "12 ms of the sandbox, 1 ms of them the RIE's"
    assert (found.throttled_ms, found.throttled_periods) == (5.0, 2)
    assert found.oom_kills == 1
    assert found.peak_memory_bytes == 36 * MIB, "without the RIE's 4 MiB"
    assert (found.peak_rss_bytes, found.peak_method) == (20 * MIB, PeakMethod.SAMPLED)
    assert (found.processes, found.threads, found.open_files) == (1, 2, None)
    assert (found.resident_after_bytes, found.anonymous_after_bytes) == (20 * MIB, 8 * MIB)
    assert found.memory_limit_bytes == 516 * MIB
    assert found.notes == ()


def test_of_a_cold_start_everything_is_told_but_its_cpu_time(files: FakeFiles, container: FakeContainer) -> None:
    files.now = seen(processes={}, reaped={})
    reach = reach_of(container)
    reach.mark()
    reach.boost()
    reach.restrict()
    files.now = seen(usage=LATER)
    found = reach.observe()
    assert found.cpu_ms is None
    assert (found.throttled_ms, found.throttled_periods) == (5.0, 2)
    assert (found.peak_rss_bytes, found.peak_method) == (20 * MIB, PeakMethod.HIGH_WATER)
    assert any("cold start" in note for note in reach.notes)
    assert "stats" not in container.asked


def test_a_sandbox_that_is_not_frozen_is_counted_too(files: FakeFiles, container: FakeContainer) -> None:
    reach = reach_of(container)
    reach.mark()
    reach.boost()
    reach.restrict()
    reach.observe()
    reach.mark()
    files.now = seen(usage=LATER)
    assert reach.observe().cpu_ms == 12.0


def test_samples_between_two_looks_are_the_peak_where_the_mark_stood(
    files: FakeFiles, container: FakeContainer
) -> None:
    reach = reach_of(container)
    warm(reach)
    for resident in (25 * MIB, 33 * MIB, None):
        files.resident = resident
        reach.sample()
    assert reach.observe().peak_rss_bytes == 33 * MIB
    reach.mark()
    assert reach.observe().peak_rss_bytes == 20 * MIB, "an earlier invocation's samples are not this one's"


def test_cpu_time_that_holds_the_rie_s_says_so(files: FakeFiles, container: FakeContainer) -> None:
    reach = reach_of(container)
    warm(reach)
    files.now = seen(usage=LATER, rie_cpu_ns=None)
    found = reach.observe()
    assert found.cpu_ms == 12.0
    assert any("includes the RIE" in note for note in found.notes)


def test_the_engine_is_asked_for_what_the_files_do_not_tell(files: FakeFiles, container: FakeContainer) -> None:
    reach = reach_of(container)
    files.now = seen(processes=None, reaped={}, oom_kills=None)
    warm(reach)
    container.asked.clear()
    found = reach.observe()
    assert container.asked == ["stats", "processes", "events"]
    assert (found.processes, found.threads, found.resident_after_bytes) == (1, 3, 21 * MIB)
    assert found.oom_kills is None
    assert found.cpu_ms == 0.0, "still from the files"


def test_without_files_the_engine_tells_what_it_can(monkeypatch: pytest.MonkeyPatch, container: FakeContainer) -> None:
    monkeypatch.setattr(reading, "open_reading", lambda *_, **__: None)
    reach = reach_of(container)
    warm(reach)
    container.cpu_ns += 3_000_000
    reach.freeze()
    found = reach.observe()
    assert found.cpu_ms == 3.0
    assert (found.peak_rss_bytes, found.peak_method) == (None, None)
    assert found.resident_after_bytes == 21 * MIB
    assert found.anonymous_after_bytes is None
    assert reach.resident_bytes() is None
    assert any("include the RIE" in note for note in reach.notes)
    reach.thaw()
    reach.mark()
    assert reach.observe().cpu_ms is None, "it was not frozen: what lay between cannot be told apart"


def test_another_quota_than_was_asked_for_is_on_the_record(files: FakeFiles, container: FakeContainer) -> None:
    reach = reach_of(container)
    wanted = tier(512)
    files.held_quota = (wanted.cpu_quota_us, wanted.cpu_period_us)
    warm(reach)
    assert reach.observe().notes == ()
    files.held_quota = (5800, 20000)
    assert any("5800 us in 20000" in note for note in reach.observe().notes)
    files.held_quota = (None, 20000)
    assert any("without limit" in note for note in reach.observe().notes)


def test_memory_that_the_rie_comes_to_hold_is_not_taken_from_the_function(
    files: FakeFiles, container: FakeContainer
) -> None:
    reach = reach_of(container)
    assert container.held["Memory"] == 516 * MIB
    files.now = seen(rie_anon_bytes=3 * MIB + 100 * 1024)
    reach.mark()
    assert container.held["Memory"] == 516 * MIB, "for so little the engine is not asked"
    files.now = seen(rie_anon_bytes=13 * MIB)
    reach.mark()
    assert container.held["Memory"] == container.held["MemorySwap"] == 526 * MIB
    assert reach.observe().memory_limit_bytes == 526 * MIB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_held": False}, "does not hold the memory limit"),
        ({"cpus": "0"}, "cpuset of the sandbox is 0"),
        ({"swap": False}, "could swap"),
    ],
)
def test_limits_that_the_kernel_does_not_hold_are_refused_whatever_the_engine_believes(
    files: FakeFiles, container: FakeContainer, change: dict[str, Any], message: str
) -> None:
    for name, value in change.items():
        setattr(files, name, value)
    with pytest.raises(LimitError, match=message):
        reach_of(container)


@pytest.mark.parametrize(
    ("told", "cpus", "pinned"), [("", None, None), ("0,1", None, "0,1"), ("", "0-1", "0-1"), ("0,1", "0-1", "0-1")]
)
def test_cpus_that_neither_the_engine_nor_the_kernel_holds_are_not_pinned_and_noted(
    files: FakeFiles, container: FakeContainer, told: str, cpus: str | None, pinned: str | None
) -> None:
    container.held["CpusetCpus"], files.cpus = told, cpus
    granted = ApiReach(cast("Container", container), FACTS, 512).prepare(tier(512), (0, 1))
    assert granted.cpuset == pinned
    assert (NOT_PINNED in granted.notes) == (pinned is None)


def test_limits_that_nobody_tells_are_noted(files: FakeFiles, container: FakeContainer) -> None:
    container.forgetful, files.memory_held, files.swap = True, None, None
    reach = ApiReach(cast("Container", container), FACTS, 512)
    granted = reach.prepare(tier(512), (0, 1))
    assert any("memory limit could not be read back" in note for note in granted.notes)
    warm(reach)
    assert any("CPU quota could not be read back" in note for note in reach.observe().notes)
    files.memory_held = True
    assert ApiReach(cast("Container", container), FACTS, 512).prepare(tier(512), (0, 1)).notes == ()
