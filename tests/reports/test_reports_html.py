"""The HTML report is one file that is true to its records, loads nothing, and lets nothing break out."""

from __future__ import annotations

import base64
import gzip
import json
import math
import random
import re
import statistics
from html.parser import HTMLParser
from typing import Any

import pytest
from test_reports_document import EVIL, cost_usd, hostile_document, invoke_document, sweep_document

from harness import format as figures
from harness.reports import charts, html

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """What a browser would see: the elements with their attributes, the table rows, and the text of each element."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"} and self.rows:
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data
            if self.rows and self.rows[-1] and data.strip():
                self.rows[-1][-1] += data.strip()

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        if tag == "table":
            self.rows.append([])

    def row(self, name: str, nth: int = 0) -> list[str]:
        return [row for row in self.rows if row and row[0] == name][nth][1:]

    def document(self) -> dict[str, Any]:
        (attributes,) = [one for tag, one in self.elements if tag == "script" and one.get("id") == "document"]
        text = self.scripts[0]
        if attributes["data-encoding"] == "gzip+base64":
            text = gzip.decompress(base64.b64decode(text)).decode("ascii")
        found = json.loads(text, parse_constant=pytest.fail)
        assert isinstance(found, dict)
        return found


_DRAWN: dict[str, str] = {}


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of a page, and these tests share most of their charts."""
    draw = charts.svg

    def svg(spec: charts.Spec) -> str:
        key = json.dumps(spec)
        if key not in _DRAWN:
            _DRAWN[key] = draw(spec)
        return _DRAWN[key]

    monkeypatch.setattr(charts, "svg", svg)
    monkeypatch.setattr(html, "MAX_TIMELINES", 2)


def page(document: dict[str, Any]) -> Page:
    return Page(html.render(document))


def test_every_figure_can_be_recomputed_from_the_records_in_the_page() -> None:
    found = page(sweep_document())
    records = found.document()["invocations"]
    sizes = [128, 256, 512, 1024, 1769]
    for at, memory_mb in enumerate(sizes):
        warm = [one for one in records if one["memory_mb"] == memory_mb and not one["cold"]]
        cold = [one for one in records if one["memory_mb"] == memory_mb and one["cold"]]
        every = warm + cold

        def shown(name: str, nth: int = 0, at: int = at) -> str:
            return found.row(name, nth)[at]

        for label, field in (("duration", "duration_ms"), ("billed duration", "billed_ms"), ("CPU time", "cpu_ms"),
                             ("client time", "client_ms")):  # fmt: skip
            assert shown(f"{label}, mean") == figures.duration(statistics.mean(one[field] for one in warm))
        durations = [one["duration_ms"] for one in warm]
        assert shown("median") == figures.duration(statistics.median(durations))
        assert shown("standard deviation") == figures.duration(statistics.stdev(durations))
        assert shown("smallest") == figures.duration(min(durations))
        assert shown("largest") == figures.duration(max(durations))
        assert shown("warm invocations") == str(len(warm))
        mean_cost = statistics.mean(cost_usd(one["billed_ms"], memory_mb) for one in warm)
        assert shown("one invocation") == figures.money(mean_cost)
        assert shown("a million invocations") == figures.per_million(mean_cost)
        throttled = statistics.mean(one["throttled_ms"] / one["duration_ms"] for one in warm)
        assert shown("throttled share of the duration") == figures.share(throttled)
        assert shown("peak RSS") == figures.size(max(one["peak_rss_bytes"] for one in every))
        assert shown("peak memory (cgroup)") == figures.size(max(one["peak_memory_bytes"] for one in every))
        used = max(one["max_memory_used_mb"] for one in every)
        assert shown("max memory used, as Lambda prints it") == f"{used} MB"
        assert shown("share of the memory size") == figures.share(used / memory_mb)
        assert shown("init, mean") == figures.duration(statistics.mean(one["init_ms"] for one in cold))
        assert shown("duration, mean", 1) == figures.duration(statistics.mean(one["duration_ms"] for one in cold))
        assert shown("of all invocations") == f"{len(every)} success"


def test_the_records_in_the_page_are_the_documents_own() -> None:
    document = sweep_document()
    assert page(document).document() == document


def test_every_invocation_is_a_row() -> None:
    document = sweep_document()
    found = page(document)
    for number, record in enumerate(document["invocations"], start=1):
        (row,) = [row for row in found.rows if len(row) > 10 and row[0] == str(number)]
        assert f"{record['duration_ms']:,.2f}" in row
        assert row[-1] == "-", "no error"


def test_the_recommendation_comes_with_reason_saving_warnings_and_alternatives() -> None:
    document = sweep_document()
    text = " ".join(page(document).text.split())
    recommendation = document["findings"]["recommendation"]
    assert recommendation["reason"] in text
    assert recommendation["saving"]["sentence"] in text
    for warning in document["findings"]["warnings"]:
        assert warning["sentence"] in text
        assert warning["remedy"] in text
    for other in document["findings"]["recommendations"].values():
        assert other["reason"] in text


def test_the_chart_names_the_sizes_and_draws_what_was_predicted() -> None:
    document = sweep_document()
    text = html.render(document)
    for memory in (128, 256, 512, 1024, 1769):
        assert f'aria-label="{memory} MB: mean ' in text
    assert "Predicted duration" in text
    document["findings"]["prediction"] = None
    assert "Predicted duration" not in html.render(document)


def test_the_dots_are_the_warm_successes_alone() -> None:
    document = sweep_document()
    failed = next(one for one in document["invocations"] if one["memory_mb"] == 512 and not one["cold"])
    failed["outcome"] = "timeout"
    drawn = json.dumps(charts.duration_and_cost(document))
    assert drawn.count('"single":') == 5 * 20 - 1


def test_each_variant_has_its_panel() -> None:
    found = page(sweep_document((128, 512), 6, ("small heap", "large heap")))
    assert found.text.count("Cost of a million invocations (USD)") == 2
    assert found.row("warm invocations") == ["6", "6", "6", "6"]


def test_the_page_loads_nothing() -> None:
    for document in (sweep_document(), invoke_document(), hostile_document()):
        found = page(document)
        for tag, attributes in found.elements:
            assert tag not in {"iframe", "object", "embed", "base", "form"}
            for name in ("src", "href", "srcset", "data", "xlink:href"):
                assert attributes.get(name, "#").startswith(("#", "data:,")), (tag, attributes)
        (policy,) = [
            one["content"] for tag, one in found.elements if one.get("http-equiv") == "Content-Security-Policy"
        ]
        assert policy.startswith("default-src 'none'")
        assert "http" not in policy
    assert "@import" not in html.render(invoke_document())
    assert "url(" not in html.render(invoke_document())


def test_nothing_that_a_function_says_becomes_part_of_the_page() -> None:
    document = hostile_document()
    found = page(document)
    tags = [tag for tag, _ in found.elements]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert not set("<>&") & set(found.scripts[0]), "no end tag in any spelling, and no comment, fits into the JSON"
    kept = found.document()
    assert kept["function"]["name"] == EVIL
    assert kept["invocations"][0]["response"] == {EVIL: EVIL}
    assert kept["invocations"][3]["response"] is None, "NaN is not JSON"
    assert '</script ><!--<script></script><img src="https://evil.example/x.png"' in found.text, (
        "it is shown as the text that it is"
    )


def test_the_page_is_text_that_a_file_can_hold() -> None:
    html.render(hostile_document()).encode("utf-8")


def test_what_is_null_is_printed_as_not_measured_with_its_reason() -> None:
    document = sweep_document()
    tier = document["findings"]["tiers"][1]
    tier.update(throttled_share=None, peak_rss_bytes=None, cpu_ms=None, max_memory_used_mb=None, memory_used_share=None)
    document["invocations"][4].update(cpu_ms=None, notes=["The kernel keeps no CPU time for this sandbox."])
    tier["notes"] = ["The kernel keeps no CPU time for this sandbox."]
    found = page(document)
    for name in ("throttled share of the duration", "peak RSS", "CPU time, mean", "share of the memory size"):
        assert found.row(name)[1] == "not measured"
        assert "not measured" not in found.row(name)[2]
    row = next(row for row in found.rows if len(row) > 10 and row[0] == "5")
    assert row.count("not measured") == 1
    assert "The kernel keeps no CPU time for this sandbox." in found.text
    assert "1 invocation)" in found.text


def test_a_percentile_that_n_does_not_carry_is_not_called_unmeasured() -> None:
    assert set(page(sweep_document()).row("p99")) == {"too few"}


def test_what_could_not_be_is_neither_zero_nor_unmeasured() -> None:
    found = page(invoke_document())
    heads = next(row for row in found.rows if "init (ms)" in row)
    cold, warm, *_ = [row for row in found.rows if len(row) > 10 and row[0].isdigit()]
    assert (cold[heads.index("frozen before (ms)")], warm[heads.index("init (ms)")]) == ("-", "-")


def test_rejected_sizes_say_why() -> None:
    document = sweep_document()
    document["findings"]["rejected"] = [
        {
            "memory_mb": 160,
            "variant": None,
            "why": "3 of 4 invocations ran out of memory",
            "outcomes": {"out_of_memory": 3},
        }
    ]
    assert page(document).row("160 MB") == ["3 of 4 invocations ran out of memory", "3 out of memory"]


def test_a_host_with_too_few_cpus_is_said_first() -> None:
    document = sweep_document()
    sentence = "this host has fewer CPUs than Lambda grants"
    document["findings"]["warnings"].append({"kind": "host_too_few_cpus", "sentence": sentence, "remedy": ""})
    text = page(document).text
    assert text.index(sentence) < text.index("about other sizes")


def test_an_interrupted_run_says_so() -> None:
    assert "This run was interrupted" in page({**sweep_document(), "state": "interrupted"}).text


def test_a_document_without_findings_shows_its_timeline_and_its_records() -> None:
    found = page(invoke_document())
    assert "One sandbox over time" in found.text
    assert "Every figure" not in found.text
    assert 'aria-label="invocation 1: init 2' in html.render(invoke_document())


def test_a_sweep_in_which_nothing_worked() -> None:
    document = sweep_document()
    document["invocations"] = []
    document["findings"] = {
        "tiers": [],
        "rejected": [{"memory_mb": 128, "variant": None, "why": "timed out", "outcomes": {}}],
        "recommendation": {"memory_mb": None, "reason": "No memory size can be recommended (128 MB: timed out)."},
    }
    text = page(document).text
    assert "No memory size can be recommended (128 MB: timed out)." in text
    assert "None was measured." in text


def test_a_sweep_of_cold_starts_alone_is_judged_by_them() -> None:
    document = sweep_document()
    for tier in document["findings"]["tiers"]:
        tier.update(duration_ms=None, billed_ms=None, cpu_ms=None, client_ms=None, cost_usd_per_invocation=None, n=0)
        tier.update(cost_ci_low=None, cost_ci_high=None, throttled_share=None, steady=None)
    document["findings"]["prediction"] = None
    found = page(document)
    assert "Duration, mean of cold starts" in found.text
    assert "for a million cold invocations" in html.render(document)
    assert set(found.row("duration, mean")) == {"not measured"}
    assert "not measured" not in found.row("duration, mean", 1)


def test_one_size_is_enough_for_a_chart() -> None:
    assert "<svg" in html.render(sweep_document((512,), 3))


def test_a_run_of_thousands_stays_below_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "MAX_PAGE_BYTES", 900_000)  # a third of the room and of the records: as true, and quicker
    monkeypatch.setattr(html, "_MAX_PLAIN_JSON", 200_000)
    monkeypatch.setattr(html, "_MAX_PACKED_JSON", 320_000)
    document = sweep_document()
    chance = random.Random(1)  # noqa: S311 (made-up figures)
    many = []
    for number in range(2400):
        one = dict(document["invocations"][number % 105])
        one.update(request_id=f"{number:036d}", log_tail=chance.randbytes(400).hex(), notes=["a note " * 20])
        for name in ("duration_ms", "client_ms", "cpu_ms", "throttled_ms", "frozen_ms"):
            one[name] = chance.uniform(0, 1000)
        many.append(one)
    document["invocations"] = many
    source = html.render(document)
    assert len(source.encode()) < 900_000
    found = Page(source)
    kept = found.document()["invocations"]
    assert len(kept) == 2400
    assert "log_tail" not in kept[0]
    assert "without log_tail, response, report, times rounded to 0.0001 ms" in found.text
    assert math.isclose(kept[7]["duration_ms"], many[7]["duration_ms"], abs_tol=1e-4)
    assert "all 2400 records are in the JSON below" in found.text


def test_a_larger_run_is_packed_and_loses_nothing() -> None:
    document = sweep_document()
    document["invocations"] = [dict(one, log_tail="x" * 4000) for one in document["invocations"] * 8]
    source = html.render(document)
    assert 'data-encoding="gzip+base64"' in source
    assert Page(source).document() == document


def test_both_palettes_have_every_colour_that_a_chart_names() -> None:
    source = html.render(sweep_document((128, 512), 3, ("a", "b")))
    named = set(re.findall(r"var\((--[a-z0-9-]+)\)", source))
    assert named >= {"--chart-duration", "--chart-cost"}
    for name in named:
        assert len(re.findall(rf"{name}:", source)) >= 2, name
    assert charts.variables(charts.LIGHT).keys() == charts.variables(charts.DARK).keys()


@pytest.mark.parametrize("theme", [charts.LIGHT, charts.DARK])
def test_text_and_lines_stand_out_from_the_background(theme: charts.Theme) -> None:
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for what a chart is made of."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(colour: str) -> float:
        pair = sorted([luminance(colour), luminance(theme.background or "#ffffff")])
        return (pair[1] + 0.05) / (pair[0] + 0.05)

    for text in (theme.text, theme.muted, theme.duration, theme.cost, theme.warning):
        assert contrast(text) >= 4.5, text
    assert contrast(theme.predicted) >= 3
    assert contrast(theme.peak) >= 3


def test_a_long_sandbox_shows_its_beginning_and_says_so() -> None:
    document = invoke_document()
    first = document["invocations"][1]
    document["invocations"] = [
        {**first, "sequence": number, "started_at": f"2026-11-21T20:{number // 60:02d}:{number % 60:02d}Z"}
        for number in range(1, 200)
    ]
    assert "the first 80 of 199 invocations" in page(document).text
