"""The hosts of a sweep that several measured, as rows of tables. Sees documents only; must not compute statistics."""

from __future__ import annotations

from typing import Any

from harness import format as figures
from harness.reports import charts

SHOWN_WARNINGS = ("lost_with_a_worker",)
"""Warnings that concern the whole run, whatever size is recommended."""
NO_SUCH_THING = "-"
HEADS = (
    "host",
    "what it is",
    "workers",
    "invocations",
    "duration",
    "95 % interval",
    "verdict",
    "by itself it recommends",
)

Facts = dict[str, Any]


def findings(document: dict[str, Any]) -> Facts | None:
    """What the findings say about hosts; None where a single one measured."""
    found: Facts | None = (document.get("findings") or {}).get("hosts")
    return found


def basis(document: dict[str, Any]) -> list[charts.Tier]:
    """The tiers that the recommendation rests on: all, or where hosts differ those of the reference host."""
    found = findings(document)
    if not found or not found["mixed"]:
        return charts.tiers_of(document)
    reference = found["reference_host_id"]
    own = next(one["tiers"] for one in found["by_host"] if one["host_id"] == reference)
    return charts.tiers_of({"findings": {"tiers": own}})


def described(document: dict[str, Any]) -> list[Facts]:
    """The descriptions of all hosts; of one where it was the only one."""
    host = document.get("host") or {}
    return list(host.get("hosts") or ([{name: host[name] for name in host if name != "hosts"}] if host else []))


def comparison(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each host, with cells as `HEADS` names them; the reference host first. Nothing for a single host."""
    found = findings(document)
    if not found:
        return []
    facts = {str(one.get("host_id")): one for one in described(document)}
    against = {one["host_id"]: one for one in found["ratios"]}
    by_host = sorted(found["by_host"], key=lambda one: (one["host_id"] != found["reference_host_id"], one["host_id"]))
    return [_row(one, facts.get(one["host_id"], {}), against.get(one["host_id"])) for one in by_host]


def _row(one: Facts, facts: Facts, against: Facts | None) -> tuple[str, ...]:
    ratio = (against or {}).get("ratio")
    low, high = (against or {}).get("ci_low"), (against or {}).get("ci_high")
    duration = "reference" if against is None else NO_SUCH_THING if ratio is None else f"{ratio:.2f} times"
    chosen = one.get("recommended_memory_mb")
    variant = f" ({one['recommended_variant']})" if one.get("recommended_variant") else ""
    return (
        one["host_id"],
        what_it_is(facts),
        ", ".join(map(str, facts.get("workers") or [])) or NO_SUCH_THING,
        figures.count(one["invocations"]),
        duration,
        NO_SUCH_THING if low is None or high is None else f"{low:.2f} to {high:.2f}",
        figures.words(str(against["verdict"])) if against else NO_SUCH_THING,
        NO_SUCH_THING if chosen is None else figures.memory(chosen) + variant,
    )


def what_it_is(facts: Facts) -> str:
    """A host in a few words: its CPUs, its kernel, and from where it was measured."""
    parts = [
        f"{facts['cpus']} x {facts.get('cpu_model') or facts.get('architecture') or 'CPU'}"
        if facts.get("cpus")
        else "",
        f"kernel {facts['kernel']}" if facts.get("kernel") else "",
        f"vantage {facts['vantage']}" if facts.get("vantage") else "",
    ]
    return ", ".join(part for part in parts if part) or figures.NOT_MEASURED


def durations(document: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """What each host measured at each size: the hosts, and rows of a size's name with a cell for each host."""
    found = findings(document)
    if not found:
        return [], []
    hosts = [one["host_id"] for one in found["by_host"]]
    rows = []
    for one in found["spread"]:
        name = figures.memory(one["memory_mb"]) + (f" ({one['variant']})" if one.get("variant") else "")
        apart = NO_SUCH_THING if one["ratio"] is None else f"{one['ratio'] - 1:.0%}"
        cells = [
            f"{figures.duration(one['p50_ms'][host])} (n {one['n'][host]})" if host in one["p50_ms"] else NO_SUCH_THING
            for host in hosts
        ]
        rows.append((name, [*cells, apart]))
    return hosts, rows


def whole_run_warnings(document: dict[str, Any]) -> list[Facts]:
    """The warnings of `SHOWN_WARNINGS`."""
    warnings = (document.get("findings") or {}).get("warnings") or []
    return [one for one in warnings if one.get("kind") in SHOWN_WARNINGS]
