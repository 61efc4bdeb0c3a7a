"""Figures are printed with their unit, and nothing is printed as 0 that was not measured."""

from __future__ import annotations

import pytest

from harness import format as figures


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0.00 ms"),
        (0.424, "0.42 ms"),
        (3.014, "3.01 ms"),
        (57.72, "57.7 ms"),
        (449.2, "449 ms"),
        (999.96, "1.00 s"),
        (8200, "8.20 s"),
        (59_994, "60.0 s"),
        (125_000, "2 min 05 s"),
        (59_996, "1 min 00 s"),
        (7_500_000, "2 h 05 min"),
        (-12.34, "-12.3 ms"),
    ],
)
def test_durations(ms: float, text: str) -> None:
    assert figures.duration(ms) == text


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (0, "$0"),
        (0.0000170833, "$0.00001708"),
        (0.2e-6, "$0.0000002000"),
        (0.0098, "$0.009800"),
        (0.0149, "$0.01490"),
        (0.0996, "$0.10"),
        (17.0833, "$17.08"),
        (108_333.5, "$108,333.50"),
        (-3.2, "-$3.20"),
    ],
)
def test_money_never_has_an_exponent(usd: float, text: str) -> None:
    assert figures.money(usd) == text


def test_cost_is_told_for_a_million_invocations() -> None:
    assert figures.per_million(0.0000175) == "$17.50"


@pytest.mark.parametrize(
    ("found", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KB"), (36 << 20, "36.0 MB"), (10 << 30, "10.0 GB")]
)
def test_a_megabyte_is_1024_times_1024_bytes(found: int, text: str) -> None:
    assert figures.size(found) == text


@pytest.mark.parametrize(
    ("found", "text"), [(0, "0.0 %"), (0.0004, "< 0.1 %"), (0.0123, "1.2 %"), (0.8, "80 %"), (-0.0001, "> -0.1 %")]
)
def test_shares(found: float, text: str) -> None:
    assert figures.share(found) == text


def test_times_are_in_utc() -> None:
    assert figures.instant("2026-11-21T22:30:31.331+02:00") == "2026-11-21 20:30:31 UTC"
    assert figures.instant("2026-11-21T20:30:31.331Z") == "2026-11-21 20:30:31 UTC"
    assert figures.instant("2026-11-21T20:30:31") == "2026-11-21 20:30:31 UTC"
    assert figures.instant("yesterday") == "yesterday"


@pytest.mark.parametrize(
    ("name", "value", "label", "text"),
    [
        ("memory_mb", 512, "memory", "512 MB"),
        ("timeout_s", 30, "timeout", "30.0 s"),
        ("memory_bytes", 8 << 30, "memory", "8.00 GB"),
        ("saving_usd_per_month", 3.1, "saving usd per month", "$3.10"),
        ("created_at", "2026-11-21T20:30:00Z", "created", "2026-11-21 20:30:00 UTC"),
        ("rootless", False, "rootless", "no"),
        ("hz", None, "hz", "not measured"),
        ("layers", [], "layers", "none"),
        ("sizes_mb", [128, 512], "sizes", "128 MB, 512 MB"),
        ("limits", {"init_ms": 10_000}, "limits", "init ms: 10.0 s"),
        ("ms", 3, "ms", "3"),
        ("hit_share", 0.5, "hit", "50 %"),
    ],
)
def test_a_fact_is_formatted_by_the_unit_in_its_name(name: str, value: object, label: str, text: str) -> None:
    assert (figures.label(name), figures.named(name, value)) == (label, text)


@pytest.mark.parametrize(
    "formatter",
    [
        figures.duration,
        figures.milliseconds,
        figures.size,
        figures.memory,
        figures.money,
        figures.per_million,
        figures.share,
        figures.count,
        figures.instant,
    ],
)
def test_what_was_not_measured_is_said_and_is_not_zero(formatter: object) -> None:
    assert formatter(None) == "not measured"  # type: ignore[operator]
