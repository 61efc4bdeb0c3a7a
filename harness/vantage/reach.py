"""One running container seen through its cgroup and its processes' files, from a process on the same kernel.

The vantage ``host`` uses it in this process, the vantage ``agent`` in a container beside the sandboxes. Must not know engines,
nor Lambda's phases: the sandbox calls it in order. Needs Python's standard library alone, as it travels to the engine's kernel.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

from harness import cgroup, procfs
from harness.errors import HarnessError, LimitError
from harness.invocation import PeakMethod
from harness.memory_watch import MemoryWatch
from harness.tiers import BOOST_VCPUS, CPU_PERIOD_US, Tier
from harness.vantage import NOT_PINNED, Granted, Observation, tmp_notes

_PAGE = 4096
_FIRST_TO_GO = 1000
_NO_CHILDREN = procfs.ReapedChildren(minor_faults=0, major_faults=0, cpu_ticks=0)
_SPAWN_S = 0.2
"""How long the RIE may take from announcing an init to starting the runtime; it takes some 2 ms."""


class CgroupReach:
    """See `harness.vantage.Reach`. ``rie_pid``: the container's first process; ``tmp_mb``: what its /tmp should hold."""

    def __init__(self, rie_pid: int, tmp_mb: int) -> None:
        self._tmp_mb = tmp_mb
        self._tmp_is_own = procfs.tmp_is_own_filesystem(rie_pid)
        self._rie_pid = rie_pid
        self._cgroup = cgroup.open_cgroup(rie_pid)
        self._tier: Tier | None = None
        self._base_bytes = 0
        self._rie_anon_at_base = 0
        self._share_bytes = 0
        self._usage = cgroup.CpuUsage(cpu_ns=0, throttled_ns=0, throttled_periods=0, periods=0)
        self._oom_kills: int | None = None
        self._peak_reset = False
        self._peak_before: int | None = None
        self._rss_reset: dict[int, bool] = {}
        self._before: dict[int, procfs.Process] = {}
        self._reaped_before: list[procfs.ReapedChildren | None] = []
        self._sampled_rss = 0
        self._boosted = True
        self._written_cpu: tuple[int | None, int] | None = None
        self._drift: list[str] = []

    @property
    def relay_pid(self) -> int | None:
        return self._rie_pid

    @property
    def cgroup(self) -> cgroup.Cgroup:
        """For benchmarks and tests that look at, or change, what no record holds."""
        return self._cgroup

    # -- limits ---------------------------------------------------------------------------------------------------

    def prepare(self, tier: Tier, cpus: tuple[int, ...]) -> Granted:
        self._tier = tier
        group = self._cgroup
        group.open_runtime_group()
        self._measure_rie()
        group.set_memory(tier.memory_bytes + self._share_bytes)
        self._write_cpu(tier.cpu_quota_us, tier.cpu_period_us)
        return self._read_back(tier, cpus)

    def _write_cpu(self, quota_us: int | None, period_us: int) -> None:
        self._written_cpu = (quota_us, period_us)
        self._cgroup.set_cpu(quota_us, period_us)

    def _put_back(self, when: str) -> None:
        """See that the limits are still those that were written, and write them again where another program was at them.

        `docker update` of anything, and systemd where its unit is touched, write all that they believe in: on version 2
        with systemd a quota rounded to whole percents, and swap without a limit.
        """
        group, tier = self._cgroup, self._tier
        if tier is None or self._written_cpu is None:
            return
        cpu, memory, wanted_bytes = group.cpu(), group.memory_limit(), tier.memory_bytes + self._share_bytes
        # Of no quota the kernel keeps no period that matters.
        if cpu != self._written_cpu and (cpu[0], self._written_cpu[0]) != (None, None):
            self._drift.append(f"{when} the CPU quota was {_quota(cpu)} instead of {_quota(self._written_cpu)}")
            group.set_cpu(*self._written_cpu)
        if memory != wanted_bytes or group.swap_limited() is False:
            swap = " and swap was not limited" if group.swap_limited() is False else ""
            self._drift.append(f"{when} the memory limit was {memory} instead of {wanted_bytes} bytes{swap}")
            group.set_memory(wanted_bytes)

    def _drift_notes(self) -> tuple[str, ...]:
        found, self._drift = self._drift, []
        return tuple(
            f"{each}: another program changed it (an engine's update, systemd?); it was put back" for each in found
        )

    def _measure_rie(self) -> None:
        """What the RIE is charged, all but page cache, which gives way: anonymous memory, page tables, stacks."""
        now = self._cgroup.memory_now()
        rie = procfs.read(self._rie_pid)
        if rie is None or rie.anon_bytes is None or now.file_bytes is None:
            raise LimitError("what the RIE is charged cannot be read, so the function's share of memory cannot be set")
        self._rie_anon_at_base = rie.anon_bytes
        self._base_bytes = max(now.current_bytes - now.file_bytes, self._rie_anon_at_base)
        self._share_bytes = _round_up(self._base_bytes)

    def _follow_rie(self) -> None:
        """Raise the memory limit when the RIE has grown (it buffers requests and responses)."""
        rie = procfs.read(self._rie_pid)
        if rie is None or rie.anon_bytes is None or self._tier is None:
            return
        share = _round_up(self._base_bytes + max(0, rie.anon_bytes - self._rie_anon_at_base))
        if share > self._share_bytes:
            self._share_bytes = share
            self._cgroup.set_memory(self._tier.memory_bytes + share)

    def _read_back(self, tier: Tier, cpus: tuple[int, ...]) -> Granted:
        group, notes = self._cgroup, []
        quota, period = group.cpu()
        cpuset, memory = group.cpuset(), group.memory_limit()
        asked: dict[str, tuple[object, object]] = {
            "CPU quota": (quota, tier.cpu_quota_us),
            "CPU period": (period, tier.cpu_period_us),
            "memory": (memory, tier.memory_bytes + self._share_bytes),
        }
        if cpuset is None:
            notes.append(NOT_PINNED)
        else:
            asked["cpuset"] = (cgroup.cpus_of(cpuset), frozenset(cpus))
        for what, (found, wanted) in asked.items():
            if found != wanted:
                raise LimitError(
                    f"the {what} of the sandbox is {found}, but {wanted} was asked for: its figures would be wrong",
                    remedy="see 'lambda-harness doctor'; another program may be managing the containers' cgroups",
                )
        if group.swap_limited() is False:
            raise LimitError("the sandbox could swap: its out-of-memory kills would come too late")
        if not group.runtime_group:
            notes.append("the RIE's CPU time is included in cpu_ms and charged to the quota: no group of its own")
        return Granted(
            cpu_quota_us=quota,
            cpu_period_us=period,
            cpuset=cpuset,
            memory_limit_bytes=memory,
            cgroup_version=group.version,
            cpu_capped=len(cpus) < tier.visible_vcpus,
            notes=tuple(notes),
        )

    def boost(self) -> None:
        # Moving processes between groups takes the kernel some ms: done now, only the quota is left to write later.
        self._write_cpu(BOOST_VCPUS * CPU_PERIOD_US, CPU_PERIOD_US)
        self._take_in_runtime()

    def restrict(self) -> None:
        self._cgroup.adopt()
        # This write also hands out a full quota, as a group has that was idle for longer than a period.
        self._set_tier()
        if self._boosted:
            self._boosted = False
            self._usage = self._cgroup.usage()  # the init's CPU time is not the invocation's, as its time is not

    def throttled_init(self) -> None:
        self._set_tier()
        self._boosted = False
        self._take_in_runtime()

    def _set_tier(self) -> None:
        assert self._tier is not None  # noqa: S101  # prepare comes first
        self._write_cpu(self._tier.cpu_quota_us, self._tier.cpu_period_us)

    def _take_in_runtime(self) -> None:
        """Wait for the process that the RIE is about to start, and move it into the runtime's group."""
        deadline = time.monotonic() + _SPAWN_S
        while not self._cgroup.runtime_processes() and time.monotonic() < deadline:
            time.sleep(0.0005)
        self._cgroup.adopt()
        for pid in self._cgroup.runtime_processes():
            # When memory runs out the runtime goes, never the RIE: without it there would be nothing left to ask.
            procfs.set_oom_score_adj(pid, _FIRST_TO_GO)

    # -- measuring ------------------------------------------------------------------------------------------------

    def mark(self) -> None:
        group = self._cgroup
        self._put_back("before this invocation")
        self._follow_rie()
        self._usage = group.usage()
        self._oom_kills = group.oom_kills()
        self._peak_reset = group.reset_peak()
        self._peak_before = None if self._peak_reset else group.peak_memory_bytes()
        self._before, self._rss_reset = {}, {}
        for pid in self._cgroup.runtime_processes():
            process = procfs.read(pid)
            if process is not None:
                self._before[pid] = process
                self._rss_reset[pid] = procfs.reset_peak_rss(pid)
        self._reaped_before = self._reaped()
        self._sampled_rss = 0

    def _reaped(self) -> list[procfs.ReapedChildren | None]:
        """A mark that changes when a child of the runtime has lived and died."""
        return [procfs.reaped_children(pid) for pid in self._before]

    def sample(self) -> None:
        self._sampled_rss = max(self._sampled_rss, self.resident_bytes() or 0)

    def resident_bytes(self) -> int | None:
        with contextlib.suppress(OSError):
            return procfs.resident_together_bytes(self._cgroup.runtime_processes())
        return None

    def charged_bytes(self) -> int | None:
        return max(0, self._cgroup.memory_now().current_bytes - self._share_bytes)

    def watch_memory(self) -> MemoryWatch:
        assert self._tier is not None  # noqa: S101  # prepare comes first
        return MemoryWatch(self._cgroup, self._tier.memory_bytes)

    def observe(self) -> Observation:
        group = self._cgroup
        usage, kills = group.usage(), group.oom_kills()
        self._put_back("during this invocation")
        peak_memory = group.peak_memory_bytes()
        now = group.memory_now()
        after = {pid: found for pid in self._cgroup.runtime_processes() if (found := procfs.read(pid)) is not None}
        peak_rss, method = self._peak_rss(after)
        # Where no disk could be made, /tmp is a directory: its file system's figures would be the host's.
        own = self._tmp_is_own
        tmp = procfs.tmp_bytes(self._rie_pid) if own else procfs.tmp_files_bytes(self._rie_pid)
        if not self._peak_reset and peak_memory is not None and peak_memory <= (self._peak_before or 0):
            peak_memory = None  # a mark that could not be reset, and did not rise, is an earlier invocation's
        return Observation(
            cpu_ms=(usage.cpu_ns - self._usage.cpu_ns) / 1e6,
            throttled_ms=(usage.throttled_ns - self._usage.throttled_ns) / 1e6,
            throttled_periods=usage.throttled_periods - self._usage.throttled_periods,
            peak_rss_bytes=peak_rss,
            peak_memory_bytes=None if peak_memory is None else max(0, peak_memory - self._share_bytes),
            peak_method=method,
            resident_after_bytes=sum(each.rss_bytes for each in after.values()) if after else None,
            anonymous_after_bytes=_total(procfs.anonymous_share_bytes(pid) for pid in after) if after else None,
            page_cache_bytes=now.file_bytes,
            processes=len(after),
            threads=sum(each.threads for each in after.values()),
            open_files=_total(each.open_files for each in after.values()),
            tmp_bytes=tmp,
            notes=(*(() if own else tmp_notes(tmp, self._tmp_mb)), *self._drift_notes()),
            oom_kills=None if kills is None or self._oom_kills is None else kills - self._oom_kills,
            memory_limit_bytes=self._tier.memory_bytes + self._share_bytes if self._tier else None,
        )

    def _peak_rss(self, after: dict[int, procfs.Process]) -> tuple[int | None, PeakMethod | None]:
        """The high-water mark of resident memory, exact where one process did all the work.

        Marks of several processes need not have been reached at the same time, and children that came and went took
        their marks with them: then what was sampled counts, as a lower bound, and the method says so.
        """
        born = [pid for pid in after if pid not in self._before]
        # A first invocation's processes are all new: their marks began with them.
        cold = not self._before
        gone = any(pid not in after for pid in self._before)
        reaped = self._reaped() != self._reaped_before
        if cold:
            reaped = any(procfs.reaped_children(pid) != _NO_CHILDREN for pid in after)
        alone = len(after) == 1 and not gone and not reaped and (cold or not born)
        marks = {pid: each.peak_rss_bytes for pid, each in after.items()}
        if alone:
            ((pid, mark),) = marks.items()
            if mark is not None and (cold or self._rss_reset.get(pid)):
                return mark, PeakMethod.RESET
            before = self._before.get(pid)
            if mark is not None and before is not None and mark > (before.peak_rss_bytes or 0):
                return mark, PeakMethod.HIGH_WATER
        now = sum(each.rss_bytes for each in after.values())
        largest = max(
            (mark for pid, mark in marks.items() if mark and (pid in born or self._rss_reset.get(pid))), default=0
        )
        found = max(now, largest, self._sampled_rss)
        return (found, PeakMethod.SAMPLED) if found else (None, None)

    # -- life -----------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        self._cgroup.freeze()

    def thaw(self) -> None:
        self._put_back("before this invocation")
        self._cgroup.thaw()

    def frozen(self) -> bool:
        """Whether every process stands still, by the kernel's word."""
        return self._cgroup.frozen()

    def kill_runtime(self) -> None:
        """All at once: while the sandbox stands still nothing can fork, and the RIE cannot start a new runtime."""
        group = self._cgroup
        # A throttled process needs CPU to freeze, and to die.
        self._write_cpu(None, CPU_PERIOD_US)
        group.freeze()
        group.kill_all(group.runtime_processes())

    def release(self) -> None:
        with contextlib.suppress(OSError, HarnessError):
            self.kill_runtime()
        with contextlib.suppress(OSError, HarnessError):
            self._cgroup.thaw()
        self._cgroup.close()


def _quota(cpu: tuple[int | None, int]) -> str:
    return "none" if cpu[0] is None else f"{cpu[0]}/{cpu[1]} us"


def _round_up(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _total(values: Iterable[int | None]) -> int | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if len(known) == len(found) else None
