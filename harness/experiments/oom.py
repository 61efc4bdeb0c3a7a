"""The smallest memory size that survives, and the story of the kill below it. A plan in, records out as they are measured.

Every try is a fresh sandbox, so that no try inherits what another left behind. While a request runs, the sandbox's
charge is sampled by a thread of its own, where the vantage shows the cgroup; elsewhere there is no timeline.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from harness import procfs
from harness.cgroup import Cgroup
from harness.errors import EngineError, HarnessError, InvalidInput, UsageError
from harness.invocation import Invocation, Outcome
from harness.pool import spare_memory_bytes
from harness.sandbox import Sandbox
from harness.stand import Stand
from harness.tiers import MAX_MEMORY_MB, MIN_MEMORY_MB, tier

_MIB = 1024 * 1024
SAMPLE_S = 0.002
"""How often the charge is sampled: memory can be used up within some tens of milliseconds."""
_SAMPLE_SHARE = 0.1
"""The most of one CPU that looking at processes may take: a sandbox of many is looked at less often."""
_PROCESSES_S = 0.01
_KEPT_POINTS = 40_000
_NICE = -10

CONFIRM = 2


@dataclass(frozen=True, kw_only=True)
class OomPlan:
    """Between ``from_mb`` and ``to_mb`` MB; a size survives when ``confirm`` tries in a row do.

    A try is ``count`` invocations in one sandbox, frozen in between, with the events in turn.
    """

    events: tuple[bytes, ...]
    from_mb: int = MIN_MEMORY_MB
    to_mb: int
    confirm: int = CONFIRM
    count: int = 1

    def __post_init__(self) -> None:
        tier(self.from_mb)
        tier(self.to_mb)
        if self.from_mb > self.to_mb:
            raise UsageError(
                f"--from {self.from_mb} is above --to {self.to_mb}", remedy="give the smaller size as --from"
            )
        if self.confirm < 1 or self.count < 1:
            raise UsageError("a size that is not tried says nothing", remedy="give --confirm and -n of at least 1")


def largest_mb(stand: Stand, wanted_mb: int | None, from_mb: int) -> int:
    """The upper end of the search: as wanted, or what Lambda offers as far as this host's memory holds it."""
    holds_mb = spare_memory_bytes(stand) // _MIB
    found = min(MAX_MEMORY_MB, holds_mb) if wanted_mb is None else wanted_mb
    if found > holds_mb or found < from_mb:
        raise InvalidInput(
            f"a sandbox of {max(found, from_mb)} MB does not fit into this host's memory: {holds_mb} MB may be given to it",
            remedy="search among smaller sizes with --from and --to, or free memory",
        )
    return found


class Search:
    """Which size to try next: doubled until one survives, then halved between the largest that died and it. Pure.

    A size that died once is too small, however often it survives otherwise.
    """

    def __init__(self, from_mb: int, to_mb: int, confirm: int = CONFIRM) -> None:
        self._from, self._to, self._confirm = from_mb, to_mb, confirm
        self._survived: dict[int, int] = {}
        self.died: int | None = None
        """The largest size known to be too small."""
        self.smallest: int | None = None
        """The smallest size that has survived as often as it takes, so far."""

    def next(self) -> int | None:
        """The size of the next try; None when the answer stands."""
        if self.smallest is None:
            if self.died is None:
                return self._from
            return None if self.died >= self._to else min(2 * self.died, self._to)
        if self.died is None or self.smallest - self.died <= 1:
            return None
        return (self.smallest + self.died) // 2

    def tell(self, memory_mb: int, *, survived: bool) -> None:
        """What became of a try at the size that `next` gave."""
        if not survived:
            self.died = memory_mb  # sizes that are tried are above the last that died
            return
        self._survived[memory_mb] = self._survived.get(memory_mb, 0) + 1
        if self._survived[memory_mb] >= self._confirm:
            self.smallest = memory_mb


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
    """A process that the kernel killed for lack of memory. ``source``: ``kernel_log``, ``process_list`` or ``exit_line``."""

    name: str
    source: str
    pid: int | None = None
    runtime: bool | None = None
    """Whether it was the function's runtime itself, and not a process that it had started."""
    anon_bytes: int | None = None
    file_bytes: int | None = None


@dataclass(kw_only=True)
class Watched:
    """One invocation of a try, and what was seen beside its record."""

    record: Invocation
    timeline: list[MemoryPoint] = field(default_factory=list)
    killed: list[Killed] = field(default_factory=list)
    oom_kills: int | None = None
    killed_at_ms: float | None = None
    """When a sample first found the kernel's counter of kills risen."""


@dataclass(frozen=True, kw_only=True)
class Try:
    """One fresh sandbox at one size."""

    memory_mb: int
    invocations: tuple[Watched, ...]
    survived: bool


class Oom:
    """One search. ``survives`` judges an invocation; `tries` grows while `records` is read."""

    def __init__(self, stand: Stand, plan: OomPlan, survives: Callable[[Watched], bool]) -> None:
        self._stand = stand
        self._plan = plan
        self._survives = survives
        self.search = Search(plan.from_mb, plan.to_mb, plan.confirm)
        self.tries: list[Try] = []

    def records(self) -> Generator[Invocation, None, None]:
        """Every record as it is measured. Raises `EngineError` when the engine fails twice at the same try."""
        lost = 0
        while (memory_mb := self.search.next()) is not None:
            watched: list[Watched] = []
            for each in self._try(memory_mb):
                watched.append(each)
                yield each.record
            if watched[-1].record.outcome is Outcome.ENGINE_ERROR:
                lost += 1
                if lost > 1:
                    raise EngineError(watched[-1].record.error_message or "the engine failed")
                continue  # it says nothing about the size
            lost = 0
            survived = all(self._survives(each) for each in watched)
            self.tries.append(Try(memory_mb=memory_mb, invocations=tuple(watched), survived=survived))
            self.search.tell(memory_mb, survived=survived)

    def _try(self, memory_mb: int) -> Iterator[Watched]:
        events = self._plan.events
        with self._stand.sandbox(self._stand.variant(memory_mb=memory_mb)) as sandbox:
            meter = _Meter.of(sandbox)
            for number in range(self._plan.count):
                found = _watched(sandbox, meter, events[number % len(events)])
                yield found
                if found.record.outcome is Outcome.ENGINE_ERROR or not self._survives(found):
                    return


# -- watching one invocation -----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Meter:
    """What a sandbox is charged for, less what is its RIE's: that may grow, so it is looked at again and again."""

    group: Cgroup
    memory_bytes: int
    rie_bytes: int = 0
    rie_anon_bytes: int = 0

    @classmethod
    def of(cls, sandbox: Sandbox) -> _Meter | None:
        """None where the vantage does not show the cgroup."""
        group: Cgroup | None = getattr(sandbox.cell.reach, "cgroup", None)
        return None if group is None else cls(group=group, memory_bytes=sandbox.function.memory_mb * _MIB)

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


def _watched(sandbox: Sandbox, meter: _Meter | None, event: bytes) -> Watched:
    if meter is None:
        record = sandbox.invoke(event)
        return Watched(record=record, killed=_from_exit_line(record))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(KernelLog())
        watch = stack.enter_context(_Watch(meter))
        record = sandbox.invoke(event)
        watch.stop()
        kills = watch.oom_kills()
        found = Watched(record=record, timeline=watch.points, oom_kills=kills, killed_at_ms=watch.killed_at_ms)
        if kills:
            found.killed = log.killed(watch.seen, _memory_group(meter.group.rie_pid)) or watch.vanished(kills)
        if not found.killed:
            found.killed = _from_exit_line(record)
        found.killed = [
            each if each.pid not in watch.seen else replace(each, runtime=each.pid in watch.runtimes)
            for each in found.killed
        ]
        return found


def _from_exit_line(record: Invocation) -> list[Killed]:
    """The RIE says of its runtime alone how it ended, and names no process."""
    if record.outcome is Outcome.OUT_OF_MEMORY:
        return [Killed(name="the runtime", source="exit_line", runtime=True)]
    return []


class _Watch(threading.Thread):
    """Samples a sandbox's charge and its processes from `__enter__` to `stop`."""

    def __init__(self, meter: _Meter) -> None:
        super().__init__(name="oom-watch", daemon=True)
        self._meter = meter
        self._group = meter.group
        self._over = threading.Event()
        self._begun_ns = 0
        self._kills_before = 0
        self.points: list[MemoryPoint] = []
        self.seen: dict[int, procfs.Process] = {}
        self.runtimes: set[int] = set()
        """Those of them that the RIE started: what it starts is a runtime."""
        self.killed_at_ms: float | None = None

    def __enter__(self) -> _Watch:
        self._kills_before = self._group.oom_kills() or 0
        self._begun_ns = time.monotonic_ns()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._over.set()
        self.join()

    def oom_kills(self) -> int | None:
        """Since the watch began; None where nobody counts them."""
        with contextlib.suppress(HarnessError):
            now = self._group.oom_kills()
            return None if now is None else now - self._kills_before
        return None

    def vanished(self, kills: int) -> list[Killed]:
        """Those that were seen and are gone: the largest of them, as many as were killed."""
        gone = [each for pid, each in self.seen.items() if procfs.start_ticks(pid) != each.start_ticks]
        gone.sort(key=lambda each: -each.rss_bytes)
        return [
            Killed(name=each.name, pid=each.pid, source="process_list", anon_bytes=each.anon_bytes)
            for each in gone[:kills]
        ]

    def run(self) -> None:
        with contextlib.suppress(OSError):  # this thread alone, where that is allowed: a busy host must not blind it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        next_look_s = 0.0
        with contextlib.suppress(HarnessError, OSError):  # the sandbox went away: its record says so
            while not self._over.is_set():
                begun = time.monotonic()
                if begun >= next_look_s:
                    self._look()
                    next_look_s = begun + max(_PROCESSES_S, (time.monotonic() - begun) / _SAMPLE_SHARE)
                self._sample()
                self._over.wait(max(0.0, SAMPLE_S - (time.monotonic() - begun)))

    def _sample(self) -> None:
        self.points.append(self._meter.point((time.monotonic_ns() - self._begun_ns) / 1e6))
        if len(self.points) >= _KEPT_POINTS:
            # The end is what counts: of the first half every other point goes.
            half = len(self.points) // 2
            self.points[:half] = self.points[:half:2]
        if self.killed_at_ms is None and (self._group.oom_kills() or 0) > self._kills_before:
            self.killed_at_ms = self.points[-1].ms

    def _look(self) -> None:
        self._meter.look()
        for pid in self._group.runtime_processes():
            process = procfs.read(pid)
            # A process keeps its PID and changes its name when it executes another program.
            if process is None:
                continue
            if pid not in self.seen and _parent(pid) == self._group.rie_pid:
                self.runtimes.add(pid)
            self.seen[pid] = process


def _parent(pid: int) -> int | None:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).ppid()
    return None


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
