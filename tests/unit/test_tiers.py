"""What Lambda grants at a memory size, and how it bills."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import InvalidInput
from harness.tiers import billed_ms, tier


@pytest.mark.parametrize(
    ("memory_mb", "quota_us"),
    [(128, 1447), (256, 2894), (512, 5788), (1769, 20_000), (3008, 34_007), (10_240, 115_771)],
)
def test_the_quota_is_memory_in_parts_of_1769_of_a_20_ms_period(memory_mb: int, quota_us: int) -> None:
    found = tier(memory_mb)
    assert found.cpu_quota_us == quota_us
    assert found.cpu_period_us == 20_000
    assert found.memory_bytes == memory_mb * 1024 * 1024


@pytest.mark.parametrize(
    ("memory_mb", "vcpus"),
    [(128, 2), (3008, 2), (3009, 3), (5307, 3), (5308, 4), (7076, 4), (7077, 5), (8845, 5), (8846, 6), (10_240, 6)],
)
def test_visible_vcpus_step_up(memory_mb: int, vcpus: int) -> None:
    assert tier(memory_mb).visible_vcpus == vcpus


@given(st.integers(128, 10_240))
def test_more_memory_is_never_less_cpu_and_the_quota_never_more_than_its_vcpus(memory_mb: int) -> None:
    found = tier(memory_mb)
    assert found.cpu_quota_us <= found.visible_vcpus * found.cpu_period_us
    assert found.cpu_quota_us / found.cpu_period_us == pytest.approx(found.vcpus, abs=1 / 20_000)
    assert found.cpu_quota_us >= tier(max(128, memory_mb - 1)).cpu_quota_us


@pytest.mark.parametrize("memory_mb", [-1, 0, 64, 127, 10_241, 20_000])
def test_a_size_that_lambda_does_not_offer_is_refused_by_name(memory_mb: int) -> None:
    with pytest.raises(InvalidInput, match=f"{memory_mb} MB") as found:
        tier(memory_mb)
    assert "128 to 10240" in found.value.remedy


@pytest.mark.parametrize(
    ("init_ms", "duration_ms", "billed"),
    [
        (None, 3.01, 4),
        (110.10, 3.01, 114),
        (None, 1.0, 1),
        (0.1, 0.2, 1),
        (None, 0.0, 1),
        (100.1, 199.9, 300),  # binary dust must not add a millisecond
        (0.07, 0.93, 1),
        (None, 1000.01, 1001),
    ],
)
def test_billed_is_init_and_duration_rounded_up(init_ms: float | None, duration_ms: float, billed: int) -> None:
    assert billed_ms(init_ms, duration_ms) == billed


@given(st.integers(0, 10_000_000), st.integers(0, 90_000_000))
def test_billed_is_exact_for_figures_of_two_decimals(init_hundredths: int, duration_hundredths: int) -> None:
    total = init_hundredths + duration_hundredths
    assert billed_ms(init_hundredths / 100, duration_hundredths / 100) == max(1, -(-total // 100))
    assert billed_ms(None, duration_hundredths / 100) == max(1, math.ceil(duration_hundredths / 100 - 1e-6))
