"""The pages of leaks, kills, loads and warm series: true to their findings, and nothing breaks out of them."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from test_reports_document import EVIL, invoke_document
from test_reports_html import Page, drawn_once, page
from test_reports_labs_document import (
    hostile_documents,
    killed_leak_document,
    leak_document,
    load_document,
    oom_document,
    warm_document,
)

from harness import format as figures
from harness.reports import html, leak, load, oom, pages

__all__ = ["drawn_once"]  # a fixture: charts that tests share are drawn once

MB = 1 << 20


def words(document: dict[str, Any]) -> str:
    return " ".join(page(document).text.split())


@pytest.mark.parametrize(
    "make", [leak_document, killed_leak_document, oom_document, load_document, warm_document, invoke_document]
)
def test_the_document_in_the_page_is_the_documents_own(make: Any) -> None:
    document = make()
    source = html.render(document)
    assert len(source.encode()) < html.MAX_PAGE_BYTES
    assert Page(source).document() == document


def test_nothing_that_a_function_says_becomes_part_of_a_page() -> None:
    for document in hostile_documents():
        found = page(document)
        tags = [tag for tag, _ in found.elements]
        assert tags.count("script") == 2
        assert not {"img", "iframe", "object", "form"} & set(tags)
        assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
        assert '</script ><!--<script></script><img src="https://evil.example/x.png"' in found.text
        assert EVIL.encode("utf-8", "replace").decode() in found.text, "it is shown as the text that it is"
        for _, attributes in found.elements:
            for name in ("src", "href", "srcset", "data", "xlink:href"):
                assert attributes.get(name, "#").startswith(("#", "data:,"))


def test_every_colour_of_a_chart_is_one_that_the_page_knows() -> None:
    for make in (leak_document, oom_document, load_document):
        source = html.render(make())
        for name in set(re.findall(r"var\((--[a-z0-9-]+)\)", source)):
            assert len(re.findall(rf"{name}:", source)) >= 2, name


# Leaks


def test_a_leak_tells_verdict_slope_interval_and_what_is_left() -> None:
    document = leak_document()
    findings, text = document["findings"], words(document)
    assert "A leak" in text
    assert findings["reason"] in text
    assert f"+{figures.size(findings['slope_bytes_per_invocation'])}" in text
    assert f"{figures.count(findings['invocations_until_out_of_memory'])} invocations" in text
    assert "Until memory is out" in text


def test_each_invocation_is_a_point_and_the_warm_up_is_told_apart() -> None:
    document = leak_document()
    cut = document["findings"]["warm_up_invocations"]
    assert cut > 0
    kinds = [one["kind"] for one in leak.points(document)]
    assert kinds == ["warm-up"] * cut + ["judged"] * (40 - cut)
    record = document["invocations"][20]
    told = f'aria-label="after invocation {record["sequence"]}: {figures.size(record["anonymous_after_bytes"])}"'
    assert told in html.render(document)
    assert f"The first {cut} are warm-up" in words(document)


def test_points_of_the_probes_series_are_none_of_the_functions_own() -> None:
    document = leak_document(20)
    assert len(document["invocations"]) == 20 + 20 + 18
    assert len(leak.points(document)) == 20
    assert len(leak.main_records(document)) == 20


def test_the_line_is_the_findings_slope_and_the_band_its_interval() -> None:
    document = leak_document()
    spec = leak.memory(document)
    (line,) = [one["data"]["values"] for one in spec["layer"] if one["mark"]["type"] == "line"]
    steps = line[-1]["n"] - line[0]["n"]
    findings = document["findings"]
    assert (line[-1]["mb"] - line[0]["mb"]) * MB / steps == pytest.approx(findings["slope_bytes_per_invocation"])
    assert (line[-1]["high"] - line[0]["low"]) * MB / steps == pytest.approx(findings["ci_high"], rel=1e-3)
    assert line[1]["low"] == pytest.approx(line[1]["high"])


def test_a_slope_of_the_settled_series_is_not_drawn_through_the_points_of_the_other() -> None:
    document = leak_document()
    document["findings"]["slope_series"] = "settled"
    spec = leak.memory(document)
    assert not [one for one in spec["layer"] if one["mark"]["type"] == "area"]
    assert leak.growth_sentence(document["findings"]) not in str(spec)


def test_the_memory_size_is_drawn_where_it_is_near() -> None:
    assert "memory size: 512 MB" not in str(leak.memory(leak_document()))
    assert "memory size: 128 MB" in str(leak.memory(killed_leak_document()))


def test_kills_are_marked_and_counted() -> None:
    document = killed_leak_document()
    source = html.render(document)
    for sequence in (14, 28):
        assert f'aria-label="invocation {sequence}: memory ran out, the runtime was killed"' in source
    text = words(document)
    assert "2 times" in text
    assert "another life" in text
    assert "Until memory is out" not in text, "it was seen, so nothing is foreseen"


def test_what_grew_is_a_table_largest_first() -> None:
    document = leak_document()
    found = page(document)
    assert found.row("app.kept")[0] == "module global"
    assert found.row("app.kept")[1] == f"+{figures.size(149_200)}"
    assert found.row("app.kept")[-1] == "/var/task/app.py"
    assert "at 1024 MB" in words(document)


def test_a_leak_without_explanation_says_how_to_get_one() -> None:
    assert "--explain names what grew" in words(leak_document(explained=False))
    document = leak_document(explained=False)
    document["findings"]["explained"] = {"error": "there is no probe for this runtime"}
    assert "Not known: there is no probe for this runtime." in words(document)


def test_a_leak_of_descriptors_alone_is_no_green_page() -> None:
    document = leak_document(grows_bytes=0)
    assert document["findings"]["verdict"] == "no_leak"
    found = page(document)
    assert "A leak: open files" in found.text
    assert [one for tag, one in found.elements if one.get("class") == "verdict bad"]
    assert "until they run out" in words(document)
    document["findings"]["also"] = []
    assert [one for tag, one in page(document).elements if one.get("class") == "verdict good"]


def test_too_few_points_are_no_measurement_that_failed() -> None:
    document = leak_document(5, explained=False)
    assert document["findings"]["verdict"] == "inconclusive"
    text = words(document)
    assert "Inconclusive" in text
    assert "An invocationtoo few" in text


def test_a_leak_of_shared_memory_is_drawn_over_shared_memory() -> None:
    document = leak_document()
    for one in document["findings"]["series"]:
        if one["fitted_bytes"] is not None:
            one["fitted_bytes"] = one["resident_after_bytes"] - one["anonymous_after_bytes"]
    assert leak.measure(document) == "shared"
    assert {one["bytes"] for one in leak.points(document)} == {9 * MB}


def test_a_series_in_which_nothing_was_measured() -> None:
    document = leak_document(12, explained=False)
    for one in document["findings"]["series"]:
        one.update(anonymous_after_bytes=None, resident_after_bytes=None, fitted_bytes=None)
    document["findings"].update(
        verdict="inconclusive", reason="Memory cannot be measured from vantage api.", slope_bytes_per_invocation=None,
        ci_low=None, ci_high=None, invocations_until_out_of_memory=None, settled=None, also=[],
    )  # fmt: skip
    text = words(document)
    assert "Memory cannot be measured from vantage api." in text
    assert "An invocationnot measured" in text


# Kills


def test_a_kill_tells_its_story() -> None:
    document = oom_document()
    story, text = document["findings"]["kill"], words(document)
    assert "308 MB is the smallest memory size that survives" in text
    assert "The kill at 307 MB" in text
    for part in ("python3.13, process 4711", "read part 80", "signal: killed", figures.duration(story["killed_at_ms"])):
        assert part in text
    assert f"{figures.size(story['growth_bytes_per_s'])} a second" in text
    assert " ".join(story["report"].split()) in text


def test_the_curve_has_every_sample_stacked_and_the_limit() -> None:
    document = oom_document(samples=200)
    source = html.render(document)
    sample = document["findings"]["kill"]["timeline"][100]
    assert (
        f"after {figures.duration(sample['ms'])}: {figures.size(sample['memory_bytes'])} "
        f"(anonymous {figures.size(sample['anon_bytes'])}, file {figures.size(sample['file_bytes'])}"
    ) in source
    assert "memory size: 307 MB" in source
    assert "python3.13 killed" in source


def test_a_long_curve_is_thinned_and_keeps_its_peak() -> None:
    samples = [{"ms": at * 2.0, "memory_bytes": at % 997} for at in range(5000)]
    for at in range(1000, 4000, 101):  # wherever in its slice the peak lies
        samples[at]["memory_bytes"] = 10_000
    kept = oom.thinned(samples)
    assert len(kept) <= oom.MAX_SAMPLES
    assert sum(one["memory_bytes"] == 10_000 for one in kept) == 30
    assert kept[-1] is samples[-1]
    document = oom_document(samples=1500)
    assert f"of which {len(oom.thinned(oom.timeline(document)))} are drawn" in words(document)


def test_the_search_shows_each_try_and_narrows() -> None:
    document = oom_document()
    tries = document["findings"]["tries"]
    found = page(document)
    for number, one in enumerate(tries, start=1):
        row = next(row for row in found.rows if row[:2] == [str(number), f"{one['memory_mb']} MB"])
        assert row[2] == ("yes" if one["survived"] else "no")
    spans = next(layer["data"]["values"] for layer in oom.search(document)["layer"] if "data" in layer)
    widths = [one["to"] - one["from"] for one in spans]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] <= 4


def test_a_kill_without_a_timeline_says_why() -> None:
    document = oom_document()
    document["findings"]["kill"].update(timeline=[], timeline_reason="vantage api does not show the cgroup",
                                        killed_process=None, killed=[], killed_at_ms=None)  # fmt: skip
    text = words(document)
    assert "not measured: vantage api does not show the cgroup" in text
    assert "Neither the kernel's log nor the list of processes told it." in text


def test_a_function_that_no_size_saves_and_one_that_none_kills() -> None:
    lost = oom_document(needs_mb=5000)
    assert "No size saves it" in words(lost)
    safe = oom_document(needs_mb=1)
    assert safe["findings"]["kill"] is None
    text = words(safe)
    assert "Nothing kills it from 128 MB on" in text
    assert "The kill at" not in text


def test_a_death_that_is_no_kill_is_not_called_one() -> None:
    document = oom_document()
    document["findings"]["kill"].update(fate="reclaim", killed=[], killed_process=None, killed_at_ms=None,
                                        outcome="timeout", why="it timed out with 301 MB in use")  # fmt: skip
    document["findings"]["tries"][-1].update(fate="reclaim", why="it timed out with 301 MB in use")
    text = words(document)
    assert "How it ended at 307 MB" in text
    assert "The kill at" not in text
    assert "timed out at the limit" in text
    assert "Timed out at307 MB" in text


def test_a_size_that_survived_and_died_is_named() -> None:
    document = oom_document()
    document["findings"]["flaky_mb"] = [306, 307]
    assert "At 306 MB, 307 MB it survived in some tries and died in others" in words(document)


# Loads


def test_a_load_counts_what_became_of_its_requests() -> None:
    document = load_document()
    findings, text = document["findings"], words(document)
    assert f"{findings['requests']} requests" in text
    assert "2 out of memory" in text
    assert "3 throttled" in text
    assert "closed loop, 5 clients" in text
    found = page(document)
    assert found.row("duration")[0] == str(findings["duration_ms"]["n"])
    assert found.row("duration")[3] == figures.duration(findings["duration_ms"]["p50"])
    assert found.row("client time")[-1] == figures.duration(findings["client_ms"]["max"])


def test_each_sandbox_is_a_lane_with_its_spans_and_kills() -> None:
    document = load_document()
    source = html.render(document)
    lanes = load.lanes(document)
    assert [lane.number for lane in lanes] == [1, 2, 3, 4, 5]
    assert sum(len(lane.records) for lane in lanes) == 150, "a throttled request has no sandbox"
    record = lanes[2].records[7]
    assert f'aria-label="sandbox 3, invocation 8: {figures.duration(record["duration_ms"])}, success"' in source
    assert f"frozen for {figures.duration(record['frozen_ms'])}" in source
    assert source.count("cold start, init ") == 5
    assert 'aria-label="sandbox 1, invocation 15: out of memory"' in source
    assert not load.thinning(document).sentences()


def test_no_more_sandboxes_are_at_work_than_there_are() -> None:
    document = load_document()
    panel = load.sandboxes(document)["vconcat"][1]
    assert max(one["busy"] for one in panel["data"]["values"]) <= 5
    assert panel["data"]["values"][-1]["busy"] == 0


def test_a_lane_of_many_invocations_shows_its_share_of_work() -> None:
    document = load_document(sandboxes=12, each=80)
    (sentence, *_) = load.thinning(document).sentences()
    assert "too many invocations to draw each" in sentence
    assert sentence in words(document)
    origin, end = load.zero(document), load.span_s(document)
    for lane in load.lanes(document):
        shares = load.busy_shares(lane, origin, end / 50, 50)
        assert max(shares.values()) <= 1
        at_work = sum((one["duration_ms"] or 0) + (one["init_ms"] or 0) for one in lane.records) / 1000
        assert sum(shares.values()) * end / 50 == pytest.approx(at_work, rel=1e-6)


def test_more_sandboxes_than_lanes_are_said_and_kills_come_first() -> None:
    document = load_document(sandboxes=70, each=4, kills=0)
    last = load.all_lanes(document)[-1].records[-1]
    last["outcome"] = "out_of_memory"
    shown = load.lanes(document)
    assert len(shown) == load.MAX_LANES
    assert shown[-1].number == 70
    assert "40 of 70 sandboxes are drawn, those with kills first" in load.thinning(document).sentences()[0]


def test_a_load_of_thousands_stays_below_the_limit() -> None:
    document = load_document(sandboxes=50, each=160)
    source = html.render(document)
    assert len(source.encode()) < html.MAX_PAGE_BYTES
    assert len(Page(source).document()["invocations"]) == len(document["invocations"]) == 8003


def test_a_load_that_nobody_could_look_into_says_why() -> None:
    document = load_document()
    document["findings"]["peak_memory_bytes"] = None
    text = words(document)
    assert "Peak memory of allnot measured" in text
    assert "From here nobody sees what all sandboxes are charged for at one time." in text


def test_a_load_of_throttles_alone_has_no_lanes_and_no_failure_of_its_page() -> None:
    document = load_document()
    document["invocations"] = [one for one in document["invocations"] if one["outcome"] == "throttled"]
    document["findings"].update(duration_ms=None, client_ms=None, sandboxes=0, cold_starts=0, errors=0)
    assert page(document).row("duration")[3] == "not measured"


# Warm series and single invocations


def test_single_invocations_show_the_last_answer_and_its_log() -> None:
    document = invoke_document()
    document["invocations"][-1].update(
        outcome="function_error", response={"errorType": "KeyError"}, log_tail="made 4\n"
    )
    text = words(document)
    assert "4 invocations" in text
    assert "3 success, 1 function error." in text
    assert '"errorType": "KeyError"' in text
    assert "made 4" in text


def test_responses_stand_side_by_side_and_what_changed_is_marked() -> None:
    found = page(warm_document())
    assert found.row("calls") == ["1", "2", "3"]
    assert found.row("region") == ["local", "local", "local"]
    assert len([one for tag, one in found.elements if tag == "td" and one.get("class") == "changed"]) == 2
    assert "survives the freeze" in found.text


def test_the_largest_percentile_with_enough_requests_is_the_one_that_is_told() -> None:
    assert load.tail({"p90": 1.0, "p95": 2.0, "p99": None, "max": 9.0}) == ("Client time, p95", "2.00 ms")
    assert load.tail({"p90": None, "max": 9.0})[0] == "Client time, largest"
    assert pages.statistic({"p99": None}, "p99") == "too few"
    assert dataclasses.is_dataclass(load.thinning(load_document()))
