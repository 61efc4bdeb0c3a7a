"""Vantage ``api``: nothing is written but through the engine's API. For engines far away, and for users who are not root.

Pauses where ``host`` freezes, learns from the RIE's log alone when init is over, and cannot reset the kernel's marks: what
it cannot know is None, and the notes of the record say so. Where this kernel runs the containers their files are read (see
`harness.vantage.reading`), and the engine is asked for the rest alone. Nothing is run inside of a sandbox to look at it:
that would be charged to the function, and would wait for its quota.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cgroup import cpus_of
from harness.engine.client import Engine, EngineFacts
from harness.engine.containers import Container, Listed
from harness.engine.volumes import Volumes
from harness.errors import EngineError, LimitError
from harness.kernel import available_bytes, cpu_model, is_this_machine, tick_hz
from harness.memory_watch import MemoryWatch
from harness.tiers import CPU_PERIOD_US, Tier
from harness.vantage import NOT_PINNED, Granted, Observation, TmpVolume, anonymous_tmp, reading, tmp_notes
from harness.vantage.attending import LocalAttendant
from harness.vantage.reading import Reading, Seen

_PAGE = 4096
_MIB = 1024 * 1024
_FOLLOW_BYTES = 256 * 1024
"""So much must the RIE have grown before the limit is raised: each change takes the engine some 15 ms."""
_DEADLINE = "the deadline that the function sees is too late by the time kept for init: the Runtime API is not relayed"
_COLD = "cpu_ms of a cold start is not measured: the log tells too late that init is over"
_MARKS = (
    "only root could reset the kernel's marks: where one did not rise, peak_memory_bytes is not known, and peak_rss_bytes is "
    "the largest sample, a lower bound (peak_method sampled)"
)
_NO_PEAK = (
    "peak_rss_bytes and Max Memory Used are not measured: the engine's API tells no process's peak, only what was left after "
    "the response (resident_after_bytes)"
)
_NOTES = (
    "cpu_ms and throttled_ms include the RIE, and are not measured without freezing",
    _COLD,
    _NO_PEAK,
    _DEADLINE,
)
_NOTES_WHERE_READ = (
    "the RIE's CPU time is charged to the function's quota, and throttled_ms includes it: only root could move it out",
    _COLD,
    _MARKS,
    _DEADLINE,
)
_EVENT_PATIENCE_S = 0.5
"""How long the engine may take to announce an out-of-memory kill; it takes some ms."""
_KEY_FIGURES = {
    "cpu": "throttled_periods",
    "memory": "page_cache_bytes",
    "processes": "processes",
    "oom": "oom_kills",
}
"""What the engine can be asked for, and the figure whose absence says that the files did not tell it."""


class ApiVantage:
    """See the module."""

    name = "api"
    relays = False
    in_process = False

    def __init__(self, engine: Engine, facts: EngineFacts, *, why_not_agent: str = "") -> None:
        self._facts = facts
        self.why_not_agent = why_not_agent
        """Why it was not the vantage agent that was chosen, where that was tried."""
        self._volumes = Volumes(engine)
        self.sees_files = is_this_machine(facts.kernel, facts.memory_bytes)

    def describe(self) -> dict[str, Any]:
        return {"hz": tick_hz(), "cpu_model": cpu_model()} if self.sees_files else {"hz": None, "cpu_model": None}

    def spare_memory_bytes(self) -> int | None:
        """Of an engine elsewhere the total alone is known."""
        return available_bytes() if self.sees_files else None

    def carry(self, binds: Mapping[str, tuple[str, str]], image_id: str) -> dict[str, tuple[str, str]]:
        return dict(binds) if self.sees_files else self._volumes.carry(binds, image_id)

    def cpus(self) -> tuple[int, ...]:
        return tuple(range(self._facts.cpus))

    def tmp(self, size_mb: int, sandbox_id: str, work_dir: Path) -> TmpVolume:  # noqa: ARG002  # the same call as on `host`
        return anonymous_tmp(size_mb)

    def attend(self, container: Container, tmp_mb: int) -> LocalAttendant:
        return LocalAttendant(container.address, lambda: ApiReach(container, self._facts, tmp_mb))

    def close(self) -> None:
        """Nothing is held."""

    def let_go(self, container_id: str, pid: int) -> None:
        """Nothing: the engine itself unpauses before it removes."""


class ApiReach:
    """See `harness.vantage.Reach`."""

    relay_pid = None

    def __init__(self, container: Container, facts: EngineFacts, tmp_mb: int) -> None:
        self._container = container
        self._tmp_mb = tmp_mb
        self._facts = facts
        self._files = reading.open_reading(container.id, container.pid, kernel=facts.kernel)
        self._engine = _EngineAnswers(container)
        self._tier: Tier | None = None
        self._seen = Seen()
        self._sampled_rss = 0
        self._base_bytes = 0
        self._rie_anon_at_base: int | None = None
        self._share_bytes = 0
        self._fresh = True
        self._boosted = False
        self._restricted = False
        self._quota_told = True
        self._engine_at_work = threading.Lock()
        self._paused = False
        self.notes = _NOTES if self._files is None else _NOTES_WHERE_READ

    # -- limits ---------------------------------------------------------------------------------------------------

    def prepare(self, tier: Tier, cpus: tuple[int, ...]) -> Granted:
        self._tier = tier
        self._measure_rie()
        limit = self._set_memory()
        limits, files = self._container.limits(), self._files
        # Some engines go on telling what a container was created with, which `limits` leaves out: then only the files know.
        memory, swap = limits.get("Memory"), limits.get("MemorySwap")
        if memory not in (limit, None):
            raise LimitError(f"the engine holds a memory limit of {memory} bytes, {limit} was asked for")
        if swap not in (limit, -1, 0, None):
            raise LimitError(f"the engine holds a swap limit of {swap} bytes, {limit} was asked for")
        swap_limited = None if swap is None else swap == limit
        known = memory is not None
        if files is not None:
            known = _read_back(files, limit, cpus) or known
            swap_limited = swap_limited if files.swap_limited() is None else files.swap_limited()
        notes: list[str] = []
        if not known:
            notes.append("the memory limit could not be read back: the engine does not tell what it has changed")
        if swap_limited is False:
            notes.append(
                "swap is not limited: this kernel keeps no account of it, out-of-memory kills may come too late"
            )
        cpuset = (files.cpuset() if files is not None else None) or str(limits["CpusetCpus"]) or None
        if cpuset is None:
            notes.append(NOT_PINNED)
        return Granted(
            cpu_quota_us=tier.cpu_quota_us,
            cpu_period_us=tier.cpu_period_us,
            cpuset=cpuset,
            memory_limit_bytes=limit,
            cgroup_version=self._facts.cgroup_version if self._files is None else self._files.version,
            cpu_capped=len(cpus) < tier.visible_vcpus,
            notes=tuple(notes),
        )

    def _measure_rie(self) -> None:
        """What the RIE is charged, all but page cache, which gives way."""
        seen = Seen() if self._files is None else self._files.look()
        charged = self._engine.charged_bytes() if seen.charged_bytes is None else seen.charged_bytes
        if charged is None:
            raise LimitError(
                "this engine does not tell what the RIE is charged, so the function's share of memory cannot be set",
                remedy="'lambda-harness doctor' says what is missing; else use the vantage host or agent",
            )
        self._rie_anon_at_base = seen.rie_anon_bytes
        self._base_bytes = max(charged, seen.rie_anon_bytes or 0)
        self._share_bytes = _whole_pages(self._base_bytes)

    def _follow_rie(self, anon_bytes: int | None) -> None:
        """Raise the memory limit when the RIE has grown (it buffers requests and responses), where that can be read."""
        if anon_bytes is None or self._rie_anon_at_base is None:
            return
        share = _whole_pages(self._base_bytes + max(0, anon_bytes - self._rie_anon_at_base))
        if share >= self._share_bytes + _FOLLOW_BYTES:
            self._share_bytes = share
            self._set_memory()

    def _set_memory(self) -> int:
        assert self._tier is not None  # noqa: S101  # prepare comes first
        limit = self._tier.memory_bytes + self._share_bytes
        self._container.update(mem_limit=limit, memswap_limit=limit)
        return limit

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
        for name, wanted in (("CpuPeriod", tier.cpu_period_us), ("CpuQuota", tier.cpu_quota_us)):
            if limits.get(name, wanted) != wanted:
                raise LimitError(f"the engine holds a {name} of {limits[name]} us, {wanted} was asked for")
        self._restricted, self._quota_told = True, "CpuQuota" in limits

    def _quota_notes(self) -> tuple[str, ...]:
        """What is to be said where the kernel holds another quota than was asked for: the engine would not notice."""
        held = None if self._files is None else self._files.quota()
        tier = self._tier
        if tier is None or not self._restricted or held == (tier.cpu_quota_us, tier.cpu_period_us):
            return ()
        if held is None:
            return () if self._quota_told else ("the CPU quota could not be read back: the engine does not tell it",)
        quota, period = held
        found = "without limit" if quota is None else f"{quota} us in {period}"
        asked = f"{tier.cpu_quota_us} us in {tier.cpu_period_us}"
        return (f"the CPU quota in force is {found}, {asked} was asked for: the systemd cgroup driver rounds quotas",)

    # -- measuring ------------------------------------------------------------------------------------------------

    def mark(self) -> None:
        self._sampled_rss = 0
        if self._files is not None:
            self._seen = self._files.look()
            self._follow_rie(self._seen.rie_anon_bytes)
        if not self._paused and not self._fresh:
            self._engine.forget()

    def sample(self) -> None:
        """Only where files are read: the engine answers too slowly for that."""
        self._sampled_rss = max(self._sampled_rss, self.resident_bytes() or 0)

    def resident_bytes(self) -> int | None:
        return None if self._files is None else self._files.resident_bytes()

    def observe(self) -> Observation:
        boosted, self._boosted, self._fresh = self._boosted, False, False
        found = {} if self._files is None else self._from_files(self._seen, self._files.look(), boosted=boosted)
        lacking = {what for what, figure in _KEY_FIGURES.items() if found.get(figure) is None}
        if lacking:
            found |= self._engine.observe(lacking, self._share_bytes, boosted=boosted)
        found["tmp_bytes"] = self._container.tree_bytes("/tmp", up_to=self._tmp_mb * _MIB)
        notes = (*found.pop("notes", ()), *self._quota_notes(), *tmp_notes(found["tmp_bytes"], self._tmp_mb))
        return Observation(notes=notes, **found)

    def _from_files(self, before: Seen, now: Seen, *, boosted: bool) -> dict[str, Any]:
        """What the kernel's own files tell of an invocation, and only that."""
        found: dict[str, Any] = {"page_cache_bytes": now.page_cache_bytes}
        if self._tier is not None:
            found["memory_limit_bytes"] = self._tier.memory_bytes + self._share_bytes
        if before.usage is not None and now.usage is not None:
            cpu_ns, without_rie = reading.cpu_ns(before, now)
            # Of a cold start the init's CPU time, which is not the invocation's, cannot be told apart.
            found["cpu_ms"] = None if boosted or cpu_ns is None else cpu_ns / 1e6
            if not without_rie and not boosted:
                found["notes"] = ("cpu_ms includes the RIE: the time of all its threads could not be read",)
            # No quota holds while init is boosted: whatever was throttled was the invocation.
            found["throttled_ms"] = (now.usage.throttled_ns - before.usage.throttled_ns) / 1e6
            found["throttled_periods"] = now.usage.throttled_periods - before.usage.throttled_periods
        if before.oom_kills is not None and now.oom_kills is not None:
            found["oom_kills"] = now.oom_kills - before.oom_kills
        peak = reading.peak_memory_bytes(before, now)
        found["peak_memory_bytes"] = None if peak is None else max(0, peak - self._share_bytes)
        found["peak_rss_bytes"], found["peak_method"] = reading.peak_rss(before, now, self._sampled_rss)
        if now.processes is not None:
            each = now.processes.values()
            found["processes"], found["threads"] = len(each), sum(process.threads for process in each)
            found["open_files"] = reading.total_of([process.open_files for process in each])
            found["resident_after_bytes"] = sum(process.rss_bytes for process in each) or None
            found["anonymous_after_bytes"] = now.anonymous_bytes
        return found

    # -- life -----------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        with self._engine_at_work:
            self._container.pause()
            self._paused = True

    def thaw(self) -> None:
        self._container.unpause()
        self._paused = False

    def kill_runtime(self) -> None:
        """Every process that the sandbox's user may signal, but PID 1 (the RIE) and the shell itself."""
        # An exec that a pause stops half-way leaves the engine (20.10) waiting for it with the container's lock in hand: every
        # question about the container hangs from then on, for whoever asks.
        with self._engine_at_work:
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

    # -- watching -------------------------------------------------------------------------------------------------

    def charged_bytes(self) -> int | None:
        charged = None if self._files is None else self._files.memory_bytes()
        return None if charged is None else max(0, charged - self._share_bytes)

    def watch_memory(self) -> MemoryWatch | None:
        """Only where files are read: the engine answers too slowly for that."""
        if self._files is None or self._tier is None:
            return None
        return MemoryWatch(self._files.group, self._tier.memory_bytes)


def _read_back(files: Reading, limit: int, cpus: tuple[int, ...]) -> bool:
    """Whether the memory limit is known by the kernel's own word; `LimitError` where the kernel holds other limits."""
    held = files.holds_memory_limit(limit)
    if held is False:
        raise LimitError(
            f"the kernel does not hold the memory limit of {limit} bytes that was asked for: the figures would be wrong",
            remedy="see 'lambda-harness doctor'; another program may be managing the containers' cgroups",
        )
    cpuset = files.cpuset()
    if cpuset is not None and cpus_of(cpuset) != frozenset(cpus):
        raise LimitError(
            f"the cpuset of the sandbox is {cpuset}, but {','.join(map(str, cpus))} was asked for: its figures would be wrong",
            remedy="see 'lambda-harness doctor'; a rootless engine needs the cpuset controller",
        )
    if files.swap_limited() is False:
        raise LimitError("the sandbox could swap: its out-of-memory kills would come too late")
    return held is True


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


# -- the engine's word ------------------------------------------------------------------------------------------------


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


class _EngineAnswers:
    """What the engine tells of a container. Asking takes old engines up to a second, for which no caller may wait."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._before: _Counters | None = None
        self._oom_kills = 0

    def charged_bytes(self) -> int | None:
        """What the container is charged but page cache; what follows counts from now on."""
        self._before = now = self._counters()
        if now.usage_bytes is None or now.page_cache_bytes is None:
            return None
        return max(0, now.usage_bytes - now.page_cache_bytes)

    def forget(self) -> None:
        """What a running sandbox did since the last invocation cannot be told apart: nothing is counted then."""
        self._before = None

    def observe(self, wanted: Collection[str], share_bytes: int, *, boosted: bool) -> dict[str, Any]:
        """The figures of these kinds; what follows counts from here, unless it is to be forgotten."""
        now, before = self._counters(), self._before
        self._before = now
        found: dict[str, Any] = {}
        listed = self._runtime() if {"processes", "oom"} & set(wanted) else None
        if "oom" in wanted:
            gone = listed is not None and not listed
            found["oom_kills"] = self._new_oom_kills(now, wait=gone)
        if "processes" in wanted and listed is not None:
            found |= _of_processes(list(listed.values()))
        if "memory" in wanted:
            found["page_cache_bytes"] = now.page_cache_bytes
            largest = now.largest_usage_bytes
            if before is not None and largest is not None and largest > (before.largest_usage_bytes or 0):
                found["peak_memory_bytes"] = max(0, largest - share_bytes)
        if "cpu" in wanted and before is not None:
            # Of a cold start the init's CPU time, which is not the invocation's, cannot be told apart; in a boosted init
            # no quota holds, so whatever was throttled was the invocation.
            found["cpu_ms"] = None if boosted else _difference(now.cpu_ns, before.cpu_ns, 1e6)
            found["throttled_ms"] = _difference(now.throttled_ns, before.throttled_ns, 1e6)
            found["throttled_periods"] = _whole(now.throttled_periods, before.throttled_periods)
        return found

    def _runtime(self) -> dict[int, Listed] | None:
        """The runtime's processes, as the engine lists them; it can do so of a paused container too."""
        listed, rie = self._container.processes(), self._container.pid
        # Engine 20.10 answers with an empty list for a paused container of some thousand processes.
        if listed is None or rie not in listed:
            return None
        return {pid: each for pid, each in listed.items() if pid != rie}

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


def _of_processes(runtime: list[Listed]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "processes": len(runtime),
        "threads": reading.total_of([each.threads for each in runtime]),
    }
    if runtime:
        # No peak: what is left after the response may be any part of what was there before.
        found["resident_after_bytes"] = sum(each.rss_bytes for each in runtime)
    return found


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
