"""``clean``: remove what an interrupted run left behind."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from harness.cli import talk


def clean(
    everything: Annotated[
        bool, typer.Option("--all", help="Also what running commands hold: their sandboxes die under them.")
    ] = False,
    images: Annotated[bool, typer.Option("--images", help="Also offline images of older recipes.")] = False,
) -> None:
    """Remove containers, volumes and directories whose owner is gone."""
    from harness.engine import build, volumes
    from harness.engine.client import Engine, reap
    from harness.stand import choose_vantage, reap_work_dirs

    with contextlib.closing(Engine()) as engine:
        with contextlib.closing(choose_vantage(engine, engine.facts())) as vantage:
            removed = reap(engine, release=vantage.let_go, everything=everything)
        removed += volumes.remove_unused(engine, everything=everything)
        removed += reap_work_dirs(everything=everything)
        if images:
            for reference in build.outdated(engine.docker):
                with engine.asked(f"remove image {reference}"):
                    engine.docker.images.remove(reference, force=True)
                removed.append(f"image {reference}")
    for each in removed:
        talk.data(f"removed {each}")
    if not removed:
        talk.note("nothing to remove")
