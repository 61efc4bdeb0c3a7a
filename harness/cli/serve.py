"""``serve``: the Lambda-compatible service."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options, receiving, talk

if TYPE_CHECKING:
    from harness.api.service import Service

_LINES_WAITING = 10_000
_LINES_TOGETHER = 500
_WRITES_APART_S = 0.02


def serve(
    functions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FUNCTION]...",
            help="Deployed at once, and again whenever its files change: as for the other commands.",
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 4577,
    host: Annotated[str, typer.Option("--host", help="Listen here; whoever reaches it can run code.")] = "127.0.0.1",
    region: Annotated[str, typer.Option("--region", help="The region of ARNs and of AWS_REGION.")] = "us-east-1",
    keep_alive: Annotated[
        float, typer.Option("--keep-alive", metavar="S", min=0, help="Idle sandboxes end after that long.")
    ] = 300.0,
    account_concurrency: Annotated[
        int, typer.Option("--account-concurrency", metavar="N", min=1, max=10_000, help="Requests at once, 429 beyond.")
    ] = 1000,
    retry_scale: Annotated[
        float,
        typer.Option(
            "--retry-scale", metavar="X", min=0, help="Of the waits before asynchronous retries; 0.01 to watch."
        ),
    ] = 1.0,
    receivers: Annotated[
        str | None,
        typer.Option(
            "--receivers", metavar="KINDS", help="Of what functions send: cloudwatch, xray, or none. Default: both."
        ),
    ] = None,
    debug_port: Annotated[
        int | None,
        typer.Option(
            "--debug-port", metavar="P", min=1024, max=65535, help="Debuggers attach there; no time-outs then."
        ),
    ] = None,
    debug_wait: Annotated[bool, typer.Option("--debug-wait", help="Init waits for the debugger.")] = False,
    store: Annotated[Path | None, typer.Option("--store", help="The history's file; data lies beside it.")] = None,
    vantage: options.Vantage = "auto",
    no_pull: options.NoPull = False,
) -> None:
    """Answer Lambda's API, so that boto3, the AWS CLI and deployers work unchanged, and show a page of what happens."""
    import re

    from harness.api.service import LOOPBACK, Service, Settings
    from harness.debugger import NOTE, Debug
    from harness.errors import UsageError

    if not re.fullmatch(r"[a-z]{2,5}(-[a-z]+)+-\d", region):
        raise UsageError(f"--region {region!r} is no region's name", remedy="write one such as us-east-1")
    if debug_wait and debug_port is None:
        raise UsageError("--debug-wait has nothing to wait for", remedy="add --debug-port PORT")
    deployed = [options.read_function(each) for each in functions or ()]
    settings = Settings(
        host=host,
        port=port,
        region=region,
        keep_alive_s=keep_alive,
        account_concurrency=account_concurrency,
        vantage=vantage,
        pull=not no_pull,
        store=store,
        receivers=None if receivers is None else receiving.named(receivers),
        retry_scale=retry_scale,
        debug=None if debug_port is None else Debug(port=debug_port, wait=debug_wait),
    )
    with _saying() as say, Service(settings, say=say) as service:
        service.deploy(deployed)
        if host.strip("[]") not in LOOPBACK:
            say(f"warning: listening on {host}: whoever can reach it can run code on this machine")
        if debug_port is not None:
            say(f"debugging at 127.0.0.1:{debug_port}: {NOTE}")
        service.run(lambda: _introduce(service, say))


def _introduce(service: Service, say: Say) -> None:
    say(f"serving Lambda on {service.url} (region {service.settings.region}); its page: {service.url}/")
    say("point clients at it (they want keys, any will do):")
    say(f"  export AWS_ENDPOINT_URL_LAMBDA={service.url} AWS_DEFAULT_REGION={service.settings.region}")
    say("  export AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any")
    say(f"data: {service.data}; Ctrl-C ends it")


class Say:
    """Lines on stderr with the time before them, written by a thread: a terminal that stands still must not stop requests.

    Where nobody reads for long, lines are left out, and their number is told.
    """

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(_LINES_WAITING)
        self._left_out = 0
        self._thread = threading.Thread(target=self._write, name="say", daemon=True)
        self._thread.start()

    def __call__(self, text: str) -> None:
        try:
            # What clients sent may stand in it: one line stays one, and says nothing to the terminal.
            shown = text
            if not text.replace("\t", "").isprintable():
                shown = "".join(each if each.isprintable() or each == "\t" else " " for each in text)
            self._lines.put_nowait(f"{time.strftime('%H:%M:%S')} {shown}")
        except queue.Full:
            self._left_out += 1

    def close(self) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(timeout=2)

    def _write(self) -> None:
        going_on = True
        while going_on:
            lines = [self._lines.get()]
            # Under load a thread that wakes for each line would take time from those who answer.
            time.sleep(_WRITES_APART_S)
            with contextlib.suppress(queue.Empty):
                while len(lines) < _LINES_TOGETHER and lines[-1] is not None:
                    lines.append(self._lines.get_nowait())
            going_on = None not in lines
            told = "\n".join(line for line in lines if line is not None)
            with contextlib.suppress(OSError, ValueError):  # stderr was closed under us: serve on in silence
                if told:
                    talk.note(told)
                if self._left_out:
                    left, self._left_out = self._left_out, 0
                    talk.note(f"({left} lines were left out)")


@contextlib.contextmanager
def _saying() -> Iterator[Say]:
    say = Say()
    try:
        yield say
    finally:
        say.close()
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
