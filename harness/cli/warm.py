"""``warm``: what survives the freeze."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options, receiving, results, talk
from harness.cli.warn_at import WarnAt, warn

if TYPE_CHECKING:
    from harness.invocation import Invocation


def warm(
    function: options.FunctionArgument,
    event: options.Events = None,
    memory: options.Memory = None,
    invocations: Annotated[int, typer.Option("-n", "--invocations", min=2, help="How many, in one sandbox.")] = 3,
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
    """Invoke FUNCTION several times in one sandbox and show the responses side by side, with what changed."""
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
    from harness.analysis import warm as analysis
    from harness.experiments import series
    from harness.stand import Stand

    plan = series.SeriesPlan(events=events, count=invocations, gap_s=gap)
    records: list[Invocation] = []
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
            for record in series.run(stand, plan):
                records.append(record)
                progress.clear()
                if not as_json:
                    talk.note(record.report)
                warn(warn_at, len(records), record)
                progress(f"invoking {found.name}, {min(len(records) + 1, invocations)} of {invocations}")
            host = stand.host
        findings = analysis.findings(records) | receiving.findings(received)
    made = document.make("warm", host=host, function=found, invocations=records, findings=findings)
    if as_json:
        talk.emit(made)
    else:
        talk.data(side_by_side(findings, records))
        results.say_what_differs(records)
        receiving.say(received)
    results.write(made, report, force=force)
    raise typer.Exit(options.exit_code(records))


def side_by_side(findings: dict[str, Any], records: list[Invocation]) -> str:
    """The responses as columns, one an invocation; ``*`` marks a value that differs from the one before."""
    from harness import format as form
    from harness.analysis.warm import shorten

    header = ["", *(f"#{each.sequence}{' cold' if each.cold else ''}" for each in records)]
    rows = []
    for row in findings["responses"]:
        values, cells = row["values"], []
        for number, value in enumerate(values):
            mark = "*" if number and value != values[number - 1] else " "
            cells.append(f"{mark} {shorten(value)}")
        rows.append([row["path"], *cells])
    rows.append(["memory after", *(f"  {form.size(each.resident_after_bytes)}" for each in records)])
    rows.append(["peak RSS", *(f"  {form.size(each.peak_rss_bytes)}" for each in records)])
    rows.append(
        ["frozen before", *(f"  {form.duration(each.frozen_ms)}" if each.frozen_ms else "  -" for each in records)]
    )
    text = talk.table(rows, header=header)
    survived = findings["survived"]
    sentence = (
        f"Grew from one invocation to the next: {', '.join(survived)}. It lives outside the handler and survives the freeze."
        if survived
        else "Nothing in the responses grew from one invocation to the next."
    )
    return f"{text}\n\n{sentence}"
