"""`runs`: what was measured before, listed, shown, read anew, compared, exported and pruned."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_cli_sweep import Harness, interrupt_at
from test_cli_sweep import cli as cli  # noqa: PLC0414  # a fixture
from test_sweep_plan import record
from test_sweep_plan import without_pauses as without_pauses  # noqa: PLC0414  # a fixture

from harness.invocation import Outcome
from harness.store import Store


def shown(cli: Harness, *words: object) -> dict[str, Any]:
    done = cli("runs", "show", *words, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def stored(cli: Harness, *durations_ms: float, plan: dict[str, Any] | None = None, **changes: Any) -> str:
    """A run at 512 MB with these durations; returns its id."""
    with Store(cli.store) as history, history.begin("sweep", {"name": "f"}, {}, plan=plan) as run:
        run.add(record(512, cold=True, request_id="cold"))
        for number, duration_ms in enumerate(durations_ms):
            run.add(record(512, request_id=str(number), duration_ms=duration_ms, **changes))
        return run.run_id


def spread(centre_ms: float) -> list[float]:
    return [centre_ms * (1 + number / 100) for number in range(-5, 6)]


# -- list and show ----------------------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_with_their_state(cli: Harness) -> None:
    first = cli.document("-m", "128,512", "-n", 2)["run_id"]
    second = cli.document("-m", "512", "-n", 2)["run_id"]
    found = cli.runs()
    assert [each["run_id"] for each in found] == [second, first]
    assert (found[1]["state"], found[1]["memory_mb"], found[1]["invocations"]) == ("complete", [128, 512], 6)
    assert first in cli("runs", "list").out
    assert [each["run_id"] for each in json.loads(cli("runs", "list", "--limit", 1, "--json").out)["runs"]] == [second]


def test_no_history_is_an_empty_list_and_no_error(cli: Harness) -> None:
    assert cli.runs() == []
    assert cli("runs", "list").code == 0


def test_a_run_is_shown_as_it_was_printed_when_it_was_measured(cli: Harness) -> None:
    printed = cli.document("-m", "128,512", "-n", 5)
    assert shown(cli, printed["run_id"]) == printed
    assert shown(cli, "latest") == printed


def test_a_run_is_read_anew_by_another_strategy_from_its_records(cli: Harness) -> None:
    measured = cli.document("-m", "128,512,1769", "-n", 5, "--strategy", "cost", "--weight", "0.9")
    run_id = measured["run_id"]
    again = shown(cli, run_id, "--strategy", "speed")["findings"]
    assert (again["recommendation"]["strategy"], again["recommendation"]["memory_mb"]) == ("speed", 1769)
    assert again["tiers"] == measured["findings"]["tiers"], "the figures come from the same records"
    assert again["seed"] == measured["plan"]["seed"]
    assert shown(cli, run_id)["findings"] == measured["findings"], "what is stored stays as it was"


def test_reading_anew_keeps_what_was_asked_for_but_for_what_is_given(cli: Harness) -> None:
    words = ("--strategy", "balanced", "--weight", "0.9", "--per-month", 7, "--discard", "0.2", "--predict")
    measured = cli.document("-n", 10, *words)
    first = measured["findings"]
    again = shown(cli, "latest", "--weight", "0.1")["findings"]
    assert again["recommendation"]["strategy"] == "balanced"
    assert "weighing 10%" in again["recommendation"]["reason"]
    assert again["tiers"] == first["tiers"]
    assert [each["memory_mb"] for each in again["prediction"]["tiers"]] == [
        each["memory_mb"] for each in first["prediction"]["tiers"]
    ]
    assert again["rules"]["discard"] == 0.2
    assert again["recommendations"]["speed"] == first["recommendations"]["speed"]


def test_another_number_of_invocations_a_month_changes_the_saving_alone(cli: Harness) -> None:
    first = cli.document("-n", 3, "--strategy", "speed")["findings"]["recommendation"]
    again = shown(cli, "latest", "--per-month", 2_000_000)["findings"]["recommendation"]
    assert again["memory_mb"] == first["memory_mb"]
    assert again["saving"]["usd_per_month"] == pytest.approx(2 * first["saving"]["usd_per_month"])


def test_the_scheduler_of_a_run_is_that_of_the_host_that_measured_it(cli: Harness) -> None:
    cli.stand.host = {**cli.stand.host, "hz": 1000}
    measured = cli.document("-m", "128,1769", "-n", 3)["findings"]
    assert measured["prediction"]["scheduler"]["tick_ms"] == 1.0
    assert shown(cli, "latest", "--strategy", "speed")["findings"]["prediction"] == measured["prediction"]


@pytest.mark.parametrize("command", [["show"], ["export", "--out", "x.json"], ["compare", "latest"]])
def test_a_run_that_is_not_there_is_refused_and_the_list_is_named(cli: Harness, command: list[str]) -> None:
    stored(cli, *spread(10))
    done = cli("runs", command[0], *command[1:], "991231-nope")
    assert (done.code, done.out) == (3, "")
    assert "991231-nope" in done.err
    assert "runs list" in done.err


def test_a_strategy_that_is_none_is_refused(cli: Harness) -> None:
    stored(cli, *spread(10))
    done = cli("runs", "show", "latest", "--strategy", "best")
    assert (done.code, "strategy 'best'" in done.err) == (3, True)


# -- compare ----------------------------------------------------------------------------------------------------------


def compared(cli: Harness, one: str, other: str, *words: object, code: int = 0) -> dict[str, Any]:
    done = cli("runs", "compare", one, other, *words, "--json")
    assert done.code == code, done.err
    found: dict[str, Any] = json.loads(done.out)
    assert (found["baseline"], found["candidate"]) == (one, other)
    findings: dict[str, Any] = found["findings"]
    return findings


@pytest.mark.parametrize(("factor", "verdict"), [(1.5, "slower"), (0.5, "faster"), (1.0, "no_difference")])
def test_two_runs_are_told_apart_size_by_size_with_an_interval(cli: Harness, factor: float, verdict: str) -> None:
    one, other = stored(cli, *spread(100)), stored(cli, *spread(100 * factor))
    found = compared(cli, one, other)["tiers"][0]
    assert (found["memory_mb"], found["verdict"]) == (512, verdict)
    assert found["ratio"] == pytest.approx(factor)
    assert found["ci_low"] <= found["ratio"] <= found["ci_high"]


def test_a_threshold_that_is_not_met_ends_with_exit_code_8_and_the_comparison_all_the_same(cli: Harness) -> None:
    one, other = stored(cli, *spread(100)), stored(cli, *spread(150))
    found = compared(cli, one, other, "--fail-if", "duration_ms.p50>+20%", code=8)
    assert not found["met"]
    done = cli("runs", "compare", one, other, "--fail-if", "duration_ms.p50>+20%")
    assert done.code == 8
    assert "duration_ms.p50" in done.err
    assert compared(cli, one, other, "--fail-if", "duration_ms.p50>+60%")["met"]
    assert compared(cli, other, one, "--fail-if", "duration_ms.p50>+20%")["met"]


def test_a_figure_that_was_not_measured_does_not_pass_a_gate(cli: Harness) -> None:
    one, other = stored(cli, *spread(100)), stored(cli, *spread(100))
    compared(cli, one, other, "--fail-if", "cpu_ms>+10%", code=8)


@pytest.mark.parametrize("text", ["duration_ms.p50", "nothing>+1%", "duration_ms>20%", ""])
def test_a_threshold_that_is_not_understood_is_refused_before_anything_is_read(cli: Harness, text: str) -> None:
    done = cli("runs", "compare", "a", "b", "--fail-if", text)
    assert (done.code, done.out) == (3, "")
    assert "threshold" in done.err


def test_failures_that_a_run_was_allowed_do_not_take_a_size_out_of_the_comparison(cli: Harness) -> None:
    one = stored(cli, *spread(100), plan={"allowed_error_share": 0.5})
    with (
        Store(cli.store) as history,
        history.begin("sweep", {"name": "f"}, {}, plan={"allowed_error_share": 0.5}) as run,
    ):
        for number, duration_ms in enumerate(spread(150)):
            run.add(record(512, request_id=str(number), duration_ms=duration_ms))
        run.add(record(512, request_id="x", outcome=Outcome.FUNCTION_ERROR))
    assert compared(cli, one, run.run_id)["tiers"][0]["verdict"] == "slower"


def test_allowed_exceptions_are_compared_as_successes(cli: Harness) -> None:
    asked = {"allowed_error_types": ["Odd"]}
    one = stored(cli, *spread(100), plan=asked, outcome=Outcome.FUNCTION_ERROR, error_type="Odd")
    other = stored(cli, *spread(150), plan=asked, outcome=Outcome.FUNCTION_ERROR, error_type="Odd")
    assert compared(cli, one, other)["tiers"][0]["verdict"] == "slower"


def test_runs_without_a_size_in_common_are_refused(cli: Harness) -> None:
    one, other = cli.document("-m", "128", "-n", 3)["run_id"], cli.document("-m", "512", "-n", 3)["run_id"]
    done = cli("runs", "compare", one, other)
    assert (done.code, "share no memory size" in done.err) == (3, True)


# -- export and prune -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "magic"),
    [
        (".html", b"<!doctype html"),
        (".svg", b"<svg"),
        (".png", b"\x89PNG"),
        (".csv", b"request_id"),
        (".tiers.csv", b"memory_mb"),
        (".json", b'"schema"'),
        (".power-tuning.json", b'"power"'),
    ],
)
def test_a_run_is_exported_by_the_suffix_and_nothing_is_overwritten(cli: Harness, suffix: str, magic: bytes) -> None:
    cli.document("-m", "128,512", "-n", 3)
    out = cli.folder / f"out{suffix}"
    assert cli("runs", "export", "latest", "--out", out).code == 0
    assert magic in out.read_bytes()[:400]
    before = out.stat().st_mtime_ns
    again = cli("runs", "export", "latest", "--out", out)
    assert (again.code, "--force" in again.err, out.stat().st_mtime_ns) == (2, True, before)
    assert cli("runs", "export", "latest", "--out", out, "--force").code == 0


def test_a_run_that_was_interrupted_can_be_exported(cli: Harness) -> None:
    cli.stand.behaviour = interrupt_at(3, KeyboardInterrupt())
    assert cli.sweep("-m", "512").code == 130
    for name in ("out.html", "out.json"):
        assert cli("runs", "export", "latest", "--out", cli.folder / name).code == 0
    assert json.loads((cli.folder / "out.json").read_text())["findings"]["tiers"][0]["n"] == 1


def test_an_export_to_nowhere_is_refused(cli: Harness) -> None:
    stored(cli, *spread(10))
    assert cli("runs", "export", "latest", "--out", cli.folder / "missing" / "x.csv").code == 2


def test_prune_says_what_it_deletes_and_a_dry_run_deletes_nothing(cli: Harness) -> None:
    ids = [stored(cli, *spread(10)) for _ in range(3)]
    dry = cli("runs", "prune", "--keep-last", 1, "--dry-run")
    assert sorted(line.split()[-1] for line in dry.out.splitlines()) == sorted(ids[:2])
    assert len(cli.runs()) == 3
    assert cli("runs", "prune", "--keep-last", 1).code == 0
    assert [each["run_id"] for each in cli.runs()] == [ids[2]]
    assert cli("runs", "prune").code == 3, "nothing says which"
