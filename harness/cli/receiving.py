"""``--receivers``: what functions send to CloudWatch and X-Ray stays here, and becomes findings. One context for commands."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import talk

if TYPE_CHECKING:
    from harness.function import Function
    from harness.receivers import Receivers
    from harness.stand import Stand

NONE = "none"

Option = Annotated[
    str | None,
    typer.Option(
        "--receivers",
        metavar="KINDS",
        help="Keep what the function sends to cloudwatch, xray, or both (with a comma), or none. "
        "Default: function.toml's receivers.",
    ),
]


def kinds(asked: str | None, function: Function) -> tuple[str, ...]:
    """Which receivers to open; `UsageError` for one that is none."""
    return function.receivers if asked is None else named(asked)


def named(asked: str) -> tuple[str, ...]:
    """The receivers that the option names; `UsageError` for one that is none."""
    from harness.errors import UsageError
    from harness.function import RECEIVERS

    if asked == NONE:
        return ()
    found = tuple(dict.fromkeys(each.strip() for each in asked.split(",")))
    unknown = [each for each in found if each not in RECEIVERS]
    if unknown:
        raise UsageError(
            f"--receivers {asked!r} names {unknown[0]!r}, which is no receiver",
            remedy=f"choose from {', '.join(RECEIVERS)}, or {NONE}",
        )
    return found


@contextlib.contextmanager
def opened(asked: str | None, function: Function) -> Iterator[Receivers | None]:
    """The receivers that were asked for, or that function.toml lists, for as long as the context lasts."""
    wanted = kinds(asked, function)
    if not wanted:
        yield None
        return
    from harness.receivers import Receivers

    with Receivers(wanted) as receivers:
        yield receivers


def check(receivers: Receivers | None, asked: str | None, stand: Stand) -> None:
    """Say where nothing can be received. To be called once the stand is open.

    Raises:
        NotMeasurable: the command line asks for receivers, and this vantage has no way into the containers' networks.
    """
    if receivers is None or stand.vantage.relays:
        return
    why = f"on vantage {stand.vantage.name} no receivers can be opened in the containers' networks"
    if asked is not None:
        from harness.errors import NotMeasurable

        raise NotMeasurable(why, remedy="use the vantage host or agent, or leave --receivers out")
    talk.note(f"warning: {why}: nothing is received, and the function's own calls will fail")


def findings(receivers: Receivers | None) -> dict[str, Any]:
    """What was received: the metric data, and the segments as trees."""
    if receivers is None:
        return {}
    found: dict[str, Any] = {}
    if "cloudwatch" in receivers.kinds:
        found["cloudwatch"] = receivers.cloudwatch
    if "xray" in receivers.kinds:
        found["xray"] = receivers.xray
    return found


def say(receivers: Receivers | None) -> None:
    """What was received, for people: metrics as a table, traces as trees, and calls that were refused."""
    if receivers is None:
        return
    from harness.reports.received import METRIC_HEADER, metric_rows, trace_lines

    found = findings(receivers)
    if found.get("cloudwatch"):
        talk.note("\nreceived by the local CloudWatch:")
        talk.note(talk.table(metric_rows(found["cloudwatch"]), header=METRIC_HEADER))
    for tree in found.get("xray", ()):
        talk.note(f"\ntrace {tree.get('trace_id')}:")
        talk.note("\n".join(trace_lines(tree)))
    talk.warn(receivers.warnings)
