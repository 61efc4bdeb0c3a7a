"""``load``: what happens when many requests come at once."""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options, receiving, results, talk
from harness.cli.warn_at import WarnAt, warn

if TYPE_CHECKING:
    from harness.experiments.load import Load, LoadPlan
    from harness.function import Function
    from harness.invocation import Invocation

DEFAULT_S = 10.0


def load(
    function: options.FunctionArgument,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", metavar="N", help="Closed loop: N clients, each asks again when answered."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="R", help="Open loop: R requests a second, whatever becomes of them."),
    ] = None,
    duration: Annotated[
        float | None, typer.Option("--for", metavar="S", help=f"Seconds (default {DEFAULT_S:g}, without --requests).")
    ] = None,
    requests: Annotated[int | None, typer.Option("--requests", metavar="N", help="End after that many.")] = None,
    poisson: Annotated[
        bool, typer.Option("--poisson", help="With --rate: random arrivals, as of many callers.")
    ] = False,
    max_sandboxes: Annotated[
        int | None,
        typer.Option("--max-sandboxes", metavar="N", help="Throttle beyond (default 1000, and what memory holds)."),
    ] = None,
    event: options.Events = None,
    memory: options.Memory = None,
    no_freeze: options.NoFreeze = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Of --poisson; recorded in any case.")] = None,
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
    """Send FUNCTION many requests at once, scale out as Lambda does, and count what becomes of them."""
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
    from harness.experiments.load import LoadPlan

    plan = LoadPlan(
        events=options.read_events(event, found),
        concurrency=concurrency,
        rate_per_s=rate,
        duration_s=DEFAULT_S if duration is None and requests is None else duration,
        requests=requests,
        poisson=poisson,
        seed=seed if seed is not None else random.SystemRandom().randrange(2**31),
        max_sandboxes=max_sandboxes,
    )
    document = _measure(
        found,
        plan,
        vantage=vantage,
        freeze=not no_freeze,
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
    plan: LoadPlan,
    *,
    vantage: str,
    freeze: bool,
    pull: bool,
    store: Path | None,
    warn_at: float | None,
    receivers: str | None,
    quiet: bool,
) -> dict[str, Any]:
    """Run the plan; each record is in the history as soon as it is measured, also when the run is interrupted."""
    from harness import document
    from harness.errors import HarnessError
    from harness.experiments.load import Load
    from harness.stand import Stand
    from harness.store import Store

    records: list[Invocation] = []
    with contextlib.ExitStack() as stack:
        history = stack.enter_context(Store(store))
        progress = stack.enter_context(talk.Progress(quiet=quiet))
        progress(f"starting a sandbox for {function.name}")
        received = stack.enter_context(receiving.opened(receivers, function))
        stand = stack.enter_context(
            Stand(function, vantage=vantage, freeze=freeze, pull=pull, receivers=received, progress=progress)
        )
        receiving.check(received, receivers, stand)
        talk.warn(stand.warnings)
        run = stack.enter_context(
            history.begin("load", document.describe_function(function), stand.host, plan=_plan(plan))
        )
        measuring = stack.enter_context(Load(stand, plan))
        progress(f"starting containers for {function.name}")
        begun = time.monotonic()
        measured = stack.enter_context(contextlib.closing(measuring.records()))
        try:
            for record in measured:
                if not records:
                    begun = time.monotonic()
                run.add(record)
                records.append(record)
                warn(warn_at, len(records), record)
                progress(_left(len(records), plan, begun), keep_clock=True)
        except BaseException as error:
            measured.close()
            talk.Progress.clear()
            with contextlib.suppress(HarnessError):  # the error that ended the run is the one to hear about
                # Signals are no `Exception`.
                run.finish(
                    "failed" if isinstance(error, Exception) else "interrupted",
                    _findings(records, measuring, plan) if records else None,
                )
            if records:
                talk.note(
                    f"{len(records)} invocations are kept as run {run.run_id}: 'lambda-harness runs show {run.run_id}'"
                )
            raise
        run.finish("complete", _findings(records, measuring, plan) | receiving.findings(received))
        return history.document(run.run_id)


def _findings(records: list[Invocation], measuring: Load, plan: LoadPlan) -> dict[str, Any]:
    from harness.analysis.load import load_findings

    observed = asdict(measuring.observed())
    return load_findings(records, observed | observed.pop("pool")) | {"seed": plan.seed if plan.poisson else None}


def _plan(plan: LoadPlan) -> dict[str, Any]:
    return {
        "loop": "closed" if plan.rate_per_s is None else "open",
        "concurrency": plan.concurrency,
        "rate_per_s": plan.rate_per_s,
        "duration_s": plan.duration_s,
        "requests": plan.requests,
        "poisson": plan.poisson,
        "seed": plan.seed,
        "max_sandboxes": plan.max_sandboxes,
        "events": [{"bytes": len(each)} for each in plan.events],
    }


def _left(done: int, plan: LoadPlan, begun: float) -> str:
    passed = time.monotonic() - begun
    if plan.duration_s is not None:
        return f"load: {done} requests, {max(0.0, plan.duration_s - passed):.0f} s left"
    return f"load: {done} of {plan.requests} requests"


def _exit_code(document: dict[str, Any]) -> int:
    """That of the first that failed. Throttles are what --max-sandboxes asked for: they count only if nothing else ran."""
    from harness.invocation import Invocation, Outcome

    records = [Invocation.from_dict(each) for each in document["invocations"]]
    ran = [each for each in records if each.outcome is not Outcome.THROTTLED]
    return options.exit_code(ran or records)
