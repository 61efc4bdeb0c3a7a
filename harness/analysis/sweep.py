"""Records of a sweep -> its findings. Pure; every figure can be recomputed from the records that went in.

A tier's figures are over all of its warm successes, warm-up included: what was detected as warm-up is reported beside
them, and ``steady`` holds the figures without it. Cold invocations stand apart, in ``cold``.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.analysis.hosts import choices_sentence, host_findings, lost_warnings, of_host
from harness.analysis.predict import LAMBDA, Scheduler, prediction_of
from harness.analysis.recommend import Aim, recommend, recommend_all, same_cost, same_duration, sweep_warnings
from harness.analysis.statistics import PERCENTILE_RULE, WARM_UP_METHOD, summarize, trimmed, warm_up
from harness.errors import InvalidInput
from harness.invocation import WORKER_LOST, Invocation, Outcome
from harness.pricing import DEFAULT_REGION, invocation_cost_usd

BYTES_PER_MB = 1024 * 1024

_NOT_THE_TIERS_FAULT = frozenset({Outcome.ENGINE_ERROR, Outcome.THROTTLED})

_WHY: dict[Outcome, str] = {
    Outcome.OUT_OF_MEMORY: "ran out of memory",
    Outcome.TIMEOUT: "timed out",
    Outcome.FUNCTION_ERROR: "ended with an error of the function",
    Outcome.RUNTIME_EXIT: "ended because the runtime exited",
    Outcome.INIT_ERROR: "failed in init",
    Outcome.INIT_TIMEOUT: "timed out in init",
    Outcome.RESPONSE_TOO_LARGE: "gave a response that is too large",
    Outcome.THROTTLED: "were throttled",
    Outcome.ENGINE_ERROR: "were lost to the container engine",
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the records of a sweep are to be read.

    ``discard`` is the share of a tier's warm successes dropped at either end of the durations (none unless asked for);
    ``allowed_error_share`` is the share of failures up to which a tier still counts. ``region`` prices records that
    carry no cost.
    """

    aim: Aim = field(default_factory=Aim)
    discard: float = 0.0
    allowed_error_share: float = 0.0
    region: str = DEFAULT_REGION
    scheduler: Scheduler = LAMBDA
    predict_memory_mb: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        trimmed((), self.discard)
        if not 0 <= self.allowed_error_share <= 1:
            raise InvalidInput(
                f"allowed error share {self.allowed_error_share}", remedy="give a share from 0 (none) to 1 (all)"
            )


VariantOf = Callable[[Invocation], str | None]


def variant_of(record: Invocation) -> str | None:
    """The name of the second axis that a record was measured under; None without one."""
    return getattr(record, "variant", None)


def sweep_findings(
    records: Sequence[Invocation], reading: Reading | None = None, *, variant: VariantOf = variant_of
) -> dict[str, Any]:
    """The findings of a sweep, in JSON types.

    ``tiers``, ``rejected``, ``recommendation``, ``recommendations`` by strategy, ``warnings``, ``prediction`` and the
    ``rules`` by which they were found; ``hosts`` where several measured, else None (`harness.analysis.hosts`).
    """
    reading = reading or Reading()
    tiers, rejected = tier_findings(records, reading, variant=variant)
    hosts, basis = _hosts(records, tiers, reading, variant)
    alone = hosts["reference_host_id"] if hosts and hosts["mixed"] else None
    recommendations = {
        strategy: found
        | ({"reason": f"{found['reason']} Judged on host {alone} alone.", "host_id": alone} if alone else {})
        for strategy, found in recommend_all(basis, rejected, reading.aim).items()
    }
    return {
        "tiers": tiers,
        "rejected": rejected,
        "recommendation": recommendations[reading.aim.strategy],
        "recommendations": recommendations,
        "warnings": sweep_warnings(tiers, rejected) + lost_warnings(records, variant),
        "hosts": hosts,
        "prediction": _prediction(basis, reading),
        "rules": {"percentiles": PERCENTILE_RULE, "warm_up": WARM_UP_METHOD, "discard": reading.discard},
    }


def _hosts(
    records: Sequence[Invocation], tiers: list[dict[str, Any]], reading: Reading, variant: VariantOf
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The findings about hosts, and the tiers that a recommendation may rest on: one host's where hosts differ."""
    hosts = host_findings(records, variant)
    if hosts is None:
        return None, tiers
    able = {(found["memory_mb"], found["variant"]) for found in tiers}
    own: dict[str, list[dict[str, Any]]] = {}
    chosen: dict[str, tuple[int, str | None]] = {}
    for host_id in sorted({record.host_id for record in records if record.host_id is not None}):
        found, _ = tier_findings(of_host(records, host_id), reading, variant=variant)
        own[host_id] = [each for each in found if (each["memory_mb"], each["variant"]) in able]
        choice = recommend(own[host_id], (), reading.aim)
        if choice["memory_mb"] is not None:
            chosen[host_id] = (choice["memory_mb"], choice["variant"])
    hosts["by_host"] = [
        {
            "host_id": host_id,
            "invocations": sum(record.error_type != WORKER_LOST for record in of_host(records, host_id)),
            "recommended_memory_mb": chosen[host_id][0] if host_id in chosen else None,
            "recommended_variant": chosen[host_id][1] if host_id in chosen else None,
            "tiers": own[host_id],
        }
        for host_id in own
    ]
    if hosts["mixed"]:
        reference = chosen.get(hosts["reference_host_id"])
        settled = {
            host: reference if _no_worse(tiers_, reference, chosen.get(host), reading.aim) else chosen.get(host)
            for host, tiers_ in own.items()
        }
        hosts["sentence"] += f" {choices_sentence(hosts, settled)}"
    return hosts, own[hosts["reference_host_id"]] if hosts["mixed"] else tiers


def _no_worse(
    tiers: list[dict[str, Any]], wanted: tuple[int, str | None] | None, chosen: tuple[int, str | None] | None, aim: Aim
) -> bool:
    """Whether a size that another host chose does as well here as this host's own choice, by the aim and within noise."""
    by_size = {(found["memory_mb"], found["variant"]): found for found in tiers}
    if wanted is None or chosen is None or wanted not in by_size:
        return False
    one, other = by_size[wanted], by_size[chosen]
    cost, duration = same_cost(one, other), same_duration(one, other)
    return {"cost": cost, "speed": duration}.get(aim.strategy, cost and duration)


def tier_findings(
    records: Iterable[Invocation], reading: Reading, *, variant: VariantOf = variant_of
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The tiers that could run the function, and those that could not; by memory size, then variant."""
    groups: dict[tuple[int, str | None], list[Invocation]] = {}
    for record in records:
        groups.setdefault((record.memory_mb, variant(record)), []).append(record)
    tiers, rejected = [], []
    for memory_mb, name in sorted(groups, key=lambda key: (key[0], key[1] or "")):
        group = groups[memory_mb, name]
        why = _rejection(group, reading)
        if why is None:
            tiers.append(_tier(memory_mb, name, group, reading))
        else:
            rejected.append({"memory_mb": memory_mb, "variant": name, "why": why, "outcomes": _outcomes(group)})
    return tiers, rejected


def cost_usd_of(record: Invocation, region: str = DEFAULT_REGION) -> float | None:
    """What an invocation cost at list price: as recorded, or from its billed time; None where neither is known."""
    if record.cost_usd is not None:
        return record.cost_usd
    if record.billed_ms is None:
        return None
    return invocation_cost_usd(record.memory_mb, record.billed_ms, region, record.architecture)


def warm_successes(records: Iterable[Invocation]) -> list[Invocation]:
    return [record for record in records if record.outcome is Outcome.SUCCESS and not record.cold]


def _outcomes(group: Sequence[Invocation]) -> dict[str, int]:
    return dict(Counter(record.outcome.value for record in group).most_common())


def _rejection(group: Sequence[Invocation], reading: Reading) -> str | None:
    """Why a tier cannot be recommended, as a sentence; None if it can."""
    counted = [record for record in group if record.outcome not in _NOT_THE_TIERS_FAULT]
    outcomes = Counter(record.outcome for record in counted)
    failed: Counter[Outcome] = Counter(
        {outcome: count for outcome, count in outcomes.items() if outcome != Outcome.SUCCESS}
    )
    if counted and sum(failed.values()) / len(counted) <= reading.allowed_error_share and len(counted) > failed.total():
        return None
    if not counted:
        failed = Counter(record.outcome for record in group)
    parts = [
        f"{count} of {len(counted) or len(group)} invocations {_WHY[outcome]}"
        for outcome, count in failed.most_common()
    ]
    return "; ".join(parts)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _stats(values: Iterable[float | None]) -> dict[str, Any] | None:
    found = summarize(_known(values))
    return found.as_dict() if found else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return statistics.fmean(known) if known else None


def _highest(values: Iterable[float | None]) -> float | None:
    return max(_known(values), default=None)


def _tier(memory_mb: int, name: str | None, group: Sequence[Invocation], reading: Reading) -> dict[str, Any]:
    warm = warm_successes(group)
    measured = len(warm)
    leading = _warm_up(warm)
    if reading.discard:
        timed = [record for record in warm if record.duration_ms is not None]
        warm = [timed[index] for index in trimmed([record.duration_ms or 0.0 for record in timed], reading.discard)]
    steady = [record for record in warm if record.request_id not in leading]
    cost = _stats(cost_usd_of(record, reading.region) for record in warm)
    peak_memory_bytes = _highest(record.peak_memory_bytes for record in group)
    peak_rss_bytes = _highest(record.peak_rss_bytes for record in group)
    max_memory_used_mb = _highest(record.max_memory_used_mb for record in group)
    throttled = [
        record.throttled_ms / record.duration_ms
        for record in warm
        if record.throttled_ms is not None and record.duration_ms
    ]
    return {
        "memory_mb": memory_mb,
        "variant": name,
        "n": len(warm),
        "n_measured": measured,
        "duration_ms": _stats(record.duration_ms for record in warm),
        "billed_ms": _stats(record.billed_ms for record in warm),
        "cpu_ms": _stats(record.cpu_ms for record in warm),
        "client_ms": _stats(record.client_ms for record in warm),
        "cost_usd_per_invocation": cost["mean"] if cost else None,
        "cost_ci_low": cost["ci_low"] if cost else None,
        "cost_ci_high": cost["ci_high"] if cost else None,
        # Stops are counted per CPU, so with several threads the sum can exceed the duration.
        "throttled_share": min(1.0, statistics.fmean(throttled)) if throttled else None,
        "peak_rss_bytes": peak_rss_bytes,
        "peak_memory_bytes": peak_memory_bytes,
        "max_memory_used_mb": max_memory_used_mb,
        "memory_used_share": _memory_used_share(memory_mb, max_memory_used_mb, peak_rss_bytes),
        "cold": _cold(group, reading),
        "warm_up": {"invocations": len(leading), "method": WARM_UP_METHOD},
        "steady": {
            "n": len(steady),
            "duration_ms": _stats(record.duration_ms for record in steady),
            "billed_ms": _stats(record.billed_ms for record in steady),
            "cost_usd_per_invocation": _mean(cost_usd_of(record, reading.region) for record in steady),
        }
        if leading
        else None,
        "cpu_capped": any(record.cpu_capped for record in group),
        "outcomes": _outcomes(group),
        "notes": list(dict.fromkeys(note for record in group for note in record.notes)),
    }


def _memory_used_share(memory_mb: int, max_memory_used_mb: float | None, peak_rss_bytes: float | None) -> float | None:
    """How full the memory was. Page cache can be reclaimed, so the cgroup's charge is not what counts here."""
    if max_memory_used_mb is not None:
        return max_memory_used_mb / memory_mb
    return None if peak_rss_bytes is None else peak_rss_bytes / BYTES_PER_MB / memory_mb


def _warm_up(warm: Sequence[Invocation]) -> set[str]:
    """The request ids of the warm-up: it belongs to each sandbox anew, so each is judged by itself."""
    sandboxes: dict[str, list[Invocation]] = {}
    for record in warm:
        if record.duration_ms is not None:
            sandboxes.setdefault(record.sandbox_id, []).append(record)
    found: set[str] = set()
    for records in sandboxes.values():
        ordered = sorted(records, key=lambda record: record.sequence)
        leading = warm_up([record.duration_ms or 0.0 for record in ordered])
        found |= {record.request_id for record in ordered[:leading]}
    return found


def _cold(group: Sequence[Invocation], reading: Reading) -> dict[str, Any] | None:
    cold = [record for record in group if record.cold and record.outcome is Outcome.SUCCESS]
    if not cold:
        return None
    return {
        "n": len(cold),
        "init_ms": _stats(record.init_ms for record in cold),
        "duration_ms": _stats(record.duration_ms for record in cold),
        "billed_ms": _stats(record.billed_ms for record in cold),
        "client_ms": _stats(record.client_ms for record in cold),
        "cost_usd_per_invocation": _mean(cost_usd_of(record, reading.region) for record in cold),
    }


def _prediction(tiers: Sequence[Mapping[str, Any]], reading: Reading) -> dict[str, Any] | None:
    variants = {found["variant"] for found in tiers}
    if not variants:
        return None
    # The prediction speaks of one program: the plain function, or the first variant where there is none.
    name = None if None in variants else min(variants, key=str)
    return prediction_of(
        [found for found in tiers if found["variant"] == name],
        reading.predict_memory_mb,
        scheduler=reading.scheduler,
    )
