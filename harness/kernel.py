"""What a process can say of the kernel that it runs on. Needs Python's standard library alone."""

from __future__ import annotations

import contextlib
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
