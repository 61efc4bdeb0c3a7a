"""One self-contained HTML file from a document: charts, every figure, and the records they can be recomputed from.

Must not measure, choose or compute statistics: it lays out what records and findings say. The page loads nothing,
which its Content-Security-Policy enforces: no origin at all is allowed, and only the page's own script, named by its
hash, may run. Jinja2 escapes everything that goes into the template; the page's JSON cannot end its element.

Jinja2 and not string formatting: escaping must be the default, for function output may hold anything.
"""

from __future__ import annotations

import base64
import collections
import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from harness import format as figures
from harness.reports import charts, hosts, oom, pages
from harness.reports.export import strict_json
from harness.reports.pages import NO_SUCH_THING, TOO_FEW, counts, statistic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import jinja2

MAX_PAGE_BYTES = 3_000_000
MAX_TIMELINES = 6
_ROWS = (3000, 1000, 200, 0)
"""The table of invocations shows as many of the first as fit; the page's JSON has all of them."""
_MAX_PLAIN_JSON = 1_000_000
_MAX_PACKED_JSON = 1_600_000
_BULKY = ("log_tail", "response", "report")


_PAGES = {
    "leak": ("leak.html.j2", pages.of_leak),
    "oom": ("oom.html.j2", pages.of_oom),
    "load": ("load.html.j2", pages.of_load),
    "warm": ("warm.html.j2", pages.of_warm),
    "invoke": ("invoke.html.j2", pages.of_invoke),
}
"""The kinds with a page of their own; every other document is shown as a sweep, whose parts it may lack."""
_WITHOUT_TIMELINES = {"oom", "load"}
"""Kinds that show their sandboxes over time in a chart of their own."""


def render(document: dict[str, Any]) -> str:
    """The page, below `MAX_PAGE_BYTES` for any run of up to some 40 000 invocations."""
    records = document.get("invocations") or []
    tiers = charts.tiers_of(document)
    script = _asset("page.js")
    callouts, more_callouts = _callouts(document)
    name, of_kind = _PAGES.get(str(document.get("kind")), ("sweep.html.j2", _of_sweep))
    facts: dict[str, Any] = {
        "document": document,
        "function": document.get("function") or {},
        "host": document.get("host") or {},
        "records": records,
        "timelines": [] if document.get("kind") in _WITHOUT_TIMELINES else _timelines(document),
        "columns": _columns(records),
        "not_measured": pages.reasons(document) + _reasons(tiers, records),
        "callouts": callouts,
        "more_callouts": more_callouts,
        "facts": _facts(document),
        "colours": {"light": charts.variables(charts.LIGHT), "dark": charts.variables(charts.DARK)},
        "embedded": _embedded(document),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        "style": _asset("page.css"),
        "figures": figures,
        **of_kind(document),
    }
    template = _templates().get_template(name)
    for rows in _ROWS:
        # Lone surrogates, which a function may return, are no text that a file could hold.
        page = template.render(facts, shown=records[:rows]).encode("utf-8", "replace")
        if len(page) < MAX_PAGE_BYTES:
            break
    return page.decode("utf-8")


def _of_sweep(document: dict[str, Any]) -> dict[str, Any]:
    findings = document.get("findings") or {}
    recommendation = findings.get("recommendation") or {}
    tiers = charts.tiers_of(document)
    return {
        "prediction": charts.predicted_points(document) and findings["prediction"],
        "recommendation": recommendation,
        "others": _other_strategies(findings),
        "chosen": _chosen(tiers, recommendation),
        "of_choice": _chosen(hosts.basis(document), recommendation),
        "judged": charts.judged,
        "judged_cost_usd": charts.judged_cost_usd,
        "tiers": tiers,
        "charts": _charts(document, tiers),
        "figure_groups": _figure_groups(tiers),
        "rejected": findings.get("rejected") or [],
        "hosts": hosts.findings(document),
        "hosts_heads": hosts.HEADS,
        "hosts_rows": hosts.comparison(document),
        "hosts_durations": hosts.durations(document),
    }


@cache
def _templates() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("harness.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _asset(name: str) -> str:
    from importlib import resources

    return (resources.files("harness.reports") / "templates" / name).read_text(encoding="utf-8")


# The records inside the page


@dataclass(frozen=True, kw_only=True)
class _Embedded:
    """The document as text for a script element; ``left_out`` says what did not fit, for people."""

    text: str
    encoding: str
    left_out: str = ""


def _embedded(document: dict[str, Any]) -> _Embedded:
    plain = _json(document)
    if len(plain) <= _MAX_PLAIN_JSON:
        return _Embedded(text=plain, encoding="json")
    packed = _packed(plain)
    if len(packed) <= _MAX_PACKED_JSON:
        return _Embedded(text=packed, encoding="gzip+base64")
    records = document.get("invocations") or []
    document = _with_thinned_timeline(document)
    lean = [{name: value for name, value in one.items() if name not in _BULKY} for one in records]
    packed = _packed(_json({**document, "invocations": lean}))
    left_out = "without " + ", ".join(_BULKY)
    if len(packed) <= _MAX_PACKED_JSON:
        return _Embedded(text=packed, encoding="gzip+base64", left_out=left_out)
    # What remains is the digits of clocks; the tenth of a microsecond is beyond what they can tell.
    rounded = [
        {
            name: round(value, 4) if isinstance(value, float) and name.endswith("_ms") else value
            for name, value in one.items()
        }
        for one in lean
    ]
    packed = _packed(_json({**document, "invocations": rounded}))
    return _Embedded(text=packed, encoding="gzip+base64", left_out=f"{left_out}, times rounded to 0.0001 ms")


def _with_thinned_timeline(document: dict[str, Any]) -> dict[str, Any]:
    """A kill's samples as its chart draws them; the document itself where there are no more than that."""
    story, samples = oom.kill(document), oom.timeline(document)
    if len(samples) <= oom.MAX_SAMPLES:
        return document
    thinned = {**story, "timeline": oom.thinned(samples)}
    return {**document, "findings": {**document["findings"], "kill": thinned}}


def _json(found: dict[str, Any]) -> str:
    # It is ASCII: these three are the only characters left that could end the element or begin a comment.
    return strict_json(found).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _packed(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode("ascii"), mtime=0)).decode("ascii")


# Charts


def _charts(document: dict[str, Any], tiers: list[charts.Tier]) -> dict[str, str]:
    if not tiers:
        return {}
    return {
        "main": charts.svg(charts.duration_and_cost(document)),
        "throttling": charts.svg(charts.throttling(document)),
        "memory": charts.svg(charts.peak_memory(document)),
    }


def _timelines(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "memory_mb": records[0]["memory_mb"],
            "variant": records[0].get("variant"),
            "sandbox_id": records[0]["sandbox_id"],
            "shown": min(len(records), charts.MAX_TIMELINE),
            "invocations": len(records),
            "svg": charts.svg(charts.timeline(records)),
        }
        for records in charts.sandboxes(document)[:MAX_TIMELINES]
    ]


# Figures


def _chosen(tiers: list[charts.Tier], recommendation: dict[str, Any]) -> charts.Tier | None:
    wanted = (recommendation.get("memory_mb"), recommendation.get("variant"))
    return next((one for one in tiers if (one["memory_mb"], one.get("variant")) == wanted), None)


Row = dict[str, Any]


def _figure_groups(tiers: list[charts.Tier]) -> list[dict[str, Any]]:
    """Every figure of every size: groups of rows, one cell for each size."""

    def row(name: str, cell: Callable[[charts.Tier], str]) -> Row:
        return {"name": name, "cells": [cell(one) for one in tiers]}

    def plain(name: str, label: str, formatted: Callable[[Any], str]) -> Row:
        return row(label, lambda one: formatted(one.get(name)))

    def group(title: str, *rows: Row) -> dict[str, Any]:
        return {"name": title, "rows": list(rows)}

    def stats(field: str, label: str) -> list[Row]:
        def part(name: str) -> Callable[[charts.Tier], str]:
            return lambda one: statistic(one.get(field), name)

        def interval(low: str, high: str) -> Callable[[charts.Tier], str]:
            return lambda one: _stat_interval(one.get(field), low, high)

        return [
            row(f"{label}, mean", part("mean")),
            row("95 % interval of the mean", interval("ci_low", "ci_high")),
            row("median", part("p50")),
            row("95 % interval of the median", interval("p50_ci_low", "p50_ci_high")),
            row("standard deviation", part("stdev")),
            row("smallest", part("min")),
            row("largest", part("max")),
            *(row(name, part(name)) for name in ("p90", "p95", "p99")),
        ]

    def inside(outer: str, field: str, name: str = "mean") -> Callable[[charts.Tier], str]:
        def cell(one: charts.Tier) -> str:
            found = one.get(outer)
            return NO_SUCH_THING if not found else statistic(found.get(field), name)

        return cell

    def of(outer: str, field: str, formatted: Callable[[Any], str]) -> Callable[[charts.Tier], str]:
        return lambda one: NO_SUCH_THING if not one.get(outer) else formatted(one[outer].get(field))

    def cost_interval(one: charts.Tier) -> str:
        low, high = one.get("cost_ci_low"), one.get("cost_ci_high")
        if low is None or high is None:
            return TOO_FEW
        return f"{figures.per_million(low)} to {figures.per_million(high)}"

    return [
        group("Duration", plain("n", "warm invocations", figures.count), *stats("duration_ms", "duration")),
        group(
            "Cost",
            plain("cost_usd_per_invocation", "one invocation", figures.money),
            plain("cost_usd_per_invocation", "a million invocations", figures.per_million),
            row("95 % interval, a million", cost_interval),
            *stats("billed_ms", "billed duration"),
        ),
        group(
            "CPU",
            plain("throttled_share", "throttled share of the duration", figures.share),
            *stats("cpu_ms", "CPU time"),
            plain("cpu_capped", "fewer CPUs here than Lambda grants", lambda found: figures.named("", found)),
        ),
        group(
            "Memory",
            plain("max_memory_used_mb", "max memory used, as Lambda prints it", figures.memory),
            plain("memory_used_share", "share of the memory size", figures.share),
            plain("peak_rss_bytes", "peak RSS", figures.size),
            plain("peak_memory_bytes", "peak memory (cgroup)", figures.size),
        ),
        group("What a caller waits", *stats("client_ms", "client time")),
        group(
            "Cold start",
            row("cold invocations", lambda one: figures.count((one.get("cold") or {}).get("n", 0))),
            row("init, mean", inside("cold", "init_ms")),
            row("duration, mean", inside("cold", "duration_ms")),
            row("billed with init, mean", inside("cold", "billed_ms")),
            row("cost of one", of("cold", "cost_usd_per_invocation", figures.money)),
        ),
        group(
            "Warm-up",
            row("invocations of it", of("warm_up", "invocations", figures.count)),
            row("duration without it, mean", inside("steady", "duration_ms")),
            row("duration without it, median", inside("steady", "duration_ms", "p50")),
            row("a million without it", of("steady", "cost_usd_per_invocation", figures.per_million)),
        ),
        group("Outcomes", plain("outcomes", "of all invocations", counts)),
    ]


def _stat_interval(stats: dict[str, Any] | None, low: str, high: str) -> str:
    if not stats:
        return figures.NOT_MEASURED
    if stats.get(low) is None or stats.get(high) is None:
        return TOO_FEW
    return f"{figures.duration(stats[low])} to {figures.duration(stats[high])}"


def _text(found: str | None) -> str:
    return figures.NOT_MEASURED if found is None else found


def _columns(records: list[charts.Record]) -> list[tuple[str, Callable[[charts.Record], str]]]:
    """The table of invocations: a heading, and how a record fills the cell."""

    def plain(name: str) -> Callable[[charts.Record], str]:
        return lambda one: _text(None if one.get(name) is None else str(one[name]))

    def by(name: str, formatted: Callable[[Any], str]) -> Callable[[charts.Record], str]:
        return lambda one: formatted(one.get(name))

    def only(name: str, formatted: Callable[[Any], str], *, cold: bool) -> Callable[[charts.Record], str]:
        def cell(one: charts.Record) -> str:
            absent = one.get(name) is None and bool(one.get("cold")) is not cold
            return NO_SUCH_THING if absent else formatted(one.get(name))

        return cell

    def error(one: charts.Record) -> str:
        kind, message = one.get("error_type"), one.get("error_message")
        return ": ".join(str(part)[:200] for part in (kind, message) if part) or NO_SUCH_THING

    columns = [
        ("memory (MB)", plain("memory_mb")),
        ("sandbox", lambda one: str(one["sandbox_id"])[:12]),
        ("nr", plain("sequence")),
        ("started", lambda one: figures.instant(one.get("started_at")).split(" ")[-2]),
        ("outcome", lambda one: figures.words(one["outcome"])),
        ("init (ms)", only("init_ms", figures.milliseconds, cold=True)),
        ("duration (ms)", by("duration_ms", figures.milliseconds)),
        ("billed (ms)", plain("billed_ms")),
        ("client (ms)", by("client_ms", figures.milliseconds)),
        ("frozen before (ms)", only("frozen_ms", figures.milliseconds, cold=False)),
        ("CPU (ms)", by("cpu_ms", figures.milliseconds)),
        ("throttled (ms)", by("throttled_ms", figures.milliseconds)),
        ("throttled periods", plain("throttled_periods")),
        ("peak RSS", by("peak_rss_bytes", figures.size)),
        ("peak memory", by("peak_memory_bytes", figures.size)),
        ("resident after", by("resident_after_bytes", figures.size)),
        ("max used (MB)", plain("max_memory_used_mb")),
        ("cost", by("cost_usd", figures.money)),
        ("error", error),
    ]
    if any(one.get("variant") is not None for one in records):
        columns.insert(1, ("variant", lambda one: str(one.get("variant") or "as configured")[:60]))
    if any(one.get("host_id") is not None for one in records):
        columns.insert(1, ("host", lambda one: str(one.get("host_id") or NO_SUCH_THING)[:60]))
    return columns


def _reasons(tiers: Iterable[charts.Tier], records: Iterable[charts.Record]) -> list[tuple[str, str]]:
    """Each note once, with where it applies: the reasons of what was not measured or not enforced."""
    sizes: dict[str, set[int]] = collections.defaultdict(set)
    number: collections.Counter[str] = collections.Counter()
    for one in tiers:
        for note in one.get("notes") or []:
            sizes[str(note)].add(one["memory_mb"])
    for record in records:
        for note in record.get("notes") or []:
            sizes[str(note)].add(record["memory_mb"])
            number[str(note)] += 1
    found = []
    for note, where in sizes.items():
        places = ", ".join(str(size) for size in sorted(where)) + " MB"
        times = f"; {number[note]} invocation{'s' if number[note] != 1 else ''}" if number[note] else ""
        found.append((note, places + times))
    return found


def _callouts(document: dict[str, Any]) -> tuple[list[Warned], list[Warned]]:
    """What a reader has to know before the figures, and the warnings about sizes that are not recommended."""
    findings = document.get("findings") or {}
    chosen = _warnings((findings.get("recommendation") or {}).get("warnings"))
    rest = [one for one in _warnings(findings.get("warnings")) if one not in chosen]
    if document.get("kind") in _PAGES:
        chosen, rest = [*chosen, *rest, *(Warned(sentence=one) for one in pages.notes(document))], []
    # That the host could not grant what Lambda grants concerns every comparison between sizes; what was lost, the run.
    first = chosen + [one for one in rest if one.kind in {"host_too_few_cpus", *hosts.SHOWN_WARNINGS}]
    if (found := hosts.findings(document)) and found["mixed"]:
        first.insert(0, Warned(sentence=str(found["sentence"])))
    state = document.get("state")
    if state in {"interrupted", "failed"}:
        was = "was interrupted" if state == "interrupted" else "failed"
        first.insert(0, Warned(sentence=f"This run {was}: it holds what had been measured until then."))
    return first, [one for one in rest if one not in first]


@dataclass(frozen=True, kw_only=True)
class Warned:
    """A warning as a report prints it."""

    sentence: str
    remedy: str = ""
    kind: str = ""


def _warnings(found: Iterable[Any] | None) -> list[Warned]:
    return [
        Warned(sentence=str(one["sentence"]), remedy=str(one.get("remedy") or ""), kind=str(one.get("kind") or ""))
        for one in found or []
    ]


def _other_strategies(findings: dict[str, Any]) -> list[dict[str, Any]]:
    chosen = (findings.get("recommendation") or {}).get("strategy")
    found = findings.get("recommendations") or {}
    return [one for strategy, one in found.items() if strategy != chosen and one and one.get("memory_mb") is not None]


def _facts(document: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    findings = document.get("findings") or {}
    prediction = findings.get("prediction") or {}
    run: dict[str, Any] = {
        "run id": document.get("run_id") or "not stored",
        "kind": document.get("kind"),
        "created_at": document.get("created_at"),
        "schema": document.get("schema"),
        "invocations": len(document.get("invocations") or []),
        "state": document.get("state"),
        "seed": findings.get("seed"),
        "order": findings.get("order"),
    }
    if prediction:
        run |= {
            "predicted from_memory_mb": prediction.get("from_memory_mb"),
            "mean prediction error_share": prediction.get("error"),
        }
    run = {name: value for name, value in run.items() if value is not None}
    groups = [("Run", run), ("Function", document.get("function") or {})]
    every = hosts.described(document)
    groups += [(f"Host {one.get('host_id')}" if len(every) > 1 else "Host", one) for one in every]
    if document.get("plan"):
        groups.append(("Plan", document["plan"]))
    return [
        (title, [(figures.label(str(name)), figures.named(str(name), value)[:400]) for name, value in facts.items()])
        for title, facts in groups
        if facts
    ]
