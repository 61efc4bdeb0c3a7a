"""``--warn-at``: a warning as soon as an invocation's peak passes a share of its memory size.

The test is `warning`, a pure function; `warn` says it. Commands call `warn` once for each record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from harness.invocation import Invocation

_MIB = 1024 * 1024

WarnAt = Annotated[
    float | None,
    typer.Option(
        "--warn-at",
        metavar="SHARE",
        min=0.01,
        max=1.0,
        help="Warn when a peak passes this share of memory, such as 0.8.",
    ),
]


def warning(share: float | None, number: int, record: Invocation) -> str | None:
    """The sentence for an invocation whose peak passed ``share`` of its memory size; None if it did not, or if unknown.

    Of the peak of resident memory and that of the cgroup's charge the smaller one counts: the former also holds pages of
    files that the function is not charged for, the latter page cache that gives way.
    """
    from harness import format as figures
    from harness.invocation import Outcome

    if share is None:
        return None
    where = f"invocation {number}" + (f" at {record.memory_mb} MB" if record.memory_mb else "")
    if record.outcome is Outcome.OUT_OF_MEMORY:
        return f"{where}: memory ran out, it was killed"
    limit = record.memory_mb * _MIB
    peaks = [each for each in (record.peak_rss_bytes, record.peak_memory_bytes) if each is not None]
    if not peaks or (peak := min(*peaks, limit)) <= share * limit:
        return None
    return (
        f"{where}: the peak of {figures.size(peak)} is {figures.share(peak / limit)} of its memory, "
        f"more than {figures.share(share)}"
    )


def warn(share: float | None, number: int, record: Invocation) -> None:
    """Say `warning` on stderr, if there is one."""
    from harness.cli import talk

    found = warning(share, number, record)
    if found is not None:
        talk.Progress.clear()
        talk.note(talk.red(f"warning: {found}"))
