"""Records of a load -> its findings. Pure; what no record holds (the generator, all sandboxes together) is handed in.

Durations are the function's, as Lambda's REPORT lines have them; client times are what callers waited, counted from the
moment at which a request was due. Both are of successes alone: a request that is turned away is answered quickly.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from harness.analysis.statistics import PERCENTILE_NEEDS, PERCENTILE_RULE
from harness.invocation import Invocation, Outcome, PhaseInit
from harness.tiers import tier

GENERATOR_SHARE_WARNING = 0.25
"""Share of the host's CPUs from which on the generator takes from what it measures."""
LATENESS_WARNING_MS = 10.0
HOST_BUSY_WARNING = 0.9

_CLIENT_RULE = (
    "client_ms counts from the moment a request was due to its answer: lateness of the generator (open loop), the start "
    "of a container where none was prepared (the engine's time, Lambda's differs), thaw, init and handler"
)
_LATENESS_RULE = (
    "lateness_ms is how long after it was due the generator took a request up (open loop), or how long after an answer "
    "it asked again, measuring and freezing included (closed loop)"
)
_MEMORY_RULE = "peak_memory_bytes is the largest sum over all sandboxes that sampling saw: a lower bound"


def load_findings(records: Sequence[Invocation], observed: Mapping[str, Any]) -> dict[str, Any]:
    """The findings of a load, in JSON types. ``observed``: the fields of `harness.experiments.load.Observed`.

    ``errors`` are the requests that failed in any way but being throttled; ``cost_usd`` is that of all records that
    have one, and None where none has.
    """
    ran = [each for each in records if each.outcome is not Outcome.THROTTLED]
    good = [each for each in ran if each.outcome is Outcome.SUCCESS]
    warm, cold = [each for each in good if not each.cold], [each for each in good if each.cold]
    costs = [each.cost_usd for each in ran if each.cost_usd is not None]
    sandboxes = {each.sandbox_id for each in ran}
    wall_s = observed["wall_s"]
    found: dict[str, Any] = {
        "requests": len(records),
        "errors": len(ran) - len(good),
        "error_share": (len(ran) - len(good)) / len(ran) if ran else None,
        "outcomes": dict(Counter(each.outcome.value for each in records).most_common()),
        "throttled": len(records) - len(ran),
        "sandboxes": len(sandboxes),
        "most_busy": observed["most_busy"],
        "capacity": observed["capacity"],
        "cold_starts": sum(each.cold for each in ran),
        "resets": sum(each.phase_init is PhaseInit.SUPPRESSED for each in ran),
        "wall_s": wall_s,
        "throughput_per_s": len(good) / wall_s if wall_s > 0 else None,
        "duration_ms": spread(each.duration_ms for each in good),
        "client_ms": spread(each.client_ms for each in good),
        "warm": {"duration_ms": spread(each.duration_ms for each in warm), "client_ms": _clients(warm)},
        "cold": {
            "duration_ms": spread(each.duration_ms for each in cold),
            "client_ms": _clients(cold),
            "init_ms": spread(each.init_ms for each in cold),
            "container_start_ms": spread(observed["start_ms"]),
        },
        "peak_memory_bytes": _peak_memory(ran, sandboxes, observed["peak_memory_bytes"]),
        "max_memory_used_mb": max((each.max_memory_used_mb for each in ran if each.max_memory_used_mb), default=None),
        "cost_usd": sum(costs) if costs else None,
        "cost_unknown": len(ran) - len(costs),
        "generator": _generator(observed),
        "rules": {
            "percentiles": PERCENTILE_RULE,
            "client_ms": _CLIENT_RULE,
            "lateness_ms": _LATENESS_RULE,
            "peak_memory_bytes": _MEMORY_RULE,
        },
    }
    return found | {"warnings": _warnings(records, found, observed)}


def spread(values: Iterable[float | None]) -> dict[str, float | int | None] | None:
    """Figures of a sample, None where it is empty; a percentile only where there are enough values for it.

    Without intervals: the requests of a load disturb each other, so they are no independent measurements of one thing.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {
        "n": len(known),
        "mean": statistics.fmean(known),
        "min": float(min(known)),
        "p50": float(statistics.median(known)),
        **{
            name: float(np.percentile(known, int(name[1:]))) if len(known) >= needed else None
            for name, needed in PERCENTILE_NEEDS.items()
        },
        "max": float(max(known)),
    }


def _clients(records: Iterable[Invocation]) -> dict[str, float | int | None] | None:
    return spread(each.client_ms for each in records)


def _peak_memory(ran: Sequence[Invocation], sandboxes: set[str], sampled: int | None) -> int | None:
    """The largest sum that was sampled, or what one invocation alone reached, if sampling missed that."""
    single = max((each.peak_memory_bytes for each in ran if each.peak_memory_bytes is not None), default=None)
    if sampled is None:
        return single if len(sandboxes) == 1 else None
    return max(sampled, single or 0)


def _generator(observed: Mapping[str, Any]) -> dict[str, Any]:
    wall_s, cpu_s = observed["wall_s"], observed["generator_cpu_s"]
    return {
        "cpu_s": cpu_s,
        "cpu_share": cpu_s / wall_s / observed["host_cpus"] if wall_s > 0 else None,
        "host_busy_share": observed["host_busy_share"],
        "lateness_ms": spread(observed["lateness_ms"]),
        "waited_ms": spread(each for each in observed["waited_ms"] if each),
        "memory_samples": observed["memory_samples"],
    }


def _warnings(
    records: Sequence[Invocation], found: Mapping[str, Any], observed: Mapping[str, Any]
) -> list[dict[str, str]]:
    """What to beware of. ``kind`` is of a closed set.

    ``generator_busy``, ``generator_late``, ``host_busy``, ``waited_for_containers``, ``host_too_few_cpus``, ``throttled``,
    ``out_of_memory``.
    """
    warnings = []
    generator, cpus = found["generator"], observed["host_cpus"]
    share, busy = generator["cpu_share"], generator["host_busy_share"]
    if share is not None and share > GENERATOR_SHARE_WARNING:
        warnings.append(
            _warning(
                "generator_busy",
                f"The harness itself took {share:.0%} of this host's CPUs: durations hold some of that.",
                "ask for fewer requests a second, or use a host with more CPUs",
            )
        )
    late = generator["lateness_ms"] or {}
    worst = late.get("p99") or late.get("p95") or late.get("p90") or late.get("p50") or 0.0
    if observed["loop"] == "open" and worst > LATENESS_WARNING_MS:
        warnings.append(
            _warning(
                "generator_late",
                f"Requests were taken up as much as {worst:.0f} ms after they were due; client times count that.",
                "ask for fewer requests a second, or use a host with more CPUs",
            )
        )
    if busy is not None and busy > HOST_BUSY_WARNING:
        warnings.append(
            _warning(
                "host_busy",
                f"This host's CPUs were busy for {busy:.0%} of the time: sandboxes waited for each other. "
                "On Lambda they do not.",
                "compare with a smaller load",
            )
        )
    if observed["start_ms"]:
        waited = spread(observed["start_ms"]) or {}
        warnings.append(
            _warning(
                "waited_for_containers",
                f"{len(observed['start_ms'])} requests waited for a container to be started, up to {waited['max']:.0f} ms: "
                "the engine's time, not Lambda's. Their client times count it, and it may have made more cold starts.",
                "ask for fewer requests a second, or limit --max-sandboxes",
            )
        )
    warnings += _grants(records, found["most_busy"], cpus)
    if found["throttled"]:
        warnings.append(
            _warning(
                "throttled",
                f"{found['throttled']} requests found all {found['capacity']} sandboxes busy and were turned away.",
                "allow more with --max-sandboxes, or give this host more memory",
            )
        )
    kills = found["outcomes"].get(Outcome.OUT_OF_MEMORY.value)
    if kills:
        warnings.append(
            _warning(
                "out_of_memory",
                f"{kills} requests ended because their sandbox ran out of memory.",
                "look for what grows with 'lambda-harness leak', or give it more memory",
            )
        )
    return warnings


def _grants(records: Sequence[Invocation], busy: int, cpus: int) -> list[dict[str, str]]:
    memory_mb = records[0].memory_mb if records else 0
    if not memory_mb or (granted := busy * tier(memory_mb).vcpus) <= cpus:
        return []
    return [
        _warning(
            "host_too_few_cpus",
            f"{busy} sandboxes of {memory_mb} MB are granted {granted:.1f} vCPUs together, this host has {cpus}: "
            "if the function is busy with its CPU, durations are longer than on Lambda.",
            "choose fewer sandboxes or a smaller memory size, or use a host with more CPUs",
        )
    ]


def _warning(kind: str, sentence: str, remedy: str) -> dict[str, str]:
    return {"kind": kind, "sentence": sentence, "remedy": remedy}
