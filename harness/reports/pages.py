"""What the HTML pages of leaks, kills, loads and warm series say beside the records: verdict, tables, captions, charts.

One function for each kind, from its document to the names that its template uses. Must not compute statistics.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from harness import format as figures
from harness.reports import charts, leak, load, oom

Facts = dict[str, Any]

TOO_FEW = "too few"
"""In a cell whose figure would need more invocations than were made."""
NO_SUCH_THING = "-"
"""In a cell whose value is null because there was nothing to measure: no init in a warm invocation, say."""
MAX_GROWTH = 60
MAX_QUOTE = 20_000


def statistic(stats: dict[str, Any] | None, name: str) -> str:
    """One figure of the statistics of some milliseconds."""
    if not stats:
        return figures.NOT_MEASURED
    return TOO_FEW if stats.get(name) is None else figures.duration(stats[name])


def counts(found: dict[str, int] | None) -> str:
    """Outcomes and how many of each."""
    return (
        ", ".join(f"{number} {figures.words(name)}" for name, number in (found or {}).items()) or figures.NOT_MEASURED
    )


def _verdict(headline: str, tone: str, sentence: object, cards: list[tuple[str, str]], *, aside: str = "") -> Facts:
    return {"headline": headline, "tone": tone, "sentence": str(sentence or ""), "cards": cards, "aside": aside}


# A leak


def of_leak(document: dict[str, Any]) -> Facts:
    """The names that leak.html.j2 uses."""
    findings = document.get("findings") or {}
    headline, aside, tone = leak.verdict(findings)
    found = leak.points(document)
    judged = leak.judged(document)
    slope = findings.get("slope_bytes_per_invocation")
    # Points without a slope: each of them is known, there were not enough.
    cards = [("An invocation", TOO_FEW if slope is None and found else leak.signed(slope))]
    low, high = findings.get("ci_low"), findings.get("ci_high")
    if low is not None and high is not None:
        cards.append(("95 % interval", f"{leak.signed(low)} to {leak.signed(high)}"))
    left = findings.get("invocations_until_out_of_memory")
    if findings.get("verdict") == "leak":
        cards.append(("From start to kill" if leak.kills(document) else "Until memory is out", invocations(left)))
    cards += [
        (f"Until {leak.RESOURCES[what]} run out", invocations(until))
        for what in leak.grown(document)
        if (until := _also_of(findings, what).get("invocations_until_exhausted")) is not None
    ]
    judged_of = f"{len(judged)} of {len(leak.main_records(document))}"
    cards.append(("Points" if slope is None else "Judged", judged_of))
    if kills := leak.kills(document):
        cards.append(("Killed", f"{len(kills)} times" if len(kills) > 1 else "once"))
    small = [
        {"title": title, "svg": charts.svg(spec), "caption": caption}
        for title, spec, caption in (
            ("Until memory is out", leak.projection(document), _projection_caption(document)),
            ("With the garbage collector run after each", leak.settled(document), _settled_caption(findings)),
            *(
                (
                    leak.RESOURCES[what][0].upper() + leak.RESOURCES[what][1:],
                    leak.resource(document, what),
                    _resource_caption(_also_of(findings, what)),
                )
                for what in leak.grown(document)
            ),
        )
        if spec
    ]
    return {
        "verdict": _verdict(headline, tone, findings.get("reason"), cards, aside=aside),
        "charts": {"memory": charts.svg(leak.memory(document)) if found else None},
        "memory_caption": _memory_caption(document),
        "memory_term": leak.MEASURES[leak.measure(document)],
        "small": small,
        "growth": growth(findings),
        "growth_hint": _growth_hint(findings),
        "no_growth": _no_growth(findings),
        "also": [
            (
                leak.RESOURCES.get(str(one.get("what")), figures.words(str(one.get("what")))),
                figures.words(str(one.get("verdict"))),
                leak.rate(one),
                leak.rate_interval(one),
                _from_to(one),
                str(one.get("why") or NO_SUCH_THING),
            )
            for one in findings.get("also") or []
        ],
    }


def invocations(number: float | None) -> str:
    """How many are left."""
    return figures.NOT_MEASURED if number is None else f"{figures.count(number)} invocations"


def _also_of(findings: dict[str, Any], what: str) -> dict[str, Any]:
    return next((one for one in findings.get("also") or [] if one.get("what") == what), {})


def _from_to(one: Facts) -> str:
    first, last = (leak.quantity(str(one.get("what")), one.get(name)) for name in ("first", "last"))
    return f"{first} to {last}"


def _resource_caption(one: Facts) -> str:
    until = one.get("invocations_until_exhausted")
    left = "" if until is None else f" {invocations(until)} more until they run out."
    return f"{leak.rate(one)} an invocation: {one.get('why')}.{left}"


def _projection_caption(document: dict[str, Any]) -> str:
    left = (document.get("findings") or {}).get("invocations_until_out_of_memory")
    return (
        f"The slope carried on: {invocations(left)} more until the {figures.memory(leak.memory_mb(document))} are used "
        "up. What an invocation needs beside what it leaves is counted."
    )


def _settled_caption(findings: dict[str, Any]) -> str:
    found = findings.get("settled") or {}
    slope = found.get("slope_bytes_per_invocation")
    grew = "" if slope is None else f"{leak.signed(slope)} an invocation: "
    return (
        f"{grew}{found.get('why')}. A second series of {found.get('invocations')}, in a sandbox of its own: what a runtime "
        "merely has not collected yet is gone from it. Its figures are perturbed."
    )


def _memory_caption(document: dict[str, Any]) -> str:
    findings = document.get("findings") or {}
    kinds = [one["kind"] for one in leak.points(document)]
    said = ["A point for each invocation, measured after it and before the freeze."]
    if cut := kinds.count("warm-up"):
        said.append(f"{_first(cut)} warm-up (grey) and not judged.")
    if findings.get("slope_bytes_per_invocation") is not None and findings.get("slope_series") != "settled":
        said.append(f"Line: {leak.growth_sentence(findings)}; the band is its 95 % interval.")
    if leak.kills(document):
        said.append("Crosses: memory ran out; the runtime was killed and began again. Its longest life is judged.")
    missing = sum(one.get("anonymous_after_bytes") is None for one in leak.main_records(document))
    if missing and leak.measure(document) == "anonymous":
        said.append(f"After {missing} invocation{'s' if missing > 1 else ''} there was nothing that could be measured.")
    return " ".join(said)


def _first(number: int) -> str:
    return f"The first {number} are" if number > 1 else "The first is"


def _growth_hint(findings: dict[str, Any]) -> str:
    found = findings.get("explained") or {}
    if found.get("first_invocation") is None:
        return leak.PERTURBED
    return (
        f"{leak.PERTURBED} Between invocations {found['first_invocation']} and {found.get('last_invocation')}, at "
        f"{figures.memory(found.get('memory_mb'))}."
    )


def growth(findings: dict[str, Any]) -> list[Facts]:
    """What grew, largest first, as a table prints it."""
    found = (findings.get("growth") or [])[:MAX_GROWTH]
    largest = max((one.get("grew_bytes_per_invocation") or 0 for one in found), default=0) or 1
    return [
        {
            "name": str(one.get("name"))[:300],
            "kind": figures.words(str(one.get("kind") or NO_SUCH_THING)),
            "bytes": leak.signed(one.get("grew_bytes_per_invocation")),
            "count": leak.number(one.get("grew_count_per_invocation")) or NO_SUCH_THING,
            "where": str(one.get("where") or one.get("retained_by") or NO_SUCH_THING)[:300],
            "share_percent": round(max(0.0, (one.get("grew_bytes_per_invocation") or 0) / largest) * 100, 1),
        }
        for one in found
    ]


def _no_growth(findings: dict[str, Any]) -> str:
    explained = findings.get("explained")
    if explained and explained.get("error"):
        return f"Not known: {explained['error']}."
    if explained:
        return "The probe found nothing that grew from one invocation to the next."
    return "Not looked for in this run: --explain names what grew."


# A kill


def of_oom(document: dict[str, Any]) -> Facts:
    """The names that oom.html.j2 uses."""
    findings = document.get("findings") or {}
    story = oom.kill(document)
    tried = oom.tries(document)
    headline, aside, tone = oom.verdict(findings)
    cards = [("Sizes tried", figures.count(len({one["memory_mb"] for one in tried})))]
    if story:
        cards = [
            (oom.DEATHS.get(str(story.get("fate")), "Died at"), figures.memory(story.get("memory_mb"))),
            ("Which process", str(story.get("killed_process") or figures.NOT_MEASURED)[:40]),
            ("It grew by", oom.speed(story.get("growth_bytes_per_s"))),
            *cards,
        ]
    samples = oom.timeline(document)
    return {
        "verdict": _verdict(headline, tone, oom.reason(findings), cards, aside=aside),
        "story": story,
        "story_heading": oom.heading(story),
        "charts": {
            "curve": charts.svg(oom.curve(document)) if samples else None,
            "search": charts.svg(oom.search(document)) if tried else None,
        },
        "curve_caption": _curve_caption(story, samples),
        "told": oom.told(document),
        "quotes": quotes(story),
        "tries_heads": ["Try", "Memory size", "Survived", "Peak memory", "What happened"],
        "tries_rows": [
            (
                str(number),
                figures.memory(one["memory_mb"]),
                "yes" if one.get("survived") else "no",
                figures.size(one.get("peak_memory_bytes")),
                str(one.get("why") or NO_SUCH_THING),
            )
            for number, one in enumerate(tried, start=1)
        ],
    }


def _curve_caption(story: Facts, samples: list[dict[str, Any]]) -> str:
    if not samples:
        return ""
    gap = story.get("timeline_gap_ms") or {}
    shown = len(oom.thinned(samples))
    thinned = "" if shown == len(samples) else f", of which {figures.count(shown)} are drawn, of each few the highest"
    median, longest = figures.duration(gap.get("median")), figures.duration(gap.get("max"))
    apart = f", {median} apart as a rule, {longest} at most" if gap else ""
    cross = " The cross is where the kernel killed." if story.get("killed") else ""
    return (
        f"What the sandbox was charged for, the emulator's own share taken off. {figures.count(len(samples))} samples"
        f"{thinned}{apart}.{cross}"
    )


def quotes(story: dict[str, Any]) -> list[tuple[str, str, str]]:
    quotes = []
    if story.get("last_output") is not None or story.get("log_tail"):
        last = "\n".join(map(str, story.get("last_output") or [])) or "(nothing)"
        quotes.append(("What the handler logged last", "", last[-MAX_QUOTE:]))
    if story.get("response") is not None:
        text = story["response"]
        text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, indent=1)
        quotes.append(("The error that Lambda would answer", "", text[:MAX_QUOTE]))
    if story.get("report"):
        quotes.append(("The REPORT line that Lambda would print", "", str(story["report"])[:MAX_QUOTE]))
    return quotes


# A load

STATISTICS = ("n", "mean", "min", "p50", "p90", "p95", "p99", "max")
HEADS = {"n": "n", "mean": "mean", "min": "smallest", "p50": "median", "max": "largest"}


def samples(findings: dict[str, Any]) -> list[tuple[str, dict[str, Any] | None]]:
    """The samples of times that a load's findings describe, and what they are called."""
    warm, cold = findings.get("warm") or {}, findings.get("cold") or {}
    generator = findings.get("generator") or {}
    found = [
        ("duration", findings.get("duration_ms")),
        ("client time", findings.get("client_ms")),
        ("client time, warm", warm.get("client_ms")),
        ("client time, cold", cold.get("client_ms")),
        ("init", cold.get("init_ms")),
        ("container start", cold.get("container_start_ms")),
        ("generator late by", generator.get("lateness_ms")),
    ]
    # Where there was no cold start, say, there is nothing that might have been measured.
    return [(name, stats) for at, (name, stats) in enumerate(found) if stats or at < 2]


def load_verdict(document: dict[str, Any]) -> Facts:
    """What became of the requests: in a word, in a sentence, and in a few figures."""
    findings = document.get("findings") or {}
    client = findings.get("client_ms")
    cards = [
        ("Successes a second", load.per_second(findings)),
        ("Client time, median", statistic(client, "p50")),
        load.tail(client),
        ("Sandboxes", figures.count(findings.get("sandboxes"))),
        ("Cold starts", figures.count(findings.get("cold_starts"))),
        ("Peak memory of all", figures.size(findings.get("peak_memory_bytes"))),
        ("Cost", figures.money(findings.get("cost_usd"))),
    ]
    failed = bool(findings.get("errors") or findings.get("throttled"))
    return _verdict(
        f"{figures.count(findings.get('requests'))} requests",
        "bad" if failed else "good",
        load.sentence(document),
        cards,
        aside=load.loop(document),
    )


def of_load(document: dict[str, Any]) -> Facts:
    """The names that load.html.j2 uses."""
    findings = document.get("findings") or {}
    return {
        "verdict": load_verdict(document),
        "charts": {"sandboxes": charts.svg(load.sandboxes(document)) if load.lanes(document) else None},
        "thinning": load.thinning(document).sentences() if load.lanes(document) else [],
        "statistics_heads": [HEADS.get(name, name) for name in STATISTICS],
        "statistics_rows": [
            {
                "name": name,
                "cells": [
                    (figures.count((stats or {}).get(part)) if part == "n" else statistic(stats, part))
                    for part in STATISTICS
                ],
            }
            for name, stats in samples(findings)
        ],
        "counted": _counted(findings),
        "rules": [str(one) for one in (findings.get("rules") or {}).values()],
    }


def _counted(findings: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    generator = findings.get("generator") or {}

    def entries(found: dict[str, Any], names: dict[str, str]) -> list[tuple[str, str]]:
        return [(label, figures.named(name, found.get(name))) for name, label in names.items() if name in found]

    groups = [
        (
            "Requests",
            [*entries(findings, {"requests": "requests", "errors": "errors", "error_share": "share of errors",
                                 "throttled": "throttled", "resets": "resets", "wall_s": "took"}),
             ("outcomes", counts(findings.get("outcomes")))],
        ),
        (
            "Sandboxes",
            entries(findings, {"sandboxes": "started", "most_busy": "at work at one time", "capacity": "there might be",
                               "cold_starts": "cold starts", "peak_memory_bytes": "peak memory of all",
                               "max_memory_used_mb": "max memory used of one", "cost_usd": "cost",
                               "cost_unknown": "requests without a known cost"}),
        ),
        (
            "The generator itself",
            entries(generator, {"cpu_s": "CPU time", "cpu_share": "share of this host's CPUs",
                                "host_busy_share": "all CPUs, busy with anything", "memory_samples": "memory samples"}),
        ),
    ]  # fmt: skip
    return [(title, found) for title, found in groups if found]


def reasons(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Why a figure of the findings is null, and where it would stand, as far as the records' notes do not say it."""
    findings = document.get("findings") or {}
    found = []
    if document.get("kind") == "load":
        if findings.get("peak_memory_bytes") is None:
            found.append(
                ("From here nobody sees what all sandboxes are charged for at one time.", "peak memory of all")
            )
        if (findings.get("generator") or {}).get("host_busy_share") is None:
            found.append(
                ("The sandboxes run on CPUs that are not this host's to read.", "all CPUs, busy with anything")
            )
    if document.get("kind") == "oom" and (story := oom.kill(document)):
        if story.get("killed_process") is None:
            found.append(("Neither the kernel's log nor the list of processes told it.", "which process was killed"))
        if not oom.timeline(document):
            found.append(
                (f"{str(story.get('timeline_reason') or 'nothing was sampled').capitalize()}.", "memory over time")
            )
        elif story.get("killed_at_ms") is None and story.get("killed"):
            found.append(("No sample found the kernel's counter of kills risen.", "the moment of the kill"))
    return found


def notes(document: dict[str, Any]) -> list[str]:
    """What a reader has to know beside the verdict, where the findings give it as sentences without a remedy."""
    findings = document.get("findings") or {}
    found = [_as_sentence(str(one)) for one in findings.get("notes") or []]
    return [*found, *oom.notes(findings)] if document.get("kind") == "oom" else found


def _as_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


# Single invocations


def of_invoke(document: dict[str, Any]) -> Facts:
    """The names that invoke.html.j2 uses."""
    records = document.get("invocations") or []
    outcomes: dict[str, int] = {}
    for one in records:
        outcomes[one["outcome"]] = outcomes.get(one["outcome"], 0) + 1
    last = records[-1] if records else {}
    response = last.get("response")
    text = response if isinstance(response, str) else json.dumps(response, ensure_ascii=False, indent=1)
    return {
        "verdict": _verdict(
            f"{figures.count(len(records))} invocation{'s' if len(records) != 1 else ''}",
            "good" if set(outcomes) == {"success"} else "bad" if records else "open",
            f"{counts(outcomes)}.",
            [
                ("Duration of the last", figures.duration(last.get("duration_ms"))),
                ("Billed", figures.duration(last.get("billed_ms"))),
                ("Max memory used", figures.memory(last.get("max_memory_used_mb"))),
                ("Cost", figures.money(last.get("cost_usd"))),
            ]
            if records
            else [],
        ),
        "response": text[:MAX_QUOTE] if records else "",
        "report": str(last.get("report") or "")[:MAX_QUOTE],
        "log_tail": str(last.get("log_tail") or "")[-MAX_QUOTE:],
    }


# A warm series


def of_warm(document: dict[str, Any]) -> Facts:
    """The names that warm.html.j2 uses."""
    findings = document.get("findings") or {}
    records = document.get("invocations") or []
    survived = findings.get("survived") or []
    rows = []
    for one in findings.get("responses") or []:
        values = one["values"]
        changed = [False, *(before != after for before, after in pairwise(values))]
        cells = [{"text": _short(value), "changed": new} for value, new in zip(values, changed, strict=True)]
        rows.append({"path": str(one["path"])[:200], "cells": cells})
    sentence = (
        f"Grew from one invocation to the next: {', '.join(map(str, survived))}. "
        "It lives outside the handler and survives the freeze."
        if survived
        else "Nothing in the responses grew from one invocation to the next."
    )
    last = records[-1] if records else {}
    cards = [
        ("Invocations", figures.count(len(records))),
        ("Sandboxes", figures.count(findings.get("sandboxes"))),
        ("Resident after the last", figures.size(last.get("resident_after_bytes"))),
    ]
    headline = f"{len(survived)} value{'s' if len(survived) != 1 else ''} grew" if survived else "Nothing grew"
    return {
        "verdict": _verdict(headline, "" if survived else "good", sentence, cards),
        "responses": rows,
        "responses_heads": [f"#{one['sequence']}{', cold' if one.get('cold') else ''}" for one in records],
    }


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else text[:159] + "…"
