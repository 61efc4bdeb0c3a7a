"""Vantage api: what it cannot know is None or marked, and what it says is true."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conftest import invoke

from harness.errors import EngineError, LimitError
from harness.invocation import Outcome, PeakMethod

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
        kept.append(bytearray(b"x") * (event.get("mb", 0) << 20))
        return time.process_time() - start
"""


def test_a_cold_start_s_cpu_time_is_not_guessed_and_a_warm_one_s_is_the_sandbox_s(lab: Lab) -> None:
    with lab.sandbox(BURN, vantage="api", memory_mb=1769, timeout_s=20) as sandbox:
        cold, idle, busy = invoke(sandbox), invoke(sandbox), invoke(sandbox, cpu_s=0.4)
    assert cold.cpu_ms is None
    assert cold.throttled_ms is None
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


def test_memory_is_marked_as_sampled_and_what_lies_out_of_reach_is_none(lab: Lab) -> None:
    with lab.sandbox(BURN, vantage="api", memory_mb=512, timeout_s=20) as sandbox:
        before, grown = invoke(sandbox), invoke(sandbox, mb=100)
    for record in (before, grown):
        assert record.peak_method is PeakMethod.SAMPLED
        assert record.tmp_bytes == 0
        assert record.open_files is None
        assert record.processes == 1
        assert record.threads is not None
        assert record.threads >= 1
        assert any("lower bound" in note for note in record.notes)
        assert any("/tmp is not limited to 512 MB" in note for note in record.notes)
    assert before.resident_after_bytes is not None
    assert grown.resident_after_bytes is not None
    assert 99 * MIB < grown.resident_after_bytes - before.resident_after_bytes < 110 * MIB
    assert grown.max_memory_used_mb is not None
    assert grown.max_memory_used_mb >= 100


def test_without_freezing_nothing_is_counted_that_cannot_be_told_apart(lab: Lab) -> None:
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


def test_an_engine_that_cannot_list_processes_leaves_them_unknown(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
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
