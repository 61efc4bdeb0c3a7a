"""The prediction against what real Lambda measured, and against arithmetic."""

from __future__ import annotations

import csv
import itertools
import math
import statistics
from importlib.resources import files
from typing import Any

import pytest

from harness.analysis.predict import (
    MODEL_ERROR,
    Scheduler,
    Work,
    closed_form_ms,
    host_scheduler,
    predict,
    prediction_of,
    work_of,
)
from harness.errors import InvalidInput


def cpu(ms: float, wait_ms: float = 0.0) -> Work:
    return Work(serial_cpu_ms=ms, parallel_cpu_ms=0.0, wait_ms=wait_ms, parallelism=1)


def one(work: Work, memory_mb: int, **options: Any) -> float:
    return predict(work, [memory_mb], **options)[0].duration_ms


def real_lambda() -> dict[int, float]:
    text = (files("harness") / "data" / "lambda_cpu_curve.csv").read_text(encoding="utf-8")
    return {int(row["memory_mb"]): float(row["handler_mean"]) for row in csv.DictReader(text.splitlines())}


def test_the_tick_model_lies_on_the_curve_that_real_lambda_measured() -> None:
    real = real_lambda()
    found = predict(cpu(16.0), list(real))
    error = statistics.fmean(abs(point.duration_ms / real[point.memory_mb] - 1) for point in found)
    assert error <= MODEL_ERROR
    even = statistics.fmean(abs(point.closed_form_ms / real[point.memory_mb] - 1) for point in found)
    assert even > 5 * error, "spreading the quota evenly is no substitute"


def test_no_memory_size_is_far_off_the_real_curve() -> None:
    real = real_lambda()
    worst = max(abs(point.duration_ms / real[point.memory_mb] - 1) for point in predict(cpu(16.0), list(real)))
    assert worst < 0.2


def test_a_long_handler_takes_its_cpu_time_over_its_share() -> None:
    share = math.floor(20_000 * 256 / 1769) / 20_000
    assert math.isclose(one(cpu(5000), 256), 5000 / share, rel_tol=0.01)
    assert math.isclose(closed_form_ms(cpu(5000), 256), 5000 / share, rel_tol=1e-9)


def test_length_has_no_step_where_the_simulation_ends_and_the_steady_rate_begins() -> None:
    durations = [one(cpu(ms), 512) for ms in (110, 119, 120, 121, 130)]
    assert durations == sorted(durations)
    assert durations[3] - durations[1] < 3 * 2 / 0.289


def test_with_one_vcpu_nothing_is_stopped() -> None:
    assert math.isclose(one(cpu(300), 1769), 300, rel_tol=0.02)


def test_waiting_needs_no_quota() -> None:
    assert math.isclose(one(cpu(0.5, wait_ms=1000), 128), 1000.5, rel_tol=0.01)


def test_the_quota_that_waiting_refills_makes_what_follows_faster() -> None:
    together = one(cpu(8.0), 512)
    apart = one(cpu(8.0, wait_ms=200), 512) - 200
    assert apart < together + 1e-6
    assert one(cpu(40.0, wait_ms=200), 256) - 200 < one(cpu(40.0), 256)


def test_more_memory_never_makes_cpu_bound_work_slower_by_more_than_a_tick() -> None:
    found = [point.duration_ms for point in predict(cpu(50.0), range(128, 1770, 64))]
    assert all(later <= earlier + 4 for earlier, later in itertools.pairwise(found))


def test_one_thread_gains_nothing_above_one_vcpu_and_several_do() -> None:
    assert math.isclose(one(cpu(400), 1769), one(cpu(400), 10240), rel_tol=0.02)
    several = Work(serial_cpu_ms=0, parallel_cpu_ms=600, wait_ms=0, parallelism=6)
    assert math.isclose(one(several, 10240), 600 / (115.771 / 20), rel_tol=0.05)
    assert math.isclose(one(several, 1769), 600, rel_tol=0.02)


def test_threads_are_capped_by_the_vcpus_that_a_tier_shows() -> None:
    several = Work(serial_cpu_ms=0, parallel_cpu_ms=600, wait_ms=0, parallelism=6)
    assert closed_form_ms(several, 3008) == pytest.approx(600 / (34.007 / 20), rel=1e-3)
    two = Work(serial_cpu_ms=0, parallel_cpu_ms=600, wait_ms=0, parallelism=2)
    assert closed_form_ms(two, 10240) == 300


def test_cpu_time_below_the_duration_is_one_thread_and_waiting() -> None:
    found = work_of(cpu_ms=30, duration_ms=100, throttled_ms=0, memory_mb=1769)
    assert (found.serial_cpu_ms, found.parallel_cpu_ms, found.wait_ms) == (30, 0, 70)


def test_being_stopped_is_not_waiting() -> None:
    assert work_of(cpu_ms=30, duration_ms=100, throttled_ms=60, memory_mb=512).wait_ms == 10


def test_cpu_time_above_the_duration_is_several_threads() -> None:
    found = work_of(cpu_ms=240, duration_ms=100, throttled_ms=0, memory_mb=10240)
    assert found.parallelism == 6
    assert math.isclose(found.cpu_ms, 240)
    assert math.isclose(found.serial_cpu_ms + found.parallel_cpu_ms / 6, 100)


def test_a_finer_tick_stops_the_group_sooner() -> None:
    coarse, fine = Scheduler(resumes_at_tick=False, tick_ms=10), host_scheduler(1000)
    assert one(cpu(16), 256, scheduler=fine) > one(cpu(16), 256, scheduler=coarse)


def test_the_error_that_is_stated_widens_when_it_is_unknown_when_the_waiting_happens() -> None:
    plain, waits = predict(cpu(30), [256])[0], predict(cpu(30, wait_ms=100), [256])[0]
    assert plain.low_ms < plain.duration_ms < plain.high_ms
    assert waits.high_ms - waits.low_ms > plain.high_ms - plain.low_ms


def tier(memory_mb: int, duration_ms: float, cpu_ms: float | None, **more: Any) -> dict[str, Any]:
    return {
        "memory_mb": memory_mb,
        "duration_ms": {"mean": duration_ms},
        "cpu_ms": None if cpu_ms is None else {"mean": cpu_ms},
        "throttled_share": 0.0,
        "cpu_capped": False,
        **more,
    }


def test_a_sweep_is_predicted_from_its_best_provisioned_tier_and_the_error_is_stated() -> None:
    found = prediction_of([tier(1769, 100, 99), tier(512, 345, 99)], [128, 1024])
    assert found is not None
    assert found["from_memory_mb"] == 1769
    assert [point["memory_mb"] for point in found["tiers"]] == [128, 512, 1024, 1769]
    (against,) = found["against_measured"]
    assert against["memory_mb"] == 512
    assert math.isclose(found["error"], abs(against["relative_error"]))
    assert found["error"] < 0.1


def test_a_tier_that_the_host_could_not_grant_is_not_the_source() -> None:
    found = prediction_of([tier(1769, 100, 99), tier(3008, 60, 99, cpu_capped=True)])
    assert found is not None
    assert found["from_memory_mb"] == 1769


def test_a_source_below_one_vcpu_is_said() -> None:
    found = prediction_of([tier(512, 345, 99, throttled_share=0.7)])
    assert found is not None
    assert any("512 MB" in note for note in found["notes"])
    assert found["error"] is None


def test_without_cpu_figures_nothing_is_predicted() -> None:
    assert prediction_of([tier(1769, 100, None)]) is None
    assert prediction_of([]) is None


def test_what_cannot_be_predicted_from_is_refused() -> None:
    with pytest.raises(InvalidInput, match="0 ms"):
        work_of(cpu_ms=1, duration_ms=0, throttled_ms=0, memory_mb=1769)
    with pytest.raises(InvalidInput, match="no memory size"):
        predict(cpu(1), [])
    with pytest.raises(InvalidInput, match="HZ is 0"):
        host_scheduler(0)


def test_a_throttled_tier_shows_several_threads_where_its_cpu_exceeds_the_duration() -> None:
    # Two threads of 170 ms each at 3008 MB: 1.7 vCPUs, so both are stopped for 15 % of 200 ms.
    found = work_of(cpu_ms=340.0, duration_ms=200.0, throttled_ms=60.0, memory_mb=3008)
    assert found.parallelism == 2
    assert found.parallel_cpu_ms == pytest.approx(340.0)
    assert found.serial_cpu_ms == pytest.approx(0.0)
