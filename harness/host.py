"""The facts about this host that stand in every document: without them nobody can judge the figures."""

from __future__ import annotations

import contextlib
import platform
import time
from pathlib import Path
from typing import Any

import psutil

from harness._version import __version__
from harness.engine.client import EngineFacts

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


def describe(engine: EngineFacts, vantage: str) -> dict[str, Any]:
    """The ``host`` of a document."""
    return {
        "engine": engine.name,
        "engine_version": engine.version,
        "engine_api_version": engine.api_version,
        "cgroup_version": engine.cgroup_version,
        "cgroup_driver": engine.cgroup_driver,
        "rootless": engine.rootless,
        "vantage": vantage,
        "kernel": engine.kernel,
        "hz": tick_hz() if vantage == "host" else None,
        "cpus": engine.cpus,
        "cpu_model": cpu_model() if vantage == "host" else None,
        "architecture": engine.architecture,
        "memory_bytes": engine.memory_bytes,
        "client_cpus": psutil.cpu_count() or 1,
        "operating_system": engine.operating_system,
        "python": platform.python_version(),
        "harness_version": __version__,
    }
