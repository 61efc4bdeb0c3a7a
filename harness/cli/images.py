"""``images``: which image would serve which runtime, and from where; build and pull them."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import Annotated

import typer

from harness.cli import options, talk

app = typer.Typer(
    help="Which image serves which runtime; build offline images, pull AWS's.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Runtimes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RUNTIME]...", help="AWS's runtime names; default: all that have a recipe."),
]


@app.command("list")
def list_images(as_json: options.Json = False) -> None:
    """Say for each runtime which image would serve it and why."""
    from harness import document, host
    from harness import format as form
    from harness.engine import images
    from harness.engine.client import Engine
    from harness.stand import choose_vantage

    with contextlib.closing(Engine()) as engine:
        facts = engine.facts()
        found = images.survey(engine.docker)
        with contextlib.closing(choose_vantage(engine, facts)) as vantage:
            about = host.describe(facts, vantage)
    if as_json:
        talk.emit(document.make("images", host=about, findings={"images": [asdict(each) for each in found]}))
        return
    rows = []
    for each in found:
        size = form.size(each.chosen.size_bytes) if each.chosen else "-"
        rows.append([each.runtime, each.chosen.reference if each.chosen else "-", size, each.why])
    talk.data(talk.table(rows, header=["runtime", "image", "size", "why"]))


@app.command("build")
def build_images(
    runtime: Runtimes = None,
    architecture: Annotated[str | None, typer.Option("--architecture", help="x86_64 or arm64.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build also what is there already.")] = False,
) -> None:
    """Build the offline images from Debian's packages; those whose recipe has not changed are kept."""
    from harness import format as form
    from harness.engine import build
    from harness.engine.client import Engine

    with contextlib.closing(Engine()) as engine, talk.Progress() as progress:
        facts = engine.facts()
        for each in runtime or build.runtimes():
            progress(f"building the image of {each}")
            made = build.build(engine.docker, each, architecture or facts.architecture, progress=progress, force=force)
            progress.clear()
            talk.data(f"{made.runtime}  {made.reference}  {form.size(made.size_bytes)}")


@app.command("pull")
def pull_images(
    runtime: Annotated[list[str], typer.Argument(metavar="RUNTIME...", help="AWS's runtime names.")],
    architecture: Annotated[str | None, typer.Option("--architecture", help="x86_64 or arm64.")] = None,
) -> None:
    """Pull AWS's base images."""
    from harness.engine import images
    from harness.engine.client import Engine

    images.forget_failures()
    with contextlib.closing(Engine()) as engine, talk.Progress() as progress:
        facts = engine.facts()
        for each in runtime:
            progress(f"pulling the image of {each}")
            found = images.resolve(
                engine.docker, each, architecture or facts.architecture, build=False, progress=progress
            )
            progress.clear()
            talk.data(f"{each}  {found.reference}  {found.why}")
