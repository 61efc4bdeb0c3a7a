"""What a sandbox's cgroup can do, whatever its version: the contract that v1 and v2 keep.

Must not know containers, engines or the RIE's protocol; it deals in processes, files and numbers alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from harness.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable

FREEZE_TIMEOUT_S = 2.0
"""How long `Cgroup.freeze` waits. An idle sandbox freezes in well under a millisecond; a task in the middle of disk I/O
has to finish it first."""


@dataclass(frozen=True, kw_only=True)
class CpuUsage:
    """Counters of a group since it was made: the difference of two readings is what happened in between.

    ``throttled_ns`` is summed over CPUs, so that it may exceed the wall time, and grows when a throttle ends: one that
    is under way is not in it yet. ``periods`` are those in which the group had something to run.
    """

    cpu_ns: int
    throttled_ns: int
    throttled_periods: int
    periods: int


@dataclass(frozen=True, kw_only=True)
class MemoryNow:
    """What a sandbox is charged for at this moment, RIE included.

    ``current_bytes`` counts in batches: the kernel charges up to 64 pages ahead for each CPU, so it may be above the
    truth by 256 KiB a CPU; the parts may be as much behind, as they are handed in by each CPU in batches too.
    ``file_bytes`` is page cache, tmpfs and shared memory included. A part that the kernel does not tell is None.
    """

    current_bytes: int
    anon_bytes: int | None
    file_bytes: int | None
    kernel_bytes: int | None


class Cgroup(Protocol):
    """The cgroup of one sandbox. Memory, the freezer and the cpuset hold for all of it, CPU for the runtime alone.

    On Lambda the RIE's counterpart does not run on the function's CPU share. So the runtime's processes can be moved
    into a group of their own below the sandbox's (`open_runtime_group`, `adopt`); from then on `set_cpu`, `cpu` and
    `usage` mean that group. Where it could not be opened ``runtime_group`` is False and they mean the whole sandbox.

    Every method raises `SandboxGone` when the group was removed. A setter raises `LimitError` when the kernel refuses;
    the caller reads back, since the kernel may also accept and round (memory: down to whole pages).
    """

    @property
    def version(self) -> int:
        """1 or 2."""
        ...

    @property
    def rie_pid(self) -> int:
        """The RIE, in the PID namespace of the harness: the one process that `adopt` leaves alone."""
        ...

    @property
    def runtime_group(self) -> bool:
        """Whether CPU limits and counters are those of the runtime alone."""
        ...

    def set_cpu(self, quota_us: int | None, period_us: int) -> None:
        """Grant ``quota_us`` of CPU time in each period; None lifts the limit.

        Any such write, also of the same figures, hands out a full quota at once and lets throttled tasks run.
        """
        ...

    def cpu(self) -> tuple[int | None, int]:
        """Quota (None: no limit) and period, in microseconds."""
        ...

    def set_cpuset(self, cpus: str) -> None:
        """Pin the sandbox to the CPUs of a list such as ``0-1,4``."""
        ...

    def cpuset(self) -> str | None:
        """The CPUs, in the kernel's spelling (``0,1`` comes back as ``0-1``): compare with `cpus_of`.

        None where the group has no such controller: nothing is pinned.
        """
        ...

    def set_memory(self, limit_bytes: int) -> None:
        """Limit memory, and memory plus swap to the same figure. Lowering below what is in use fails or kills."""
        ...

    def memory_limit(self) -> int | None:
        """The memory limit in bytes; None: no limit."""
        ...

    def swap_limited(self) -> bool | None:
        """Whether the sandbox can use no swap; None: the kernel keeps no account of swap, so it cannot be limited."""
        ...

    def freeze(self, timeout_s: float = FREEZE_TIMEOUT_S) -> None:
        """Stop every process; returns when the kernel says that all of them stand still.

        A throttled task has to get CPU to reach the freezer, which at 128 MB may take several periods (up to 47 ms were
        measured). Where it takes longer than a millisecond the quota is written again, which lets such tasks run into
        the freezer at once. The next thaw finds a full quota either way: waiting would have paid off the debt.

        Raises `EngineError` after ``timeout_s``; the sandbox is thawed again then.
        """
        ...

    def thaw(self) -> None:
        """Let every process go on."""
        ...

    def frozen(self) -> bool:
        """Whether all processes stand still at this moment."""
        ...

    def usage(self) -> CpuUsage:
        """CPU counters of the runtime's group, of the sandbox's where there is none.

        The time of a task that is running is added at the scheduler's tick (4 ms at HZ 250), that of a task which left
        the CPU exactly: read it while the sandbox is frozen, or idle, where the last milliseconds matter.
        """
        ...

    def reset_peak(self) -> bool:
        """Start the high-water mark of the memory charge again from what is in use; False where that is impossible."""
        ...

    def peak_memory_bytes(self) -> int | None:
        """High-water mark of the memory charge, RIE, page cache and kernel memory included, since the last reset.

        Charges are batched as in `MemoryNow`. None: the kernel does not keep it (v2 before 5.19).
        """
        ...

    def memory_now(self) -> MemoryNow:
        """What is charged at this moment, in parts."""
        ...

    def oom_kills(self) -> int | None:
        """How many processes of the sandbox the out-of-memory killer has ended; None where the kernel cannot tell.

        One shortage may end more than one: while a victim is still on its way out, the next is chosen.
        """
        ...

    def processes(self) -> tuple[int, ...]:
        """All PIDs of the sandbox, RIE included, sorted."""
        ...

    def runtime_processes(self) -> tuple[int, ...]:
        """All PIDs but the RIE's: the runtime, what it started, extensions."""
        ...

    def kill_all(self, pids: Iterable[int] | None = None) -> None:
        """SIGKILL these processes of the sandbox, or all of it, RIE included; thaws, as v1 kills no frozen process."""
        ...

    def open_runtime_group(self) -> bool:
        """Make the runtime's group; idempotent. Where that is impossible the answer, and ``runtime_group``, is False.

        What was limited before stays as it is on the sandbox's group, above the runtime's: open first, then limit.
        """
        ...

    def adopt(self, pids: Iterable[int] = ()) -> None:
        """Move these processes, and whatever else of the sandbox is not the RIE, into the runtime's group.

        All threads go along, and what they fork later is born there; what the RIE starts (a runtime after a reset) is
        not and has to be adopted again. ``pids`` are moved before the others, where they are the sandbox's; those that
        exited in the meantime are no error. Idempotent; does nothing without a runtime's group.
        """
        ...

    def close(self) -> None:
        """Remove what was added below the sandbox's group, as far as it is empty by now. Never raises."""
        ...


def cpus_of(cpuset: str) -> frozenset[int]:
    """The CPUs of a kernel CPU list: ``0-1,4`` -> {0, 1, 4}. Raises `InvalidInput`."""
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in cpuset.split(","))):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InvalidInput(f"{cpuset!r} is no list of CPUs", remedy="write it like 0-1,4")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
