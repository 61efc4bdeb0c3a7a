"""``doctor``: what was found, what is missing, what to do about it."""

from __future__ import annotations

import contextlib
import textwrap

import typer

from harness.cli import options, talk


def doctor(as_json: options.Json = False) -> None:
    """Say what this machine can measure exactly, what not, and what would make it better."""
    from harness import checkup, document, host
    from harness.engine.client import Engine
    from harness.errors import EngineError
    from harness.stand import choose_vantage

    with contextlib.closing(Engine()) as engine:
        facts = engine.facts()
        with contextlib.closing(choose_vantage(engine, facts)) as vantage:
            found = checkup.examine(engine, facts, vantage)
            about = host.describe(facts, vantage)
    if as_json:
        talk.emit(document.make("doctor", host=about, findings={"checks": [each.as_dict() for each in found]}))
    else:
        for each in found:
            talk.data(f"{each.mark}  {each.what}: {each.found}")
            if each.remedy:
                talk.data(textwrap.indent(each.remedy, " " * 6))
    if any(each.fatal for each in found):
        raise typer.Exit(EngineError.exit_code)
