"""Vantage ``api``: nothing but the engine's API. For engines in a virtual machine or without root.

Pauses where ``host`` freezes, learns from the RIE's log alone when init is over, and cannot reset the kernel's marks: what
it cannot know is None, and the notes of the record say so. Nothing is run inside of a sandbox to look at it: that would
be charged to the function, and would wait for its quota.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.engine.client import EngineFacts
from harness.engine.containers import Container
from harness.errors import EngineError, LimitError
from harness.invocation import PeakMethod
from harness.tiers import CPU_PERIOD_US, Tier
from harness.vantage import Granted, Observation, TmpVolume, tmp_notes

_BLOCK = 4096
_MIB = 1024 * 1024
_NOTES = (
    "cpu_ms and throttled_ms include the RIE, and are not measured of a cold start nor without freezing",
    "peak_rss_bytes is what was resident after the response, a lower bound: the engine's API tells no process's peak",
    "the deadline that the function sees is too late by the time kept for init: the Runtime API is not relayed",
)
_EVENT_PATIENCE_S = 0.5
"""How long the engine may take to announce an out-of-memory kill; it takes some ms."""


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

    def reach(self, container: Container, tmp_mb: int) -> ApiReach:
        return ApiReach(container, self._facts, tmp_mb)

    def let_go(self, container_id: str, pid: int) -> None:
        """Nothing: the engine itself unpauses before it removes."""


@dataclass(frozen=True, kw_only=True)
class _Counters:
    """What the engine's statistics say at one moment; None where the engine does not say it."""

    read_s: float
    """The engine's own clock."""
    cpu_ns: int | None
    throttled_ns: int | None
    throttled_periods: int | None
    usage_bytes: int | None
    largest_usage_bytes: int | None
    """cgroup version 1 alone keeps it."""
    page_cache_bytes: int | None


class ApiReach:
    """See `harness.vantage.Reach`."""

    relay_pid = None

    def __init__(self, container: Container, facts: EngineFacts, tmp_mb: int) -> None:
        self._container = container
        self._tmp_mb = tmp_mb
        self._facts = facts
        self._tier: Tier | None = None
        self._share_bytes = 0
        self._before: _Counters | None = None
        self._fresh = True
        self._boosted = False
        self._paused = False
        self._oom_kills = 0
        self.notes = _NOTES

    # -- limits ---------------------------------------------------------------------------------------------------

    def prepare(self, tier: Tier, cpus: tuple[int, ...]) -> Granted:
        self._tier = tier
        self._before = now = self._counters()
        # What the RIE is charged, all but page cache, which gives way.
        if now.usage_bytes is None or now.page_cache_bytes is None:
            raise LimitError(
                "this engine does not tell what the RIE is charged, so the function's share of memory cannot be set",
                remedy="use the vantage host",
            )
        charged = max(0, now.usage_bytes - now.page_cache_bytes)
        self._share_bytes = -(-charged // _BLOCK) * _BLOCK
        limit = tier.memory_bytes + self._share_bytes
        self._container.update(mem_limit=limit, memswap_limit=limit)
        limits = self._container.limits()
        if limits["Memory"] != limit:
            raise LimitError(f"the engine holds a memory limit of {limits['Memory']} bytes, {limit} was asked for")
        if limits["MemorySwap"] not in (limit, -1, 0):
            raise LimitError(f"the engine holds a swap limit of {limits['MemorySwap']} bytes, {limit} was asked for")
        notes: tuple[str, ...] = ()
        if limits["MemorySwap"] != limit:
            notes = ("swap is not limited: this kernel keeps no account of it, out-of-memory kills may come too late",)
        return Granted(
            cpu_quota_us=tier.cpu_quota_us,
            cpu_period_us=tier.cpu_period_us,
            cpuset=str(limits["CpusetCpus"]),
            memory_limit_bytes=limit,
            cgroup_version=self._facts.cgroup_version,
            cpu_capped=len(cpus) < tier.visible_vcpus,
            notes=notes,
        )

    def boost(self) -> None:
        """The first init: no quota has been set yet."""
        self._boosted = True

    def restrict(self) -> None:
        self._set_quota()

    def throttled_init(self) -> None:
        # After a first init that failed the quota has never been set.
        self._set_quota()

    def _set_quota(self) -> None:
        tier = self._tier
        assert tier is not None  # noqa: S101  # prepare comes first
        self._container.update(cpu_period=tier.cpu_period_us, cpu_quota=tier.cpu_quota_us)
        limits = self._container.limits()
        if (limits["CpuPeriod"], limits["CpuQuota"]) != (tier.cpu_period_us, tier.cpu_quota_us):
            raise LimitError(
                f"the engine holds a CPU quota of {limits['CpuQuota']} us, {tier.cpu_quota_us} was asked for"
            )

    # -- measuring ------------------------------------------------------------------------------------------------

    def mark(self) -> None:
        # Asking for statistics takes old engines up to a second, for which no caller may wait: what a running sandbox did
        # since the last invocation cannot be told apart, so nothing is counted then.
        if not self._paused and not self._fresh:
            self._before = None

    def sample(self) -> None:
        """The engine answers too slowly for that."""

    def resident_bytes(self) -> int | None:
        return None

    def observe(self) -> Observation:
        now, before = self._counters(), self._before
        boosted, self._boosted, self._fresh = self._boosted, False, False
        self._before = now if self._paused else None
        found = self._processes(now)
        found["tmp_bytes"] = self._container.tree_bytes("/tmp", up_to=self._tmp_mb * _MIB)
        found["notes"] = tmp_notes(found["tmp_bytes"], self._tmp_mb)
        if before is None:
            return Observation(page_cache_bytes=now.page_cache_bytes, **found)
        largest = now.largest_usage_bytes
        rose = largest is not None and largest > (before.largest_usage_bytes or 0)
        return Observation(
            # Of a cold start the init's CPU time, which is not the invocation's, cannot be told apart.
            cpu_ms=None if boosted else _difference(now.cpu_ns, before.cpu_ns, 1e6),
            throttled_ms=None if boosted else _difference(now.throttled_ns, before.throttled_ns, 1e6),
            throttled_periods=None if boosted else _whole(now.throttled_periods, before.throttled_periods),
            peak_memory_bytes=max(0, largest - self._share_bytes) if largest is not None and rose else None,
            page_cache_bytes=now.page_cache_bytes,
            **found,
        )

    def _processes(self, now: _Counters) -> dict[str, Any]:
        """The runtime's processes, as the engine lists them; it can do so of a paused container too."""
        listed, rie = self._container.processes(), self._container.pid
        # Engine 20.10 answers with an empty list for a paused container of some thousand processes.
        runtime = None
        if listed is not None and rie in listed:
            runtime = {pid: each for pid, each in listed.items() if pid != rie}
        gone = runtime is not None and not runtime
        found: dict[str, Any] = {"oom_kills": self._new_oom_kills(now, wait=gone)}
        if runtime is None:
            return found
        threads = [each.threads for each in runtime.values() if each.threads is not None]
        found["processes"] = len(runtime)
        found["threads"] = sum(threads) if len(threads) == len(runtime) else None
        if runtime:
            resident = sum(each.rss_bytes for each in runtime.values())
            found |= {"resident_after_bytes": resident, "peak_rss_bytes": resident, "peak_method": PeakMethod.SAMPLED}
        return found

    def _new_oom_kills(self, now: _Counters, *, wait: bool) -> int | None:
        """Out-of-memory kills that the engine announced since the last look; None where it announced none for certain.

        The engine passes the kernel's word on a little late. Where the runtime is gone that is waited for.
        """
        try:
            total = self._container.oom_events(until_s=now.read_s + (_EVENT_PATIENCE_S if wait else 0.0))
        except EngineError:
            return None
        new, self._oom_kills = total - self._oom_kills, total
        return new if new > 0 or wait else None

    def _counters(self) -> _Counters:
        stats = self._container.stats()
        cpu, memory = stats.get("cpu_stats") or {}, stats.get("memory_stats") or {}
        throttling, detail = cpu.get("throttling_data") or {}, memory.get("stats") or {}
        caches = [detail[name] for name in ("file", "total_cache", "cache") if name in detail]
        return _Counters(
            read_s=_seconds(str(stats.get("read", ""))),
            cpu_ns=_number(cpu.get("cpu_usage") or {}, "total_usage"),
            throttled_ns=_number(throttling, "throttled_time"),
            throttled_periods=_number(throttling, "throttled_periods"),
            usage_bytes=_number(memory, "usage"),
            largest_usage_bytes=_number(memory, "max_usage") or None,
            page_cache_bytes=int(caches[0]) if caches else None,
        )

    # -- life -----------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        self._container.pause()
        self._paused = True

    def thaw(self) -> None:
        self._container.unpause()
        self._paused = False

    def kill_runtime(self) -> None:
        """Every process that the sandbox's user may signal, but PID 1 (the RIE) and the shell itself."""
        if self._paused:
            return  # the answer came in the meantime
        # Dying takes CPU time too, and a throttled process would wait for it.
        self._container.update(cpu_period=CPU_PERIOD_US, cpu_quota=-1)
        try:
            self._container.execute(["/bin/sh", "-c", "kill -9 -1"])
        finally:
            self._set_quota()

    def release(self) -> None:
        if self._paused:
            self._paused = False
            with contextlib.suppress(EngineError):
                self._container.unpause()


def _number(found: Mapping[str, Any], name: str) -> int | None:
    return int(found[name]) if name in found else None


def _difference(now: int | None, before: int | None, per: float) -> float | None:
    return None if now is None or before is None else (now - before) / per


def _whole(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else now - before


def _seconds(text: str) -> float:
    """Seconds since 1970 of the engine's time stamps, which have nine decimals."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    moment = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.UTC)
    return moment.timestamp() + (float(f"0.{fraction}") if fraction else 0.0)
