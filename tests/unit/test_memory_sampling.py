"""A sandbox's memory watched while a request runs: on a made-up cgroup, with real processes that come and go."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from harness import memory_watch, procfs
from harness.agent import wire
from harness.cgroup import MemoryNow
from harness.errors import SandboxGone
from harness.memory_watch import KernelLog, Killed, MemoryPoint, MemorySeen, MemoryWatch, victims

if TYPE_CHECKING:
    from harness.cgroup import Cgroup

MIB = 1024 * 1024
SIZE = 128 * MIB
SHARE = 9 * MIB


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.001)


class MadeUpGroup:
    """What a watch asks of a cgroup. This process is its RIE: what it starts is a runtime."""

    rie_pid = os.getpid()

    def __init__(self) -> None:
        self.charged = 50 * MIB + SHARE
        self.kills: int | None = 3
        """Of requests before."""
        self.pids: tuple[int, ...] = ()
        self.samples = self.looks = self.refusals = 0
        self.gone = False

    def memory_limit(self) -> int | None:
        return SIZE + SHARE

    def memory_now(self) -> MemoryNow:
        if self.gone:
            self.refusals += 1
            raise SandboxGone("the sandbox's cgroup was removed")
        self.samples += 1
        return MemoryNow(current_bytes=self.charged, anon_bytes=1 << 40, file_bytes=MIB, kernel_bytes=None)

    def oom_kills(self) -> int | None:
        return self.kills

    def runtime_processes(self) -> tuple[int, ...]:
        self.looks += 1
        return self.pids

    def sampled_again(self) -> None:
        seen = self.samples
        until(lambda: self.samples > seen + 1, "the charge is sampled")

    def looked_again(self) -> None:
        seen = self.looks
        until(lambda: self.looks > seen + 2, "processes are looked at")


class NoLog(KernelLog):
    def __init__(self, lines: Iterable[str] = ()) -> None:
        super().__init__(Path("/nowhere/kmsg"))
        self._said = list(lines)

    def _lines(self) -> Iterator[str]:
        return iter(self._said)


@pytest.fixture
def group() -> MadeUpGroup:
    return MadeUpGroup()


def watch_over(group: MadeUpGroup, lines: Iterable[str] = ()) -> MemoryWatch:
    return MemoryWatch(cast("Cgroup", group), SIZE, log=NoLog(lines))


@contextlib.contextmanager
def process(mb: int, script: str = "") -> Iterator[subprocess.Popen[str]]:
    """Holds so many MB until it is killed; it has read them when it answers."""
    program = f"import os, subprocess, sys; kept = b'x' * ({mb} << 20); {script or 'print(os.getpid(), flush=True)'}"
    program += "; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def answer(started: subprocess.Popen[str]) -> int:
    assert started.stdout is not None
    return int(started.stdout.readline())


def kill(started: subprocess.Popen[str]) -> None:
    started.kill()
    started.wait()


def test_the_charge_is_told_without_the_ries_share(group: MadeUpGroup) -> None:
    with watch_over(group) as watch:
        group.sampled_again()
        group.charged = 70 * MIB + SHARE
        group.sampled_again()
        assert watch.found == MemorySeen(), "nothing is told before it is over"
    found = watch.found
    assert {each.memory_bytes for each in found.points} == {50 * MIB, 70 * MIB}
    assert [each.ms for each in found.points] == sorted({each.ms for each in found.points})
    rie = procfs.read(os.getpid())
    assert rie is not None
    assert found.points[0].anon_bytes == (1 << 40) - min(SHARE, rie.anon_bytes or 0)
    assert found.points[0].kernel_bytes is None, "what the kernel does not tell is not made up"
    assert (found.oom_kills, found.killed_at_ms, found.killed, found.ended_by) == (0, None, (), None)


def test_a_runtime_that_is_killed_is_named_from_the_list_of_processes(group: MadeUpGroup) -> None:
    with process(20) as runtime, watch_over(group) as watch:
        answer(runtime)
        group.pids = (runtime.pid,)
        group.looked_again()
        group.kills = 4
        kill(runtime)
        group.sampled_again()
        watch.stop()
        found = watch.found
    (killed,) = found.killed
    assert (killed.pid, killed.source, killed.runtime) == (runtime.pid, "process_list", True)
    assert killed.name.startswith("python")
    assert (killed.anon_bytes or 0) > 20 * MIB
    assert found.oom_kills == 1
    assert found.killed_at_ms in {each.ms for each in found.points}


def test_of_those_that_went_at_once_the_largest_is_named(group: MadeUpGroup) -> None:
    with process(5) as small, process(40) as large, watch_over(group) as watch:
        answer(small), answer(large)
        group.pids = (small.pid, large.pid)
        group.looked_again()
        group.kills = 4
        for each in (small, large):
            kill(each)
        group.sampled_again()
        watch.stop()
    assert [each.pid for each in watch.found.killed] == [large.pid]


def test_a_process_that_was_started_by_the_runtime_is_none_itself(group: MadeUpGroup) -> None:
    starts = (
        "child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()']); print(child.pid, flush=True)"
    )
    with process(1, starts) as runtime, watch_over(group) as watch:
        child = answer(runtime)
        group.pids = (runtime.pid, child)
        group.looked_again()
        group.kills = 4
        os.kill(child, 9)
        until(lambda: procfs.start_ticks(child) is None, "the child is dead")
        group.sampled_again()
        watch.stop()
    assert [(each.pid, each.runtime) for each in watch.found.killed] == [(child, False)]


def test_a_process_that_had_ended_before_the_kill_is_not_its_victim(group: MadeUpGroup) -> None:
    with process(60) as earlier, process(5) as runtime, watch_over(group) as watch:
        answer(earlier), answer(runtime)
        group.pids = (earlier.pid, runtime.pid)
        group.looked_again()
        kill(earlier)
        group.pids = (runtime.pid,)
        group.looked_again()
        group.kills = 4
        kill(runtime)
        group.sampled_again()
        watch.stop()
    assert [each.pid for each in watch.found.killed] == [runtime.pid]


def test_nobody_is_named_without_a_kill(group: MadeUpGroup) -> None:
    with process(5) as runtime, watch_over(group) as watch:
        answer(runtime)
        group.pids = (runtime.pid,)
        group.looked_again()
        kill(runtime)
        group.sampled_again()
        watch.stop()
    assert (watch.found.oom_kills, watch.found.killed) == (0, ())


def test_where_kills_are_not_counted_that_is_said(group: MadeUpGroup) -> None:
    group.kills = None
    with watch_over(group) as watch:
        group.sampled_again()
    assert (watch.found.oom_kills, watch.found.killed_at_ms) == (None, None)
    assert watch.found.points


def test_the_kernels_word_goes_before_the_list_of_processes(group: MadeUpGroup) -> None:
    with process(5) as runtime, process(20) as other:
        with watch_over(group, said(runtime.pid, "python3.13", OTHER)) as watch:
            answer(runtime), answer(other)
            group.pids = (runtime.pid, other.pid)
            group.looked_again()
            group.kills = 4
            for each in (runtime, other):
                kill(each)
            group.sampled_again()
        (killed,) = watch.found.killed
    assert (killed.pid, killed.source, killed.runtime) == (runtime.pid, "kernel_log", True)


def test_a_sandbox_that_goes_away_ends_the_watch_quietly(group: MadeUpGroup) -> None:
    with watch_over(group) as watch:
        group.sampled_again()
        group.gone = True
        until(lambda: group.refusals, "it is found out")
    assert watch.found.points
    assert watch.found.ended_by == "the sandbox's cgroup was removed"


def test_a_long_timeline_keeps_its_end(group: MadeUpGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_watch, "_KEPT_POINTS", 20)
    with watch_over(group) as watch:
        until(lambda: group.samples > 60, "three times as many were sampled")
    points = watch.found.points
    assert len(points) < 20
    assert [each.ms for each in points] == sorted({each.ms for each in points})


def test_what_was_seen_survives_the_way_from_the_agent() -> None:
    seen = MemorySeen(
        points=(
            MemoryPoint(ms=0.25, memory_bytes=1, anon_bytes=2, file_bytes=3, kernel_bytes=4),
            MemoryPoint(ms=2.5, memory_bytes=5, anon_bytes=None, file_bytes=None, kernel_bytes=None),
        ),
        oom_kills=1,
        killed_at_ms=2.5,
        killed=(Killed(name="node", source="process_list", pid=7, runtime=True, anon_bytes=9),),
        ended_by="why",
    )
    assert wire.memory_seen(json.loads(json.dumps(wire.told_of_memory(seen)))) == seen
    assert wire.memory_seen(json.loads(json.dumps(wire.told_of_memory(MemorySeen())))) == MemorySeen()


# -- the kernel's log --------------------------------------------------------------------------------------------------

OURS, OTHER = "/docker/aaaa", "/docker/bbbb"


def said(pid: int, name: str, group: str) -> list[str]:
    return f"""\
oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,oom_memcg={group},task_memcg={group},\
task={name},pid={pid},uid=993
Memory cgroup out of memory: Killed process {pid} ({name}) total-vm:3167168kB, anon-rss:1046400kB, file-rss:8916kB, \
shmem-rss:4kB, UID:993 pgtables:2136kB oom_score_adj:1000""".splitlines()


def test_the_kernels_log_names_the_victim() -> None:
    (found,) = victims(iter(said(5395, "python3.13", OURS)), (), OURS)
    assert found == Killed(
        name="python3.13", pid=5395, source="kernel_log", anon_bytes=1046400 * 1024, file_bytes=8920 * 1024
    )


def test_a_victim_of_another_sandbox_is_not_ours() -> None:
    assert victims(iter(said(1, "node", OTHER)), (), OURS) == []
    assert victims(iter(said(1, "node", OURS + "b")), (), OURS) == []
    assert [each.pid for each in victims(iter(said(1, "node", OTHER)), (1,), None)] == [1], "seen running in ours"
    assert [each.pid for each in victims(iter(said(2, "a) b", OURS + "/below")), (), OURS)] == [2]
