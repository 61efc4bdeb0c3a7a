"""The exit codes that scripts rely on, and that every error is one of the tree."""

from __future__ import annotations

import pytest

from harness import errors

EXIT_CODES = {
    "HarnessError": 1,
    "UsageError": 2,
    "InvalidInput": 3,
    "InvalidFunction": 3,
    "InvalidEvent": 3,
    "EngineError": 4,
    "ImageError": 4,
    "LimitError": 4,
    "SandboxGone": 4,
    "FunctionFailed": 5,
    "InitFailed": 5,
    "FunctionTimedOut": 6,
    "OutOfMemory": 7,
    "ThresholdNotMet": 8,
    "NotMeasurable": 9,
}


def test_each_class_owns_its_exit_code() -> None:
    found = {
        name: each.exit_code
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, errors.HarnessError)
    }
    assert found == EXIT_CODES


@pytest.mark.parametrize("name", EXIT_CODES)
def test_an_error_carries_what_happened_and_what_to_do(name: str) -> None:
    error = getattr(errors, name)("it broke", remedy="mend it")
    assert str(error) == "it broke"
    assert error.remedy == "mend it"
    assert getattr(errors, name)("it broke").remedy == ""
