"""Billed time -> money: price parts by region and architecture. Pure; must not know engines, records or reports.

The figures live in ``data/prices.toml`` with their source and date; this module is the arithmetic. 1 GB is 1024 MB.
The harness prices on-demand invocations: no provisioned concurrency, SnapStart, data transfer, logs or savings plans.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from harness.errors import InvalidInput
from harness.tiers import billed_ms as billed
from harness.tiers import tier

DEFAULT_REGION = "us-east-1"
DEFAULT_ARCHITECTURE = "x86_64"
ARCHITECTURES = ("x86_64", "arm64")
MB_PER_GB = 1024
MAX_TMP_MB = 10240
MAX_DURATION_MS = 900_000
"""Lambda's longest timeout, 15 minutes."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the monthly volume discount; ``up_to_gb_seconds`` is None for the last one."""

    up_to_gb_seconds: float | None
    usd_per_gb_second: float


@dataclass(frozen=True, kw_only=True)
class Price:
    """The list price of Lambda in one region on one architecture."""

    region: str
    architecture: str
    steps: tuple[Step, ...]
    usd_per_request: float
    tmp_usd_per_gb_second: float
    tmp_included_mb: int
    free_requests: int
    free_gb_seconds: float
    source: str
    as_of: str

    @property
    def usd_per_gb_second(self) -> float:
        """The price of the first step, which is the list price that people quote."""
        return self.steps[0].usd_per_gb_second

    def compute_usd(self, gb_seconds: float) -> float:
        """What a month's GB-seconds cost, every step at its own price."""
        found, start = 0.0, 0.0
        for step in self.steps:
            end = math.inf if step.up_to_gb_seconds is None else step.up_to_gb_seconds
            found += max(0.0, min(gb_seconds, end) - start) * step.usd_per_gb_second
            start = end
        return found


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((files("harness") / "data" / "prices.toml").read_text(encoding="utf-8"))


@cache
def _group_by_region() -> dict[str, dict[str, Any]]:
    return {region: group for group in _table()["groups"].values() for region in group["tmp_usd_per_gb_second"]}


def regions() -> tuple[str, ...]:
    """The regions whose price is known, sorted."""
    return tuple(sorted(_group_by_region()))


@cache
def price(region: str = DEFAULT_REGION, architecture: str = DEFAULT_ARCHITECTURE) -> Price:
    """The list price of one region and architecture; `InvalidInput` where the table does not hold it."""
    if architecture not in ARCHITECTURES:
        raise InvalidInput(
            f"architecture {architecture!r} is none that Lambda offers", remedy=f"choose {' or '.join(ARCHITECTURES)}"
        )
    group = _group_by_region().get(region)
    if group is None:
        raise InvalidInput(
            f"the price of region {region!r} is not known",
            remedy=f"choose one of {', '.join(regions())}, or add it to harness/data/prices.toml",
        )
    table = _table()
    steps = table["steps"][architecture]
    exact = group.get("exact", {}).get(architecture)
    if exact is None:
        first = group.get("usd_per_gb_second", {}).get(architecture)
        if first is None:
            raise InvalidInput(
                f"the price of {architecture} in region {region!r} is not known",
                remedy="choose another architecture or region, or add it to harness/data/prices.toml",
            )
        exact = [first * share for share in steps["share"]]
    return Price(
        region=region,
        architecture=architecture,
        steps=tuple(
            Step(up_to_gb_seconds=end, usd_per_gb_second=usd)
            for end, usd in zip([*map(float, steps["up_to_gb_seconds"]), None], exact, strict=True)
        ),
        usd_per_request=group["usd_per_million_requests"] / 1e6,
        tmp_usd_per_gb_second=group["tmp_usd_per_gb_second"][region],
        tmp_included_mb=table["tmp"]["included_mb"],
        free_requests=table["free_tier"]["requests"],
        free_gb_seconds=float(table["free_tier"]["gb_seconds"]),
        source=table["source"],
        as_of=table["as_of"],
    )


def invocation_cost_usd(
    memory_mb: int,
    billed_ms: float,
    region: str = DEFAULT_REGION,
    architecture: str = DEFAULT_ARCHITECTURE,
    tmp_mb: int = 512,
) -> float:
    """What one invocation costs: billed time at the first step, one request, /tmp above what is included.

    List price: the free tier and the volume discount depend on the month, not on the invocation.
    """
    found = price(region, architecture)
    gb_seconds_tmp = max(0, tmp_mb - found.tmp_included_mb) / MB_PER_GB * billed_ms / 1000
    return (
        memory_mb / MB_PER_GB * billed_ms / 1000 * found.usd_per_gb_second
        + gb_seconds_tmp * found.tmp_usd_per_gb_second
        + found.usd_per_request
    )


@dataclass(frozen=True, kw_only=True)
class Month:
    """A month of one function, to be priced.

    ``cold_share`` of the invocations wait for an init of ``init_ms``, which is billed like the handler (since
    2025-08-01). ``failure_rate`` of them fail: they are billed as any other, for ``failure_duration_ms`` where that
    differs (a time-out is billed for the whole timeout), and each costs ``cost_per_failure_usd`` outside of Lambda.
    """

    memory_mb: int
    duration_ms: float
    invocations: int
    region: str = DEFAULT_REGION
    architecture: str = DEFAULT_ARCHITECTURE
    tmp_mb: int = 512
    cold_share: float = 0.0
    init_ms: float = 0.0
    failure_rate: float = 0.0
    failure_duration_ms: float | None = None
    cost_per_failure_usd: float = 0.0
    free_tier: bool = True

    def __post_init__(self) -> None:
        tier(self.memory_mb)
        price(self.region, self.architecture)
        for name, value, low, high in (
            ("duration_ms", self.duration_ms, 0, MAX_DURATION_MS),
            ("failure_duration_ms", self.failure_duration_ms or 0, 0, MAX_DURATION_MS),
            ("init_ms", self.init_ms, 0, MAX_DURATION_MS),
            ("invocations", self.invocations, 0, math.inf),
            ("tmp_mb", self.tmp_mb, 512, MAX_TMP_MB),
            ("cold_share", self.cold_share, 0, 1),
            ("failure_rate", self.failure_rate, 0, 1),
            ("cost_per_failure_usd", self.cost_per_failure_usd, 0, math.inf),
        ):
            if not (math.isfinite(value) and low <= value <= high):
                bound = f"from {low}" if high == math.inf else f"from {low} to {high}"
                raise InvalidInput(f"{name} is {value}", remedy=f"give a number {bound}")


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What a `Month` costs. Parts are list prices; ``free_tier_usd`` is what the free tier takes off them.

    ``total_usd = compute_usd + request_usd + tmp_usd + failure_usd - free_tier_usd``; ``lambda_usd`` is the total
    without ``failure_usd``, that is what AWS would charge. ``init_usd`` is the share of ``compute_usd`` that cold
    starts add; ``cost_usd_per_invocation`` is ``lambda_usd`` by invocation, None without one.
    """

    compute_usd: float
    request_usd: float
    tmp_usd: float
    failure_usd: float
    free_tier_usd: float
    lambda_usd: float
    total_usd: float
    gb_seconds: float
    tmp_gb_seconds: float
    init_gb_seconds: float
    init_usd: float
    billed_ms: int
    cold_billed_ms: int | None
    failures: float
    cost_usd_per_invocation: float | None
    total_usd_per_invocation: float | None
    usd_per_gb_second: float
    usd_per_request: float
    price_source: str
    price_as_of: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def bill(month: Month) -> Bill:
    """Price a month.

    The free tier is taken off first and the volume discount's steps are counted on what is left, as the examples on
    AWS's price page do. The free tier holds for the whole account: other functions may have used it up.
    """
    found = price(month.region, month.architecture)
    # Billed time is rounded up per invocation; of a mean duration the true mean is up to 1 ms less.
    warm_ms = billed(None, month.duration_ms)
    cold_ms = billed(month.init_ms, month.duration_ms)
    failed_ms = warm_ms if month.failure_duration_ms is None else billed(None, month.failure_duration_ms)
    failures = month.invocations * month.failure_rate
    init_seconds = month.invocations * month.cold_share * (cold_ms - warm_ms) / 1000
    handler_seconds = ((month.invocations - failures) * warm_ms + failures * failed_ms) / 1000
    memory_gb = month.memory_mb / MB_PER_GB
    gb_seconds = memory_gb * (handler_seconds + init_seconds)
    tmp_gb_seconds = max(0, month.tmp_mb - found.tmp_included_mb) / MB_PER_GB * (handler_seconds + init_seconds)

    compute_usd = found.compute_usd(gb_seconds)
    request_usd = month.invocations * found.usd_per_request
    compute_left, request_left = compute_usd, request_usd
    if month.free_tier:
        compute_left = found.compute_usd(max(0.0, gb_seconds - found.free_gb_seconds))
        request_left = max(0, month.invocations - found.free_requests) * found.usd_per_request
    tmp_usd = tmp_gb_seconds * found.tmp_usd_per_gb_second
    failure_usd = failures * month.cost_per_failure_usd
    lambda_usd = compute_left + request_left + tmp_usd
    total_usd = lambda_usd + failure_usd
    return Bill(
        compute_usd=compute_usd,
        request_usd=request_usd,
        tmp_usd=tmp_usd,
        failure_usd=failure_usd,
        free_tier_usd=(compute_usd - compute_left) + (request_usd - request_left),
        lambda_usd=lambda_usd,
        total_usd=total_usd,
        gb_seconds=gb_seconds,
        tmp_gb_seconds=tmp_gb_seconds,
        init_gb_seconds=memory_gb * init_seconds,
        init_usd=compute_usd * (memory_gb * init_seconds / gb_seconds) if gb_seconds else 0.0,
        billed_ms=warm_ms,
        cold_billed_ms=cold_ms if month.cold_share else None,
        failures=failures,
        cost_usd_per_invocation=lambda_usd / month.invocations if month.invocations else None,
        total_usd_per_invocation=total_usd / month.invocations if month.invocations else None,
        usd_per_gb_second=found.usd_per_gb_second,
        usd_per_request=found.usd_per_request,
        price_source=found.source,
        price_as_of=found.as_of,
    )


def ownership(before: Bill, after: Bill) -> dict[str, Any]:
    """Two bills side by side: what AWS charges less, what failures cost more, and what is left of the saving.

    A cut that lowers AWS's bill and raises the total is a false economy (``verdict`` ``false_economy``); the others
    are ``saving``, ``loss`` and ``same``.
    """
    lambda_usd = after.lambda_usd - before.lambda_usd
    failure_usd = after.failure_usd - before.failure_usd
    total_usd = after.total_usd - before.total_usd
    verdict = "same" if total_usd == 0 else "loss" if total_usd > 0 else "saving"
    if verdict == "loss" and lambda_usd < 0:
        verdict = "false_economy"
    sentence = {
        "false_economy": f"Lambda costs ${-lambda_usd:,.2f} a month less, but failures ${failure_usd:,.2f} more: "
        f"${total_usd:,.2f} a month are lost.",
        "loss": f"${total_usd:,.2f} a month more: Lambda {lambda_usd:+,.2f}, failures {failure_usd:+,.2f}.",
        "saving": f"${-total_usd:,.2f} a month less: Lambda {lambda_usd:+,.2f}, failures {failure_usd:+,.2f}.",
        "same": "Both cost the same.",
    }[verdict]
    return {
        "verdict": verdict,
        "sentence": sentence,
        "lambda_usd": lambda_usd,
        "failure_usd": failure_usd,
        "total_usd": total_usd,
        "total_ratio": after.total_usd / before.total_usd if before.total_usd else None,
    }
