"""Five sample functions, over memory and CPU, show what their READMEs say. `make samples` has to have run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ROOT

if TYPE_CHECKING:
    from conftest import Lab

    from harness.engine.client import EngineFacts

SAMPLES = ROOT / "sample_functions"
RESIZING = ["image_resize_python", "image_resize_node"]
GC_TUNING = SAMPLES / "gc_tuning_node"
LAMBDAS_OWN_HEAP_LIMIT_MB = 557  # at 512 MB: an old space of 461 MB, and what V8 allows a young one beside it


def records(lab: Lab, name: str, *arguments: object, event: str = "default", expect: int = 0) -> list[dict[str, Any]]:
    folder = SAMPLES / name
    events = ("-e", folder / f"events/{event}.json")
    found = lab.document("invoke", folder, "--no-pull", *events, *arguments, expect=expect)["invocations"]
    assert isinstance(found, list)
    return found


def responses(lab: Lab, name: str, *arguments: object, event: str = "default") -> list[dict[str, Any]]:
    return [record["response"] for record in records(lab, name, *arguments, event=event)]


@pytest.mark.parametrize("name", RESIZING)
def test_a_photograph_of_2_mb_is_scaled_to_three_widths(lab: Lab, name: str) -> None:
    (found,) = responses(lab, name, "-m", 1769)
    assert 1_900_000 < found["source"]["bytes"] < 2_200_000
    assert [each["width"] for each in found["made"]] == [1600, 800, 320]
    assert [each["height"] for each in found["made"]] == [1200, 600, 240]
    assert all(each["bytes"] > 1000 for each in found["made"])


def test_resizing_needs_the_same_cpu_at_every_memory_size_and_is_throttled_less_the_more_there_is(lab: Lab) -> None:
    small, large = (records(lab, "image_resize_python", "-m", memory_mb)[0] for memory_mb in (512, 1769))
    assert small["throttled_periods"] > 10
    assert large["throttled_periods"] <= 2
    assert small["response"]["made"] == large["response"]["made"]


def test_a_jpeg_decoded_at_a_fraction_of_its_size_needs_less_memory(lab: Lab) -> None:
    whole, fraction = (
        records(lab, "image_resize_python", "-m", 1769, event=event)[0]["peak_rss_bytes"]
        for event in ("default", "shrink_on_load")
    )
    assert whole - fraction > 10 * 1024 * 1024


def test_widths_at_the_same_time_use_more_than_one_cpu(lab: Lab, facts: EngineFacts) -> None:
    if facts.cpus < 2:
        pytest.skip("the engine has one CPU")
    one, several = (
        responses(lab, "image_resize_node", "-m", 3008, event=event)[0] for event in ("default", "parallel")
    )
    assert several["made"] == one["made"]
    assert several["cpu_share"] > one["cpu_share"]


@pytest.mark.parametrize("name", RESIZING)
def test_a_sample_without_its_packages_says_what_to_run(lab: Lab, name: str) -> None:
    bare = lab.folder / f"bare-{name}"
    leave_out = shutil.ignore_patterns("node_modules", "python", "picture")
    shutil.copytree(SAMPLES / name, bare, ignore=leave_out)
    (found,) = lab.document("invoke", bare, "--no-pull", expect=5)["invocations"]
    assert found["outcome"] == "init_error"
    assert "make samples" in found["error_message"]


def test_the_benchmark_counts_the_collections_that_happened(lab: Lab) -> None:
    few, many, waiting = (
        responses(lab, "benchmark_node", event=event)[0]["metrics"] for event in ("few", "default", "waiting")
    )
    assert few["gcEvents"] < many["gcEvents"] == sum(many["gcKinds"].values())
    assert many["gcTime"] > 0
    assert (few["cpuIntensive"], many["cpuIntensive"]) == (False, True)
    assert waiting["executionTime"] >= 299
    assert waiting["cpuIntensive"] is False, "waiting is no work, however long it takes"


def test_the_benchmark_is_cold_once_in_a_sandbox(lab: Lab) -> None:
    found = [each["metrics"]["coldStart"] for each in responses(lab, "benchmark_node", "-n", 3, event="few")]
    assert found == [True, False, False]


@pytest.mark.parametrize("memory_mb", [128, 3008])
def test_the_same_work_is_cpu_bound_at_every_memory_size(lab: Lab, memory_mb: int) -> None:
    (found,) = responses(lab, "benchmark_node", "-m", memory_mb)
    assert found["metrics"]["cpuIntensive"] is True


def test_the_watch_warns_at_80_percent_of_the_resident_memory_where_the_heap_alone_would_not(lab: Lab) -> None:
    little, much, buffers = (
        records(lab, "memory_manager_node", event=event)[0] for event in ("little", "default", "buffers")
    )
    assert little["response"]["warnings"] == 0
    assert "memory above" not in little["log_tail"]
    for found in (much, buffers):
        assert found["response"]["warnings"] >= 1
        assert found["response"]["peak_share"]["rss"] > 0.8
        assert found["response"]["peak_share"]["heap"] < 0.8
        assert "memory above 80 % of 256 MB" in found["log_tail"]
    assert buffers["response"]["peak_share"]["heap"] < 0.1


def test_a_timer_that_is_cleaned_up_leaves_none_and_one_that_is_not_comes_back_after_the_freeze(lab: Lab) -> None:
    assert {each["timers_left_running"] for each in responses(lab, "memory_manager_node", "-n", 2, event="little")} == {
        0
    }
    first, second = responses(lab, "memory_manager_node", "-n", 2, "--gap", 1, event="no_cleanup")
    assert (first["timers_left_running"], second["timers_left_running"]) == (1, 2)
    assert first["checks_of_earlier_invocations"] == 0
    assert second["checks_of_earlier_invocations"] > 0
    assert second["latest_of_them_ms"] > 800


def test_what_the_guide_puts_into_node_options_is_overridden_or_refused(lab: Lab) -> None:
    for flag in ("--max-old-space-size=1024", "--max-semi-space-size=128"):
        (record,) = records(lab, "gc_tuning_node", "--env", f"NODE_OPTIONS={flag}")
        assert record["response"]["flags"]["node_options"] == flag
        assert record["response"]["heap_limit_mb"] == LAMBDAS_OWN_HEAP_LIMIT_MB
    for flag in ("--gc-interval=100", "--optimize-for-size"):
        done = lab.cli("invoke", GC_TUNING, "--no-pull", "--env", f"NODE_OPTIONS={flag}", expect=5)
        assert re.search(rf"{flag.partition('=')[0]}=? is not allowed in NODE_OPTIONS", done.stderr)


def test_behind_the_options_of_the_bootstrap_flags_take_effect(lab: Lab) -> None:
    (plain,) = responses(lab, "gc_tuning_node")
    (old,) = responses(lab, "gc_tuning_node", "--env", "V8_FLAGS=--max-old-space-size=1024")
    (small,) = responses(lab, "gc_tuning_node", "--env", "V8_FLAGS=--max-semi-space-size=1")
    assert plain["heap_limit_mb"] == LAMBDAS_OWN_HEAP_LIMIT_MB
    assert old["heap_limit_mb"] > 1024
    assert small["collections"]["young"] > 3 * plain["collections"]["young"]
    assert small["peak_rss_mb"] < plain["peak_rss_mb"]


def test_chunks_keep_the_peak_low_and_forced_collections_are_full_ones(lab: Lab) -> None:
    chunked, at_once, forced = (
        responses(lab, "gc_tuning_node", event=event)[0] for event in ("default", "all_at_once", "collect")
    )
    assert chunked["bytes"] == at_once["bytes"] == forced["bytes"]
    assert chunked["peak_heap_mb"] < at_once["peak_heap_mb"]
    assert forced["collections"]["others"] >= 30 > chunked["collections"]["others"]


def locks() -> list[Path]:
    return sorted(path for path in SAMPLES.glob("*/package-lock.json"))


@pytest.mark.parametrize("lock", locks(), ids=lambda lock: lock.parent.name)
def test_a_lock_file_fixes_every_byte_and_names_no_registry(lock: Path) -> None:
    packages = json.loads(lock.read_text())["packages"]
    for name, entry in packages.items():
        if name and not entry.get("resolved", "").startswith(("file:", "vendor/")) and not name.startswith("vendor/"):
            assert "resolved" not in entry, name
            assert entry["integrity"].startswith("sha512-"), name
