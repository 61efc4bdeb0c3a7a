"""``--warn-at``: which invocations are warned of, and in which words."""

from __future__ import annotations

import pytest
from test_invocation import record

from harness.cli.warn_at import warn, warning
from harness.invocation import Outcome

MIB = 1024 * 1024


def test_a_peak_above_the_share_is_told_with_the_invocations_number() -> None:
    found = warning(0.8, 7, record(peak_rss_bytes=110 * MIB))
    assert found == "invocation 7 at 128 MB: the peak of 110 MB is 86 % of its memory, more than 80 %"


@pytest.mark.parametrize("peak", [None, 10 * MIB, int(0.8 * 128 * MIB)])
def test_a_peak_that_is_not_above_it_or_not_known_is_not_told(peak: int | None) -> None:
    assert warning(0.8, 1, record(peak_rss_bytes=peak)) is None


def test_nothing_is_told_unless_asked_for() -> None:
    assert warning(None, 1, record(outcome=Outcome.OUT_OF_MEMORY)) is None


def test_a_kill_is_told_whatever_the_peak_was() -> None:
    assert (
        warning(0.8, 3, record(outcome=Outcome.OUT_OF_MEMORY))
        == "invocation 3 at 128 MB: memory ran out, it was killed"
    )


@pytest.mark.parametrize(
    ("peaks", "told"),
    [
        ({"peak_rss_bytes": 120 * MIB, "peak_memory_bytes": 60 * MIB}, False),  # pages of files that others pay for
        ({"peak_rss_bytes": 60 * MIB, "peak_memory_bytes": 120 * MIB}, False),  # page cache that gives way
        ({"peak_rss_bytes": 119 * MIB, "peak_memory_bytes": 120 * MIB}, True),
        ({"peak_memory_bytes": 120 * MIB}, True),
    ],
)
def test_of_two_peaks_the_smaller_counts(peaks: dict[str, int], told: bool) -> None:
    assert (warning(0.8, 1, record(**peaks)) is not None) == told


def test_no_more_than_all_memory_is_said_to_be_used() -> None:
    found = warning(0.8, 1, record(peak_rss_bytes=140 * MIB))
    assert found is not None
    assert "the peak of 128 MB is 100 %" in found


def test_the_warning_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    warn(0.5, 2, record(peak_rss_bytes=100 * MIB))
    warn(0.5, 3, record(peak_rss_bytes=10 * MIB))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "warning: invocation 2 at 128 MB: the peak of 100 MB is 78 % of its memory, more than 50 %\n"
