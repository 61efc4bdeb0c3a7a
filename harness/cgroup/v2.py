"""A sandbox's cgroup on version 2: one directory for everything. See `interface.Cgroup`.

Kernel documentation: https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cgroup.directory import Directory, flat_keyed
from harness.cgroup.freezing import wait_until
from harness.cgroup.interface import FREEZE_TIMEOUT_S, CpuUsage, MemoryNow
from harness.cgroup.moving import KILL_FREEZE_TIMEOUT_S, adopt, kill
from harness.errors import EngineError, LimitError

if TYPE_CHECKING:
    from collections.abc import Iterable

RIE_LEAF = "rie"
RUNTIME_LEAF = "runtime"

_NS_PER_US = 1000


class CgroupV2:
    """Version 2. ``directory`` is the sandbox's, also where the leaves of an earlier owner are still below it."""

    version = 2

    def __init__(self, directory: str | Path, *, rie_pid: int) -> None:
        self.rie_pid = rie_pid
        self._sandbox = Directory(directory)
        self._cpu = self._sandbox
        self._rie = Directory(Path(directory, RIE_LEAF))
        self._runtime = Directory(Path(directory, RUNTIME_LEAF))
        self._peak: int | None = None

    @property
    def runtime_group(self) -> bool:
        return self._cpu is self._runtime

    def set_cpu(self, quota_us: int | None, period_us: int) -> None:
        self._cpu.set("cpu.max", f"{'max' if quota_us is None else quota_us} {period_us}")

    def cpu(self) -> tuple[int | None, int]:
        quota, period = self._cpu.read("cpu.max").split()
        return (None if quota == "max" else int(quota)), int(period)

    def set_cpuset(self, cpus: str) -> None:
        self._sandbox.set("cpuset.cpus", cpus)

    def cpuset(self) -> str | None:
        # Absent where the groups above do not hand the controller down; empty means: as the group above.
        found = self._sandbox.read_or_none("cpuset.cpus")
        if found is None:
            return None
        return found.strip() or self._sandbox.read("cpuset.cpus.effective").strip()

    def set_memory(self, limit_bytes: int) -> None:
        # Swap has a limit of its own here, so that the order of the two does not matter.
        if self._sandbox.read_or_none("memory.swap.max") is not None:
            self._sandbox.set("memory.swap.max", 0)
        self._sandbox.set("memory.max", limit_bytes)
        # An out-of-memory kill is to take one process, as on version 1: the whole group would be the RIE too, which answers
        # for the runtime. 0 is the kernel's default, but a manager of units may have written 1 (systemd's OOMPolicy=kill).
        if (self._sandbox.read_or_none("memory.oom.group") or "0").strip() != "0":
            self._sandbox.set("memory.oom.group", 0)

    def memory_limit(self) -> int | None:
        found = self._sandbox.read("memory.max").strip()
        return None if found == "max" else int(found)

    def swap_limited(self) -> bool | None:
        # Absent on kernels without CONFIG_SWAP or with swapaccount=0.
        found = self._sandbox.read_or_none("memory.swap.max")
        return None if found is None else found.strip() == "0"

    def freeze(self, timeout_s: float = FREEZE_TIMEOUT_S) -> None:
        self._write_freeze(1)
        descriptor = self._open_events()
        try:

            def again(times: int) -> None:
                if times == 0:
                    self._unthrottle()

            if wait_until(lambda: _frozen(os.pread(descriptor, 256, 0)), timeout_s, again=again):
                return
        except OSError as error:
            raise self._freezer_error(error) from error
        finally:
            os.close(descriptor)
        self._write_freeze(0)
        raise EngineError(
            f"{self._sandbox.path} was not frozen within {timeout_s:g} s, and was thawed again",
            remedy="a process of the function is stuck in the kernel (a slow disk or network file system?)",
        )

    def thaw(self) -> None:
        self._write_freeze(0)
        # The flag falls with the write, unless a group above is frozen.
        if not wait_until(lambda: not self.frozen(), 0.1):
            raise EngineError(
                f"{self._sandbox.path} does not thaw: a cgroup above it is frozen",
                remedy="thaw the cgroup of the container engine",
            )

    def frozen(self) -> bool:
        return _frozen(self._sandbox.read("cgroup.events").encode())

    def usage(self) -> CpuUsage:
        stat = flat_keyed(self._cpu.read("cpu.stat"))
        return CpuUsage(
            cpu_ns=stat["usage_usec"] * _NS_PER_US,
            # Without the cpu controller the kernel prints usage alone: then nothing can have been throttled either.
            throttled_ns=stat.get("throttled_usec", 0) * _NS_PER_US,
            throttled_periods=stat.get("nr_throttled", 0),
            periods=stat.get("nr_periods", 0),
        )

    def reset_peak(self) -> bool:
        # Since 6.12 a write restarts the mark for what is read from this very descriptor; others still see the mark
        # of the group's whole life. Older kernels refuse the write (before 5.19 there is no such file).
        try:
            if self._peak is None:
                self._peak = os.open(self._sandbox.file("memory.peak"), os.O_RDWR | os.O_CLOEXEC)
            os.pwrite(self._peak, b"0", 0)
        except OSError as error:
            if self._peak is not None:
                os.close(self._peak)
                self._peak = None
            if self._sandbox.gone(error):
                raise self._sandbox.sandbox_gone() from None
            return False
        return True

    def peak_memory_bytes(self) -> int | None:
        if self._peak is None:
            peak = self._sandbox.read_or_none("memory.peak")
            return None if peak is None else int(peak)
        try:
            return int(os.pread(self._peak, 64, 0))
        except OSError as error:
            if self._sandbox.gone(error):
                raise self._sandbox.sandbox_gone() from None
            raise

    def memory_now(self) -> MemoryNow:
        stat = flat_keyed(self._sandbox.read("memory.stat"))
        return MemoryNow(
            current_bytes=int(self._sandbox.read("memory.current")),
            anon_bytes=stat.get("anon"),
            file_bytes=stat.get("file"),
            kernel_bytes=stat.get("kernel"),  # since 5.18
        )

    def oom_kills(self) -> int | None:
        # memory.events counts the groups below too; none of ours has the memory controller, so both say the same.
        for name in ("memory.events.local", "memory.events"):
            events = self._sandbox.read_or_none(name)
            if events is not None:
                return flat_keyed(events).get("oom_kill")
        return None

    def processes(self) -> tuple[int, ...]:
        found: set[int] = set()
        for directory in (self._sandbox, self._rie, self._runtime):
            if directory is self._sandbox or directory.exists():
                found.update(directory.pids())
        return tuple(sorted(found))

    def runtime_processes(self) -> tuple[int, ...]:
        return tuple(pid for pid in self.processes() if pid != self.rie_pid)

    def kill_all(self, pids: Iterable[int] | None = None) -> None:
        with contextlib.suppress(OSError, EngineError):
            if pids is None and self._sandbox.exists("cgroup.kill"):  # since 5.14; takes the groups below along
                self._sandbox.write("cgroup.kill", 1)
                return
        # Frozen, nothing forks between reading the list and the last signal; SIGKILL reaches frozen processes here.
        with contextlib.suppress(EngineError):
            self.freeze(timeout_s=KILL_FREEZE_TIMEOUT_S)
        with contextlib.suppress(EngineError):
            kill(self.processes(), pids)
        with contextlib.suppress(EngineError):
            self.thaw()

    def open_runtime_group(self) -> bool:
        if self.runtime_group:
            return True
        if "cpu" not in self._sandbox.read("cgroup.controllers").split():
            return False
        try:
            for directory in (self._rie, self._runtime):
                Path(directory.path).mkdir(exist_ok=True)
            # A group that hands a controller to its children must have no process of its own (threads of the cpu
            # controller aside): everybody into a leaf first.
            adopt(self._sandbox, self._rie, rie_pid=0)
            self._sandbox.write("cgroup.subtree_control", "+cpu")
        except OSError as error:
            if self._sandbox.gone(error):
                raise self._sandbox.sandbox_gone() from None
            self._remove_leaves()
            return False
        self._cpu = self._runtime
        return True

    def adopt(self, pids: Iterable[int] = ()) -> None:
        if self.runtime_group:
            try:
                adopt(self._rie, self._runtime, rie_pid=self.rie_pid, first=list(pids))
            except OSError as error:
                raise LimitError(f"cannot move the runtime to {self._runtime.path}: {error.strerror}") from error

    def close(self) -> None:
        if self._peak is not None:
            os.close(self._peak)
            self._peak = None
        for leaf in (self._runtime, self._rie):
            leaf.remove()

    def _remove_leaves(self) -> None:
        for leaf in (self._runtime, self._rie):
            if leaf.exists():
                try:
                    adopt(leaf, self._sandbox, rie_pid=0)
                except (OSError, EngineError):
                    continue
                leaf.remove()

    def _unthrottle(self) -> None:
        limit = self._cpu.read_or_none("cpu.max")
        if limit is not None and not limit.startswith("max"):
            self._cpu.set("cpu.max", limit.strip())

    def _open_events(self) -> int:
        try:
            return os.open(self._sandbox.file("cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._freezer_error(error) from error

    def _write_freeze(self, value: int) -> None:
        try:
            self._sandbox.write("cgroup.freeze", value)  # since 5.2
        except OSError as error:
            raise self._freezer_error(error) from error

    def _freezer_error(self, error: OSError) -> EngineError:
        if self._sandbox.gone(error):
            return self._sandbox.sandbox_gone()
        return EngineError(
            f"cannot use the freezer {self._sandbox.path}: {error.strerror}",
            remedy="run as root, or let the engine pause and unpause",
        )


def _frozen(events: bytes) -> bool:
    return b"frozen 1" in events
