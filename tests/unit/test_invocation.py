"""The record of an invocation, and the REPORT line in Lambda's exact form."""

from __future__ import annotations

import dataclasses
import json

import pytest

from harness.invocation import Invocation, Outcome, PeakMethod, PhaseInit, report_line

ID = "974c1c1e-b7bf-4c10-8535-ee9880142f93"


def record(**changes: object) -> Invocation:
    settings: dict[str, object] = {
        "request_id": ID,
        "function": "probe",
        "runtime": "python3.13",
        "memory_mb": 128,
        "architecture": "x86_64",
        "image": "image:tag",
        "rie_version": "1.37",
        "sandbox_id": "abc",
        "sequence": 1,
        "cold": True,
        "phase_init": PhaseInit.INIT,
        "started_at": "2026-01-01T00:00:00+00:00",
        "outcome": Outcome.SUCCESS,
    }
    return Invocation(**(settings | changes))  # type: ignore[arg-type]


def line(
    outcome: Outcome = Outcome.SUCCESS,
    *,
    duration_ms: float | None = 3.01,
    billed: int | None = 4,
    used: int | None = 36,
    init_ms: float | None = None,
    error_type: str | None = None,
) -> str:
    return report_line(
        request_id=ID,
        duration_ms=duration_ms,
        billed=billed,
        memory_mb=128,
        max_memory_used_mb=used,
        init_ms=init_ms,
        outcome=outcome,
        error_type=error_type,
    )


HEAD = (
    f"REPORT RequestId: {ID}\tDuration: 3.01 ms\tBilled Duration: 4 ms\tMemory Size: 128 MB\tMax Memory Used: 36 MB\t"
)


def test_a_warm_report_line_is_lambda_s_with_its_tab_at_the_end() -> None:
    assert line() == HEAD


def test_a_cold_one_ends_with_the_init_duration() -> None:
    assert line(init_ms=110.1) == HEAD + "Init Duration: 110.10 ms\t"


@pytest.mark.parametrize(
    ("outcome", "error_type", "tail"),
    [
        (Outcome.TIMEOUT, "Sandbox.Timedout", "Status: timeout\t"),
        (Outcome.INIT_TIMEOUT, "Sandbox.Timedout", "Status: timeout\t"),
        (Outcome.OUT_OF_MEMORY, "Runtime.ExitError", "Status: error\tError Type: Runtime.OutOfMemory\t"),
        (Outcome.RUNTIME_EXIT, "Runtime.ExitError", "Status: error\tError Type: Runtime.ExitError\t"),
        (Outcome.INIT_ERROR, "Runtime.ImportModuleError", "Status: error\tError Type: Runtime.ImportModuleError\t"),
        (Outcome.INIT_ERROR, None, "Status: error\tError Type: Runtime.ExitError\t"),
        (Outcome.FUNCTION_ERROR, "ValueError", ""),
        (Outcome.RESPONSE_TOO_LARGE, "Function.ResponseSizeTooLarge", ""),
    ],
)
def test_the_status_stands_at_the_end(outcome: Outcome, error_type: str | None, tail: str) -> None:
    assert line(outcome, error_type=error_type) == HEAD + tail


def test_what_was_not_measured_is_a_dash_and_never_a_nought() -> None:
    found = line(duration_ms=None, billed=None, used=None)
    assert found == (
        f"REPORT RequestId: {ID}\tDuration: - ms\tBilled Duration: - ms\tMemory Size: 128 MB\tMax Memory Used: - MB\t"
    )


def test_a_record_is_what_it_was_after_a_journey_through_json() -> None:
    found = record(peak_method=PeakMethod.RESET, notes=("one", "two"), response={"ä": [1, None]}, init_ms=1.5)
    assert Invocation.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    bare = record(phase_init=None)
    assert Invocation.from_dict(json.loads(json.dumps(bare.as_dict()))) == bare


def test_fields_of_a_newer_harness_are_dropped_and_notes_may_be_missing() -> None:
    stored = record().as_dict() | {"from_the_future": 1}
    del stored["notes"]
    assert Invocation.from_dict(stored) == record()


def test_an_outcome_outside_of_the_closed_set_is_refused() -> None:
    with pytest.raises(ValueError, match="exploded"):
        Invocation.from_dict(record().as_dict() | {"outcome": "exploded"})


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        record().outcome = Outcome.TIMEOUT  # type: ignore[misc]


def test_what_was_not_measured_is_none() -> None:
    figures = [name for name in record().as_dict() if name.endswith(("_ms", "_bytes", "_usd", "_us"))]
    assert len(figures) > 15
    assert all(getattr(record(), name) is None for name in figures)
