"""Trends: what grows for good, told from warm-up, teeth, steps and noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis import trend
from harness.analysis.trend import Direction, judge

KB = 1024


def noise(count: int, size: float, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, count)


def test_a_line_grows_by_its_slope() -> None:
    found = judge([6e6 + 60 * KB * n for n in range(60)], material=2048)
    assert found.direction is Direction.GROWS
    assert found.slope == found.ci_low == found.ci_high == 60 * KB


def test_a_line_under_noise_grows_and_its_interval_holds_the_slope() -> None:
    values = 6e6 + 60 * KB * np.arange(60) + noise(60, 100 * KB)
    found = judge(values.tolist(), material=2048)
    assert found.direction is Direction.GROWS
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.ci_low < 60 * KB < found.ci_high


def test_a_cache_that_fills_is_flat_after_its_warm_up() -> None:
    found = judge([6e6 + 800 * KB * min(n, 11) for n in range(60)], material=2048)
    assert (found.direction, found.slope) == (Direction.FLAT, 0)
    assert found.warm_up in (11, 12)


def test_a_cache_that_fills_until_shortly_before_the_end_is_not_called_a_leak() -> None:
    found = judge([6e6 + 300 * KB * min(n, 45) for n in range(60)], material=2048)
    assert found.direction is Direction.UNCLEAR


@pytest.mark.parametrize("period", [5, 10, 17, 23, 29])
def test_a_sawtooth_is_flat_whatever_its_period(period: int) -> None:
    found = judge([6e6 + 400 * KB * ((n + 1) % period) for n in range(60)], material=2048)
    assert found.direction is Direction.FLAT
    assert found.falls_back >= 2


def test_teeth_on_a_rising_floor_grow() -> None:
    found = judge([6e6 + 100 * KB * n + 300 * KB * (n % 9) for n in range(60)], material=2048)
    assert found.direction is Direction.GROWS


def test_a_single_step_is_no_growth() -> None:
    values = 6e6 + np.where(np.arange(60) < 32, 0, 512 * KB) + noise(60, 2 * KB)
    assert judge(values.tolist(), material=2048).direction is not Direction.GROWS


def test_growth_that_fades_out_is_not_called_steady() -> None:
    values = [6e6 + 8e6 * (1 - math.exp(-n / 15)) for n in range(60)]
    assert judge(values, material=2048).direction is not Direction.GROWS


def test_a_slope_that_does_not_matter_is_flat_however_certain() -> None:
    found = judge([6e6 + 100 * n for n in range(60)], material=2048)
    assert (found.direction, found.slope) == (Direction.FLAT, 100)


def test_a_falling_series_is_flat() -> None:
    assert judge([9e6 - 10 * KB * n for n in range(40)], material=2048).direction is Direction.FLAT


def test_fewer_points_than_a_trend_needs_are_unclear() -> None:
    found = judge([6e6 + 1e6 * n for n in range(trend.MIN_POINTS - 1)], material=2048)
    assert found.direction is Direction.UNCLEAR
    assert "9 points" in found.why


def test_a_random_walk_is_no_trend_though_its_points_hang_together() -> None:
    """Each point depends on the one before, so a test that takes them for independent sees trends everywhere."""
    wrong = plain = corrected = 0
    for seed in range(60):
        walk = np.zeros(60)
        steps = noise(60, 50 * KB, seed)
        for n in range(1, 60):
            walk[n] = 0.7 * walk[n - 1] + steps[n]
        wrong += judge((6e6 + walk).tolist(), material=2048).direction is Direction.GROWS
        score, variance = trend._mann_kendall(walk)
        plain += abs(score) / math.sqrt(variance) > trend._Z
        corrected += trend.slope_and_test(walk)[3] < 0.05
    assert wrong <= 1
    assert plain > 12, "the plain test is fooled by these series; else this test would show nothing"
    assert corrected <= plain / 2


def test_autocorrelation_widens_the_interval() -> None:
    steady = noise(80, 50 * KB)
    smooth = np.convolve(noise(100, 50 * KB), np.ones(12) / 12, mode="valid")[:80]
    assert trend._autocorrelation_factor(smooth) > 2
    assert trend._autocorrelation_factor(steady) < 1.5


def test_the_slope_stands_outliers() -> None:
    values = [6e6 + 60 * KB * n for n in range(60)]
    for at in (7, 21, 40, 55):
        values[at] += 50e6
    slope, low, high, _ = trend.slope_and_test(values)
    assert slope == pytest.approx(60 * KB, rel=0.02)
    assert low <= 60 * KB <= high


def test_the_slope_is_that_of_scipy() -> None:
    from scipy.stats import theilslopes

    values = 6e6 + 3 * KB * np.arange(40) + noise(40, 30 * KB, seed=5)
    assert trend.slope_and_test(values)[0] == pytest.approx(theilslopes(values).slope)


def test_a_long_series_is_judged_like_a_short_one() -> None:
    found = judge((6e6 + 60 * KB * np.arange(4000) + noise(4000, 30 * KB)).tolist(), material=2048)
    assert found.direction is Direction.GROWS
    assert found.points == 4000
    assert found.slope == pytest.approx(60 * KB, rel=0.01)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2**33), max_size=40))
def test_no_series_breaks_it(values: list[int]) -> None:
    found = judge(values, material=2048)
    assert found.points == len(values)
    if found.slope is not None:
        assert found.ci_low is not None
        assert found.ci_high is not None
        assert found.ci_low <= found.slope <= found.ci_high


@settings(max_examples=30)
@given(st.integers(10, 80), st.floats(4096, 1e7))
def test_a_steady_leak_is_found_at_every_length_and_speed(count: int, slope: float) -> None:
    assert judge([6e6 + slope * n for n in range(count)], material=2048).direction is Direction.GROWS
