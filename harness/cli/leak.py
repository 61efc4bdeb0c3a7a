"""``leak``: does memory grow from one warm invocation to the next, how fast, when is it out, and what grew?"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options, receiving, results, talk
from harness.cli.warn_at import WarnAt, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.analysis.leak import Explanation
    from harness.experiments.explain import Listener
    from harness.experiments.leak import Hunt, LeakPlan
    from harness.function import Function
    from harness.invocation import Invocation

DEFAULT_COUNT = 50


def leak(
    function: options.FunctionArgument,
    invocations: Annotated[
        int, typer.Option("-n", "--invocations", min=1, help="Warm ones, in one sandbox; at least 10 for a verdict.")
    ] = DEFAULT_COUNT,
    explain: Annotated[
        bool, typer.Option("--explain", help="Name what grew, in a short series of its own (Python and Node.js).")
    ] = False,
    settle: Annotated[
        bool,
        typer.Option(
            "--settle/--no-settle",
            help="Where memory changes, tell garbage from a leak by a second series that runs the collector each time.",
        ),
    ] = True,
    event: options.Events = None,
    memory: options.Memory = None,
    warn_at: WarnAt = None,
    receivers: receiving.Option = None,
    gap: options.Gap = 0.0,
    no_freeze: options.NoFreeze = False,
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
    """Tell whether FUNCTION leaks: memory, descriptors, threads, processes, /tmp.

    Exit code 8 where something leaks, so that it can gate a pipeline; 0 where nothing does or nothing can be told.
    """
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

    from harness.analysis import leak as analysis
    from harness.errors import EngineError, ThresholdNotMet
    from harness.experiments.leak import LeakPlan
    from harness.invocation import Outcome

    plan = LeakPlan(events=events, count=invocations, gap_s=gap, settle=settle, explain=explain)
    document = _measure(
        found,
        plan,
        vantage=vantage,
        freeze=not no_freeze,
        pull=not no_pull,
        store=store,
        quiet=as_json,
        warn_at=warn_at,
        receivers=receivers,
    )
    results.show(document, as_json=as_json)
    results.write(document, report, force=force)
    if analysis.leaks(document["findings"]):
        raise typer.Exit(ThresholdNotMet.exit_code)
    if all(each["outcome"] == Outcome.ENGINE_ERROR for each in document["invocations"]):
        raise typer.Exit(EngineError.exit_code)


def _measure(
    function: Function,
    plan: LeakPlan,
    *,
    vantage: str,
    freeze: bool,
    pull: bool,
    store: Path | None,
    quiet: bool,
    warn_at: float | None,
    receivers: str | None,
) -> dict[str, Any]:
    """Run the plan; each record is in the history as soon as it is measured, also when the run is interrupted."""
    from harness import document
    from harness.analysis import leak as analysis
    from harness.errors import HarnessError, Interrupted
    from harness.experiments.explain import Listener
    from harness.experiments.leak import Hunt
    from harness.stand import Stand
    from harness.store import Store

    records: list[Invocation] = []
    listener = Listener(pass_on=None if quiet else talk.FunctionOutput())
    with contextlib.ExitStack() as stack:
        history = stack.enter_context(Store(store))
        progress = stack.enter_context(talk.Progress(quiet=quiet))
        progress(f"starting a sandbox for {function.name}")
        received = stack.enter_context(receiving.opened(receivers, function))
        stand = stack.enter_context(
            Stand(
                function,
                vantage=vantage,
                freeze=freeze,
                pull=pull,
                on_output=listener,
                receivers=received,
                progress=progress,
            )
        )
        receiving.check(received, receivers, stand)
        talk.warn(stand.warnings)
        run = stack.enter_context(
            history.begin("leak", document.describe_function(function), stand.host, plan=_plan(plan))
        )
        hunt = Hunt(stand, plan, listener, undecided=analysis.undecided, hopeless=analysis.hopeless, progress=progress)
        # Sandboxes go before the stand that they stand on, also when this is left by an error.
        measured = stack.enter_context(contextlib.closing(hunt.records()))
        try:
            for record in measured:
                run.add(record)
                records.append(record)
                if record.variant is None:
                    warn(warn_at, len(records), record)
                progress(f"leak: {len(records)} invocations, {record.variant or f'of {plan.count}'}", keep_clock=True)
        except BaseException as error:
            talk.Progress.clear()
            with contextlib.suppress(HarnessError):  # the error that ended the run is the one to hear about
                # Signals are no `Exception`, whatever class they come as.
                stopped = isinstance(error, Interrupted) or not isinstance(error, Exception)
                so_far = analysis.findings(records, can_settle=hunt.can_settle) if records else None
                run.finish("interrupted" if stopped else "failed", so_far)
            if records:
                talk.note(
                    f"{len(records)} invocations are kept as run {run.run_id}: 'lambda-harness runs show {run.run_id}'"
                )
            raise
        found = analysis.findings(records, _explanation(plan, hunt, listener, records), can_settle=hunt.can_settle)
        run.finish("complete", found | receiving.findings(received))
        return history.document(run.run_id)


def _explanation(plan: LeakPlan, hunt: Hunt, listener: Listener, records: Sequence[Invocation]) -> Explanation | None:
    from harness.analysis.leak import Explanation, why_unexplained

    if not plan.explain:
        return None
    if not hunt.can_settle:
        return Explanation(error="there is no probe for this runtime; Python and Node.js have one")
    if hunt.explained is None:
        return Explanation(error="no invocation succeeded")
    heard = listener.heard or {"error": why_unexplained(records)}
    return Explanation(
        entries=heard.get("entries", ()),
        error=heard.get("error"),
        first=hunt.explained.first,
        last=hunt.explained.last,
        memory_mb=hunt.explained.memory_mb,
    )


def _plan(plan: LeakPlan) -> dict[str, Any]:
    return {
        "count": plan.count,
        "events": [{"bytes": len(each)} for each in plan.events],
        "gap_s": plan.gap_s,
        "settle": plan.settle,
        "explain": plan.explain,
    }
