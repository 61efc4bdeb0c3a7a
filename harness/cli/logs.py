"""``logs``: what functions printed under the service, as CloudWatch Logs would show it."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import options, talk

app = typer.Typer(help="What functions printed under 'serve'.", no_args_is_help=True, rich_markup_mode=None)

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@app.command("tail")
def tail(
    function: Annotated[str, typer.Argument(metavar="FUNCTION", help="Its name, or its group /aws/lambda/NAME.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is to come.")] = False,
    since: Annotated[str, typer.Option("--since", help="So long ago: 30s, 10m, 2h, 1d, 1w.")] = "10m",
    filter_: Annotated[
        str, typer.Option("--filter", metavar="TEXT", help="Lines with these words; -word without, ?a ?b any of them.")
    ] = "",
    store: Annotated[
        Path | None, typer.Option("--store", help="The history's file that the service was given.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Print the log of FUNCTION, over all of its sandboxes."""
    from harness.receivers import logs
    from harness.store import default_path

    folder = (store or default_path()).parent / "logs"
    found = logs.tail(folder, function, follow=follow, since=ago(since), filter=filter_)
    if not as_json:
        for each in found:
            talk.data(str(each))
        return
    if follow:
        from harness.errors import UsageError

        raise UsageError("--json prints one document, and --follow has no end", remedy="leave one of them out")
    from harness import document

    talk.emit(document.make("logs", host={}, events=[_event(each) for each in found]))


def ago(text: str) -> timedelta:
    """A span such as 10m; `UsageError` for what is none."""
    from harness.errors import UsageError

    found = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if found is None:
        raise UsageError(f"--since {text!r} is no span of time", remedy="write one such as 30s, 10m, 2h, 1d or 1w")
    return timedelta(seconds=int(found[1]) * _UNITS_S[found[2]])


def _event(found: Any) -> dict[str, str]:
    return {"timestamp": found.timestamp.isoformat(), "stream": found.stream, "message": found.message}
