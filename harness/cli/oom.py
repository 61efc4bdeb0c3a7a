"""``oom``: how much memory does it need, and how does it die with less?"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options, receiving, results, talk
from harness.cli.warn_at import WarnAt, warn

if TYPE_CHECKING:
    from harness.experiments.oom import Oom, OomPlan
    from harness.function import Function


def oom(
    function: options.FunctionArgument,
    from_mb: Annotated[int, typer.Option("--from", metavar="MB", help="The smallest size to try.")] = 128,
    to_mb: Annotated[
        int | None, typer.Option("--to", metavar="MB", help="The largest (default 10240, or what this host holds).")
    ] = None,
    confirm: Annotated[
        int, typer.Option("--confirm", metavar="K", min=1, help="How many tries a size must survive.")
    ] = 2,
    invocations: Annotated[
        int | None, typer.Option("-n", "--invocations", min=1, help="In each try's sandbox (default: one an event).")
    ] = None,
    event: options.Events = None,
    warn_at: WarnAt = None,
    receivers: receiving.Option = None,
    store: Annotated[Path | None, typer.Option("--store", help="The history's file.")] = None,
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
    """Find the smallest memory size at which FUNCTION survives, and tell how it dies below."""
    found = options.read_function(
        function,
        runtime=runtime,
        handler=handler,
        timeout=timeout,
        env=env,
        tmp=tmp,
        architecture=architecture,
        layers=layer,
        image=image,
    )
    from harness.experiments.oom import OomPlan
    from harness.tiers import MAX_MEMORY_MB

    events = options.read_events(event, found)
    results.check(report, force=force)
    plan = OomPlan(
        events=events,
        from_mb=from_mb,
        to_mb=MAX_MEMORY_MB if to_mb is None else to_mb,
        confirm=confirm,
        count=len(events) if invocations is None else invocations,
    )
    document = _measure(
        found,
        plan,
        to_mb,
        vantage=vantage,
        pull=not no_pull,
        store=store,
        warn_at=warn_at,
        receivers=receivers,
        quiet=as_json,
    )
    results.show(document, as_json=as_json)
    results.write(document, report, force=force)
    raise typer.Exit(_exit_code(document))


def _measure(
    function: Function,
    plan: OomPlan,
    to_mb: int | None,
    *,
    vantage: str,
    pull: bool,
    store: Path | None,
    warn_at: float | None,
    receivers: str | None,
    quiet: bool,
) -> dict[str, Any]:
    """Run the search; each record is in the history as soon as it is measured, also when the run is interrupted."""
    from harness import document
    from harness.analysis.oom import SURVIVING, fate_of
    from harness.errors import HarnessError
    from harness.experiments.oom import Oom, largest_mb
    from harness.stand import Stand
    from harness.store import Store

    count = 0
    with contextlib.ExitStack() as stack:
        history = stack.enter_context(Store(store))
        progress = stack.enter_context(talk.Progress(quiet=quiet))
        progress(f"starting a sandbox for {function.name}")
        received = stack.enter_context(receiving.opened(receivers, function))
        stand = stack.enter_context(Stand(function, vantage=vantage, pull=pull, receivers=received, progress=progress))
        receiving.check(received, receivers, stand)
        talk.warn(stand.warnings)
        plan = replace(plan, to_mb=largest_mb(stand, to_mb, plan.from_mb))
        run = stack.enter_context(
            history.begin("oom", document.describe_function(function), stand.host, plan=_plan(plan))
        )
        searching = Oom(stand, plan, survives=lambda watched: fate_of(watched) in SURVIVING)
        measured = stack.enter_context(contextlib.closing(searching.records()))
        progress(_next(searching))
        try:
            for record in measured:
                run.add(record)
                count += 1
                warn(warn_at, count, record)
                progress(_next(searching), keep_clock=True)
        except BaseException as error:
            talk.Progress.clear()
            with contextlib.suppress(HarnessError):  # the error that ended the run is the one to hear about
                # Signals are no `Exception`.
                run.finish(
                    "failed" if isinstance(error, Exception) else "interrupted", _findings(searching, plan, function)
                )
            if count:
                talk.note(f"{count} invocations are kept as run {run.run_id}: 'lambda-harness runs show {run.run_id}'")
            raise
        run.finish("complete", _findings(searching, plan, function) | receiving.findings(received))
        return history.document(run.run_id)


def _findings(searching: Oom, plan: OomPlan, function: Function) -> dict[str, Any]:
    from harness.analysis.oom import oom_findings

    return oom_findings(
        searching.tries,
        searching.search,
        from_mb=plan.from_mb,
        to_mb=plan.to_mb,
        confirm=plan.confirm,
        configured_mb=function.memory_mb,
    )


def _plan(plan: OomPlan) -> dict[str, Any]:
    return {
        "from_mb": plan.from_mb,
        "to_mb": plan.to_mb,
        "confirm": plan.confirm,
        "count": plan.count,
        "events": [{"bytes": len(each)} for each in plan.events],
    }


def _next(searching: Oom) -> str:
    search = searching.search
    known = [f"dies at {search.died} MB"] if search.died else []
    known += [f"survives at {search.smallest} MB"] if search.smallest else []
    return f"oom: trying {search.next()} MB" + (f" ({', '.join(known)})" if known else "")


def _exit_code(document: dict[str, Any]) -> int:
    """0 where a size survives; where none does, that of the invocation at the largest size."""
    from harness.invocation import Invocation

    if document["findings"]["verdict"] != "no_size_saves_it":
        return 0
    return options.exit_code([Invocation.from_dict(document["invocations"][-1])])
