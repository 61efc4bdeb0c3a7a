"""``invoke``: run a function and say what happened."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options, receiving, results, talk
from harness.cli.warn_at import WarnAt, warn

if TYPE_CHECKING:
    from harness.invocation import Invocation


def invoke(
    function: options.FunctionArgument,
    event: options.Events = None,
    memory: options.Memory = None,
    invocations: Annotated[int, typer.Option("-n", "--invocations", min=1, help="How many, one after the other.")] = 1,
    gap: options.Gap = 0.0,
    no_freeze: options.NoFreeze = False,
    warn_at: WarnAt = None,
    receivers: receiving.Option = None,
    runtime: options.Runtime = None,
    handler: options.Handler = None,
    timeout: options.Timeout = None,
    env: options.Environment = None,
    tmp: options.Tmp = None,
    architecture: options.Architecture = None,
    layer: options.Layers = None,
    image: options.Image = None,
    vantage: options.Vantage = "auto",
    no_pull: options.NoPull = False,
    report: results.Report = None,
    force: results.Force = False,
    as_json: options.Json = False,
) -> None:
    """Invoke FUNCTION: responses on stdout, its output and REPORT lines on stderr."""
    found = options.read_function(
        function,
        runtime=runtime,
        handler=handler,
        memory=memory,
        timeout=timeout,
        env=env,
        tmp=tmp,
        architecture=architecture,
        layers=layer,
        image=image,
    )
    events = options.read_events(event, found)
    results.check(report, force=force)

    from harness import document
    from harness.experiments import series
    from harness.stand import Stand

    plan = series.SeriesPlan(events=events, count=invocations, gap_s=gap)
    records: list[Invocation] = []
    said: set[str] = set()
    with receiving.opened(receivers, found) as received, talk.Progress(quiet=as_json) as progress:
        progress(f"starting a sandbox for {found.name}")
        on_output = None if as_json else talk.FunctionOutput()
        stand = Stand(
            found,
            vantage=vantage,
            freeze=not no_freeze,
            pull=not no_pull,
            on_output=on_output,
            receivers=received,
            progress=progress,
        )
        with stand:
            receiving.check(received, receivers, stand)
            talk.warn(stand.warnings)
            progress(f"invoking {found.name}, 1 of {invocations}")
            for record in series.run(stand, plan):
                records.append(record)
                if not as_json:
                    _show(record, progress, said)
                warn(warn_at, len(records), record)
                progress(f"invoking {found.name}, {min(len(records) + 1, invocations)} of {invocations}")
            host = stand.host
        findings = receiving.findings(received)
    made = document.make("invoke", host=host, function=found, invocations=records, findings=findings)
    if as_json:
        talk.emit(made)
    else:
        receiving.say(received)
    results.write(made, report, force=force)
    raise typer.Exit(options.exit_code(records))


def _show(record: Invocation, progress: talk.Progress, said: set[str]) -> None:
    progress.clear()
    if record.response_encoding == "json":
        talk.data(json.dumps(record.response, ensure_ascii=False))
    else:
        talk.data(str(record.response))
    talk.note(record.report or f"REPORT RequestId: {record.request_id}\tnot measured")
    if record.error_type:
        talk.note(talk.red(f"{record.outcome}: {record.error_type}: {record.error_message}"))
    talk.note(talk.dim(details(record)))
    results.say_what_differs([record], said)


def details(record: Invocation) -> str:
    """What Lambda does not tell, in one line."""
    from harness import format as form

    parts = [
        f"peak RSS {form.size(record.peak_rss_bytes)}" + (" (sampled)" if record.peak_method == "sampled" else ""),
        f"CPU {form.duration(record.cpu_ms)}",
        f"throttled {form.duration(record.throttled_ms)} in {form.count(record.throttled_periods)} periods",
        f"cost {form.money(record.cost_usd)}",
    ]
    if record.frozen_ms is not None:
        parts.append(f"was frozen for {form.duration(record.frozen_ms)}")
    return "  " + ", ".join(parts)
