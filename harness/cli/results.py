"""What commands do with the document of an experiment: show it, and write the report that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import talk

if TYPE_CHECKING:
    from harness.invocation import Invocation

Report = Annotated[Path | None, typer.Option("--report", help="Write a report: .html, .png, .svg, .csv or .json.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing report.")]


def check(report: Path | None, *, force: bool) -> None:
    """Refuse a report that could not be written, before the minutes of measuring and not after."""
    if report is not None:
        from harness.reports import export

        export.check_target(report, force=force)


def write(document: dict[str, Any], report: Path | None, *, force: bool) -> None:
    """Write the report, if one was asked for."""
    if report is not None:
        from harness.reports import export

        export.write(document, report, force=force)
        talk.note(f"report: {report}")


def show(document: dict[str, Any], *, as_json: bool) -> None:
    """The document on stdout: as JSON, or as the report of its kind for people. A kind without one is JSON."""
    from harness.reports import terminal

    shown = {"sweep": terminal.sweep, "leak": terminal.leak, "oom": terminal.oom, "load": terminal.load}
    kind = document["kind"]
    if as_json or kind not in shown:
        talk.emit(document)
        return
    shown[kind](document, talk.console())
    if kind != "sweep":  # whose findings name the sizes
        from harness.invocation import Invocation

        say_what_differs([Invocation.from_dict(each) for each in document["invocations"]])
    if document.get("run_id"):
        talk.note(
            f"run {document['run_id']}: 'lambda-harness runs export {document['run_id']} --out FILE.html' for pictures"
        )


def say_what_differs(records: Sequence[Invocation], said: set[str] | None = None) -> None:
    """On stderr, once: what was not measured or not enforced, and a host with fewer CPUs than Lambda shows.

    ``said``: what has been said before, where records come one by one; what is said now is added.
    """
    said = set() if said is None else said
    notes = [note for record in records for note in record.notes]
    capped = sorted({record.memory_mb for record in records if record.cpu_capped})
    notes += [f"this host has fewer CPUs than Lambda shows at {memory_mb} MB" for memory_mb in capped]
    for note in dict.fromkeys(notes):
        if note not in said:
            said.add(note)
            talk.note(f"note: {note}")
