"""What a terminal shows of leaks, kills and loads, and what it must not let through."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from test_reports_document import EVIL
from test_reports_labs_document import (
    hostile_documents,
    killed_leak_document,
    leak_document,
    load_document,
    oom_document,
)

from harness import format as figures
from harness.reports import terminal


def shown(document: dict[str, Any], *, width: int = 100, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")
    getattr(terminal, document["kind"])(document, Console(file=file, width=width))
    file.flush()
    return raw.getvalue().decode(encoding)


def flat(document: dict[str, Any]) -> str:
    return " ".join(shown(document).split())


def row(text: str, start: str) -> list[str]:
    return next(line for line in text.splitlines() if line.strip().startswith(start)).split()


EVERY = [leak_document, killed_leak_document, oom_document, load_document]


@pytest.mark.parametrize("make", EVERY)
def test_every_line_fits_a_narrow_terminal(make: Any) -> None:
    assert all(len(line.rstrip()) <= 80 for line in shown(make(), width=80).splitlines())


@pytest.mark.parametrize("make", EVERY)
def test_a_terminal_without_unicode_gets_none(make: Any) -> None:
    text = shown(make(), encoding="ascii")
    assert "\\u" not in text
    assert "\\x" not in text


def test_a_leak_shows_verdict_points_and_what_grew() -> None:
    document = leak_document()
    text = shown(document)
    assert text.startswith("A leak  open files grow as well")
    assert document["findings"]["reason"] in flat(document)
    assert row(text, "app.kept")[1:5] == ["module", "global", f"+{figures.size(149_200).split()[0]}", "KB"]
    assert row(text, "open files")[2:] == ["leak", "7", "46", "+1", "978"]
    points = [line for line in text.splitlines() if "●" in line and "│" in line]
    assert sum(line.count("●") for line in points) == 35
    firsts = [line.index("●") for line in points]
    assert firsts == sorted(firsts, reverse=True), "what grows stands higher at the right"


def test_kills_of_a_leak_are_crosses() -> None:
    text = shown(killed_leak_document())
    bottom = next(line for line in text.splitlines() if "X" in line and "│" in line)
    assert bottom.count("X") == 2


def test_an_oom_search_shows_each_try_and_the_story() -> None:
    document = oom_document()
    text = shown(document)
    assert text.startswith("308 MB  is the smallest memory size that survives")
    table = text.split("what happened")[1]
    for one in document["findings"]["tries"]:
        assert row(table, f"{one['memory_mb']} MB")[2] == ("survived" if one["survived"] else "died")
    story = document["findings"]["kill"]
    assert "Killed: python3.13, process 4711" in text
    assert f"It grew by: {figures.size(story['growth_bytes_per_s'])} a second" in text
    for part in ("read part 80", "signal: killed", "REPORT RequestId"):
        assert part in text


def test_the_curve_climbs_to_the_limit_and_the_kill_is_marked() -> None:
    lines = shown(oom_document()).splitlines()
    limit = next(at for at, line in enumerate(lines) if "┄" in line)
    assert "X" in lines[limit]
    assert lines[limit].startswith("   307 MB")
    heights = [line.count("█") for line in lines[limit + 1 : limit + 10]]
    assert heights == sorted(heights)
    assert heights[0] > 0


def test_a_kill_without_samples_says_so() -> None:
    document = oom_document()
    document["findings"]["kill"].update(timeline=[], timeline_reason="vantage api does not show the cgroup")
    assert "Memory over time: not measured: vantage api does not show the cgroup" in flat(document)


def test_a_load_shows_times_lanes_and_the_generator() -> None:
    document = load_document()
    text = shown(document)
    findings = document["findings"]
    assert f"{findings['requests']} requests  closed loop, 5 clients" in text
    assert figures.duration(findings["client_ms"]["p50"]) in " ".join(row(text, "client time  "))
    lanes = [line for line in text.splitlines() if line.strip()[:1].isdigit() and "C" in line]
    assert len(lanes) == 5
    assert [line.count("X") for line in lanes] == [1, 1, 0, 0, 0]
    assert f"{figures.share(findings['generator']['cpu_share'])} of this host's CPUs" in text
    assert "3 requests found all 5 sandboxes busy" in flat(document)


def test_more_lanes_than_fit_are_counted() -> None:
    assert "and 54 more sandboxes" in shown(load_document(sandboxes=70, each=3))


@pytest.mark.parametrize("at", range(3))
def test_text_of_a_function_cannot_steer_the_terminal(at: int) -> None:
    document = hostile_documents()[at]
    for evil in ("\x1b[2J\x1b]0;owned\x07", "[bold red]x[/nothing]"):
        document["findings"]["notes"] = [evil]
        document["findings"]["reason"] = evil
        text = shown(document)
        assert "\x1b" not in text
        assert "\x07" not in text
        assert EVIL not in text, "a line separator is no printable character"
        if evil.startswith("["):
            assert evil in text
