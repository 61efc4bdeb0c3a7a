"""The table of contents of the command line. Commands import what they need when they run, so that --help is quick."""

from __future__ import annotations

import typer

from harness.cli import clean, cost, doctor, images, invoke, leak, load, logs, oom, runs, serve, sweep, warm

app = typer.Typer(
    name="lambda-harness",
    help="Run Lambda functions under exactly the CPU and memory of a memory size, frozen between invocations, and measure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("doctor")(doctor.doctor)
app.add_typer(images.app, name="images")
app.command("invoke")(invoke.invoke)
app.command("warm")(warm.warm)
app.command("sweep")(sweep.sweep)
app.command("leak")(leak.leak)
app.command("oom")(oom.oom)
app.command("load")(load.load)
app.command("cost")(cost.cost)
app.add_typer(runs.app, name="runs")
app.command("serve")(serve.serve)
app.add_typer(logs.app, name="logs")
app.command("clean")(clean.clean)


@app.callback(invoke_without_command=True)
def main(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from harness._version import __version__

        typer.echo(f"lambda-harness {__version__}")
        raise typer.Exit
