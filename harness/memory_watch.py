"""What a sandbox is charged while a request runs, and whom the kernel kills meanwhile: sampled, on the kernel that runs it.

`MemoryWatch` samples in a thread of its own and tells what it saw as a `MemorySeen`, once it has been stopped. Must not know
containers, engines or experiments; needs Python's standard library alone, as it travels to the engine's kernel. Who was
killed is told by the kernel's log where this process may read it. That takes root in the first user namespace and the
device /dev/kmsg; the agent's container gets neither it nor CAP_SYSLOG, since the log holds every other container's troubles
too, and compares lists of processes instead.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from harness import procfs
from harness.cgroup import Cgroup
from harness.errors import HarnessError

SAMPLE_S = 0.002
"""How often the charge is sampled: memory can be used up within some tens of milliseconds."""
_SAMPLE_SHARE = 0.1
"""The most of one CPU that looking at processes may take: a sandbox of many is looked at less often."""
_PROCESSES_S = 0.01
_KEPT_POINTS = 40_000
_NICE = -10


@dataclass(frozen=True, kw_only=True)
class MemoryPoint:
    """What a sandbox was charged for, its RIE not counted. ``ms``: since the request was made."""

    ms: float
    memory_bytes: int
    anon_bytes: int | None
    file_bytes: int | None
    kernel_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A process that the kernel killed for lack of memory. ``source``: ``kernel_log``, ``process_list`` or ``exit_line``.

    From the list of processes its memory is that of the last look at it, some 10 ms before or more.
    """

    name: str
    source: str
    pid: int | None = None
    runtime: bool | None = None
    """Whether it was the function's runtime itself, and not a process that it had started."""
    anon_bytes: int | None = None
    file_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class MemorySeen:
    """What a watch saw from its begin to its end."""

    points: tuple[MemoryPoint, ...] = ()
    oom_kills: int | None = None
    """None where nobody counts them."""
    killed_at_ms: float | None = None
    """When a sample first found the kernel's counter of kills risen."""
    killed: tuple[Killed, ...] = ()
    """Those that can be named: no more than there were kills."""
    ended_by: str | None = None
    """What ended it before it was stopped, in the words of the error."""


@dataclass(kw_only=True)
class _Meter:
    """What a sandbox is charged for, less what is its RIE's: that may grow, so it is looked at again and again."""

    group: Cgroup
    memory_bytes: int
    rie_bytes: int = 0
    rie_anon_bytes: int = 0

    def look(self) -> None:
        """The RIE's share is what the memory limit has above the memory size."""
        limit, rie = self.group.memory_limit(), procfs.read(self.group.rie_pid)
        if limit is not None:
            self.rie_bytes = limit - self.memory_bytes
        if rie is not None and rie.anon_bytes is not None:
            self.rie_anon_bytes = min(rie.anon_bytes, self.rie_bytes)

    def point(self, ms: float) -> MemoryPoint:
        now = self.group.memory_now()
        return MemoryPoint(
            ms=ms,
            memory_bytes=max(0, now.current_bytes - self.rie_bytes),
            anon_bytes=_less(now.anon_bytes, self.rie_anon_bytes),
            file_bytes=now.file_bytes,  # page cache is no part of the RIE's share
            kernel_bytes=_less(now.kernel_bytes, self.rie_bytes - self.rie_anon_bytes),
        )


def _less(found: int | None, rie: int) -> int | None:
    return None if found is None else max(0, found - rie)


class MemoryWatch:
    """A context manager around one request. ``memory_bytes``: the memory size, without the RIE's share of the limit.

    Never raises: a sandbox that goes away ends what is seen, and the request's own record says what happened to it.
    """

    def __init__(self, group: Cgroup, memory_bytes: int, *, log: KernelLog | None = None) -> None:
        self._group = group
        self._meter = _Meter(group=group, memory_bytes=memory_bytes)
        self._log = log or KernelLog()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-samples", daemon=True)
        self._begun_ns = 0
        self._kills_before: int | None = None
        self._kills: int | None = None
        self._killed_at_ms: float | None = None
        self._points: list[MemoryPoint] = []
        self._seen: dict[int, procfs.Process] = {}
        self._runtimes: set[int] = set()
        """Those of them that the RIE started: what it starts is a runtime."""
        self._looks: tuple[frozenset[int], frozenset[int]] = frozenset(), frozenset()
        """Who was there at the last look and at the one before."""
        self._suspects: set[int] = set()
        self._ended_by: str | None = None
        self.found = MemorySeen()
        """Complete once the watch has been stopped."""

    def __enter__(self) -> MemoryWatch:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def begin(self) -> None:
        self._log.__enter__()
        with self._quietly():
            self._kills_before = self._kills = self._group.oom_kills()
        self._begun_ns = time.monotonic_ns()
        self._thread.start()

    def stop(self) -> None:
        """Look once more and work out what was seen. Safe to call twice."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        with self._quietly():
            self._count()
        self.found = MemorySeen(
            points=tuple(self._points),
            oom_kills=self._new_kills(),
            killed_at_ms=self._killed_at_ms,
            killed=tuple(self._named()),
            ended_by=self._ended_by,
        )
        self._log.__exit__()

    # -- in a thread of its own -------------------------------------------------------------------------------------

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # this thread alone, where that is allowed: a busy host must not blind it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        next_look_s = 0.0
        with self._quietly():
            while not self._over.is_set():
                begun = time.monotonic()
                if begun >= next_look_s:
                    self._look()
                    next_look_s = begun + max(_PROCESSES_S, (time.monotonic() - begun) / _SAMPLE_SHARE)
                self._sample()
                self._over.wait(max(0.0, SAMPLE_S - (time.monotonic() - begun)))

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        try:
            yield
        except (HarnessError, OSError) as error:  # the sandbox went away
            self._ended_by = self._ended_by or str(error)

    def _sample(self) -> None:
        self._points.append(self._meter.point((time.monotonic_ns() - self._begun_ns) / 1e6))
        if len(self._points) >= _KEPT_POINTS:
            # The end is what counts: of the first half every other point goes.
            half = len(self._points) // 2
            self._points[:half] = self._points[:half:2]
        if self._count() and self._killed_at_ms is None:
            self._killed_at_ms = self._points[-1].ms

    def _count(self) -> bool:
        """Whether there were kills since the last count.

        Who was killed lived at that count, so it was there at the last look before it: one of the last two.
        """
        kills = self._group.oom_kills()
        if kills is None or self._kills is None or kills <= self._kills:
            return False
        self._kills = kills
        self._suspects.update(*self._looks)
        return True

    def _look(self) -> None:
        self._meter.look()
        there = set()
        for pid in self._group.runtime_processes():
            process = procfs.read(pid)
            # A process keeps its PID and changes its name when it executes another program.
            if process is None:
                continue
            if pid not in self._seen and procfs.parent(pid) == self._group.rie_pid:
                self._runtimes.add(pid)
            self._seen[pid] = process
            there.add(pid)
        self._looks = frozenset(there), self._looks[0]

    # -- afterwards -------------------------------------------------------------------------------------------------

    def _new_kills(self) -> int | None:
        return None if self._kills is None or self._kills_before is None else self._kills - self._kills_before

    def _named(self) -> list[Killed]:
        kills = self._new_kills()
        if not kills:
            return []
        found = self._log.killed(self._seen, _memory_group(self._group.rie_pid)) or self._vanished(kills)
        return [
            each if each.pid not in self._seen else replace(each, runtime=each.pid in self._runtimes) for each in found
        ]

    def _vanished(self, kills: int) -> list[Killed]:
        """Those that were there before a kill and are gone: the largest of them, as many as were killed."""
        gone = [
            each
            for pid, each in self._seen.items()
            if pid in self._suspects and procfs.start_ticks(pid) != each.start_ticks
        ]
        gone.sort(key=lambda each: -each.rss_bytes)
        return [
            Killed(name=each.name, pid=each.pid, source="process_list", anon_bytes=each.anon_bytes)
            for each in gone[:kills]
        ]


# -- the kernel's log ------------------------------------------------------------------------------------------------

_KILL = re.compile(r"oom-kill:.*?task_memcg=([^,]*),task=(.*?),pid=(\d+),uid=")
_VICTIM = re.compile(
    r"Killed process (\d+) \((.*?)\) total-vm:\d+kB, anon-rss:(\d+)kB, file-rss:(\d+)kB, shmem-rss:(\d+)kB"
)
_KERNEL_LOG = Path("/dev/kmsg")


class KernelLog:
    """The kernel's log from the moment it is entered, where this process may read it (/dev/kmsg; root, as a rule)."""

    def __init__(self, path: Path = _KERNEL_LOG) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> KernelLog:
        with contextlib.suppress(OSError):
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._descriptor, 0, os.SEEK_END)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def killed(self, pids: Collection[int], group: str | None) -> list[Killed]:
        """Victims since then that were among ``pids``, or in the memory cgroup of this path."""
        return victims(self._lines(), pids, group)

    def _lines(self) -> Iterator[str]:
        if self._descriptor is None:
            return
        while True:
            try:
                data = os.read(self._descriptor, 8192)  # one record a read
            except BrokenPipeError:
                continue  # what was there has been overwritten: the next read has the oldest that is left
            except OSError:
                return
            if not data:
                return
            yield data.decode("utf-8", errors="replace").partition("\n")[0].partition(";")[2]


def victims(lines: Iterable[str], pids: Collection[int], group: str | None) -> list[Killed]:
    """The killed processes that the kernel's lines tell of (in this form since 5.x): one line names the cgroup and the
    process, another its memory. Pure.
    """  # noqa: D205
    ours: set[int] = set(pids)
    found = []
    for line in lines:
        if (kill := _KILL.search(line)) is not None and group is not None:
            path = kill[1]
            if path == group or path.startswith(group.rstrip("/") + "/"):
                ours.add(int(kill[3]))
        elif (victim := _VICTIM.search(line)) is not None and int(victim[1]) in ours:
            found.append(
                Killed(
                    name=victim[2],
                    pid=int(victim[1]),
                    source="kernel_log",
                    anon_bytes=int(victim[3]) * 1024,
                    file_bytes=(int(victim[4]) + int(victim[5])) * 1024,
                )
            )
    return found


def _memory_group(pid: int) -> str | None:
    """The path of a process's memory cgroup, as the kernel's log names it; None when the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                return path
    return None
