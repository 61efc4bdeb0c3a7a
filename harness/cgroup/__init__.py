"""Limits, freezer, peaks, CPU time and out-of-memory count of one sandbox, from the kernel's own files.

`open_cgroup` finds the cgroup of a process and gives version 1 or 2 behind one interface, `Cgroup`. Nothing in here
knows containers, images or engines.
"""

from __future__ import annotations

from harness.cgroup.interface import FREEZE_TIMEOUT_S, Cgroup, CpuUsage, MemoryNow, cpus_of
from harness.cgroup.locate import Location, locate, open_cgroup

__all__ = [
    "FREEZE_TIMEOUT_S",
    "Cgroup",
    "CpuUsage",
    "Location",
    "MemoryNow",
    "cpus_of",
    "locate",
    "open_cgroup",
]
