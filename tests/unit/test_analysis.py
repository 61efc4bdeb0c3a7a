"""Statistics that say what they do not know; a sweep's findings; recommendations; comparisons."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from harness.analysis.compare import compare_runs, parse_threshold
from harness.analysis.presets import PRESETS, preset
from harness.analysis.recommend import STRATEGIES, Aim, balanced_score, rating_score, recommend
from harness.analysis.statistics import difference, interval, summarize, trimmed, warm_up
from harness.analysis.sweep import Reading, sweep_findings
from harness.errors import InvalidInput
from harness.invocation import Invocation, Outcome
from harness.pricing import invocation_cost_usd
from harness.tiers import billed_ms, tier


def record(memory_mb: int, duration_ms: float | None, sequence: int = 2, **changes: Any) -> Invocation:
    plain: dict[str, Any] = {
        "request_id": f"{changes.get('sandbox_id', memory_mb)}-{sequence}",
        "function": "f",
        "runtime": "python3.13",
        "memory_mb": memory_mb,
        "architecture": "x86_64",
        "image": "i",
        "rie_version": None,
        "sandbox_id": str(memory_mb),
        "sequence": sequence,
        "cold": sequence == 1,
        "phase_init": None,
        "started_at": "2026-01-01T00:00:00Z",
        "outcome": Outcome.SUCCESS,
        "duration_ms": duration_ms,
        "billed_ms": None if duration_ms is None else billed_ms(changes.get("init_ms"), duration_ms),
    }
    return Invocation(**{**plain, **changes})


def measured(memory_mb: int, durations: Sequence[float], **changes: Any) -> list[Invocation]:
    return [record(memory_mb, ms, index + 2, **changes) for index, ms in enumerate(durations)]


def noisy(mean: float, n: int = 20, spread: float = 0.02, seed: int = 0) -> list[float]:
    return list(mean * np.random.default_rng(seed).lognormal(0, spread, n))


# Statistics


def test_the_interval_holds_the_mean_and_narrows_with_n() -> None:
    few, many = summarize(noisy(100, 10)), summarize(noisy(100, 400))
    assert few is not None
    assert many is not None
    assert few.ci_low is not None
    assert few.ci_high is not None
    assert many.ci_low is not None
    assert many.ci_high is not None
    assert few.ci_low <= few.mean <= few.ci_high
    assert many.ci_high - many.ci_low < few.ci_high - few.ci_low


def test_the_same_sample_gives_the_same_interval() -> None:
    assert interval(noisy(100)) == interval(noisy(100))


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(100):
        low, high = interval(noisy(100, 25, 0.1, seed))
        assert low is not None
        assert high is not None
        held += low <= 100 * math.exp(0.1**2 / 2) <= high
    assert 86 <= held <= 99


@pytest.mark.parametrize(
    "values", [[5.0], [5.0, 6.0], [5.0] * 9, [5.0] * 8 + [6.0], [0.0, 0.0, 0.0], [16.0, 20.0, 16.0]]
)
def test_small_and_degenerate_samples_neither_warn_nor_fail(values: list[float]) -> None:
    found = summarize(values)
    assert found is not None
    if len(values) < 3:
        assert found.ci_low is None
    else:
        assert found.ci_low is not None
        assert found.ci_high is not None
        assert found.ci_low <= found.mean <= found.ci_high
    assert found.stdev is None if len(values) == 1 else found.stdev is not None


def test_an_empty_sample_has_no_figures() -> None:
    assert summarize([]) is None


def test_a_percentile_is_given_only_where_n_carries_it() -> None:
    found = [summarize(noisy(100, n)) for n in (49, 50, 99, 100, 499, 500)]
    assert [one is not None and one.p90 is not None for one in found] == [False, True, True, True, True, True]
    assert [one is not None and one.p95 is not None for one in found] == [False, False, False, True, True, True]
    assert [one is not None and one.p99 is not None for one in found] == [False, False, False, False, False, True]


def test_a_warm_up_of_three_is_found_and_counted() -> None:
    assert warm_up([300, 200, 140, *noisy(100, 17)]) == 3


def test_one_slow_start_is_told_from_chance_only_among_twenty() -> None:
    assert warm_up([300, *noisy(100, 19)]) == 1
    assert warm_up([300, *noisy(100, 6)]) == 0


@pytest.mark.parametrize("n", [5, 8, 20, 50])
def test_no_warm_up_is_seen_in_noise(n: int) -> None:
    rng = np.random.default_rng(3)
    seen = sum(warm_up(list(rng.lognormal(3, 0.1, n))) > 0 for _ in range(200))
    assert seen <= 10


def test_no_warm_up_is_seen_in_what_throttling_does_to_durations() -> None:
    rng = np.random.default_rng(4)
    assert sum(warm_up(list(rng.choice([16.0, 20.1, 24.2], 20))) > 0 for _ in range(200)) <= 10


def test_slow_ones_in_the_middle_or_at_the_end_are_no_warm_up() -> None:
    settled = noisy(100, 10)
    assert warm_up([*settled, 300, 300, *settled]) == 0
    assert warm_up([*settled, *settled, 300, 300]) == 0


@pytest.mark.parametrize("n", [3, 5, 8, 20])
def test_noise_is_called_no_difference(n: int) -> None:
    rng = np.random.default_rng(5)
    wrong = sum(
        difference(list(rng.lognormal(3, 0.1, n)), list(rng.lognormal(3, 0.1, n))).verdict != "no_difference"
        for _ in range(200)
    )
    assert wrong <= 16


def test_a_true_difference_is_told_with_its_direction_and_size() -> None:
    slower = difference(noisy(100), noisy(150, seed=1))
    assert slower.verdict == "slower"
    assert slower.ci_low is not None
    assert slower.ci_high is not None
    assert slower.ci_low < 1.5 < slower.ci_high
    assert difference(noisy(150), noisy(100, seed=1)).verdict == "faster"
    assert difference(noisy(100), noisy(150, seed=1), "median").verdict == "slower"


def test_a_certain_difference_that_matters_to_nobody_is_none() -> None:
    assert difference([100.0] * 20, [101.0] * 20).verdict == "no_difference"


def test_two_measurements_are_too_few_for_a_verdict() -> None:
    found = difference([100, 101], [200, 201])
    assert (found.verdict, found.ci_low) == ("no_difference", None)
    with pytest.raises(InvalidInput, match="no measurement"):
        difference([], [1])


def test_discarding_drops_the_same_share_at_either_end() -> None:
    assert trimmed([5, 1, 3, 2, 4], 0.2) == [2, 3, 4]
    assert trimmed([5, 1, 3], 0) == [0, 1, 2]
    with pytest.raises(InvalidInput, match=r"0\.5"):
        trimmed([1], 0.5)


# A sweep's findings


def curve() -> list[Invocation]:
    found: list[Invocation] = []
    for memory_mb in (128, 512, 1769, 3008):
        share = min(1.0, tier(memory_mb).cpu_quota_us / 20_000)
        found.append(record(memory_mb, 150 / share, 1, init_ms=200.0, cpu_ms=150.0, throttled_ms=0.0))
        found += measured(
            memory_mb,
            noisy(100 / share, seed=memory_mb),
            cpu_ms=100.0,
            throttled_ms=100 / share - 100,
            max_memory_used_mb=60,
            peak_rss_bytes=50 << 20,
        )
    return found


def test_every_figure_of_a_tier_recomputes_from_its_warm_successes() -> None:
    records = curve()
    found = {one["memory_mb"]: one for one in sweep_findings(records)["tiers"]}
    assert list(found) == [128, 512, 1769, 3008]
    for memory_mb, one in found.items():
        warm = [r for r in records if r.memory_mb == memory_mb and not r.cold]
        durations = [r.duration_ms or 0 for r in warm]
        assert one["n"] == len(warm) == 20
        assert math.isclose(one["duration_ms"]["mean"], statistics.mean(durations))
        assert math.isclose(one["duration_ms"]["p50"], statistics.median(durations))
        assert one["duration_ms"]["ci_low"] <= one["duration_ms"]["mean"] <= one["duration_ms"]["ci_high"]
        cost = statistics.mean(invocation_cost_usd(memory_mb, r.billed_ms or 0) for r in warm)
        assert math.isclose(one["cost_usd_per_invocation"], cost)
        assert one["cold"]["n"] == 1
        assert one["cold"]["init_ms"]["mean"] == 200
        assert one["outcomes"] == {"success": 21}
    assert found[128]["throttled_share"] > 0.8
    assert found[128]["memory_used_share"] == 60 / 128


def test_findings_are_json() -> None:
    text = json.dumps(sweep_findings(curve()), allow_nan=False)
    assert json.loads(text)["recommendation"]["strategy"] == "cost"


def test_recorded_cost_goes_before_the_price_table() -> None:
    (one,) = sweep_findings(measured(512, noisy(10), cost_usd=0.25))["tiers"]
    assert one["cost_usd_per_invocation"] == 0.25


def test_the_order_of_measuring_changes_nothing() -> None:
    records = curve()
    assert sweep_findings(records[::-1]) == sweep_findings(records)


def test_a_warm_up_is_reported_and_stays_in_the_headline_figures() -> None:
    durations = [300.0, 200.0, 150.0, *noisy(100, 17)]
    (one,) = sweep_findings(measured(512, durations))["tiers"]
    assert one["warm_up"]["invocations"] == 3
    assert math.isclose(one["duration_ms"]["mean"], statistics.mean(durations))
    assert one["steady"]["n"] == 17
    assert math.isclose(one["steady"]["duration_ms"]["mean"], statistics.mean(durations[3:]))


def test_each_sandbox_warms_up_for_itself() -> None:
    one = measured(512, [300, 200, 150, *noisy(100, 17)], sandbox_id="a")
    two = measured(512, [310, 210, 160, *noisy(100, 17, seed=1)], sandbox_id="b")
    assert sweep_findings([*one, *two])["tiers"][0]["warm_up"]["invocations"] == 6


def test_what_was_not_measured_stays_unknown() -> None:
    (one,) = sweep_findings(measured(512, noisy(100)))["tiers"]
    for figure in ("cpu_ms", "throttled_share", "peak_rss_bytes", "peak_memory_bytes", "memory_used_share", "cold"):
        assert one[figure] is None, figure
    assert sweep_findings(measured(512, noisy(100)))["prediction"] is None


def test_discarding_is_off_unless_asked_for() -> None:
    durations = [*noisy(100, 19), 1000.0]
    plain = sweep_findings(measured(512, durations))["tiers"][0]
    assert plain["duration_ms"]["max"] == 1000
    cut = sweep_findings(measured(512, durations), Reading(discard=0.2))["tiers"][0]
    assert (cut["n"], cut["n_measured"]) == (12, 20)
    assert cut["duration_ms"]["max"] < 1000


def test_a_tier_that_ran_out_of_memory_is_rejected_and_not_recommended() -> None:
    killed = [record(128, 50, 1, outcome=Outcome.OUT_OF_MEMORY), record(128, 50, 1, outcome=Outcome.OUT_OF_MEMORY)]
    found = sweep_findings([*killed, *measured(512, noisy(10))])
    (rejected,) = found["rejected"]
    assert rejected["memory_mb"] == 128
    assert rejected["why"] == "2 of 2 invocations ran out of memory"
    assert rejected["outcomes"] == {"out_of_memory": 2}
    assert found["recommendation"]["memory_mb"] == 512
    assert [one["memory_mb"] for one in found["tiers"]] == [512]


def test_errors_count_against_a_tier_unless_they_are_allowed() -> None:
    records = [*measured(512, noisy(10, 19)), record(512, 3000, 21, outcome=Outcome.TIMEOUT)]
    assert sweep_findings(records)["tiers"] == []
    (one,) = sweep_findings(records, Reading(allowed_error_share=0.05))["tiers"]
    assert one["n"] == 19
    assert one["outcomes"] == {"success": 19, "timeout": 1}


def test_what_the_engine_lost_is_not_the_tiers_fault() -> None:
    records = [*measured(512, noisy(10, 19)), record(512, None, 21, outcome=Outcome.ENGINE_ERROR)]
    assert sweep_findings(records)["tiers"][0]["n"] == 19
    (rejected,) = sweep_findings([record(512, None, 1, outcome=Outcome.ENGINE_ERROR)])["rejected"]
    assert "engine" in rejected["why"]


def test_variants_are_tiers_of_their_own() -> None:
    plain, heap = measured(512, noisy(100), sandbox_id="plain"), measured(512, noisy(80), sandbox_id="heap")
    found = sweep_findings([*plain, *heap], variant=lambda one: one.sandbox_id)
    assert [(one["memory_mb"], one["variant"]) for one in found["tiers"]] == [(512, "heap"), (512, "plain")]
    assert found["recommendation"]["variant"] == "heap"


def test_cold_starts_alone_can_be_judged() -> None:
    records = [record(size, 100 * 1769 / size, 1, sandbox_id=f"{size}-{k}") for size in (512, 1769) for k in range(5)]
    found = sweep_findings(records, Reading(aim=Aim(strategy="speed")))
    assert found["recommendation"]["memory_mb"] == 1769
    assert "cold starts" in found["recommendation"]["reason"]


def test_nothing_measured_recommends_nothing_and_says_so() -> None:
    found = sweep_findings([])
    assert found["tiers"] == []
    assert found["recommendation"]["memory_mb"] is None
    assert "nothing was measured" in found["recommendation"]["reason"]


# Recommendation


def shown(memory_mb: int, ms: float, cost_usd: float, **more: Any) -> dict[str, Any]:
    """A tier of findings with narrow intervals."""
    return {
        "memory_mb": memory_mb,
        "variant": None,
        "n": 20,
        "duration_ms": {"mean": ms, "ci_low": ms * 0.995, "ci_high": ms * 1.005},
        "cost_usd_per_invocation": cost_usd,
        "cost_ci_low": cost_usd * 0.995,
        "cost_ci_high": cost_usd * 1.005,
        "throttled_share": None,
        "memory_used_share": None,
        "cold": None,
        "cpu_capped": False,
        "outcomes": {"success": 20},
        **more,
    }


GUIDE = [
    shown(512, 2100, 17.7e-6),
    shown(1024, 1300, 21.9e-6),
    shown(1769, 900, 26.1e-6),
    shown(3008, 800, 39.4e-6),
]


@pytest.mark.parametrize(
    ("strategy", "memory_mb"), [("cost", 512), ("speed", 3008), ("balanced", 1769), ("rating", 3008)]
)
def test_each_strategy_chooses_what_it_says(strategy: str, memory_mb: int) -> None:
    # Above 900 ms the rating is 1 and cost decides alone; 800 ms are worth a rating of 2, that is half the cost.
    tiers = [*GUIDE[:3], shown(3008, 800, 30e-6)] if strategy == "rating" else GUIDE
    found = recommend(tiers, [], Aim(strategy=strategy))
    assert found["memory_mb"] == memory_mb
    assert f"{memory_mb} MB" in found["reason"]
    assert found["reason"].endswith(".")


def test_the_weight_of_balanced_runs_from_time_alone_to_cost_alone() -> None:
    chosen = [recommend(GUIDE, [], Aim(strategy="balanced", weight=w))["memory_mb"] for w in (0.0, 0.5, 1.0)]
    assert chosen == [3008, 1769, 512]


def test_the_balanced_score_is_the_weighted_sum_of_shares_of_the_worst() -> None:
    assert balanced_score(2, 30, highest_cost_usd=4, longest_ms=40, weight=0.25) == 0.25 * 0.5 + 0.75 * 0.75


def test_the_rating_falls_by_one_each_hundred_ms_and_never_below_one() -> None:
    assert rating_score(1, 0) == 0.1
    assert rating_score(1, 500) == 0.2
    assert rating_score(1, 900) == rating_score(1, 5000) == 1


def test_the_cheapest_names_the_tier_that_costs_the_same_and_is_faster() -> None:
    found = recommend([shown(128, 800, 2e-6), shown(512, 200, 2.01e-6)], [], Aim(strategy="cost"))
    assert found["memory_mb"] == 128
    assert found["alternatives"] == [
        {"memory_mb": 512, "variant": None, "why": "costs the same within noise and takes 25% of the time"}
    ]
    assert "512 MB costs the same within noise" in found["reason"]


def test_the_fastest_names_the_tier_that_is_as_fast_and_cheaper() -> None:
    found = recommend([shown(1769, 100.5, 3e-6), shown(3008, 100, 5e-6)], [], Aim(strategy="speed"))
    assert found["memory_mb"] == 3008
    assert found["alternatives"][0]["memory_mb"] == 1769
    assert "costs 40% less" in found["reason"]


def test_the_saving_is_against_the_current_size_by_month() -> None:
    aim = Aim(strategy="cost", current_memory_mb=3008, invocations_per_month=2_000_000)
    saving = recommend(GUIDE, [], aim)["saving"]
    assert saving["against_memory_mb"] == 3008
    assert math.isclose(saving["usd_per_month"], (39.4 - 17.7) * 2)
    assert math.isclose(saving["duration_ms_ratio"], 2100 / 800)
    assert "saves $43.40 a month" in saving["sentence"]


def test_a_faster_size_that_is_dearer_is_a_loss_and_said() -> None:
    saving = recommend(GUIDE, [], Aim(strategy="speed", current_memory_mb=512))["saving"]
    assert saving["usd_per_month"] < 0
    assert "costs $21.70 a month more" in saving["sentence"]


def test_without_the_current_size_there_is_no_saving() -> None:
    assert recommend(GUIDE, [], Aim())["saving"] is None
    assert recommend(GUIDE, [], Aim(current_memory_mb=2048))["saving"] is None


def kinds(tiers: Sequence[dict[str, Any]], rejected: Sequence[dict[str, Any]] = ()) -> set[tuple[str, int]]:
    from harness.analysis.recommend import sweep_warnings

    return {(one["kind"], one["memory_mb"]) for one in sweep_warnings(list(tiers), list(rejected))}


def test_more_memory_that_bought_nothing_is_over_allocation() -> None:
    assert kinds([shown(1769, 100, 3e-6), shown(3008, 99.5, 5e-6)]) == {("over_allocation", 3008)}
    assert kinds(GUIDE) == set()


def test_a_throttled_function_and_a_full_memory_are_under_allocation() -> None:
    assert kinds([shown(128, 100, 1e-6, throttled_share=0.9)]) == {("under_allocation_cpu", 128)}
    assert kinds([shown(128, 100, 1e-6, memory_used_share=0.81)]) == {("under_allocation_memory", 128)}
    assert kinds([shown(128, 100, 1e-6, throttled_share=0.4, memory_used_share=0.8)]) == set()


def test_time_outs_kills_small_hosts_and_small_samples_are_warned_of() -> None:
    out = {
        "memory_mb": 128,
        "variant": None,
        "why": "3 of 3 invocations ran out of memory",
        "outcomes": {"out_of_memory": 3},
    }
    late = {"memory_mb": 256, "variant": None, "why": "1 of 3 invocations timed out", "outcomes": {"timeout": 1}}
    assert kinds([], [out, late]) == {("out_of_memory", 128), ("time_outs", 256)}
    assert kinds([shown(5308, 100, 1e-6, cpu_capped=True)]) == {("host_too_few_cpus", 5308)}
    assert kinds([shown(512, 100, 1e-6, n=3)]) == {("too_few_measurements", 512)}


def test_an_aim_that_makes_no_sense_is_refused() -> None:
    for wrong in ({"strategy": "luck"}, {"weight": 1.5}, {"invocations_per_month": -1}):
        with pytest.raises(InvalidInput):
            Aim(**wrong)
    assert set(sweep_findings(curve())["recommendations"]) == set(STRATEGIES)


def test_presets_start_within_the_sizes_that_they_sweep() -> None:
    starts = {one.name: one.start_memory_mb for one in PRESETS}
    assert starts == {"api": 512, "database": 1024, "file-processing": 1769, "ml": 3008, "etl": 1769}
    for one in PRESETS:
        assert one.start_memory_mb in one.memory_mb
        assert all(tier(size) for size in one.memory_mb)
    with pytest.raises(InvalidInput, match="'games'"):
        preset("games")


# Comparison


def test_a_comparison_says_slower_faster_or_no_difference() -> None:
    base = measured(512, noisy(100))
    for factor, verdict in ((3, "slower"), (0.5, "faster"), (1, "no_difference")):
        (one,) = compare_runs(base, measured(512, noisy(100 * factor, seed=1)))["tiers"]
        assert one["verdict"] == verdict
        assert math.isclose(one["ratio"], factor, rel_tol=0.03)
        assert one["ci_low"] <= one["ratio"] <= one["ci_high"]
        assert one["baseline"]["duration_ms"]["n"] == 20


def test_tiers_that_only_one_run_has_are_named() -> None:
    found = compare_runs(
        [*measured(512, noisy(100)), *measured(1024, noisy(50))], [*measured(512, noisy(100)), *measured(256, noisy(9))]
    )
    assert [one["memory_mb"] for one in found["tiers"]] == [512]
    assert found["only_in_baseline"] == [{"memory_mb": 1024, "variant": None}]
    assert found["only_in_candidate"] == [{"memory_mb": 256, "variant": None}]
    with pytest.raises(InvalidInput, match="512 MB against 1024 MB"):
        compare_runs(measured(512, noisy(100)), measured(1024, noisy(100)))


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("duration_ms.p50>+20%", False),
        ("duration_ms.p50>+60%", True),
        ("duration_ms>+20%", False),
        ("duration_ms.mean > +60", True),
        ("duration_ms.mean>+40", False),
        ("duration_ms.max<=200", False),
        ("cost_usd_per_invocation>+5%", False),
        ("max_memory_used_mb>200", True),
        ("max_memory_used_mb>=70", False),
        ("max_memory_used_mb>+9.5", False),
        ("max_memory_used_mb>+10", True),
        ("duration_ms.p50<-10%", True),
    ],
)
def test_a_threshold_is_met_or_not(text: str, *, met: bool) -> None:
    base = measured(512, noisy(100), max_memory_used_mb=60)
    candidate = measured(512, noisy(150), max_memory_used_mb=70)
    found = compare_runs(base, candidate, [parse_threshold(text)])
    (checked,) = found["thresholds"]
    assert checked["met"] is met is found["met"]
    assert "512 MB" in checked["sentence"]


def test_a_threshold_on_what_was_not_measured_is_not_met() -> None:
    found = compare_runs(measured(512, noisy(9)), measured(512, noisy(9)), [parse_threshold("peak_rss_bytes>1")])
    assert not found["met"]
    assert "not measured" in found["thresholds"][0]["sentence"]


@pytest.mark.parametrize("text", ["", "duration_ms.p50", "speed>1", "duration_ms.p42>1", "duration_ms>20%", "n==3"])
def test_a_threshold_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_threshold(text)
    assert caught.value.remedy
