"""``runs``: the history of what was measured: list, show, compare, export, prune."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli import options, results, talk
from harness.cli import sweep as sweeping

app = typer.Typer(
    help="What was measured before: list, show, compare, export, prune.", no_args_is_help=True, rich_markup_mode=None
)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its beginning.")]
StoreFile = Annotated[Path | None, typer.Option("--store", help="The history's file.")]
_SWEEP = "sweep"


@app.command("list")
def list_runs(
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, newest first.")] = 50,
    kind: Annotated[str | None, typer.Option("--kind", help="Only of this kind, such as sweep.")] = None,
    store: StoreFile = None,
    as_json: options.Json = False,
) -> None:
    """List stored runs, newest first."""
    from harness import document
    from harness.reports import terminal
    from harness.store import Store

    with Store(store) as history:
        found = [each.as_dict() for each in history.list(limit=limit, kind=kind)]
    if as_json:
        talk.emit(document.make("runs", host={}, runs=found))
        return
    terminal.runs(found, talk.console())


@app.command("show")
def show_run(
    run: RunId,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help=f"{sweeping.STRATEGIES}: read the records anew.")
    ] = None,
    weight: Annotated[float | None, typer.Option("--weight", min=0, max=1, help="For balanced.")] = None,
    per_month: Annotated[
        int | None, typer.Option("--per-month", min=0, help="Invocations a month, for savings.")
    ] = None,
    store: StoreFile = None,
    as_json: options.Json = False,
) -> None:
    """Show one run; with --strategy, --weight or --per-month its records are judged anew."""
    from harness.store import Store

    with Store(store) as history:
        found = history.document(run)
    anew = (strategy, weight, per_month) != (None, None, None)
    if found["kind"] == _SWEEP and (anew or not found["findings"]):
        found["findings"] = _read_anew(found, strategy=strategy, weight=weight, per_month=per_month)
    results.show(found, as_json=as_json)


def _read_anew(
    found: dict[str, Any], *, strategy: str | None = None, weight: float | None = None, per_month: int | None = None
) -> dict[str, Any]:
    """The findings of a stored sweep, from its records: as it was asked for, but for what is given here."""
    from harness.invocation import Invocation

    plan = found.get("plan") or {}
    reading = sweeping.reading_for(
        current_memory_mb=(found.get("function") or {}).get("memory_mb"),
        strategy=strategy if strategy is not None else plan.get("strategy"),
        weight=weight if weight is not None else plan.get("weight"),
        per_month=per_month if per_month is not None else plan.get("invocations_per_month", 1_000_000),
        discard=plan.get("discard") or 0.0,
        allowed_errors=plan.get("allowed_error_share") or 0.0,
        predicted=plan.get("predict_memory_mb") or (),
        hz=(found.get("host") or {}).get("hz"),
    )
    return sweeping.findings_of([Invocation.from_dict(each) for each in found["invocations"]], reading, plan)


@app.command("compare")
def compare_runs(
    baseline: RunId,
    candidate: RunId,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if", metavar="EXPR", help="A threshold such as 'duration_ms.p50>+20%'; exit code 8 if it is met."
        ),
    ] = None,
    store: StoreFile = None,
    as_json: options.Json = False,
) -> None:
    """Say for each memory size whether CANDIDATE is faster, slower or no different, with the interval."""
    from harness import document
    from harness.analysis.compare import compare_runs as compare
    from harness.analysis.compare import parse_threshold
    from harness.analysis.sweep import Reading
    from harness.errors import ThresholdNotMet
    from harness.experiments.sweep import with_allowed
    from harness.store import Store

    thresholds = [parse_threshold(text) for text in fail_if or ()]
    with Store(store) as history:
        runs = [history.get(each) for each in (baseline, candidate)]
        before, after = (
            with_allowed(history.invocations(each.run_id), each.plan.get("allowed_error_types") or ()) for each in runs
        )
    # What a run was allowed to fail does not take a size out of the comparison; what failed is in its outcomes.
    share = max(each.plan.get("allowed_error_share") or 0.0 for each in runs)
    findings = compare(before, after, thresholds, reading=Reading(allowed_error_share=share))
    made = document.make("compare", host={}, findings=findings, baseline=runs[0].run_id, candidate=runs[1].run_id)
    if as_json:
        talk.emit(made)
    else:
        from harness.reports import terminal

        terminal.comparison(made, talk.console())
    failed = [each for each in findings["thresholds"] if not each["met"]]
    for each in failed:
        talk.note(talk.red(each["sentence"]))
    if failed:
        raise typer.Exit(ThresholdNotMet.exit_code)


@app.command("export")
def export_run(
    run: RunId,
    out: Annotated[Path, typer.Option("--out", help="The suffix decides: .html, .png, .svg, .csv, .json.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    store: StoreFile = None,
) -> None:
    """Write a run as a report, a picture, a table or JSON."""
    from harness.reports import export
    from harness.store import Store

    with Store(store) as history:
        found = history.document(run)
    if found["kind"] == _SWEEP and not found["findings"]:
        found["findings"] = _read_anew(found)
    export.write(found, out, force=force)
    talk.note(f"wrote {out}")


@app.command("prune")
def prune_runs(
    keep_last: Annotated[int | None, typer.Option("--keep-last", min=0, help="Keep the newest N.")] = None,
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", min=0, help="Only older ones.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which.")] = False,
    store: StoreFile = None,
) -> None:
    """Delete old runs."""
    from harness.store import Store

    with Store(store) as history:
        gone = history.prune(
            keep_last=keep_last,
            older_than=None if older_than is None else timedelta(days=older_than),
            dry_run=dry_run,
        )
    for run_id in gone:
        talk.data(f"{'would delete' if dry_run else 'deleted'} {run_id}")
    if not gone:
        talk.note("nothing to delete")
