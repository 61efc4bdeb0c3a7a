"""What a terminal shows of a run, and what it must not let through."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from test_reports_document import EVIL, hostile_document, sweep_document

from harness.reports import terminal


def shown(document: dict[str, Any], *, width: int = 100, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")
    terminal.sweep(document, Console(file=file, width=width))
    file.flush()
    return raw.getvalue().decode(encoding)


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(start))


def test_a_sweep_shows_each_size_its_bars_and_the_verdict() -> None:
    document = sweep_document()
    text = shown(document)
    assert line_of(text, "512 MB").split() == [
        "512",
        "MB",
        "20",
        "2.19",
        "s",
        "2.16",
        "s",
        "$18.43",
        "70",
        "%",
        "47",
        "MB",
    ]
    assert " ".join(document["findings"]["recommendation"]["reason"].split()) in " ".join(text.split())
    assert "Against 512 MB it costs" in text


def test_the_recommended_size_is_marked_in_the_chart() -> None:
    (marked,) = [line for line in shown(sweep_document()).splitlines() if line.startswith("▸")]
    assert "1769 MB" in marked


def test_a_bar_is_as_long_as_its_figure() -> None:
    chart = shown(sweep_document()).split("cost of a million")[-1].splitlines()
    lengths = [line.split("s")[0].count("█") for line in chart if "MB  █" in line]
    assert lengths[0] == 24
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[2] == 6, "512 MB takes a quarter of the time of 128 MB"


def test_a_terminal_without_unicode_gets_none() -> None:
    text = shown(sweep_document(), encoding="ascii")
    assert "#" * 24 in text
    assert "\\u" not in text


def test_a_narrow_terminal_keeps_every_line_within_its_width() -> None:
    assert all(len(line) <= 80 for line in shown(sweep_document(), width=80).splitlines())
    assert "95 % interval" in shown(sweep_document(), width=130)


def test_what_was_not_measured_is_said() -> None:
    document = sweep_document()
    document["findings"]["tiers"][2].update(throttled_share=None, max_memory_used_mb=None)
    line = line_of(shown(document), "512 MB")
    assert line.count("not measured") == 2


def test_rejected_sizes_and_their_reason_are_named() -> None:
    document = sweep_document()
    document["findings"]["rejected"] = [
        {"memory_mb": 64, "variant": None, "why": "3 of 3 ran out of memory", "outcomes": {}}
    ]
    assert "rejected 64 MB: 3 of 3 ran out of memory" in shown(document)


def test_a_sweep_in_which_nothing_worked_is_shown_all_the_same() -> None:
    document = sweep_document()
    document["state"] = "interrupted"
    document["findings"].update(
        tiers=[], recommendation={"memory_mb": None, "variant": None, "reason": "No memory size can be recommended."}
    )
    text = shown(document)
    assert "No memory size can be recommended." in text
    assert "interrupted" in text


@pytest.mark.parametrize("evil", ["\x1b[2J\x1b]0;owned\x07", "[bold red]x[/nothing]"])
def test_text_of_a_function_cannot_steer_the_terminal(evil: str) -> None:
    document = hostile_document()
    document["findings"]["recommendation"].update(reason=evil, warnings=[{"sentence": evil, "remedy": evil}])
    document["findings"]["rejected"][0].update(why=evil, variant=evil)
    document["findings"]["tiers"][0]["variant"] = evil
    text = shown(document)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert EVIL not in text, "a line separator is no printable character"
    if evil.startswith("["):
        assert evil in text


def test_the_list_of_runs() -> None:
    console = Console(file=io.StringIO(), width=120)
    terminal.runs([], console)
    run = {
        "run_id": "261121-203000-v3k",
        "kind": "sweep",
        "function": "thumbnails\x1b[31m",
        "state": "interrupted",
        "created_at": "2026-11-21T20:30:00Z",
        "invocations": 1234,
        "memory_mb": [128, 512],
    }
    terminal.runs([run], console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "No run is stored yet." in text
    row = line_of(text, "261121")
    for part in ("1,234", "128, 512", "2026-11-21 20:30:00 UTC", "interrupted"):
        assert part in row
    assert "\x1b" not in row


def test_a_comparison_shows_verdicts_and_thresholds() -> None:
    console = Console(file=io.StringIO(), width=120)
    stats = {"duration_ms": {"mean": 100.0}}
    tier = {
        "memory_mb": 512,
        "variant": None,
        "ratio": 2.5,
        "ci_low": 2.4,
        "ci_high": 2.6,
        "verdict": "slower",
        "baseline": stats,
        "candidate": {"duration_ms": {"mean": 250.0}},
    }
    unknown = {**tier, "memory_mb": 128, "ratio": None, "ci_low": None, "ci_high": None, "verdict": "no_difference"}
    thresholds = [{"met": False, "sentence": "512 MB: duration_ms.p50 grew."}]
    terminal.comparison({"findings": {"tiers": [tier, unknown], "thresholds": thresholds}}, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert line_of(text, "512 MB").split()[4:] == ["250", "ms", "2.50", "2.40", "to", "2.60", "slower"]
    assert line_of(text, "128 MB").count("not measured") == 2
    assert "no difference" in text
    assert "NOT MET 512 MB: duration_ms.p50 grew." in text
