"""What a reach makes of the kernel's marks, told by a cgroup that is none."""

from __future__ import annotations

import os
from typing import Any

import pytest

from harness import cgroup, procfs
from harness.cgroup import CpuUsage, MemoryNow
from harness.tiers import tier
from harness.vantage import NOT_PINNED
from harness.vantage.reach import CgroupReach

MIB = 1024 * 1024


class Group:
    """A cgroup of no process but the RIE, whose high-water mark is set by the test."""

    rie_pid = os.getpid()

    def __init__(self, *, resets: bool) -> None:
        self.resets = resets
        self.mark_bytes: int | None = 50 * MIB

    def usage(self) -> CpuUsage:
        return CpuUsage(cpu_ns=0, throttled_ns=0, throttled_periods=0, periods=0)

    def oom_kills(self) -> int:
        return 0

    def reset_peak(self) -> bool:
        if self.resets:
            self.mark_bytes = 20 * MIB  # what is in use
        return self.resets

    def peak_memory_bytes(self) -> int | None:
        return self.mark_bytes

    def memory_now(self) -> MemoryNow:
        return MemoryNow(current_bytes=20 * MIB, anon_bytes=None, file_bytes=None, kernel_bytes=None)

    def runtime_processes(self) -> tuple[int, ...]:
        return ()


def reach(monkeypatch: pytest.MonkeyPatch, group: Group) -> CgroupReach:
    opened: Any = lambda _: group  # noqa: E731
    monkeypatch.setattr(cgroup, "open_cgroup", opened)
    monkeypatch.setattr(procfs, "tmp_files_bytes", lambda _: None)  # this process's own /tmp may be large
    return CgroupReach(os.getpid(), 512)


@pytest.mark.parametrize(
    ("resets", "mark_mb", "told_mb"), [(False, 50, None), (False, 90, 90), (True, 20, 20), (True, 40, 40)]
)
def test_a_mark_that_cannot_be_reset_tells_a_peak_where_it_rose(
    monkeypatch: pytest.MonkeyPatch, resets: bool, mark_mb: int, told_mb: int | None
) -> None:
    group = Group(resets=resets)
    found = reach(monkeypatch, group)
    found.mark()
    group.mark_bytes = mark_mb * MIB
    assert found.observe().peak_memory_bytes == (None if told_mb is None else told_mb * MIB)


def test_a_kernel_without_a_mark_tells_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(resets=False)
    group.mark_bytes = None
    found = reach(monkeypatch, group)
    found.mark()
    assert found.observe().peak_memory_bytes is None


def test_a_sandbox_whose_engine_was_handed_no_cpuset_runs_and_the_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    size = tier(512)

    class Unpinned(Group):
        version = 2
        runtime_group = True

        def open_runtime_group(self) -> None: ...

        def set_memory(self, limit_bytes: int) -> None:
            self.limit_bytes = limit_bytes

        def memory_limit(self) -> int:
            return self.limit_bytes

        def swap_limited(self) -> bool:
            return True

        def memory_now(self) -> MemoryNow:
            return MemoryNow(current_bytes=20 * MIB, anon_bytes=10 * MIB, file_bytes=0, kernel_bytes=0)

        def set_cpu(self, quota_us: int | None, period_us: int) -> None:
            self.cpu_max = quota_us, period_us

        def cpu(self) -> tuple[int | None, int]:
            return self.cpu_max

        def cpuset(self) -> str | None:
            return None

    granted = reach(monkeypatch, Unpinned(resets=True)).prepare(size, (0, 1))
    assert granted.cpuset is None
    assert granted.cpu_quota_us == size.cpu_quota_us
    assert granted.notes == (NOT_PINNED,)
