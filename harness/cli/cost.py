"""``cost``: what a function would cost by the month."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.cli import options, talk


def cost(
    memory: Annotated[int, typer.Option("-m", "--memory", metavar="MB", help="Memory size.")],
    duration_ms: Annotated[float, typer.Option("--duration-ms", help="Mean duration of an invocation.")],
    invocations: Annotated[int, typer.Option("-n", "--invocations", help="Invocations a month.")],
    region: Annotated[str, typer.Option("--region", help="AWS's name of the region.")] = "us-east-1",
    architecture: Annotated[str, typer.Option("--architecture", help="x86_64 or arm64.")] = "x86_64",
    tmp: Annotated[int, typer.Option("--tmp", metavar="MB", help="Size of /tmp.")] = 512,
    cold_share: Annotated[
        float, typer.Option("--cold-share", help="Share of invocations that wait for an init.")
    ] = 0.0,
    init_ms: Annotated[float, typer.Option("--init-ms", help="Duration of an init; it is billed.")] = 0.0,
    failure_rate: Annotated[float, typer.Option("--failure-rate", help="Share of invocations that fail.")] = 0.0,
    failure_duration_ms: Annotated[
        float | None, typer.Option("--failure-duration-ms", help="Billed duration of a failed one (a timeout's, say).")
    ] = None,
    cost_per_failure: Annotated[
        float, typer.Option("--cost-per-failure", help="What a failure costs you, in USD.")
    ] = 0.0,
    no_free_tier: Annotated[bool, typer.Option("--no-free-tier", help="The account has used it up.")] = False,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="MB:MS[:RATE]", help="Compare with another memory size, duration and failure rate."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Price a month: compute, requests, /tmp, inits, failures."""
    from dataclasses import replace

    from harness import document, pricing
    from harness import format as form
    from harness.errors import UsageError

    month = pricing.Month(
        memory_mb=memory,
        duration_ms=duration_ms,
        invocations=invocations,
        region=region,
        architecture=architecture,
        tmp_mb=tmp,
        cold_share=cold_share,
        init_ms=init_ms,
        failure_rate=failure_rate,
        failure_duration_ms=failure_duration_ms,
        cost_per_failure_usd=cost_per_failure,
        free_tier=not no_free_tier,
    )
    bill = pricing.bill(month)
    findings = bill.as_dict()
    if against is not None:
        parts = against.split(":")
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) not in (2, 3) or not numbers[0].is_integer():
            raise UsageError(
                f"--against {against!r} is not of the form MB:MS[:RATE]", remedy="such as --against 512:2100:0.02"
            )
        other = replace(
            month,
            memory_mb=int(numbers[0]),
            duration_ms=numbers[1],
            failure_rate=numbers[2] if len(numbers) == 3 else month.failure_rate,
        )
        findings["against"] = pricing.bill(other).as_dict()
        findings["comparison"] = pricing.ownership(bill, pricing.bill(other))
    if as_json:
        talk.emit(document.make("cost", host={}, findings=findings))
        return
    rows = [
        [
            name.removesuffix("_usd").replace("_", " "),
            ("-" if name == "free_tier_usd" else "") + form.money(findings[name]),
        ]
        for name in _PARTS
        if findings[name] or name == "total_usd"
    ]
    talk.data(talk.table(rows, header=["a month of", region]))
    talk.note(f"prices: {bill.price_source}, as of {bill.price_as_of}")
    if "comparison" in findings:
        talk.data(findings["comparison"]["sentence"])


_PARTS = ("compute_usd", "request_usd", "tmp_usd", "failure_usd", "free_tier_usd", "lambda_usd", "total_usd")
