"""``sweep``: which memory size, and what does it cost?"""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options, talk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.analysis.sweep import Reading
    from harness.experiments.sweep import SweepPlan, Variant
    from harness.experiments.tuning_input import TuningInput
    from harness.function import Function
    from harness.invocation import Invocation

DEFAULT_COUNT = 20
STRATEGIES = "cost, speed, balanced or rating"


def sweep(
    function: options.FunctionArgument,
    memory: Annotated[
        str | None,
        typer.Option("-m", "--memory", metavar="LIST|ALL|auto", help="Memory sizes in MB, such as 128,512,1024."),
    ] = None,
    invocations: Annotated[
        int | None, typer.Option("-n", "--invocations", min=1, help=f"Warm ones a size (default {DEFAULT_COUNT}).")
    ] = None,
    cold: Annotated[
        int | None, typer.Option("--cold", min=1, help="Measure that many cold starts a size, and nothing warm.")
    ] = None,
    event: options.Events = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant", metavar="NAME:K=V", help="An A/B variant of the environment; NAME: alone changes nothing."
        ),
    ] = None,
    strategy: Annotated[str | None, typer.Option("--strategy", help=f"{STRATEGIES} (default cost).")] = None,
    weight: Annotated[
        float | None, typer.Option("--weight", min=0, max=1, help="For balanced: 1 is cost alone, 0 time alone.")
    ] = None,
    per_month: Annotated[int, typer.Option("--per-month", min=0, help="Invocations a month, for savings.")] = 1_000_000,
    pause: Annotated[
        float | None, typer.Option("--pause", metavar="S", min=0, help="Seconds before each invocation.")
    ] = None,
    discard: Annotated[
        float | None,
        typer.Option("--discard", min=0, max=0.4, help="Share of durations dropped at either end (default 0)."),
    ] = None,
    allowed_errors: Annotated[
        float, typer.Option("--allowed-errors", min=0, max=1, help="Share of failures a size may have (default 0).")
    ] = 0.0,
    predict: Annotated[
        bool, typer.Option("--predict", help="Measure the smallest size of the list and 1769 MB; predict the others.")
    ] = False,
    preset: Annotated[
        str | None, typer.Option("--preset", help="Sizes for a workload: api, database, file-processing, ml, etl.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="An input file of aws-lambda-power-tuning.")] = None,
    parallel: Annotated[
        bool, typer.Option("--parallel", help="Measure sizes side by side where their quotas fit the CPUs.")
    ] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the order; recorded in any case.")] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a report: .html, .png, .svg, .csv or .json.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing report.")] = False,
    output: Annotated[str, typer.Option("--format", help="Of stdout: text, json or power-tuning.")] = "text",
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
    as_json: options.Json = False,
) -> None:
    """Measure FUNCTION at several memory sizes, price them and recommend one."""
    if output not in ("text", "json", "power-tuning"):
        raise typer.BadParameter("choose text, json or power-tuning", param_hint="'--format'")
    output = "json" if as_json else output
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
    asked = _Asked(
        function=found,
        tuning=_tuning(config),
        memory=memory,
        count=cold or invocations,
        cold_only=bool(cold),
        events=event,
        variants=variant,
        pause=pause,
        seed=seed,
        parallel=parallel,
        allowed_errors=allowed_errors,
        predict=predict,
        preset=preset,
    )
    reading = _reading(found, asked, strategy, weight, per_month, discard, allowed_errors)
    if report is not None:
        from harness.reports import export

        export.check_target(report, force=force)  # before the minutes of measuring, not after
    document = _measure(found, asked, reading, vantage=vantage, pull=not no_pull, store=store, quiet=output != "text")
    show(document, output=output)
    if report is not None:
        from harness.reports import export

        export.write(document, report, force=force)
        talk.note(f"report: {report}")
    if not document["findings"]["tiers"]:
        from harness.invocation import Invocation

        raise typer.Exit(options.exit_code([Invocation.from_dict(each) for each in document["invocations"]]))


class _Asked:
    """What the options and the config file together ask for; options win."""

    def __init__(
        self,
        *,
        function: Function,
        tuning: TuningInput,
        memory: str | None,
        count: int | None,
        cold_only: bool,
        events: Sequence[str] | None,
        variants: Sequence[str] | None,
        pause: float | None,
        seed: int | None,
        parallel: bool,
        allowed_errors: float,
        predict: bool,
        preset: str | None,
    ) -> None:
        from harness.experiments.sweep import COARSE_MB, SweepPlan, WeightedEvent, sizes

        self.tuning = tuning
        given = sizes(memory) if memory else tuning.memory_mb
        self.auto = bool(memory) and given is None
        if given is None and preset and not memory:
            from harness.analysis.presets import preset as find

            given = find(preset).memory_mb
        wanted = given if given is not None else COARSE_MB
        self.predicted: tuple[int, ...] = ()
        if predict:
            from harness.tiers import MEMORY_MB_PER_VCPU

            self.predicted = wanted
            # One size that is throttled and one that is not: the second gives the work, the first the error.
            wanted = tuple(dict.fromkeys((min(wanted), MEMORY_MB_PER_VCPU)))
        plain = () if events or not tuning.events else tuning.events
        self.plan: SweepPlan = SweepPlan(
            memory_mb=tuple(wanted),
            count=count or tuning.count or DEFAULT_COUNT,
            events=plain or tuple(WeightedEvent(event=each) for each in options.read_events(events, function)),
            variants=_variants(variants),
            cold_only=cold_only or tuning.cold_only,
            pause_s=pause if pause is not None else tuning.pause_s or 0.0,
            seed=seed if seed is not None else random.SystemRandom().randrange(2**31),
            parallel=parallel or tuning.parallel,
            allowed_error_share=allowed_errors,
        )


def _tuning(config: Path | None) -> TuningInput:
    from harness.experiments import tuning_input

    found = tuning_input.read(config) if config is not None else tuning_input.TuningInput()
    for name in found.ignored:
        talk.note(f"note: {name} of {config} has no meaning here and is ignored")
    return found


def _variants(given: Sequence[str] | None) -> tuple[Variant, ...]:
    from harness.errors import UsageError
    from harness.experiments.sweep import Variant

    if not given:
        return (Variant(),)
    found: dict[str, dict[str, str]] = {}
    for text in given:
        name, separator, pair = text.partition(":")
        if not separator or not name:
            raise UsageError(f"--variant {text!r} is not of the form NAME:K=V", remedy="such as --variant big:HEAP=512")
        found.setdefault(name, {}).update(options.pairs([pair]) if pair else {})
    return tuple(Variant(name=name, environment=environment) for name, environment in found.items())


def _reading(
    function: Function,
    asked: _Asked,
    strategy: str | None,
    weight: float | None,
    per_month: int,
    discard: float | None,
    allowed_errors: float,
) -> Reading:
    return reading_for(
        current_memory_mb=function.memory_mb,
        strategy=strategy or asked.tuning.strategy,
        weight=weight if weight is not None else asked.tuning.weight,
        per_month=per_month,
        discard=discard if discard is not None else asked.tuning.discard or 0.0,
        allowed_errors=allowed_errors,
        predicted=asked.predicted,
    )


def reading_for(
    *,
    current_memory_mb: int | None,
    strategy: str | None = None,
    weight: float | None = None,
    per_month: int = 1_000_000,
    discard: float = 0.0,
    allowed_errors: float = 0.0,
    predicted: Sequence[int] = (),
    hz: int | None = None,
) -> Reading:
    """How the records of a sweep are to be read; also used to read a stored run in another way."""
    from harness import host
    from harness.analysis.predict import LAMBDA, host_scheduler
    from harness.analysis.recommend import DEFAULT_WEIGHT, Aim
    from harness.analysis.sweep import Reading

    ticks = hz if hz is not None else host.tick_hz()
    return Reading(
        aim=Aim(
            strategy=strategy or "cost",
            weight=DEFAULT_WEIGHT if weight is None else weight,
            current_memory_mb=current_memory_mb,
            invocations_per_month=per_month,
        ),
        discard=discard,
        allowed_error_share=allowed_errors,
        scheduler=host_scheduler(ticks) if ticks else LAMBDA,
        predict_memory_mb=tuple(predicted),
    )


def _measure(
    function: Function,
    asked: _Asked,
    reading: Reading,
    *,
    vantage: str,
    pull: bool,
    store: Path | None,
    quiet: bool,
) -> dict[str, Any]:
    """Run the plan; each record is in the history as soon as it is measured, also when the run is interrupted."""
    from harness import document
    from harness.analysis.sweep import sweep_findings
    from harness.experiments import sweep as experiment
    from harness.stand import Stand
    from harness.store import Store

    plan = asked.plan
    records: list[Invocation] = []
    with contextlib.ExitStack() as stack:
        history = stack.enter_context(Store(store))
        progress = stack.enter_context(talk.Progress(quiet=quiet))
        progress(f"starting sandboxes for {function.name}")
        stand = stack.enter_context(Stand(function, vantage=vantage, pull=pull, progress=progress))
        for warning in stand.warnings:
            talk.note(f"warning: {warning}")
        described = document.describe_function(function)
        run = stack.enter_context(history.begin("sweep", described, stand.host, plan=_plan(plan)))

        def best(measured: Sequence[Invocation]) -> int | None:
            chosen = sweep_findings(measured, reading)["recommendation"]
            return chosen["memory_mb"] if chosen else None

        measured = experiment.explore(stand, plan, best) if asked.auto else experiment.run(stand, plan)
        begun = time.monotonic()
        try:
            for record in measured:
                run.add(record)
                records.append(record)
                progress(_left(len(records), plan.total, begun), keep_clock=True)
        except KeyboardInterrupt:
            run.finish("interrupted", sweep_findings(records, reading) | {"seed": plan.seed} if records else None)
            talk.Progress.clear()
            talk.note(
                f"{len(records)} invocations are kept as run {run.run_id}: 'lambda-harness runs show {run.run_id}'"
            )
            raise
        findings = sweep_findings(records, reading) | {"seed": plan.seed, "parallel": plan.parallel}
        run.finish("complete", findings)
        return history.document(run.run_id)


def _plan(plan: SweepPlan) -> dict[str, Any]:
    return {
        "memory_mb": list(plan.memory_mb),
        "count": plan.count,
        "cold_only": plan.cold_only,
        "events": [{"bytes": len(each.event), "weight": each.weight} for each in plan.events],
        "variants": [{"name": each.name, "environment": sorted(each.environment)} for each in plan.variants],
        "pause_s": plan.pause_s,
        "seed": plan.seed,
        "parallel": plan.parallel,
        "allowed_error_share": plan.allowed_error_share,
    }


def _left(done: int, total: int, begun: float) -> str:
    if done >= total:
        return f"sweep: {done} invocations"
    left = (time.monotonic() - begun) / done * (total - done)
    return f"sweep: {done} of {total} invocations, about {left:.0f} s left"


def show(document: dict[str, Any], *, output: str) -> None:
    """A sweep's document on stdout."""
    if output == "json":
        talk.emit(document)
    elif output == "power-tuning":
        from harness.reports import export

        talk.emit(export.power_tuning(document))
    else:
        from harness.reports import terminal

        terminal.sweep(document, talk.console())
        if document.get("run_id"):
            talk.note(
                f"run {document['run_id']}: 'lambda-harness runs export {document['run_id']} --out FILE.html' for pictures"
            )
