"""What a process can say of the kernel that it runs on. Needs Python's standard library alone."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path

_CLOCK_MONOTONIC_COARSE = 6


def tick_hz() -> int | None:
    """The kernel's HZ, told by the resolution of its coarse clock; None where there is no such clock.

    CPU bandwidth is enforced at ticks, so handlers shorter than a period depend on it; Lambda's is 250.
    """
    with contextlib.suppress(OSError, ValueError):
        return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))
    return None


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def boot_id() -> str | None:
    """This boot of this kernel; None where there is no such file. A process id or a clock means nothing across boots."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def available_bytes() -> int | None:
    """Memory that could be given out now without swapping (MemAvailable of /proc/meminfo)."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def is_this_kernel(release: str) -> bool:
    """Whether an engine that names this kernel release may be on the kernel of this process."""
    here = os.uname()
    return here.sysname == "Linux" and here.release == release


def is_this_machine(release: str, memory_bytes: int, *, root: str = "/") -> bool:
    """Whether an engine with this kernel release and this much memory is, as far as can be told, on this very machine."""
    if not is_this_kernel(release):
        return False
    try:
        first = Path(root, "proc/meminfo").read_text().split(None, 3)
    except OSError:
        return False
    return first[0] == "MemTotal:" and int(first[1]) * 1024 == memory_bytes
