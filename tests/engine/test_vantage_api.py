"""Vantage api: what it cannot know is None or marked, and what it says is true.

``far``: the engine alone is asked, as one in a virtual machine is. ``near``: this kernel runs the containers, and what may be
read of them is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conftest import PATIENCE, invoke

from harness.engine.client import EngineFacts
from harness.errors import EngineError, LimitError
from harness.invocation import Outcome, PeakMethod, PhaseInit
from harness.kernel import is_this_machine
from harness.vantage import reading

if TYPE_CHECKING:
    from conftest import Lab

MIB = 1024 * 1024
BURN = """
    import time
    kept = []
    def handler(event, context):
        start = time.process_time()
        while time.process_time() - start < event.get("cpu_s", 0):
            pass
        spike = bytearray(b"x") * (event.get("spike_mb", 0) << 20)
        del spike
        kept.append(bytearray(b"x") * (event.get("mb", 0) << 20))
        time.sleep(event.get("sleep_s", 0))
        return time.process_time() - start
"""


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "open_reading", lambda *_, **__: None)


@pytest.fixture
def near(facts: EngineFacts) -> None:
    if not is_this_machine(facts.kernel, facts.memory_bytes):
        pytest.skip("the engine is on another machine: nothing of its containers can be read from here")


def test_a_cold_start_s_cpu_time_is_not_guessed_and_a_warm_one_s_is_the_sandbox_s(lab: Lab, far: None) -> None:
    with lab.sandbox(BURN, vantage="api", memory_mb=1769, timeout_s=int(20 * PATIENCE)) as sandbox:
        cold, idle, busy = invoke(sandbox), invoke(sandbox), invoke(sandbox, cpu_s=0.4)
    assert cold.cpu_ms is None
    assert idle.cpu_ms is not None
    assert idle.cpu_ms < 100, "looking at a sandbox is not charged to it"
    assert busy.cpu_ms is not None
    assert 400 <= busy.cpu_ms < 600
    assert busy.duration_ms is not None
    assert busy.duration_ms >= 400
    assert busy.client_ms is not None
    assert busy.client_ms >= busy.duration_ms


def test_durations_are_those_of_the_rie_s_own_clock(lab: Lab) -> None:
    source = "import time\ndef handler(event, context):\n    time.sleep(0.2)\n"
    with lab.sandbox(source, vantage="api") as sandbox:
        cold, warm = invoke(sandbox), invoke(sandbox)
    for record in (cold, warm):
        assert record.duration_ms is not None
        assert 200 <= record.duration_ms < (record.client_ms or 0)
    assert cold.init_ms is not None
    assert cold.init_ms + (cold.duration_ms or 0) <= (cold.client_ms or 0)
    assert cold.boost_lag_ms is not None


def test_init_runs_without_a_quota(lab: Lab) -> None:
    source = """
        import time
        began, cpu = time.perf_counter(), time.process_time()
        while time.process_time() - cpu < 0.5:
            pass
        share = (time.process_time() - cpu) / (time.perf_counter() - began)
        def handler(event, context):
            return share
    """
    with lab.sandbox(source, vantage="api", memory_mb=128, timeout_s=int(20 * PATIENCE)) as sandbox:
        record = invoke(sandbox)
    assert record.phase_init is PhaseInit.INIT
    assert record.response > 0.25, "the quota of 128 MB is 0.07 of a CPU"


def test_what_was_left_is_told_and_what_lies_out_of_reach_is_none(lab: Lab, far: None) -> None:
    with lab.sandbox(BURN, vantage="api", memory_mb=512, timeout_s=int(20 * PATIENCE)) as sandbox:
        before, grown = invoke(sandbox), invoke(sandbox, mb=100)
    for record in (before, grown):
        assert (record.peak_rss_bytes, record.peak_method, record.max_memory_used_mb) == (None, None, None)
        assert "Max Memory Used: - MB" in record.report
        assert record.tmp_bytes == 0
        assert record.open_files is None
        assert record.processes == 1
        assert record.threads is not None
        assert record.threads >= 1
        assert any("tells no process's peak" in note for note in record.notes)
        assert any("/tmp is not limited to 512 MB" in note for note in record.notes)
    assert before.resident_after_bytes is not None
    assert grown.resident_after_bytes is not None
    assert 99 * MIB < grown.resident_after_bytes - before.resident_after_bytes < 110 * MIB


def test_without_freezing_nothing_is_counted_that_cannot_be_told_apart(lab: Lab, far: None) -> None:
    with lab.sandbox(BURN, vantage="api", freeze=False) as sandbox:
        invoke(sandbox)
        warm = invoke(sandbox)
    assert warm.outcome is Outcome.SUCCESS
    assert warm.cpu_ms is None
    assert warm.throttled_periods is None


def test_limits_that_the_engine_does_not_hold_are_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.engine.containers import Container

    real = Container.limits
    monkeypatch.setattr(Container, "limits", lambda self: real(self) | {"Memory": 1})
    with pytest.raises(LimitError, match="memory limit of 1 bytes"), lab.sandbox(BURN, vantage="api"):
        pytest.fail("it started")
    assert lab.containers() == set()


def test_an_engine_that_cannot_list_processes_leaves_them_unknown(
    lab: Lab, far: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.engine.containers import Container

    monkeypatch.setattr(Container, "processes", lambda self: None)

    def refuse(self: Container, *, until_s: float) -> int:
        raise EngineError("no events here")

    monkeypatch.setattr(Container, "oom_events", refuse)
    with lab.sandbox(BURN, vantage="api") as sandbox:
        record = invoke(sandbox)
    assert record.outcome is Outcome.SUCCESS
    assert record.processes is None
    assert record.peak_rss_bytes is None
    assert record.peak_method is None
    assert record.max_memory_used_mb is None
    assert "Max Memory Used: - MB" in record.report


def test_where_files_are_read_cpu_time_is_the_runtime_s_own(lab: Lab, near: None) -> None:
    with lab.sandbox(BURN, vantage="api", memory_mb=512, timeout_s=int(20 * PATIENCE)) as sandbox:
        cold, idle, busy = invoke(sandbox), invoke(sandbox), invoke(sandbox, cpu_s=0.2)
    assert cold.cpu_ms is None, "the log tells too late that init is over"
    assert cold.throttled_periods is not None
    assert idle.cpu_ms is not None
    assert busy.cpu_ms is not None
    own_ms = float(str(busy.response)) * 1000
    assert own_ms <= busy.cpu_ms < own_ms + 20 * PATIENCE
    assert (busy.throttled_periods or 0) > 0
    assert not any("include" in note and "cpu_ms" in note for note in busy.notes)


def test_where_files_are_read_a_sandbox_that_is_not_frozen_is_counted_too(lab: Lab, near: None) -> None:
    with lab.sandbox(BURN, vantage="api", freeze=False, memory_mb=1769, timeout_s=int(20 * PATIENCE)) as sandbox:
        invoke(sandbox)
        busy = invoke(sandbox, cpu_s=0.2)
    assert busy.cpu_ms is not None
    assert 200 <= busy.cpu_ms < 200 + 100 * PATIENCE
    assert busy.throttled_periods is not None


def test_a_peak_is_exact_where_the_mark_rose_and_a_sampled_bound_where_it_did_not(lab: Lab, near: None) -> None:
    with lab.sandbox(BURN, vantage="api", memory_mb=512, timeout_s=int(20 * PATIENCE)) as sandbox:
        cold, high = invoke(sandbox), invoke(sandbox, spike_mb=100)
        lower = invoke(sandbox, spike_mb=40)
        held = invoke(sandbox, mb=30, sleep_s=0.2)
    assert cold.peak_method is PeakMethod.HIGH_WATER
    assert high.peak_method is PeakMethod.HIGH_WATER
    base = cold.resident_after_bytes or 0
    assert high.peak_rss_bytes is not None
    assert 99 * MIB < high.peak_rss_bytes - base < 106 * MIB
    assert high.resident_after_bytes is not None
    assert high.resident_after_bytes - base < 5 * MIB
    assert lower.peak_method is PeakMethod.SAMPLED
    assert lower.peak_memory_bytes is None
    assert base <= (lower.peak_rss_bytes or 0) < base + 46 * MIB
    assert held.peak_method is PeakMethod.SAMPLED
    assert (held.peak_rss_bytes or 0) >= base + 29 * MIB
    assert (held.anonymous_after_bytes or 0) - (cold.anonymous_after_bytes or 0) > 29 * MIB


def test_the_kernel_counts_out_of_memory_kills_for_anybody(lab: Lab, near: None) -> None:
    with lab.sandbox(BURN, vantage="api", memory_mb=128, timeout_s=int(20 * PATIENCE)) as sandbox:
        invoke(sandbox)
        killed, after = invoke(sandbox, mb=200), invoke(sandbox)
    assert killed.outcome is Outcome.OUT_OF_MEMORY
    assert killed.max_memory_used_mb == 128
    assert after.outcome is Outcome.SUCCESS
    assert after.peak_method is PeakMethod.HIGH_WATER, "the mark of a runtime that is new"


def test_the_memory_limit_follows_the_rie_through_the_engine(lab: Lab, near: None) -> None:
    with lab.sandbox(BURN, vantage="api", memory_mb=256, timeout_s=int(20 * PATIENCE)) as sandbox:
        first = invoke(sandbox)
        invoke(sandbox, kept_by_nobody="x" * 5_000_000)
        later = invoke(sandbox)
    assert later.outcome is Outcome.SUCCESS
    assert (later.memory_limit_bytes or 0) >= (first.memory_limit_bytes or 0) + 5_000_000
