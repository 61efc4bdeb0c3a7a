"""The charts of an out-of-memory kill: memory over its last moments, and the search for the smallest size that survives.

From documents of kind ``oom`` alone. Must not judge: which try ended how, and what was killed, is the findings'.
"""

from __future__ import annotations

from typing import Any

from harness import format as figures
from harness.reports import charts

Spec = charts.Spec
_MB = 1024 * 1024
MAX_SAMPLES = 700
"""A curve has at most so many points: more than one for each pixel or so could not be seen."""
_PARTS = (("anon_bytes", "anonymous"), ("file_bytes", "file"), ("kernel_bytes", "kernel"))


def kill(document: dict[str, Any]) -> dict[str, Any]:
    """The findings' story of the kill; empty where nothing was killed."""
    return (document.get("findings") or {}).get("kill") or {}


def timeline(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The samples of the kill, in order."""
    samples = [one for one in kill(document).get("timeline") or [] if one.get("memory_bytes") is not None]
    return sorted(samples, key=lambda one: float(one["ms"]))


def tries(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The sizes that were tried, in the order in which they were."""
    return list((document.get("findings") or {}).get("tries") or [])


def thinned(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most `MAX_SAMPLES`: of each slice of samples the one with the most memory, so that no peak is lost."""
    if len(samples) <= MAX_SAMPLES:
        return samples
    step = len(samples) / (MAX_SAMPLES - 1)
    slices = [samples[int(at * step) : int((at + 1) * step)] for at in range(MAX_SAMPLES - 1)]
    kept = [max(some, key=lambda one: float(one["memory_bytes"])) for some in slices if some]
    return kept if kept[-1] is samples[-1] else [*kept, samples[-1]]


def curve(document: dict[str, Any], theme: charts.Theme = charts.PAGE, *, title: str | None = None) -> Spec:
    """What the sandbox was charged for until the kill: anonymous, file and kernel memory stacked, and the limit."""
    story = kill(document)
    samples = thinned(timeline(document))
    limit = story["memory_mb"]
    last = samples[-1]
    unit, divisor = ("s", 1000.0) if last["ms"] >= 10_000 else ("ms", 1.0)
    colours = dict(zip((name for _, name in _PARTS), (theme.cost, theme.init, theme.variants[3]), strict=True))
    known = [(field, name) for field, name in _PARTS if any(one.get(field) is not None for one in samples)]
    stacked, top = [], []
    for one in samples:
        at, floor = one["ms"] / divisor, 0.0
        for field, name in known:
            if one.get(field) is None:
                break  # what lies above a part that is not known would stand too low
            value = one[field] / _MB
            stacked.append({"at": at, "from": floor, "to": floor + value, "kind": name})
            floor += value
        split = ", ".join(f"{name} {figures.size(one[field])}" for field, name in known if one.get(field) is not None)
        told = f"after {figures.duration(one['ms'])}: {figures.size(one['memory_bytes'])}" + (
            f" ({split})" if split else ""
        )
        top.append({"at": at, "mb": one["memory_bytes"] / _MB, "told": told})
    highest = max([row["mb"] for row in top] + [row["to"] for row in stacked] + [float(limit)])
    first = samples[0]["ms"] / divisor
    end = last["ms"] / divisor
    x: Spec = {
        "type": "quantitative",
        "scale": {"domain": [min(0.0, first), end + (end - min(0.0, first)) * 0.04], "nice": False},
        "axis": {"title": f"Time since the request ({unit})", "grid": False, "tickCount": 8},
    }
    y: Spec = {
        "type": "quantitative",
        "scale": {"domain": [0, highest * 1.12], "nice": False},
        "axis": {"title": "Charged to the sandbox (MB)", "tickCount": 6, "grid": True},
    }
    entries = [(name, colours[name]) for _, name in known] + [("everything charged", theme.text)]
    colour = charts.legend(entries, theme)
    layers: list[Spec] = [
        {
            "data": {"values": [row for row in stacked if row["kind"] == name]},
            "mark": {"type": "area", "opacity": 0.7, "line": False, "aria": False},
            "encoding": {
                "x": {"field": "at", **x},
                "y": {"field": "from", **y},
                "y2": {"field": "to"},
                "color": {"field": "kind", "type": "nominal", **colour},
            },
        }
        for _, name in known
    ]
    layers += [
        {
            "data": {"values": top},
            "mark": {"type": "line", "strokeWidth": 1.8, "aria": False},
            "encoding": {
                "x": {"field": "at", **x},
                "y": {"field": "mb", **y},
                "color": {"datum": "everything charged", "type": "nominal", **colour},
            },
        },
        {
            # Seen by the pointer and by screen readers alone.
            "data": {"values": top},
            "mark": {"type": "circle", "size": 90, "opacity": 0},
            "encoding": {"x": {"field": "at", **x}, "y": {"field": "mb", **y}, "description": {"field": "told"}},
        },
        *charts.rule(limit, f"memory size: {limit} MB", theme, side="left"),
    ]
    if story.get("killed"):
        name = charts.short(str(story.get("killed_process") or "a process"), 30)
        seen = story.get("killed_at_ms")
        at_ms = max(samples, key=lambda one: float(one["memory_bytes"]))["ms"] if seen is None else seen
        nearest = min(top, key=lambda row: abs(row["at"] - at_ms / divisor))
        killed = [
            {
                "at": at_ms / divisor,
                "mb": nearest["mb"],
                "told": f"{name} is killed after {figures.duration(at_ms)}",
            }
        ]
        layers += [
            {
                "data": {"values": killed},
                "mark": {"type": "rule", "color": theme.warning, "strokeWidth": 1.2, "opacity": 0.8, "aria": False},
                "encoding": {"x": {"field": "at", **x}},
            },
            *charts.crosses(
                {"x": {"field": "at", **x}, "y": {"field": "mb", **y}, "description": {"field": "told"}},
                theme,
                killed,
                size=150,
            ),
            {
                "data": {"values": killed},
                "mark": {
                    "type": "text",
                    "text": f"{name} killed",
                    "align": "right",
                    "dx": -8,
                    "y": {"expr": "height - 12"},
                    "fontWeight": "bold",
                    "color": theme.text,
                    "aria": False,
                },
                "encoding": {"x": {"field": "at", **x}},
            },
        ]
    spec: Spec = {"width": charts.WIDTH, "height": 330, "layer": layers}
    grew = story.get("growth_bytes_per_s")
    subtitle = "" if grew is None else f"it grew by {figures.size(grew)} a second"
    return charts.finished(spec, theme, title=title, subtitle=subtitle or None if title else None)


_FATES = {
    "survived": "survived",
    "failed_by_itself": "survived",
    "killed": "killed",
    "child_killed": "killed",
    "heap_limit": "gave up by itself",
    "reclaim": "timed out at the limit",
    "timed_out": "ended otherwise",
    "ended": "ended otherwise",
}
"""The fates of a try, as the few kinds that a picture can tell apart."""


def speed(bytes_per_s: float | None) -> str:
    """How fast memory grew."""
    return figures.NOT_MEASURED if bytes_per_s is None else f"{figures.size(bytes_per_s)} a second"


def told(document: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts of the kill, as a page or a terminal lists them: what, and its figure."""
    story = kill(document)
    if not story:
        return []
    killed = [
        f"{one['name']}"
        + (f", process {one['pid']}" if one.get("pid") else "")
        + (f", with {figures.size(one['anon_bytes'])} anonymous memory" if one.get("anon_bytes") is not None else "")
        + {True: ", the function's runtime itself", False: ", which the function had started"}.get(
            one.get("runtime"), ""
        )
        + (f" (told by the {figures.words(one['source']).replace('exit line', 'RIE')})" if one.get("source") else "")
        for one in story.get("killed") or []
    ]
    samples = timeline(document)
    facts = [
        ("What happened", str(story.get("why") or figures.words(str(story.get("outcome"))))),
        ("Killed", "; ".join(killed) or figures.NOT_MEASURED),
        ("When", _after(story.get("killed_at_ms"))),
        ("It grew by", speed(story.get("growth_bytes_per_s"))),
        ("Invocation", f"number {story['invocation']} of its sandbox" if story.get("invocation") else ""),
    ]
    if not samples:
        facts.append(
            ("Memory over time", f"{figures.NOT_MEASURED}: {story.get('timeline_reason') or 'nothing was sampled'}")
        )
    return [(name, text) for name, text in facts if text]


def _after(ms: float | None) -> str:
    return figures.NOT_MEASURED if ms is None else f"{figures.duration(ms)} after the request"


def fate(one: dict[str, Any]) -> str:
    """How a try ended, as one of the kinds that a picture tells apart."""
    return _FATES.get(str(one.get("fate")), "survived" if one.get("survived") else "ended otherwise")


def search(document: dict[str, Any], theme: charts.Theme = charts.PAGE, *, title: str | None = None) -> Spec:
    """The bisection as a strip: a row for each try, how it ended, and between which sizes the answer lay before it."""
    findings = document.get("findings") or {}
    found = tries(document)
    low = high = None
    survivals: dict[int, int] = {}
    rows, spans = [], []
    for number, one in enumerate(found, start=1):
        size, ended = one["memory_mb"], fate(one)
        if low is not None and high is not None and low < high:
            spans.append({"nr": number, "from": low, "to": high})
        rows.append(
            {
                "nr": number,
                "mb": size,
                "fate": ended,
                "label": f"{size} MB",
                "told": f"{size} MB: {one.get('why', ended)}",
            }
        )
        if one.get("survived"):
            survivals[size] = survivals.get(size, 0) + 1
            if survivals[size] >= (findings.get("confirm") or 1):
                high = size if high is None else min(high, size)
        else:
            low = size if low is None else max(low, size)
    sizes = [row["mb"] for row in rows]
    ratio = max(max(sizes) / min(sizes), 1.2)
    x: Spec = {
        "type": "quantitative",
        "scale": {
            "type": "log",
            "base": 2,
            "domain": [min(sizes) / ratio**0.05, max(sizes) * ratio**0.14],
            "nice": False,
        },
        "axis": {"title": "Memory size (MB), logarithmic", "grid": True, "format": "d", "labelOverlap": "greedy",
                 "labelSeparation": 8},
    }  # fmt: skip
    y: Spec = {
        "type": "ordinal",
        "sort": None,
        "axis": {"title": "Try", "grid": False, "ticks": False, "labelOverlap": "greedy"},
        "scale": {"domain": [row["nr"] for row in rows]},
    }
    shades = {
        "survived": theme.variants[2],
        "killed": theme.warning,
        "gave up by itself": theme.predicted,
        "timed out at the limit": theme.init,
        "ended otherwise": theme.muted,
    }
    shapes = dict(zip(shades, ("circle", charts.CROSS, "diamond", "triangle-up", "square"), strict=True))
    fates = [one for one in shades if any(row["fate"] == one for row in rows)]
    layers: list[Spec] = [
        {
            "data": {"values": spans},
            "mark": {"type": "bar", "height": 9, "cornerRadius": 4, "color": theme.frozen, "aria": False},
            "encoding": {"x": {"field": "from", **x}, "x2": {"field": "to"}, "y": {"field": "nr", **y}},
        }
    ]
    smallest = findings.get("smallest_memory_mb")
    if smallest is not None:
        answer = [{"mb": smallest}]
        layers += [
            {
                "data": {"values": answer},
                "mark": {"type": "rule", "color": theme.mark, "strokeWidth": 2, "aria": False},
                "encoding": {"x": {"field": "mb", **x}},
            },
            {
                "data": {"values": answer},
                "mark": {
                    "type": "text",
                    "text": f"{smallest} MB survives",
                    "y": -8,
                    "fontWeight": "bold",
                    "color": theme.text,
                    "aria": False,
                },
                "encoding": {"x": {"field": "mb", **x}},
            },
        ]
    legend = charts.shape_legend(theme)
    layers += [
        {
            "mark": {"type": "point", "size": 110, "strokeWidth": 2.6, "fillOpacity": 1, "opacity": 1},
            "encoding": {
                "x": {"field": "mb", **x},
                "y": {"field": "nr", **y},
                "color": {
                    "field": "fate",
                    "type": "nominal",
                    "scale": {"domain": fates, "range": [shades[one] for one in fates]},
                    "legend": legend,
                },
                "shape": {
                    "field": "fate",
                    "type": "nominal",
                    "scale": {"domain": fates, "range": [shapes[one] for one in fates]},
                    "legend": legend,
                },
                "description": {"field": "told"},
            },
        },
        {
            "mark": {
                "type": "text",
                "align": "right",
                "x": {"expr": "width"},
                "dx": -4,
                "color": theme.text,
                "aria": False,
            },
            "encoding": {"y": {"field": "nr", **y}, "text": {"field": "label"}},
        },
    ]
    step = 24 if len(rows) <= 24 else max(6, 576 // len(rows))
    spec: Spec = {"width": charts.WIDTH, "height": {"step": step}, "data": {"values": rows}, "layer": layers}
    return charts.finished(spec, theme, title=title)


DEATHS = {
    "killed": "Killed at",
    "child_killed": "A child killed at",
    "heap_limit": "Gave up at",
    "reclaim": "Timed out at",
}
"""The title of the size whose story is told, by its fate."""


def heading(story: dict[str, Any]) -> str:
    """What the story is called: not every death for want of memory is a kill."""
    size = figures.memory(story.get("memory_mb"))
    return f"The kill at {size}" if story.get("killed") else f"How it ended at {size}"


def notes(findings: dict[str, Any]) -> list[str]:
    """What a reader has to know of the search beside its answer."""
    flaky = [figures.memory(one) for one in findings.get("flaky_mb") or []]
    if not flaky:
        return []
    return [f"At {', '.join(flaky)} it survived in some tries and died in others: a size that died once is too small."]


def verdict(findings: dict[str, Any]) -> tuple[str, str, str]:
    """The answer in a word, what it means, and its tone: good, bad or open."""
    smallest = findings.get("smallest_memory_mb")
    kind = findings.get("verdict") or ("found" if smallest is not None else "unfinished")
    if kind == "found" and smallest is not None:
        return figures.memory(smallest), "is the smallest memory size that survives", "good"
    if kind == "no_size_kills_it":
        return "Nothing kills it", f"from {figures.memory(findings.get('from_mb'))} on", "good"
    if kind == "no_size_saves_it":
        return "No size saves it", f"up to {figures.memory(findings.get('to_mb'))}", "bad"
    return "Unfinished", "the search was interrupted", "open"


def reason(findings: dict[str, Any]) -> str:
    """The findings' reason as a sentence."""
    text = str(findings.get("reason") or "")
    return text and f"{text[0].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"
