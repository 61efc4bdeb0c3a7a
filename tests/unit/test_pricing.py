"""Lambda's bill: price parts, tiers of volume, free tier, and what failures cost."""

from __future__ import annotations

import math
from typing import Any

import pytest

from harness.errors import InvalidInput
from harness.pricing import Month, bill, invocation_cost_usd, ownership, price, regions


def month(**changes: Any) -> Month:
    plain: dict[str, Any] = {"memory_mb": 1024, "duration_ms": 1000, "invocations": 1_000_000, "free_tier": False}
    return Month(**{**plain, **changes})


@pytest.mark.parametrize(
    ("memory_mb", "duration_ms", "compute_usd"),
    [(128, 8200, 17.0833), (512, 2100, 17.5), (1024, 1300, 21.6667), (1769, 900, 25.9131), (3008, 800, 39.1667)],
)
def test_a_million_invocations_cost_what_the_price_page_says(
    memory_mb: int, duration_ms: float, compute_usd: float
) -> None:
    found = bill(month(memory_mb=memory_mb, duration_ms=duration_ms))
    assert math.isclose(found.compute_usd, compute_usd, rel_tol=2e-4)
    assert math.isclose(found.request_usd, 0.20, rel_tol=1e-9)
    assert math.isclose(found.total_usd, found.compute_usd + 0.20, rel_tol=1e-12)


def test_one_invocation_is_billed_time_at_the_first_step_plus_one_request() -> None:
    assert math.isclose(invocation_cost_usd(1769, 17), 17 / 1000 * 1769 / 1024 * 0.0000166667 + 0.2e-6, rel_tol=1e-12)


def test_tmp_costs_only_above_512_mb() -> None:
    assert invocation_cost_usd(128, 1000, tmp_mb=512) == invocation_cost_usd(128, 1000)
    more = invocation_cost_usd(128, 1000, tmp_mb=10240) - invocation_cost_usd(128, 1000)
    assert math.isclose(more, 9.5 * 0.0000000309, rel_tol=1e-6)
    found = bill(month(tmp_mb=1536))
    assert math.isclose(found.tmp_usd, 1_000_000 * 0.0000000309, rel_tol=1e-12)
    assert math.isclose(found.tmp_gb_seconds, 1_000_000)


def test_every_step_of_volume_has_its_own_price() -> None:
    found = bill(month(invocations=16_000_000_000))
    expected = 6e9 * 0.0000166667 + 9e9 * 0.0000150000 + 1e9 * 0.0000133334
    assert math.isclose(found.compute_usd, expected, rel_tol=1e-12)
    on_arm = bill(month(invocations=8_000_000_000, architecture="arm64"))
    assert math.isclose(on_arm.compute_usd, 7.5e9 * 0.0000133334 + 0.5e9 * 0.0000120001, rel_tol=1e-12)


def test_the_free_tier_covers_a_small_month_to_the_cent() -> None:
    found = bill(month(memory_mb=128, duration_ms=100, free_tier=True))
    assert found.total_usd == 0
    assert math.isclose(found.free_tier_usd, found.compute_usd + found.request_usd, rel_tol=1e-12)


def test_the_free_tier_takes_400_000_gb_seconds_and_a_million_requests() -> None:
    found = bill(month(invocations=3_000_000, free_tier=True))
    assert math.isclose(found.free_tier_usd, 400_000 * 0.0000166667 + 0.20, rel_tol=1e-9)
    assert math.isclose(found.total_usd, found.compute_usd + found.request_usd - found.free_tier_usd, rel_tol=1e-12)


def test_init_is_billed_for_the_share_of_cold_starts() -> None:
    found = bill(month(duration_ms=100, cold_share=0.01, init_ms=400))
    assert found.cold_billed_ms == 500
    assert math.isclose(found.init_gb_seconds, 10_000 * 0.4, rel_tol=1e-12)
    without = bill(month(duration_ms=100)).compute_usd
    assert math.isclose(found.init_usd, found.compute_usd - without, rel_tol=1e-9)


def test_failures_cost_their_rate_times_what_each_one_costs() -> None:
    found = bill(month(memory_mb=128, failure_rate=0.02, cost_per_failure_usd=0.05))
    assert math.isclose(found.failure_usd, 1000.0, rel_tol=1e-12)
    assert math.isclose(found.total_usd, found.lambda_usd + 1000.0, rel_tol=1e-12)


def test_a_time_out_is_billed_for_the_whole_timeout() -> None:
    found = bill(month(duration_ms=100, failure_rate=0.5, failure_duration_ms=3000))
    assert math.isclose(found.gb_seconds, 500_000 * 0.1 + 500_000 * 3, rel_tol=1e-12)


def test_a_cut_that_failures_eat_up_is_a_false_economy() -> None:
    before = bill(month(memory_mb=1024, duration_ms=500))
    after = bill(month(memory_mb=512, duration_ms=900, failure_rate=0.01, cost_per_failure_usd=0.02))
    found = ownership(before, after)
    assert found["lambda_usd"] < 0 < found["total_usd"]
    assert found["verdict"] == "false_economy"
    assert ownership(before, before)["verdict"] == "same"
    assert ownership(after, before)["verdict"] == "saving"


@pytest.mark.parametrize(
    ("region", "architecture", "usd"),
    [
        ("us-east-1", "x86_64", 0.0000166667),
        ("eu-central-1", "arm64", 0.0000133334),
        ("af-south-1", "arm64", 0.00001768),
        ("ap-east-1", "x86_64", 0.00002292),
        ("eu-south-1", "x86_64", 0.0000195172),
        ("me-south-1", "arm64", 0.0000165334),
        ("eu-central-2", "x86_64", 0.0000183334),
    ],
)
def test_regions_have_their_own_price(region: str, architecture: str, usd: float) -> None:
    assert price(region, architecture).usd_per_gb_second == usd


def test_requests_cost_more_where_aws_says_so() -> None:
    assert math.isclose(bill(month(region="af-south-1")).request_usd, 0.27, rel_tol=1e-9)


def test_an_unknown_region_is_named_and_the_known_ones_are_listed() -> None:
    with pytest.raises(InvalidInput, match="'mars-north-1'") as caught:
        price("mars-north-1")
    assert all(region in caught.value.remedy for region in ("us-east-1", "eu-central-2", *regions()))


def test_a_price_that_the_table_lacks_is_refused_and_not_guessed() -> None:
    with pytest.raises(InvalidInput, match="arm64 in region 'il-central-1'"):
        invocation_cost_usd(128, 1, "il-central-1", "arm64")
    with pytest.raises(InvalidInput, match="'sparc'"):
        price("us-east-1", "sparc")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory_mb", 127),
        ("duration_ms", -1),
        ("duration_ms", math.nan),
        ("invocations", -1),
        ("tmp_mb", 511),
        ("cold_share", 1.01),
        ("failure_rate", -0.1),
        ("cost_per_failure_usd", math.inf),
        ("region", "nowhere"),
    ],
)
def test_a_month_that_cannot_be_is_refused_by_name(field: str, value: float | str) -> None:
    with pytest.raises(InvalidInput, match="memory size" if field == "memory_mb" else field):
        month(**{field: value})


def test_a_month_without_invocations_has_no_cost_per_invocation() -> None:
    found = bill(month(invocations=0))
    assert found.total_usd == 0
    assert found.cost_usd_per_invocation is None
