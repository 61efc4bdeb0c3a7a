"""The facts about this host that stand in every document: without them nobody can judge the figures."""

from __future__ import annotations

import platform
from typing import Any

import psutil

from harness._version import __version__
from harness.engine.client import EngineFacts
from harness.vantage import Vantage


def describe(engine: EngineFacts, vantage: Vantage) -> dict[str, Any]:
    """The ``host`` of a document."""
    kernel = vantage.describe()
    return {
        "engine": engine.name,
        "engine_version": engine.version,
        "engine_api_version": engine.api_version,
        "cgroup_version": engine.cgroup_version,
        "cgroup_driver": engine.cgroup_driver,
        "rootless": engine.rootless,
        "vantage": vantage.name,
        "kernel": engine.kernel,
        "hz": kernel["hz"],
        "cpus": engine.cpus,
        "cpu_model": kernel["cpu_model"],
        "architecture": engine.architecture,
        "memory_bytes": engine.memory_bytes,
        "client_cpus": psutil.cpu_count() or 1,
        "operating_system": engine.operating_system,
        "python": platform.python_version(),
        "harness_version": __version__,
    }
