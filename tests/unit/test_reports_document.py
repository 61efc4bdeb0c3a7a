"""Made-up documents for the tests of the reports, and a check that they are consistent in themselves.

The figures are those of a handler that needs 610 ms of CPU and waits 40 ms, at five memory sizes.
"""

from __future__ import annotations

import copy
import math
import random
import statistics
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from harness.analysis.recommend import Aim
from harness.analysis.sweep import Reading, sweep_findings
from harness.invocation import Invocation, Outcome, PeakMethod, PhaseInit
from harness.tiers import billed_ms, tier

CPU_MS, WAIT_MS = 610.0, 40.0
PRICE_PER_GB_S, PRICE_PER_REQUEST = 0.0000166667, 0.2e-6
EVIL = '</script ><!--<script></script><img src="https://evil.example/x.png" onerror="alert(1)"> & \u2028 \ud800 end'


def cost_usd(billed: float, memory_mb: int) -> float:
    return billed / 1000 * memory_mb / 1024 * PRICE_PER_GB_S + PRICE_PER_REQUEST


def records(
    memory_mb: int, n: int, *, seed: int = 1, cpu_ms: float = CPU_MS, pause_ms: float = 400
) -> list[Invocation]:
    """One sandbox: a cold invocation and n warm ones."""
    chance = random.Random(seed * 10_000 + memory_mb)  # noqa: S311 (made-up figures)
    made = []
    at = datetime(2026, 11, 21, 20, 30, tzinfo=UTC) + timedelta(seconds=chance.uniform(0, 4))
    used = 36.0
    for sequence in range(1, n + 2):
        cold = sequence == 1
        init = chance.gauss(230, 6) if cold else None
        cpu = max(1.0, chance.gauss(cpu_ms * (1.25 if sequence == 2 else 1), cpu_ms * 0.015))
        vcpus = min(1.0, tier(memory_mb).vcpus)
        duration = cpu / vcpus + WAIT_MS + abs(chance.gauss(0, 9))
        used += chance.uniform(0, 0.15)
        frozen = None if cold else pause_ms * chance.uniform(0.9, 1.3)
        at += timedelta(milliseconds=frozen or 0)
        billed = billed_ms(init, duration)
        made.append(
            Invocation(
                request_id=f"{memory_mb:08d}-0000-4000-8000-{sequence:012d}",
                function="thumbnails",
                runtime="python3.13",
                memory_mb=memory_mb,
                architecture="x86_64",
                image="lambda-harness/python3.13:1a2b3c",
                rie_version="1.30",
                sandbox_id=f"sb-{memory_mb}",
                sequence=sequence,
                cold=cold,
                phase_init=PhaseInit.INIT if cold else None,
                started_at=at.isoformat().replace("+00:00", "Z"),
                outcome=Outcome.SUCCESS,
                init_ms=init,
                duration_ms=duration,
                billed_ms=billed,
                frozen_ms=frozen,
                freeze_ms=None if sequence % 7 == 0 else 0.2,
                thaw_ms=None if cold else 0.1,
                boost_lag_ms=1.2 if cold else None,
                client_ms=duration + 1.9 + (init or 0),
                cpu_ms=cpu,
                throttled_ms=max(0.0, duration - WAIT_MS - cpu),
                throttled_periods=int(duration / 20) if vcpus < 1 else 0,
                peak_rss_bytes=int((used + 9) * 2**20),
                peak_memory_bytes=int((used + 17) * 2**20),
                resident_after_bytes=int(used * 2**20),
                page_cache_bytes=6 << 20,
                processes=1,
                threads=1,
                open_files=9,
                tmp_bytes=0,
                max_memory_used_mb=int(used + 10),
                peak_method=PeakMethod.RESET,
                vantage="host",
                cgroup_version=1,
                cpu_quota_us=tier(memory_mb).cpu_quota_us,
                cpu_period_us=20_000,
                cpuset="0-1",
                memory_limit_bytes=memory_mb << 20,
                cpu_capped=memory_mb > 3538,
                cost_usd=cost_usd(billed, memory_mb),
                response={"statusCode": 200, "made": 4},
                response_bytes=28,
                log_tail="made 4 thumbnails\n",
                report=f"REPORT RequestId: {sequence}\tDuration: {duration:.2f} ms\t",
            )
        )
        at += timedelta(milliseconds=duration + (init or 0) + 2)
    return made


@cache
def _sweep(sizes: tuple[int, ...], n: int, variants: tuple[str | None, ...]) -> dict[str, Any]:
    made = {
        variant: [
            one for memory_mb in sizes for one in records(memory_mb, n, seed=at + 1, cpu_ms=CPU_MS * (1 + at / 4))
        ]
        for at, variant in enumerate(variants)
    }
    invocations = [
        {
            **one.as_dict(),
            "variant": variant,
            "sandbox_id": one.sandbox_id + (f"-{variant}" if variant else ""),
            "request_id": one.request_id + (f"-{variant}" if variant else ""),
        }
        for variant, of in made.items()
        for one in of
    ]
    invocations.sort(key=lambda one: str(one["started_at"]))
    names = {id(one): variant for variant, of in made.items() for one in of}
    findings = sweep_findings(
        [one for of in made.values() for one in of],
        Reading(
            aim=Aim(current_memory_mb=512, strategy="balanced"),
            predict_memory_mb=tuple(size for size in (192, 384, 768, 1280, 1536) if sizes[0] < size < sizes[-1]),
        ),
        variant=lambda one: names[id(one)],
    )
    return {
        "schema": "lambda-harness/1",
        "kind": "sweep",
        "created_at": "2026-11-21T20:30:00.000000Z",
        "run_id": "261121-203000-v3k",
        "host": {
            "engine": "Docker Engine",
            "engine_version": "20.10.24",
            "cgroup_version": 1,
            "cgroup_driver": "cgroupfs",
            "vantage": "host",
            "kernel": "6.18.5",
            "hz": 250,
            "cpus": 2,
            "cpu_model": "Example CPU @ 2.5GHz",
            "memory_bytes": 8 << 30,
            "harness_version": "0.1.0",
        },
        "function": {
            "name": "thumbnails",
            "runtime": "python3.13",
            "handler": "app.handler",
            "architecture": "x86_64",
            "memory_mb": 512,
            "timeout_s": 30,
        },
        "invocations": invocations,
        "findings": {**findings, "seed": 4711, "order": "interleaved"},
    }


def sweep_document(
    sizes: tuple[int, ...] = (128, 256, 512, 1024, 1769), n: int = 20, variants: tuple[str | None, ...] = (None,)
) -> dict[str, Any]:
    """A complete sweep whose findings follow from its records."""
    return copy.deepcopy(_sweep(sizes, n, variants))


def invoke_document() -> dict[str, Any]:
    """Four invocations in one sandbox, without findings."""
    found = sweep_document((512,), 3)
    return {**found, "kind": "invoke", "findings": {}}


def hostile_document() -> dict[str, Any]:
    """A sweep in which everything that a user or a function may choose tries to break out of the page."""
    found = sweep_document((128, 512), 6, (EVIL, "plain"))
    found["function"]["name"] = EVIL
    found["host"]["cpu_model"] = EVIL
    for one in found["invocations"]:
        one.update(function=EVIL, response={EVIL: EVIL}, log_tail=EVIL, error_message=EVIL, error_type=EVIL)
        one["sandbox_id"] += EVIL
        one["notes"] = [EVIL]
    found["invocations"][3]["response"] = float("nan")
    found["findings"]["rejected"] = [{"memory_mb": 192, "variant": EVIL, "why": EVIL, "outcomes": {EVIL: 3}}]
    found["findings"]["recommendation"].update(reason=EVIL, variant=EVIL, warnings=[{"sentence": EVIL, "remedy": EVIL}])
    found["findings"]["tiers"][0]["notes"] = [EVIL]
    return found


def test_the_made_up_sweep_follows_from_its_records() -> None:
    found = sweep_document()
    assert [one["memory_mb"] for one in found["findings"]["tiers"]] == [128, 256, 512, 1024, 1769]
    for made in found["findings"]["tiers"]:
        warm = [
            one["duration_ms"]
            for one in found["invocations"]
            if one["memory_mb"] == made["memory_mb"] and not one["cold"]
        ]
        assert len(warm) == made["n"] == 20
        assert math.isclose(statistics.mean(warm), made["duration_ms"]["mean"], rel_tol=1e-12)
