"""A sandbox's cgroup on version 1: one directory in each controller's own hierarchy. See `interface.Cgroup`.

Kernel documentation: https://docs.kernel.org/admin-guide/cgroup-v1/ (memory, freezer-subsystem, cpuacct) and
https://docs.kernel.org/scheduler/sched-bwc.html.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cgroup.directory import Directory, flat_keyed
from harness.cgroup.freezing import wait_until
from harness.cgroup.interface import FREEZE_TIMEOUT_S, CpuUsage, MemoryNow
from harness.cgroup.moving import KILL_FREEZE_TIMEOUT_S, adopt, kill
from harness.errors import EngineError, LimitError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "freezer")
RUNTIME_LEAF = "runtime"

_UNLIMITED_BYTES = 1 << 62
"""v1 has no word for "no limit": it shows the largest number of whole pages, which depends on the page size."""


class CgroupV1:
    """Version 1. ``directories`` maps each of `CONTROLLERS` to the sandbox's directory in its hierarchy."""

    version = 1

    def __init__(self, directories: Mapping[str, str | Path], *, rie_pid: int) -> None:
        self.rie_pid = rie_pid
        # cpu and cpuacct are one mount on most distributions, two on some: each path counts once.
        self._sandbox_cpu = _distinct(directories[name] for name in ("cpu", "cpuacct"))
        self._cpu = Directory(directories["cpu"])
        self._cpuacct = Directory(directories["cpuacct"])
        self._cpuset = Directory(directories["cpuset"])
        self._memory = Directory(directories["memory"])
        self._freezer = Directory(directories["freezer"])
        self._runtime: tuple[Directory, ...] = ()

    @property
    def runtime_group(self) -> bool:
        return bool(self._runtime)

    def set_cpu(self, quota_us: int | None, period_us: int) -> None:
        quota = -1 if quota_us is None else quota_us
        if int(self._cpu.read("cpu.cfs_period_us")) != period_us:
            # The kernel checks quota and period against the groups above at each write: between the two writes no
            # combination of an old and a new figure may stand there.
            self._cpu.set("cpu.cfs_quota_us", -1)
            self._cpu.set("cpu.cfs_period_us", period_us)
        self._cpu.set("cpu.cfs_quota_us", quota)

    def cpu(self) -> tuple[int | None, int]:
        quota_us = int(self._cpu.read("cpu.cfs_quota_us"))
        return (None if quota_us < 0 else quota_us), int(self._cpu.read("cpu.cfs_period_us"))

    def set_cpuset(self, cpus: str) -> None:
        self._cpuset.set("cpuset.cpus", cpus)

    def cpuset(self) -> str:
        return self._cpuset.read("cpuset.cpus").strip()

    def set_memory(self, limit_bytes: int) -> None:
        # memory + swap must never be below memory: raise the former first, lower it last.
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        memsw = self._memory.read_or_none(names[1])
        if memsw is None:
            names.pop()
        elif limit_bytes > int(memsw):
            names.reverse()
        for name in names:
            try:
                self._memory.write(name, limit_bytes)
            except OSError as error:
                busy = error.errno == errno.EBUSY
                raise LimitError(
                    f"the kernel refused {limit_bytes} bytes for {self._memory.file(name)}: "
                    + ("more than that is in use" if busy else str(error.strerror)),
                    remedy="choose a larger memory size" if busy else "",
                ) from error

    def memory_limit(self) -> int | None:
        return _limit(self._memory.read("memory.limit_in_bytes"))

    def swap_limited(self) -> bool | None:
        # Absent on kernels without CONFIG_SWAP, and on those booted with swapaccount=0 (before 6.0, Debian's default
        # until 11).
        memsw = self._memory.read_or_none("memory.memsw.limit_in_bytes")
        if memsw is None:
            return None
        limit = self.memory_limit()
        return limit is not None and int(memsw) <= limit

    def freeze(self, timeout_s: float = FREEZE_TIMEOUT_S) -> None:
        descriptor = self._open_freezer()
        try:

            def again(times: int) -> None:
                if times == 0:
                    self._unthrottle()
                # Processes that are forked in the middle of freezing may escape the first request.
                os.pwrite(descriptor, b"FROZEN", 0)

            os.pwrite(descriptor, b"FROZEN", 0)
            if wait_until(lambda: _state(descriptor) == b"FROZEN", timeout_s, again=again):
                return
            os.pwrite(descriptor, b"THAWED", 0)
        except OSError as error:
            raise self._freezer_error(error) from error
        finally:
            os.close(descriptor)
        raise EngineError(
            f"{self._freezer.path} was not frozen within {timeout_s:g} s, and was thawed again",
            remedy="a process of the function is stuck in the kernel (a slow disk or network file system?)",
        )

    def thaw(self) -> None:
        descriptor = self._open_freezer()
        try:
            os.pwrite(descriptor, b"THAWED", 0)
            thawed = _state(descriptor) == b"THAWED"
        except OSError as error:
            raise self._freezer_error(error) from error
        finally:
            os.close(descriptor)
        if not thawed:
            raise EngineError(
                f"{self._freezer.path} does not thaw: a cgroup above it is frozen",
                remedy="thaw the cgroup of the container engine",
            )

    def frozen(self) -> bool:
        return self._freezer.read("freezer.state").strip() == "FROZEN"

    def usage(self) -> CpuUsage:
        stat = flat_keyed(self._cpu.read("cpu.stat"))
        return CpuUsage(
            cpu_ns=int(self._cpuacct.read("cpuacct.usage")),
            throttled_ns=stat["throttled_time"],
            throttled_periods=stat["nr_throttled"],
            periods=stat["nr_periods"],
        )

    def reset_peak(self) -> bool:
        try:
            self._memory.write("memory.max_usage_in_bytes", 0)
        except OSError:
            return False
        return True

    def peak_memory_bytes(self) -> int | None:
        peak = self._memory.read_or_none("memory.max_usage_in_bytes")
        return None if peak is None else int(peak)

    def memory_now(self) -> MemoryNow:
        stat = flat_keyed(self._memory.read("memory.stat"))
        kernel = self._memory.read_or_none("memory.kmem.usage_in_bytes")
        return MemoryNow(
            current_bytes=int(self._memory.read("memory.usage_in_bytes")),
            anon_bytes=stat.get("total_rss"),
            file_bytes=stat.get("total_cache"),
            kernel_bytes=None if kernel is None else int(kernel),
        )

    def oom_kills(self) -> int | None:
        # The line is there since 4.13.
        control = self._memory.read_or_none("memory.oom_control")
        return None if control is None else flat_keyed(control).get("oom_kill")

    def processes(self) -> tuple[int, ...]:
        # The freezer's hierarchy has no groups below the sandbox's: its list is whole.
        return tuple(sorted(set(self._freezer.pids())))

    def runtime_processes(self) -> tuple[int, ...]:
        return tuple(pid for pid in self.processes() if pid != self.rie_pid)

    def kill_all(self, pids: Iterable[int] | None = None) -> None:
        # Frozen, nothing forks between reading the list and the last signal. SIGKILL waits until the thaw, and then
        # comes before the process runs on.
        with contextlib.suppress(EngineError):
            self.freeze(timeout_s=KILL_FREEZE_TIMEOUT_S)
        with contextlib.suppress(EngineError):
            kill(self.processes(), pids)
        with contextlib.suppress(EngineError):
            self.thaw()

    def open_runtime_group(self) -> bool:
        if self._runtime:
            return True
        made = tuple(Directory(Path(directory.path, RUNTIME_LEAF)) for directory in self._sandbox_cpu)
        try:
            for directory in made:
                Path(directory.path).mkdir(exist_ok=True)
        except OSError as error:
            if self._sandbox_cpu[0].gone(error):
                raise self._sandbox_cpu[0].sandbox_gone() from None
            for directory in made:
                directory.remove()
            return False
        self._runtime = made
        self._cpu, self._cpuacct = made[0], made[-1]
        return True

    def adopt(self, pids: Iterable[int] = ()) -> None:
        first = list(pids)
        for sandbox, runtime in zip(self._sandbox_cpu, self._runtime, strict=False):
            try:
                adopt(sandbox, runtime, rie_pid=self.rie_pid, first=first)
            except OSError as error:
                raise LimitError(f"cannot move the runtime to {runtime.path}: {error.strerror}") from error

    def close(self) -> None:
        for directory in self._runtime:
            directory.remove()

    def _unthrottle(self) -> None:
        quota_us, period_us = self.cpu()
        if quota_us is not None:
            self.set_cpu(quota_us, period_us)

    def _open_freezer(self) -> int:
        try:
            return os.open(self._freezer.file("freezer.state"), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise self._freezer_error(error) from error

    def _freezer_error(self, error: OSError) -> EngineError:
        if self._freezer.gone(error):
            return self._freezer.sandbox_gone()
        return EngineError(
            f"cannot use the freezer {self._freezer.path}: {error.strerror}",
            remedy="run as root, or let the engine pause and unpause",
        )


def _state(descriptor: int) -> bytes:
    return os.pread(descriptor, 64, 0).strip()


def _limit(text: str) -> int | None:
    found = int(text)
    return None if found >= _UNLIMITED_BYTES else found


def _distinct(paths: Iterable[str | Path]) -> tuple[Directory, ...]:
    return tuple(Directory(path) for path in dict.fromkeys(str(path) for path in paths))
