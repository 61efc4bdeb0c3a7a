"""Vantage ``host``: this kernel runs the containers, and this process may write their cgroups.

Freezes in a fraction of a millisecond where the engine takes 15, resets the kernel's high-water marks so that a peak is
one invocation's own, and keeps the RIE out of the figures. Must not know Lambda's phases; the sandbox calls it in order.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from harness import cgroup, procfs
from harness.engine.client import EngineFacts
from harness.engine.containers import Container
from harness.errors import HarnessError, LimitError
from harness.invocation import PeakMethod
from harness.tiers import BOOST_VCPUS, CPU_PERIOD_US, Tier
from harness.vantage import Granted, Observation, TmpVolume, tmp_notes

_MIB = 1024 * 1024
_BLOCK = 4096
_FIRST_TO_GO = 1000
_NO_CHILDREN = procfs.ReapedChildren(minor_faults=0, major_faults=0, cpu_ticks=0)
_SPAWN_S = 0.2
"""How long the RIE may take from announcing an init to starting the runtime; it takes some 2 ms."""


class HostVantage:
    """See the module. `why_not` tells whether it can be used at all."""

    name = "host"

    @staticmethod
    def why_not(facts: EngineFacts) -> str | None:
        """A sentence that says why this vantage cannot be used here, or None."""
        if os.uname().sysname != "Linux" or facts.kernel != os.uname().release:
            return f"the engine runs on another kernel ({facts.kernel or 'unknown'}) than this process"
        if facts.rootless:
            return "the engine is rootless: its cgroups belong to another namespace"
        if os.geteuid() != 0:
            return "this process is not root, so it may not write the containers' cgroups"
        return None

    def cpus(self) -> tuple[int, ...]:
        online = sorted(os.sched_getaffinity(0))
        return tuple(online)

    @staticmethod
    def unmount(point: Path) -> None:
        """Unmount what a killed command had mounted; quiet where that is over."""
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _run("umount", "--lazy", str(point))

    def reach(self, container: Container, tmp_mb: int) -> HostReach:
        return HostReach(container, tmp_mb)

    def let_go(self, container_id: str, pid: int) -> None:  # noqa: ARG002  # the same call as on `api`
        if pid <= 0:
            return
        with contextlib.suppress(Exception):  # the container may be gone, or half gone: removal says the rest
            found = cgroup.open_cgroup(pid)
            if found.frozen():
                found.thaw()

    def tmp(self, size_mb: int, sandbox_id: str, work_dir: Path) -> TmpVolume:
        """An ext4 file system of exactly ``size_mb`` in a sparse file, so that a full /tmp is ENOSPC as on Lambda.

        It lies on disk: a tmpfs would be charged to the function's memory. Both the file's name and the mount on the host
        are given up as soon as the container holds the mount, so even a killed harness leaves nothing behind.
        """
        folder = work_dir / f"tmp-{sandbox_id}"
        folder.mkdir()
        image, mount = folder / "disk", folder / "tmp"
        mount.mkdir()

        def discard() -> None:
            if mount.is_mount():
                _run("umount", "--lazy", str(mount))
            shutil.rmtree(folder, ignore_errors=True)

        try:
            _make_disk(image, mount, size_mb)
        except (OSError, subprocess.CalledProcessError) as error:
            discard()
            return self._plain_tmp(size_mb, folder, _reason(error))
        except BaseException:
            discard()
            raise
        # The loop device keeps the file; without a name it vanishes with the last user.
        image.unlink()
        return TmpVolume(source=str(mount), exact=True, mounted=discard, discard=discard)

    @staticmethod
    def _plain_tmp(size_mb: int, folder: Path, reason: str) -> TmpVolume:
        folder.mkdir()
        folder.chmod(0o1777)
        return TmpVolume(
            source=str(folder),
            exact=False,
            mounted=lambda: None,
            discard=lambda: shutil.rmtree(folder, ignore_errors=True),
            note=f"/tmp is not limited to {size_mb} MB: {reason}",
        )


def _reason(error: BaseException) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return (error.stderr or error.stdout or str(error)).strip().splitlines()[-1]
    return str(error)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


_overhead_bytes: dict[int, int] = {}
"""By size in MB: what ext4 needs beside the free space, as found out by formatting one. It depends on the size alone."""


def _make_disk(image: Path, mount: Path, size_mb: int) -> None:
    """Format ``image`` so that its mounted file system has ``size_mb`` MB free (at most 256 KiB more), and mount it."""
    wanted = size_mb * _MIB
    overhead = _overhead_bytes.get(size_mb, wanted // 32 + 4 * _MIB)
    for _ in range(4):
        _format(image, wanted + overhead)
        _mount(image, mount)
        found = os.statvfs(mount)
        excess = found.f_bavail * found.f_frsize - wanted
        if 0 <= excess < _DISK_SLACK:
            _overhead_bytes[size_mb] = overhead
            mount.chmod(0o1777)
            return
        overhead -= excess
        _run("umount", str(mount))
    raise OSError(f"an ext4 file system of {size_mb} MB came out {excess} bytes off")


_DISK_SLACK = 256 * 1024


def _format(image: Path, size: int) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    # One inode for 64 KiB; a reserve for root (-m 0) and a journal would take from the function.
    _run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", str(_BLOCK), "-N", str(max(4096, size // 65536)),
         "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", str(image))  # fmt: skip


def _mount(image: Path, mount: Path) -> None:
    # Direct input and output, where the file system below can: else every page would be cached, and charged, twice.
    try:
        device = _run("losetup", "--find", "--show", "--direct-io=on", str(image))
    except subprocess.CalledProcessError:
        device = _run("losetup", "--find", "--show", str(image))
    try:
        _run("mount", "-t", "ext4", "-o", "nosuid,nodev", device, str(mount))
    finally:
        _run("losetup", "--detach", device)  # takes effect when the last mount of it goes
    # What ext4 keeps for delayed allocation (2 % or 16 MB) would be missing from the size.
    with contextlib.suppress(OSError):
        Path(f"/sys/fs/ext4/{Path(device).name}/reserved_clusters").write_text("0")
    with contextlib.suppress(OSError):
        (mount / "lost+found").rmdir()


class HostReach:
    """See `harness.vantage.Reach`."""

    def __init__(self, container: Container, tmp_mb: int) -> None:
        self._container = container
        self._tmp_mb = tmp_mb
        self._tmp_is_own = procfs.tmp_is_own_filesystem(container.pid)
        self._rie_pid = container.pid
        self._cgroup = cgroup.open_cgroup(container.pid)
        self._tier: Tier | None = None
        self._base_bytes = 0
        self._rie_anon_at_base = 0
        self._share_bytes = 0
        self._usage = cgroup.CpuUsage(cpu_ns=0, throttled_ns=0, throttled_periods=0, periods=0)
        self._oom_kills: int | None = None
        self._peak_reset = False
        self._rss_reset: dict[int, bool] = {}
        self._before: dict[int, procfs.Process] = {}
        self._reaped_before: list[procfs.ReapedChildren | None] = []
        self._sampled_rss = 0
        self._boosted = True

    @property
    def relay_pid(self) -> int | None:
        return self._rie_pid

    @property
    def cgroup(self) -> cgroup.Cgroup:
        """For experiments that watch memory more closely than an invocation's record does."""
        return self._cgroup

    # -- limits ---------------------------------------------------------------------------------------------------

    def prepare(self, tier: Tier, cpus: tuple[int, ...]) -> Granted:
        self._tier = tier
        group = self._cgroup
        group.open_runtime_group()
        self._measure_rie()
        group.set_memory(tier.memory_bytes + self._share_bytes)
        group.set_cpu(tier.cpu_quota_us, tier.cpu_period_us)
        return self._read_back(tier, cpus)

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
        asked = {
            "CPU quota": (quota, tier.cpu_quota_us),
            "CPU period": (period, tier.cpu_period_us),
            "cpuset": (cgroup.cpus_of(cpuset), frozenset(cpus)),
            "memory": (memory, tier.memory_bytes + self._share_bytes),
        }
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
        self._cgroup.set_cpu(BOOST_VCPUS * CPU_PERIOD_US, CPU_PERIOD_US)
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
        self._cgroup.set_cpu(self._tier.cpu_quota_us, self._tier.cpu_period_us)

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
        self._follow_rie()
        self._usage = group.usage()
        self._oom_kills = group.oom_kills()
        self._peak_reset = group.reset_peak()
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
            return sum(procfs.rss_bytes(pid) or 0 for pid in self._cgroup.runtime_processes()) or None
        return None

    def observe(self) -> Observation:
        group = self._cgroup
        usage, kills = group.usage(), group.oom_kills()
        peak_memory = group.peak_memory_bytes()
        now = group.memory_now()
        after = {pid: found for pid in self._cgroup.runtime_processes() if (found := procfs.read(pid)) is not None}
        peak_rss, method = self._peak_rss(after)
        # Where no disk could be made, /tmp is a directory: its file system's figures would be the host's.
        own = self._tmp_is_own
        tmp = procfs.tmp_bytes(self._rie_pid) if own else procfs.tmp_files_bytes(self._rie_pid)
        if peak_memory is not None and not self._peak_reset:
            peak_memory = None  # a mark that was not reset may be an earlier invocation's
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
            notes=() if own else tmp_notes(tmp, self._tmp_mb),
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
        self._cgroup.thaw()

    def kill_runtime(self) -> None:
        """All at once: while the sandbox stands still nothing can fork, and the RIE cannot start a new runtime."""
        group = self._cgroup
        # A throttled process needs CPU to freeze, and to die.
        group.set_cpu(None, CPU_PERIOD_US)
        group.freeze()
        group.kill_all(group.runtime_processes())

    def release(self) -> None:
        with contextlib.suppress(OSError, HarnessError):
            self.kill_runtime()
        with contextlib.suppress(OSError, HarnessError):
            self._cgroup.thaw()
        self._cgroup.close()


def _round_up(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _total(values: Iterable[int | None]) -> int | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if len(known) == len(found) else None
