"""The options that commands share, and how they become a function, a stand and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.function import Function
    from harness.invocation import Invocation

FunctionArgument = Annotated[
    str,
    typer.Argument(
        metavar="FUNCTION",
        help="A directory with function.toml; template.yaml:LogicalId; image:NAME; a directory or zip with --handler.",
    ),
]
Events = Annotated[
    list[str] | None,
    typer.Option(
        "-e",
        "--event",
        metavar="JSON|FILE|-",
        help="The event; repeated: used in turn. Default: function.toml's, else {}.",
    ),
]
Memory = Annotated[int | None, typer.Option("-m", "--memory", metavar="MB", help="Memory size, 128 to 10240.")]
Runtime = Annotated[str | None, typer.Option("--runtime", help="AWS's runtime name, such as python3.13.")]
Handler = Annotated[str | None, typer.Option("--handler", help="As on Lambda, such as app.handler.")]
Timeout = Annotated[
    int | None, typer.Option("--timeout", metavar="S", help="The function's timeout, 1 to 900 seconds.")
]
Environment = Annotated[
    list[str] | None, typer.Option("--env", metavar="K=V", help="An environment variable; repeatable.")
]
Tmp = Annotated[int | None, typer.Option("--tmp", metavar="MB", help="Size of /tmp, 512 to 10240.")]
Architecture = Annotated[str | None, typer.Option("--architecture", help="x86_64 or arm64.")]
Layers = Annotated[list[Path] | None, typer.Option("--layer", help="A layer's directory or zip; repeatable, in order.")]
Image = Annotated[str | None, typer.Option("--image", help="Run in this image instead of the runtime's.")]
Vantage = Annotated[
    str,
    typer.Option(
        "--vantage", help="auto, host, agent or api: where cgroups are reached from.", envvar="LAMBDA_HARNESS_VANTAGE"
    ),
]
NoPull = Annotated[bool, typer.Option("--no-pull", help="Never ask a registry.")]
NoFreeze = Annotated[bool, typer.Option("--no-freeze", help="Leave the sandbox running between invocations.")]
Gap = Annotated[float, typer.Option("--gap", metavar="S", min=0.0, help="Seconds between invocations.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]


def pairs(given: Sequence[str] | None) -> dict[str, str]:
    """K=V options as a mapping; `UsageError` names one that is not of that form."""
    found = {}
    for text in given or ():
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UsageError(f"--env {text!r} is not of the form K=V", remedy="write --env NAME=VALUE")
        found[name] = value
    return found


def read_function(
    source: str,
    *,
    runtime: str | None = None,
    handler: str | None = None,
    memory: int | None = None,
    timeout: int | None = None,
    env: Sequence[str] | None = None,
    tmp: int | None = None,
    architecture: str | None = None,
    layers: Sequence[Path] | None = None,
    image: str | None = None,
) -> Function:
    """The function that the options describe."""
    from harness.function import Overrides, load

    overrides = Overrides(
        runtime=runtime,
        handler=handler,
        memory_mb=memory,
        timeout_s=timeout,
        tmp_mb=tmp,
        architecture=architecture,
        environment=pairs(env),
        layers=tuple(layers) if layers else None,
        image=image,
    )
    return load(source, overrides)


def read_events(given: Sequence[str] | None, function: Function) -> tuple[bytes, ...]:
    """The events of -e, else those of function.toml, else an empty object."""
    from harness import event

    if given:
        return tuple(event.parse(each) for each in given)
    return tuple(event.read(path) for path in function.events) or (b"{}",)


def exit_code(invocations: Sequence[Invocation]) -> int:
    """That of the first invocation that failed; 0 where all succeeded."""
    from harness import errors
    from harness.invocation import Outcome

    codes = {
        Outcome.TIMEOUT: errors.FunctionTimedOut.exit_code,
        Outcome.INIT_TIMEOUT: errors.FunctionTimedOut.exit_code,
        Outcome.OUT_OF_MEMORY: errors.OutOfMemory.exit_code,
        Outcome.ENGINE_ERROR: errors.EngineError.exit_code,
    }
    for each in invocations:
        if each.outcome is not Outcome.SUCCESS:
            return codes.get(each.outcome, errors.FunctionFailed.exit_code)
    return 0
