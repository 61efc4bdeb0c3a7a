"""``sweep``: which memory size, and what does it cost?"""

from __future__ import annotations

import contextlib
import functools
import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options, receiving, results, talk
from harness.cli.warn_at import WarnAt, warn

if TYPE_CHECKING:
    from harness.analysis.sweep import Reading
    from harness.experiments.sweep import SweepPlan, TimeLeft, Variant
    from harness.experiments.tuning_input import TuningInput
    from harness.function import Function
    from harness.invocation import Invocation
    from harness.receivers import Receivers

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
    allowed_exception: Annotated[
        list[str] | None,
        typer.Option("--allowed-exception", metavar="TYPE", help="An error type that counts as success; repeatable."),
    ] = None,
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
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler", metavar="ADDRESS", help="Measure on the workers of this Dask cluster, each size on each."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the order; recorded in any case.")] = None,
    report: results.Report = None,
    force: results.Force = False,
    output: Annotated[str, typer.Option("--format", help="Of stdout: text, json or power-tuning.")] = "text",
    warn_at: WarnAt = None,
    receivers: receiving.Option = None,
    store: Annotated[Path | None, typer.Option("--store", help="The history's file.")] = None,
    runtime: options.Runtime = None,
    handler: options.Handler = None,
    timeout: options.Timeout = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="K=V", help="A variable of every size; NAME:K=V is a variant's, as --variant."),
    ] = None,
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
    for_all, for_variants = _split(env)
    read = functools.partial(
        options.read_function,
        function,
        runtime=runtime,
        handler=handler,
        timeout=timeout,
        tmp=tmp,
        architecture=architecture,
        layers=layer,
        image=image,
    )
    found = read(env=for_all)
    asked = _Asked(
        function=found,
        tuning=_tuning(config),
        memory=memory,
        count=invocations,
        cold=cold,
        events=event,
        variants=_variants([*(variant or ()), *for_variants], lambda pair: read(env=[*for_all, pair])),
        pause=pause,
        seed=seed,
        parallel=parallel,
        allowed_errors=allowed_errors,
        allowed_exceptions=allowed_exception,
        predict=predict,
        preset=preset,
    )
    reading = _reading(found, asked, strategy, weight, per_month, discard, allowed_errors)
    if scheduler is not None:
        _refuse_on_a_cluster(parallel=parallel, receivers=receivers)
    results.check(report, force=force)
    document = _measure(
        found,
        asked,
        reading,
        vantage=vantage,
        pull=not no_pull,
        store=store,
        warn_at=warn_at,
        receivers=receivers,
        scheduler=scheduler,
    )
    try:
        if output == "power-tuning":
            from harness.reports import export

            talk.emit(export.power_tuning(document))
        else:
            results.show(document, as_json=output == "json")
    finally:
        results.write(document, report, force=force)
    if not document["findings"]["tiers"]:
        from harness.invocation import Invocation

        raise typer.Exit(options.exit_code([Invocation.from_dict(each) for each in document["invocations"]]))
    _check_lost(document["invocations"])


def _check_lost(invocations: Sequence[Mapping[str, Any]]) -> None:
    """Raises `EngineError` where the engine failed under every size: what was measured before it did is shown.

    One size among others that the engine refuses, or loses, is a finding of its own, and told as a warning.
    """
    from harness.errors import EngineError
    from harness.experiments.sweep import LOST_LIMIT

    lost = Counter(each["memory_mb"] for each in invocations if each["outcome"] == "engine_error")
    if lost and all(lost[each["memory_mb"]] >= LOST_LIMIT for each in invocations):
        raise EngineError(
            f"no size was measured to the end: the engine lost the sandboxes of each {LOST_LIMIT} times",
            remedy="what was measured before is above, and kept; 'lambda-harness doctor' tells whether the engine is well",
        )


class _Asked:
    """What the options and the config file together ask for; options win."""

    def __init__(
        self,
        *,
        function: Function,
        tuning: TuningInput,
        memory: str | None,
        count: int | None,
        cold: int | None,
        events: Sequence[str] | None,
        variants: tuple[Variant, ...],
        pause: float | None,
        seed: int | None,
        parallel: bool,
        allowed_errors: float,
        allowed_exceptions: Sequence[str] | None,
        predict: bool,
        preset: str | None,
    ) -> None:
        from harness.errors import UsageError
        from harness.experiments.sweep import COARSE_MB, SweepPlan, WeightedEvent, sizes

        if cold is not None and count is not None:
            raise UsageError(
                "--cold and -n are given together", remedy="--cold N measures N cold starts and nothing warm"
            )
        if memory is not None and preset is not None:
            raise UsageError("-m and --preset both say which sizes", remedy="give one of them")
        self.tuning = tuning
        given = sizes(memory) if memory is not None else None
        self.auto = memory is not None and given is None and not predict
        if memory is None:
            given = _preset_sizes(preset) if preset is not None else tuning.memory_mb
        # Where the sizes are the harness's choice, today's is among them: what would change is told against it.
        wanted = given if given is not None else tuple(sorted({*COARSE_MB, function.memory_mb}))
        self.predicted = wanted if predict else ()
        if predict and wanted:
            wanted = measured_for_prediction(wanted)
        plain = () if events or not tuning.events else tuning.events
        self.plan: SweepPlan = SweepPlan(
            memory_mb=tuple(wanted),
            count=next((each for each in (cold, count, tuning.count) if each is not None), DEFAULT_COUNT),
            events=plain or tuple(WeightedEvent(event=each) for each in options.read_events(events, function)),
            variants=variants,
            cold_only=cold is not None or (tuning.cold_only and count is None),
            pause_s=pause if pause is not None else tuning.pause_s or 0.0,
            seed=seed if seed is not None else random.SystemRandom().randrange(2**31),
            parallel=parallel,
            allowed_error_share=allowed_errors,
            allowed_error_types=tuple(allowed_exceptions or tuning.allowed_exceptions),
        )


def _preset_sizes(name: str) -> tuple[int, ...]:
    from harness.analysis.presets import preset

    return preset(name).memory_mb


def measured_for_prediction(wanted: Sequence[int]) -> tuple[int, ...]:
    """The two sizes that `--predict` measures for a list.

    1769 MB, where one thread is never stopped and no host is too small, gives the work; a size at which it is stopped, the
    smallest of the list or else half a vCPU, gives the error of the prediction.
    """
    from harness.tiers import MEMORY_MB_PER_VCPU, tier

    for size in wanted:
        tier(size)
    smallest = min(wanted)
    return (smallest if smallest < MEMORY_MB_PER_VCPU else MEMORY_MB_PER_VCPU // 2, MEMORY_MB_PER_VCPU)


def _tuning(config: Path | None) -> TuningInput:
    from harness.experiments import tuning_input

    found = tuning_input.read(config) if config is not None else tuning_input.TuningInput()
    for name in found.ignored:
        why = "would disturb the measurement here" if name == "parallelInvocation" else "has no meaning here"
        talk.note(f"note: {name} of {config} {why} and is ignored")
    return found


def _split(env: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """What --env says for every size, and what it says for a variant: no variable's name holds a colon."""
    given = list(env or ())
    of_variants = [each for each in given if ":" in each.partition("=")[0]]
    return [each for each in given if each not in of_variants], of_variants


def _variants(given: Sequence[str], check: Callable[[str], object]) -> tuple[Variant, ...]:
    """``check`` raises if Lambda would refuse a variable."""
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
        if pair:
            check(pair)
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
    """How the records of a sweep are to be read; also used to read a stored run in another way.

    ``hz`` is of the host that measured; where it is not known, Lambda's scheduler is assumed.
    """
    from harness.analysis.predict import LAMBDA, host_scheduler
    from harness.analysis.recommend import DEFAULT_WEIGHT, Aim
    from harness.analysis.sweep import Reading

    return Reading(
        aim=Aim(
            strategy=strategy or "cost",
            weight=DEFAULT_WEIGHT if weight is None else weight,
            current_memory_mb=current_memory_mb,
            invocations_per_month=per_month,
        ),
        discard=discard,
        allowed_error_share=allowed_errors,
        scheduler=host_scheduler(hz) if hz else LAMBDA,
        predict_memory_mb=tuple(predicted),
    )


def findings_of(records: Sequence[Invocation], reading: Reading, plan: dict[str, Any]) -> dict[str, Any]:
    """The findings of a sweep, measured or stored, with what the plan says of allowed errors, order and parallelism."""
    from harness.analysis.sweep import sweep_findings
    from harness.experiments.sweep import with_allowed

    judged = with_allowed(records, plan.get("allowed_error_types") or ())
    return sweep_findings(judged, reading) | {"seed": plan.get("seed"), "parallel": bool(plan.get("parallel"))}


def _measure(
    function: Function,
    asked: _Asked,
    reading: Reading,
    *,
    vantage: str,
    pull: bool,
    store: Path | None,
    warn_at: float | None,
    receivers: str | None,
    scheduler: str | None,
) -> dict[str, Any]:
    """Run the plan; each record is in the history as soon as it is here, also when the run is interrupted."""
    import dataclasses

    from harness import document
    from harness.errors import HarnessError, Interrupted
    from harness.experiments import sweep as experiment
    from harness.store import Store

    plan = asked.plan
    records: list[Invocation] = []
    with contextlib.ExitStack() as stack:
        history = stack.enter_context(Store(store))
        progress = stack.enter_context(talk.Progress())
        progress(f"starting sandboxes for {function.name}")
        bench, received = _opened(
            stack, function, scheduler, vantage=vantage, pull=pull, receivers=receivers, progress=progress
        )
        talk.warn(bench.warnings)
        hz = bench.host.get("hz")
        reading = dataclasses.replace(reading, scheduler=reading_for(current_memory_mb=None, hz=hz).scheduler)
        stored = _plan(asked, reading)
        if plan.parallel and not plan.cold_only:
            talk.note(
                "note: side by side sizes may come out slower than one by one; see bench/parallel.py for by how much here"
            )
        run = stack.enter_context(
            history.begin("sweep", document.describe_function(function), dict(bench.host), plan=stored)
        )
        failed: set[tuple[int, str | None]] = set()
        left = experiment.TimeLeft()
        left.expect(plan)

        def best(measured: Sequence[Invocation]) -> int | None:
            chosen = findings_of(measured, reading, stored)["recommendation"]
            return chosen["memory_mb"] if chosen else None

        def keep(record: Invocation) -> None:
            run.add(record)
            records.append(record)
            warn(warn_at, len(records), record)
            _note_failure(record, failed)

        # Sandboxes go before the stand that they stand on, also when this is left by an error.
        measured = stack.enter_context(
            contextlib.closing(
                experiment.explore(bench.measure, plan, best, room=bench.room, on_plan=left.expect)
                if asked.auto
                else bench.measure(plan)
            )
        )
        since = time.monotonic()
        try:
            for record in measured:
                keep(record)
                waited_s, since = time.monotonic() - since, time.monotonic()
                left.add(record, waited_s)
                progress(bench.told() if bench.told else _told(len(records), left), keep_clock=True)
        except BaseException as error:
            talk.Progress.clear()
            with contextlib.suppress(HarnessError):  # the error that ended the run is the one to hear about
                for record in bench.stop():
                    keep(record)
                # Signals are no `Exception`, whatever class they come as.
                stopped = isinstance(error, Interrupted) or not isinstance(error, Exception)
                run.finish(
                    "interrupted" if stopped else "failed", findings_of(records, reading, stored) if records else None
                )
            if records:
                talk.note(
                    f"{len(records)} invocations are kept as run {run.run_id}: 'lambda-harness runs show {run.run_id}'"
                )
            raise
        run.finish("complete", findings_of(records, reading, stored) | receiving.findings(received))
        return history.document(run.run_id)


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """Where a plan is measured: on this host, or on those of a cluster.

    ``stop`` gives the records of what was still running when a run was left early; ``told`` says how far it is.
    """

    host: Mapping[str, Any]
    warnings: Sequence[str]
    measure: Callable[[SweepPlan], Generator[Invocation, None, None]]
    room: Callable[[], float]
    stop: Callable[[], Iterable[Invocation]] = tuple
    told: Callable[[], str] | None = None


def _opened(
    stack: contextlib.ExitStack,
    function: Function,
    scheduler: str | None,
    *,
    vantage: str,
    pull: bool,
    receivers: str | None,
    progress: Callable[[str], None],
) -> tuple[_Bench, Receivers | None]:
    from harness.experiments import sweep as experiment
    from harness.stand import Stand

    if scheduler is not None:
        return _on_a_cluster(stack, function, scheduler, vantage=vantage, pull=pull, progress=progress), None
    received = stack.enter_context(receiving.opened(receivers, function))
    stand = stack.enter_context(Stand(function, vantage=vantage, pull=pull, receivers=received, progress=progress))
    receiving.check(received, receivers, stand)
    bench = _Bench(
        host=stand.host,
        warnings=stand.warnings,
        measure=functools.partial(experiment.run, stand),
        room=functools.partial(experiment.room_bytes, stand),
    )
    return bench, received


def _on_a_cluster(
    stack: contextlib.ExitStack,
    function: Function,
    scheduler: str,
    *,
    vantage: str,
    pull: bool,
    progress: Callable[[str], None],
) -> _Bench:
    from harness.experiments.fanout import Fleet

    fleet = stack.enter_context(Fleet(function, scheduler=scheduler, vantage=vantage, pull=pull, progress=progress))
    warnings = list(fleet.warnings)
    if function.receivers:
        warnings.append(
            f"{' and '.join(function.receivers)} of {function.source} are not opened: receivers listen on this host, and "
            "the function runs on others"
        )
    return _Bench(
        host=fleet.host,
        warnings=warnings,
        measure=fleet.run,
        room=lambda: fleet.room_bytes,
        stop=fleet.stop,
        told=fleet.told,
    )


def _refuse_on_a_cluster(*, parallel: bool, receivers: str | None) -> None:
    from harness.errors import UsageError

    if parallel:
        raise UsageError(
            "--parallel and --scheduler are given together",
            remedy="leave --parallel out: every worker measures one size at a time, beside the other workers",
        )
    if receivers is not None and receiving.named(receivers):
        raise UsageError(
            "--receivers and --scheduler are given together",
            remedy="leave one of them out: receivers listen on this host, and the function runs on others",
        )


def _plan(asked: _Asked, reading: Reading) -> dict[str, Any]:
    """What was asked for, as it is stored: enough to read the records again in the same way."""
    plan = asked.plan
    return {
        "memory_mb": list(plan.memory_mb),
        "auto": asked.auto,
        "count": plan.count,
        "cold_only": plan.cold_only,
        "events": [{"bytes": len(each.event), "weight": each.weight} for each in plan.events],
        "variants": [{"name": each.name, "environment": sorted(each.environment)} for each in plan.variants],
        "pause_s": plan.pause_s,
        "seed": plan.seed,
        "parallel": plan.parallel,
        "allowed_error_share": plan.allowed_error_share,
        "allowed_error_types": list(plan.allowed_error_types),
        "predict_memory_mb": list(reading.predict_memory_mb),
        "discard": reading.discard,
        "strategy": reading.aim.strategy,
        "weight": reading.aim.weight,
        "invocations_per_month": reading.aim.invocations_per_month,
    }


def _note_failure(record: Invocation, failed: set[tuple[int, str | None]]) -> None:
    """Say the first failure of a size; ``failed`` keeps those that were said."""
    from harness.invocation import Outcome

    key = (record.memory_mb, record.variant)
    if record.outcome is not Outcome.SUCCESS and key not in failed:
        failed.add(key)
        talk.Progress.clear()
        talk.note(_failure(record))


def _failure(record: Invocation) -> str:
    """The first failure of a size: a rejection says how many there were, not what the function said."""
    size = f"{record.memory_mb} MB" + (f" ({record.variant})" if record.variant else "")
    said = ": ".join(each for each in (record.error_type, record.error_message) if each)
    return talk.red(f"{size}: {record.outcome}: {said[:500]}")


def _told(done: int, left: TimeLeft) -> str:
    seconds = left.seconds()
    if not left.invocations or seconds is None:
        return f"sweep: {done} invocations"
    about = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"sweep: {done} of {done + left.invocations} invocations, about {about} left"
