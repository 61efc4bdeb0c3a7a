"""What the records of several hosts say: how much hosts differ, when that is noise, and what a recommendation rests on."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from test_sweep_plan import record

from harness.analysis.hosts import host_findings
from harness.analysis.sweep import sweep_findings
from harness.invocation import WORKER_LOST, Invocation, Outcome
from harness.reports import export, hosts
from harness.tiers import billed_ms

SIZES = (128, 512, 1024, 1769)


def measured(
    slower: Mapping[str, float],
    *,
    sizes: Sequence[int] = SIZES,
    sandboxes: int = 2,
    each: int = 5,
    between: float = 0.0,
    within: float = 0.01,
    seed: int = 1,
) -> list[Invocation]:
    """Records of hosts that take so many times as long; ``between`` and ``within`` sandboxes there is noise."""
    chance = random.Random(seed)  # noqa: S311
    found = []
    for host, factor in slower.items():
        for size in sizes:
            for sandbox in range(sandboxes):
                shift = chance.gauss(0, between)
                for number in range(each):
                    ms = 100_000 / size * factor * math.exp(shift + chance.gauss(0, within))
                    found.append(
                        record(
                            size,
                            duration_ms=ms,
                            billed_ms=billed_ms(None, ms),
                            host_id=host,
                            sandbox_id=f"{host}-{size}-{sandbox}",
                            sequence=number + 2,
                            request_id=f"{host}-{size}-{sandbox}-{number}",
                        )
                    )
    return found


def findings(records: Sequence[Invocation]) -> dict[str, Any]:
    found = host_findings(records, lambda one: one.variant)
    assert found is not None
    return found


def test_one_host_is_compared_with_nothing() -> None:
    assert sweep_findings(measured({"a": 1.0}))["hosts"] is None
    assert sweep_findings([replace(each, host_id=None) for each in measured({"a": 1.0})])["hosts"] is None


def test_a_hosts_ratio_is_the_geometric_mean_of_the_ratios_of_medians_at_the_same_size() -> None:
    found = findings(measured({"a": 1.0, "b": 1.5}, within=0.0))
    ratio = found["ratios"][0]
    assert (found["reference_host_id"], ratio["host_id"], ratio["verdict"]) == ("a", "b", "slower")
    assert ratio["ratio"] == pytest.approx(1.5)
    assert [each["memory_mb"] for each in ratio["sizes"]] == list(SIZES)
    assert all(each["ratio"] == pytest.approx(1.5) for each in ratio["sizes"])
    assert ratio["ci_low"] == pytest.approx(1.5) == ratio["ci_high"]


def test_sizes_are_not_taken_for_hosts_where_a_host_lacks_some() -> None:
    """Means over all sizes would call the host slow that measured the small ones."""
    records = measured({"a": 1.0}) + measured({"b": 1.0}, sizes=(128, 512))
    found = findings(records)
    assert not found["mixed"]
    assert found["ratios"][0]["ratio"] == pytest.approx(1, abs=0.02)
    assert found["reference_host_id"] == "a", "the one with most sizes"


@pytest.mark.parametrize("between", [0.0, 0.05])
def test_hosts_that_are_alike_are_seldom_said_to_differ(between: float) -> None:
    said = [
        findings(measured({"a": 1.0, "b": 1.0}, between=between, within=0.05, seed=seed))["mixed"] for seed in range(40)
    ]
    assert sum(said) <= 6, "5 % by intention; the chance of 7 in 40 is below 1 %"


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(40):
        one = findings(measured({"a": 1.0, "b": 1.1}, between=0.05, within=0.05, seed=seed))["ratios"][0]
        held += one["ci_low"] <= 1.1 <= one["ci_high"]
    assert held >= 34


def test_a_difference_that_many_invocations_in_one_sandbox_show_is_no_difference_between_hosts() -> None:
    """A sandbox is the unit: two of them differ by more than the invocations in each."""
    alike = [
        findings(measured({"a": 1.0, "b": 1.0}, each=100, between=0.1, within=0.001, seed=seed))["mixed"]
        for seed in range(20)
    ]
    assert sum(alike) <= 4


def test_a_difference_at_some_sizes_alone_is_found_and_told() -> None:
    records = measured({"a": 1.0, "b": 1.0}, within=0.02)
    records = [
        replace(each, duration_ms=each.duration_ms * 1.6)
        if each.host_id == "b" and each.memory_mb == 1769 and each.duration_ms
        else each
        for each in records
    ]
    found = findings(records)
    assert found["mixed"]
    assert [
        (one["memory_mb"], one["verdict"]) for one in found["ratios"][0]["sizes"] if one["verdict"] != "no_difference"
    ] == [(1769, "slower")]
    assert "1769 MB" in found["sentence"]


def test_one_per_cent_is_no_difference_however_certain() -> None:
    found = findings(measured({"a": 1.0, "b": 1.01}, within=0.0))
    assert found["ratios"][0]["ci_low"] == pytest.approx(1.01)
    assert (found["ratios"][0]["verdict"], found["mixed"]) == ("no_difference", False)


def test_two_values_have_no_interval_and_no_verdict() -> None:
    one = findings(measured({"a": 1.0, "b": 2.0}, sizes=(512,), sandboxes=1, each=2))["ratios"][0]
    assert (one["ci_low"], one["ci_high"], one["verdict"]) == (None, None, "no_difference")
    assert (
        "too few invocations" in findings(measured({"a": 1.0, "b": 2.0}, sizes=(512,), sandboxes=1, each=2))["sentence"]
    )


def test_where_hosts_differ_the_recommendation_is_one_hosts_and_the_figures_are_said_to_be_mixed() -> None:
    records = measured({"a": 1.0, "b": 2.0})
    found = sweep_findings(records)
    alone = sweep_findings([each for each in records if each.host_id == "a"])
    assert found["hosts"]["mixed"]
    assert found["recommendation"]["host_id"] == "a"
    assert found["recommendation"]["score"] == alone["recommendation"]["score"]
    assert found["recommendation"]["memory_mb"] == alone["recommendation"]["memory_mb"]
    assert found["recommendation"]["reason"].endswith("Judged on host a alone.")
    assert {each["host_id"] for each in found["recommendations"].values()} == {"a"}
    assert [each["n"] for each in found["tiers"]] == [20] * 4, "a size's own figures stay those of all its records"
    assert [each["n"] for each in found["hosts"]["by_host"][0]["tiers"]] == [10] * 4
    assert "Every host by itself comes to the same choice, within noise." in found["hosts"]["sentence"]
    assert "up to 10" in found["hosts"]["sentence"], "by how much: a hundred per cent and some noise"
    assert all(each["ratio"] == pytest.approx(2, rel=0.05) for each in found["hosts"]["spread"])


def test_where_hosts_do_not_differ_everything_rests_on_all_records() -> None:
    records = measured({"a": 1.0, "b": 1.0}, within=0.05)
    found = sweep_findings(records)
    alone = sweep_findings([replace(each, host_id=None) for each in records])
    assert not found["hosts"]["mixed"]
    assert "host_id" not in found["recommendation"]
    assert found["recommendation"] == alone["recommendation"]
    assert "do not differ beyond noise" in found["hosts"]["sentence"]
    assert "choice" not in found["hosts"]["sentence"], "what differs by noise is nothing to report"


def test_a_host_that_comes_to_another_choice_is_named() -> None:
    """On b the largest size is so much faster that it is the cheapest."""
    records = [
        replace(each, billed_ms=billed_ms(None, each.duration_ms / 3), duration_ms=each.duration_ms / 3, cost_usd=None)
        if each.host_id == "b" and each.memory_mb == 1769 and each.duration_ms
        else each
        for each in measured({"a": 1.0, "b": 1.0})
    ]
    found = sweep_findings(records)["hosts"]
    assert found["by_host"][1]["recommended_memory_mb"] == 1769 != found["by_host"][0]["recommended_memory_mb"]
    assert "comes to another choice (b: 1769 MB)" in found["sentence"]


def test_a_size_that_failed_on_one_host_is_recommended_by_none() -> None:
    records = measured({"a": 1.0, "b": 2.0})
    out = record(128, cold=True, outcome=Outcome.OUT_OF_MEMORY, host_id="b", request_id="out")
    found = sweep_findings([*records, out])
    assert [each["memory_mb"] for each in found["rejected"]] == [128]
    assert found["recommendation"]["memory_mb"] != 128
    assert all(each["memory_mb"] != 128 for host in found["hosts"]["by_host"] for each in host["tiers"])


def test_what_was_lost_counts_as_no_invocation_and_is_warned_of() -> None:
    lost = record(
        128,
        cold=True,
        outcome=Outcome.ENGINE_ERROR,
        error_type=WORKER_LOST,
        error_message="lost at 128 MB on host b (worker w): 6 of its invocations: it went away",
        host_id="b",
        duration_ms=None,
    )
    found = sweep_findings([*measured({"a": 1.0, "b": 1.0}), lost])
    assert [one["invocations"] for one in found["hosts"]["by_host"]] == [40, 40]
    assert found["warnings"][-1]["kind"] == "lost_with_a_worker"
    assert found["warnings"][-1]["sentence"].startswith("Lost at 128 MB on host b")
    nothing = sweep_findings([*measured({"a": 1.0}), lost])["hosts"]
    assert nothing["ratios"][0]["ratio"] is None
    assert "cannot be compared" in nothing["sentence"]


def test_cold_starts_are_compared_where_nothing_else_was_measured() -> None:
    records = [
        replace(each, cold=True, sandbox_id=each.request_id) for each in measured({"a": 1.0, "b": 1.5}, within=0.02)
    ]
    assert findings(records)["ratios"][0]["verdict"] == "slower"


def test_the_figures_of_the_choice_are_those_of_the_host_it_rests_on() -> None:
    records = measured({"a": 1.0, "b": 2.0})
    found = sweep_findings(records)
    document = {"findings": found, "invocations": [each.as_dict() for each in records]}
    chosen = export.power_tuning(document)["results"]
    of_reference = found["hosts"]["by_host"][0]["tiers"]
    assert chosen["duration"] == next(
        each["duration_ms"]["mean"] for each in of_reference if each["memory_mb"] == chosen["power"]
    )
    assert [row[0] for row in hosts.comparison(document)] == ["a", "b"]
    assert hosts.comparison(document)[1][4:7] == (
        "2.00 times",
        hosts.comparison(document)[1][5],
        "slower",
    )
