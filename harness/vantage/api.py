"""Vantage ``api``: nothing but the engine's API. For engines in a virtual machine or without root.

Pauses where ``host`` freezes, learns from the RIE's log alone when init is over, and cannot reset the kernel's marks: what
it cannot know is None, and the notes of the record say so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from harness.engine.client import EngineFacts
from harness.engine.containers import Container
from harness.errors import EngineError, LimitError
from harness.invocation import PeakMethod
from harness.tiers import Tier
from harness.vantage import Granted, Observation, TmpVolume

_KIB = 1024
_NOTES = (
    "cpu_ms includes the RIE: the engine's API counts the whole container",
    "the deadline that the function sees is too late by the time kept for init: the Runtime API is not relayed",
)
# One command for all: an exec costs some 50 ms. The shell's own processes are told apart by their name.
_LOOK = (
    "for d in /proc/[0-9]*; do echo @${d#/proc/}; "
    "grep -E '^(Name|VmHWM|VmRSS|RssAnon|Threads):' $d/status; done 2>/dev/null"
)


class ApiVantage:
    """See the module."""

    name = "api"

    def __init__(self, facts: EngineFacts) -> None:
        self._facts = facts

    def cpus(self) -> tuple[int, ...]:
        return tuple(range(self._facts.cpus))

    def tmp(self, size_mb: int, sandbox_id: str, work_dir: Path) -> TmpVolume:  # noqa: ARG002  # the same call as on `host`
        """An anonymous volume on the engine's disk: it goes with its container, but nothing limits its size."""
        return TmpVolume(
            source="",
            exact=False,
            mounted=lambda: None,
            discard=lambda: None,
            note=f"/tmp is not limited to {size_mb} MB: the engine's API has no volumes of a given size",
        )

    def reach(self, container: Container) -> ApiReach:
        return ApiReach(container, self._facts)

    def let_go(self, container_id: str, pid: int) -> None:
        """Nothing: the engine itself unpauses before it removes."""


class ApiReach:
    """See `harness.vantage.Reach`."""

    relay_pid = None
    notes = _NOTES

    def __init__(self, container: Container, facts: EngineFacts) -> None:
        self._container = container
        self._facts = facts
        self._tier: Tier | None = None
        self._before: dict[str, int] = {}
        self._marks: dict[str, int] = {}
        self._paused = False

    def prepare(self, tier: Tier, cpus: tuple[int, ...]) -> Granted:
        self._tier = tier
        rie = self._look().get("1", {})
        share = rie.get("RssAnon", 0) * _KIB
        limit = tier.memory_bytes + share
        self._container.update(mem_limit=limit, memswap_limit=limit)
        limits = self._container.limits()
        if limits["Memory"] != limit or limits["MemorySwap"] != limit:
            raise LimitError(f"the engine holds a memory limit of {limits['Memory']} bytes, {limit} was asked for")
        return Granted(
            cpu_quota_us=tier.cpu_quota_us,
            cpu_period_us=tier.cpu_period_us,
            cpuset=str(limits["CpusetCpus"]),
            memory_limit_bytes=limit,
            cgroup_version=self._facts.cgroup_version,
            cpu_capped=len(cpus) < tier.visible_vcpus,
        )

    def _set_quota(self, tier: Tier) -> None:
        self._container.update(cpu_period=tier.cpu_period_us, cpu_quota=tier.cpu_quota_us)
        limits = self._container.limits()
        if (limits["CpuPeriod"], limits["CpuQuota"]) != (tier.cpu_period_us, tier.cpu_quota_us):
            raise LimitError(
                f"the engine holds a CPU quota of {limits['CpuQuota']} us, {tier.cpu_quota_us} was asked for"
            )

    def boost(self) -> None:
        """The first init: no quota has been set yet."""

    def restrict(self) -> None:
        if self._tier is not None:
            self._set_quota(self._tier)

    def throttled_init(self) -> None:
        """The quota still holds."""

    def mark(self) -> None:
        if not self._paused:
            self._before = self._counters()

    def sample(self) -> None:
        """The engine answers too slowly for that."""

    def observe(self) -> Observation:
        now, before = self._counters(), self._before
        self._before = now
        peak = now.get("max_usage")
        rose = peak is not None and peak > before.get("max_usage", 0)
        return Observation(
            cpu_ms=_difference(now, before, "cpu_ns", 1e6),
            throttled_ms=_difference(now, before, "throttled_ns", 1e6),
            throttled_periods=None if "throttled" not in now else now["throttled"] - before.get("throttled", 0),
            peak_memory_bytes=peak if rose else None,
            page_cache_bytes=now.get("file"),
            **self._processes(),
        )

    def _processes(self) -> dict[str, Any]:
        if self._paused:
            self.thaw()
            looked = self._look()
            self.freeze()
        else:
            looked = self._look()
        runtime = {pid: each for pid, each in looked.items() if pid != "1" and "VmRSS" in each}
        if not runtime:
            return {"processes": 0, "threads": 0}
        resident = sum(each["VmRSS"] for each in runtime.values()) * _KIB
        found: dict[str, Any] = {
            "resident_after_bytes": resident,
            "processes": len(runtime),
            "threads": sum(each.get("Threads", 0) for each in runtime.values()),
        }
        marks = {pid: each["VmHWM"] * _KIB for pid, each in runtime.items() if "VmHWM" in each}
        rose = {pid: mark for pid, mark in marks.items() if mark > self._marks.get(pid, 0)}
        self._marks = marks
        if len(runtime) == 1 and rose:
            return found | {"peak_rss_bytes": sum(rose.values()), "peak_method": PeakMethod.HIGH_WATER}
        return found | {"peak_rss_bytes": resident, "peak_method": PeakMethod.SAMPLED}

    def _look(self) -> dict[str, dict[str, int]]:
        """PID -> figures of its status file (kB, and threads), of every process but the looking shell and its grep."""
        found: dict[str, dict[str, int]] = {}
        names: dict[str, str] = {}
        pid = ""
        for line in self._container.execute(["/bin/sh", "-c", _LOOK]).splitlines():
            if line.startswith("@"):
                pid = line[1:]
                found[pid] = {}
            elif line.startswith("Name:"):
                names[pid] = line.split(":", 1)[1].strip()
            elif (match := re.match(r"(\w+):\s+(\d+)", line)) is not None:
                found[pid][match[1]] = int(match[2])
        shells = {pid for pid, name in names.items() if name == "grep"}
        looking = max((int(pid) for pid, name in names.items() if name in ("sh", "bash", "dash")), default=0)
        return {pid: each for pid, each in found.items() if pid not in shells and pid != str(looking)}

    def _counters(self) -> dict[str, int]:
        stats = self._container.stats()
        cpu, memory = stats.get("cpu_stats") or {}, stats.get("memory_stats") or {}
        found = {}
        if "cpu_usage" in cpu:
            found["cpu_ns"] = int(cpu["cpu_usage"]["total_usage"])
        throttling = cpu.get("throttling_data") or {}
        if "throttled_periods" in throttling:
            found["throttled"] = int(throttling["throttled_periods"])
            found["throttled_ns"] = int(throttling["throttled_time"])
        if "max_usage" in memory:
            found["max_usage"] = int(memory["max_usage"])
        detail = memory.get("stats") or {}
        for name in ("file", "total_cache", "cache"):
            if name in detail:
                found["file"] = int(detail[name])
                break
        return found

    def freeze(self) -> None:
        self._container.pause()
        self._paused = True

    def thaw(self) -> None:
        self._container.unpause()
        self._paused = False

    def kill_runtime(self) -> None:
        """Every process that the sandbox's user may signal, but PID 1 (the RIE) and the shell itself."""
        self._container.execute(["/bin/sh", "-c", "kill -9 -1"])

    def release(self) -> None:
        if self._paused:
            try:
                self.thaw()
            except EngineError:
                self._paused = False


def _difference(now: dict[str, int], before: dict[str, int], name: str, per: float) -> float | None:
    return None if name not in now else (now[name] - before.get(name, 0)) / per
