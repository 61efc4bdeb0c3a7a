"""What anybody may read of a sandbox where this kernel runs it: its cgroup's counters, and what /proc tells of its processes.

Writes nothing, needs no root, and is told by the engine no more than a container's id and first process. Each figure is None
where the kernel does not have it or does not let us: the caller may still ask the engine for it.

What stays out of reach: the marks cannot be reset, so a peak is known exactly only where it rose above every earlier one; the
RIE cannot be moved into a CPU group of its own, so its time is taken off the sandbox's by its threads' own counters; and what
needs the rights of a debugger (open files, `smaps_rollup`) is None, unless the kernel grants them to the owner of a rootless
engine's user namespace.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from harness import cgroup, procfs
from harness.cgroup import v1, v2
from harness.cgroup.directory import Directory, read_text
from harness.errors import EngineError
from harness.invocation import PeakMethod
from harness.kernel import is_this_kernel

_NO_CHILDREN = procfs.ReapedChildren(minor_faults=0, major_faults=0, cpu_ticks=0)

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The counters and marks of a sandbox at one moment."""

    usage: cgroup.CpuUsage | None = None
    """Of the whole sandbox, RIE included."""
    rie_cpu_ns: Mapping[int, int] | None = None
    """CPU time of each of the RIE's threads; None where it cannot be read."""
    oom_kills: int | None = None
    peak_memory_bytes: int | None = None
    """Since the sandbox was made, RIE included: it can only rise."""
    page_cache_bytes: int | None = None
    charged_bytes: int | None = None
    """All that is charged but page cache, which gives way."""
    rie_anon_bytes: int | None = None
    processes: Mapping[int, procfs.Process] | None = None
    """The runtime's, the RIE not among them; None where they cannot be listed."""
    reaped: Mapping[int, procfs.ReapedChildren | None] = field(default_factory=dict)
    anonymous_bytes: int | None = None


class Reading:
    """The readable files of one sandbox; see the module. Made by `open_reading`."""

    def __init__(self, group: cgroup.Cgroup, processes: Directory, *, root: str = "/") -> None:
        self.group = group
        """To be read from alone."""
        self._processes = processes
        self._proc = f"{root.rstrip('/')}/proc"

    @property
    def version(self) -> int:
        return self.group.version

    def quota(self) -> tuple[int | None, int] | None:
        """The CPU quota (None: no limit) and its period in force, in microseconds; None where it cannot be read."""
        return _known(self.group.cpu)

    def cpuset(self) -> str | None:
        return _known(self.group.cpuset)

    def holds_memory_limit(self, limit_bytes: int) -> bool | None:
        """Whether the kernel's memory limit is this one; None where it cannot be read."""
        return _known(lambda: self.group.memory_limit() == limit_bytes)

    def swap_limited(self) -> bool | None:
        """As `harness.cgroup.Cgroup.swap_limited`."""
        return _known(self.group.swap_limited)

    def resident_bytes(self) -> int | None:
        """The resident memory of the runtime's processes now; None where there is none, or it cannot be read."""
        return procfs.resident_together_bytes(self._runtime_pids() or (), self._proc)

    def memory_bytes(self) -> int | None:
        """All that the sandbox is charged now, RIE and page cache included."""
        return _known(lambda: self.group.memory_now().current_bytes)

    def usage(self) -> cgroup.CpuUsage | None:
        return _known(self.group.usage)

    def look(self) -> Seen:
        """Everything at this moment; exact where the sandbox stands still or is idle, as `harness.cgroup.CpuUsage` says."""
        rie, pids = self.group.rie_pid, self._runtime_pids()
        memory = _known(self.group.memory_now)
        known = memory is not None and memory.file_bytes is not None
        rie_anon_bytes, processes = procfs.anonymous_bytes(rie, self._proc), None
        # Where /proc hides the processes of others (hidepid) all of them would seem to be gone.
        if pids is not None and rie_anon_bytes is not None:
            processes = {pid: each for pid in pids if (each := procfs.read(pid, self._proc)) is not None}
        return Seen(
            usage=self.usage(),
            rie_cpu_ns=self._thread_cpu_ns(rie),
            oom_kills=_known(self.group.oom_kills),
            peak_memory_bytes=_known(self.group.peak_memory_bytes),
            page_cache_bytes=memory.file_bytes if memory is not None else None,
            charged_bytes=max(0, memory.current_bytes - (memory.file_bytes or 0))
            if memory is not None and known
            else None,
            rie_anon_bytes=rie_anon_bytes,
            processes=processes,
            reaped={pid: procfs.reaped_children(pid, self._proc) for pid in processes or ()},
            anonymous_bytes=self._anonymous(processes or {}),
        )

    def _runtime_pids(self) -> list[int] | None:
        found = _known(lambda: {*self._processes.pids(), *self.group.processes()})
        return None if found is None else sorted(found - {self.group.rie_pid})

    def _anonymous(self, processes: Mapping[int, procfs.Process]) -> int | None:
        shares = [procfs.anonymous_share_bytes(pid, self._proc) for pid in processes]
        known = [each for each in shares if each is not None]
        if known and len(known) == len(shares):
            return sum(known)
        # Without a debugger's rights only each process's own total is told: pages that a fork shares would count twice.
        return next(iter(processes.values())).anon_bytes if len(processes) == 1 else None

    def _thread_cpu_ns(self, pid: int) -> dict[int, int] | None:
        """CPU time by thread, to the nanosecond: the first figure of `schedstat` (kernels with CONFIG_SCHED_INFO)."""
        try:
            threads = [int(name) for name in os.listdir(f"{self._proc}/{pid}/task")]  # noqa: PTH208 - no objects here
            return {
                thread: int(read_text(f"{self._proc}/{pid}/task/{thread}/schedstat").split()[0]) for thread in threads
            }
        except (OSError, ValueError, IndexError):
            return None


def open_reading(container_id: str, pid: int, *, kernel: str, root: str = "/") -> Reading | None:
    """The reading of a container, or None where its cgroup is not to be seen from here.

    ``kernel`` is the release that the engine names. That says little (two machines may run the same), so the process has
    to be in the cgroup's own list, and the container's id in the cgroup's name: a rootless engine without delegation puts
    all of its containers into one.
    """
    if pid <= 0 or not container_id or not is_this_kernel(kernel):
        return None
    try:
        found = cgroup.locate(pid, root=root)
    except EngineError:
        return None
    own = {name: _own(path, container_id) for name, path in found.directories.items()}
    directories = {name: path for name, path in own.items() if path is not None}
    if len(directories) < len(own):
        return None
    group: cgroup.Cgroup
    if found.version == 1:
        group, listing = v1.CgroupV1(directories, rie_pid=pid), found.directories["freezer"]
    else:
        # Where there are two, crun (1.21) sets the limits of the inner one exactly. systemd (257) rounds the quota of the outer
        # one, and takes for its swap what is the limit of memory and swap together. An older crun sets the outer one alone.
        listing = found.directories[""]
        inner_limit = Directory(listing).read_or_none("memory.max")
        group = v2.CgroupV2(directories[""] if inner_limit in (None, "max\n") else listing, rie_pid=pid)
    return Reading(group, Directory(listing), root=root)


def _own(path: str, container_id: str) -> str | None:
    """The directory that the engine made for the container. Podman's crun puts the processes into one below it."""
    parts = path.split("/")
    for at, part in enumerate(parts):
        if container_id in part:
            return "/".join(parts[: at + 1])
    return None


def _known(read: Callable[[], T]) -> T | None:
    """What a file says, or None: that the sandbox is gone is for the engine to tell."""
    try:
        return read()
    except (EngineError, OSError, ValueError, KeyError):
        return None


def cpu_ns(before: Seen, now: Seen) -> tuple[int | None, bool]:
    """CPU time between two looks, and whether the RIE's could be taken off it: all of its threads must still be there."""
    if before.usage is None or now.usage is None:
        return None, False
    total = now.usage.cpu_ns - before.usage.cpu_ns
    then, rie = before.rie_cpu_ns, now.rie_cpu_ns
    if then is None or rie is None or not then.keys() <= rie.keys():
        return total, False
    return max(0, total - sum(rie.values()) + sum(then.values())), True


def peak_memory_bytes(before: Seen, now: Seen) -> int | None:
    """The cgroup's peak between two looks; None unless the mark rose, since it may be an earlier invocation's."""
    if before.peak_memory_bytes is None or now.peak_memory_bytes is None:
        return None
    return now.peak_memory_bytes if now.peak_memory_bytes > before.peak_memory_bytes else None


def peak_rss(before: Seen, now: Seen, sampled_bytes: int) -> tuple[int | None, PeakMethod | None]:
    """The peak of resident memory between two looks: exact where one process did all the work and its mark rose.

    Marks of several processes need not have been reached at the same time, and children that came and went took theirs
    along: then the largest that was seen counts, as a lower bound, and the method says so.
    """
    after, earlier = now.processes, before.processes
    if after is None or earlier is None:
        return (sampled_bytes, PeakMethod.SAMPLED) if sampled_bytes else (None, None)
    stayed = {pid for pid in after if pid in earlier and after[pid].start_ticks == earlier[pid].start_ticks}
    born = [each for pid, each in after.items() if pid not in stayed]
    if len(after) == 1 and _did_it_alone(before, now, stayed):
        ((pid, process),) = after.items()
        # A process that began in between has no mark from before: its own began with it.
        mark, then = process.peak_rss_bytes, earlier[pid].peak_rss_bytes if stayed else 0
        if mark is not None and then is not None and mark > then:
            return mark, PeakMethod.HIGH_WATER
    resident = sum(each.rss_bytes for each in after.values())
    found = max(resident, sampled_bytes, *(each.peak_rss_bytes or 0 for each in born), 0)
    return (found, PeakMethod.SAMPLED) if found else (None, None)


def _did_it_alone(before: Seen, now: Seen, stayed: set[int]) -> bool:
    """Whether no other process of the runtime lived in between: none was there before, and none was waited for."""
    if stayed != set(before.processes or ()):
        return False
    return all(
        reaped is not None and reaped == before.reaped.get(pid, _NO_CHILDREN) for pid, reaped in now.reaped.items()
    )


def total_of(values: Sequence[int | None]) -> int | None:
    """The sum, or None where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
