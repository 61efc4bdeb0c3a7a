"""The charts of a load: sandboxes as lanes over time, how many were busy, and what callers waited.

From the records of documents of kind ``load`` alone. Thousands of requests do not fit into pixels: what is thinned is
said by `thinning`, in the words that a caption prints.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from harness import format as figures
from harness.reports import charts

Spec = charts.Spec
Record = charts.Record
MAX_LANES = 40
MAX_SPANS = 1500
"""Above this many spans a lane shows in slices of time how busy it was, and no longer each invocation."""
MAX_CELLS = 3600
MAX_MARKS = 300
MAX_DOTS = 700
"""Above this many requests the waiting is drawn as the median and range of each slice of time."""
MAX_STEPS = 287
"""A step of three pixels is about what can be seen."""
SLICES = 86


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One sandbox: its invocations in order."""

    sandbox_id: str
    number: int
    records: list[Record]

    @property
    def name(self) -> str:
        return str(self.number)


def _placed(one: Record) -> bool:
    return charts.seconds(one.get("started_at")) is not None and bool(one.get("sandbox_id"))


def all_lanes(document: dict[str, Any]) -> list[Lane]:
    """Every sandbox, numbered in the order in which they were first asked."""
    found: dict[str, list[Record]] = {}
    for one in document.get("invocations") or []:
        if _placed(one):
            found.setdefault(str(one["sandbox_id"]), []).append(one)
    ordered = sorted(
        (sorted(records, key=lambda one: int(one["sequence"])) for records in found.values()),
        key=lambda records: charts.seconds(records[0]["started_at"]) or 0.0,
    )
    return [
        Lane(sandbox_id=str(records[0]["sandbox_id"]), number=number, records=records)
        for number, records in enumerate(ordered, start=1)
    ]


def lanes(document: dict[str, Any]) -> list[Lane]:
    """The sandboxes that are drawn: all, or the first `MAX_LANES`, those with kills before others."""
    every = all_lanes(document)
    if len(every) <= MAX_LANES:
        return every
    chosen = sorted(every, key=lambda lane: (not any(_killed(one) for one in lane.records), lane.number))[:MAX_LANES]
    return sorted(chosen, key=lambda lane: lane.number)


def _killed(one: Record) -> bool:
    return bool(one["outcome"] == "out_of_memory")


def zero(document: dict[str, Any]) -> float:
    """The moment of the first request, in seconds since the epoch."""
    moments = [charts.seconds(one.get("started_at")) for one in document.get("invocations") or []]
    return min((one for one in moments if one is not None), default=0.0)


def _start(one: Record, origin: float) -> float:
    return (charts.seconds(one["started_at"]) or origin) - origin


def _phases(one: Record, origin: float) -> list[tuple[str, float, float]]:
    """An invocation's spans on the time axis, in seconds: frozen before, init, invoke."""
    start = _start(one, origin)
    frozen, init = (one.get("frozen_ms") or 0.0) / 1000, (one.get("init_ms") or 0.0) / 1000
    spans = []
    if frozen:
        spans.append(("frozen", start - frozen, start))
    if init:
        spans.append(("init", start, start + init))
    if one.get("duration_ms") is not None:
        spans.append(("invoke", start + init, start + init + one["duration_ms"] / 1000))
    return spans


def _busy(one: Record, origin: float) -> tuple[float, float] | None:
    spans = [span for span in _phases(one, origin) if span[0] != "frozen"]
    return (spans[0][1], spans[-1][2]) if spans else None


@dataclass(frozen=True, kw_only=True)
class Thinning:
    """What a chart left out or drew together; None where nothing was."""

    sandboxes: tuple[int, int] | None
    slice_s: float | None
    waiting_slice_s: float | None

    def sentences(self) -> list[str]:
        said = []
        if self.sandboxes:
            said.append(f"{self.sandboxes[0]} of {self.sandboxes[1]} sandboxes are drawn, those with kills first")
        if self.slice_s is not None:
            said.append(
                f"there are too many invocations to draw each: a lane is the darker the more of each "
                f"{figures.duration(self.slice_s * 1000)} it was at work"
            )
        if self.waiting_slice_s is not None:
            said.append(
                f"what callers waited is drawn as the median (line) and the range (pale) of each "
                f"{figures.duration(self.waiting_slice_s * 1000)}"
            )
        return said


def thinning(document: dict[str, Any]) -> Thinning:
    """What the charts of this document leave out."""
    every, shown = all_lanes(document), lanes(document)
    end = span_s(document)
    return Thinning(
        sandboxes=(len(shown), len(every)) if len(shown) < len(every) else None,
        slice_s=end / _cells(len(shown)) if _number_of_spans(shown, zero(document)) > MAX_SPANS else None,
        waiting_slice_s=end / SLICES if len(_waiting(document)) > MAX_DOTS else None,
    )


def _number_of_spans(shown: list[Lane], origin: float) -> int:
    return sum(len(_phases(one, origin)) for lane in shown for one in lane.records)


def _cells(number_of_lanes: int) -> int:
    return min(215, max(20, MAX_CELLS // max(1, number_of_lanes)))


def span_s(document: dict[str, Any]) -> float:
    """From the first request to the end of the last, in seconds."""
    origin = zero(document)
    ends = [
        _start(one, origin)
        for one in document.get("invocations") or []
        if charts.seconds(one.get("started_at")) is not None
    ]
    ends += [span[2] for lane in all_lanes(document) for one in lane.records for span in _phases(one, origin)]
    return max(ends, default=0.0) or 1.0


def sandboxes(document: dict[str, Any], theme: charts.Theme = charts.PAGE, *, title: str | None = None) -> Spec:
    """The lanes, then how many sandboxes were at work, then what callers waited, on one time axis."""
    end = span_s(document)
    unit, factor = ("s", 1.0) if end >= 2 else ("ms", 1000.0)
    domain = [0.0, end * factor]
    below = [
        _lanes(document, theme, factor, domain),
        _concurrency(document, theme, factor, domain),
        _waits(document, theme, factor, domain, f"Time since the first request ({unit})"),
    ]
    panels = [panel for panel in below if panel is not None]
    spec: Spec = {
        "vconcat": panels,
        "spacing": 14,
        "resolve": {"scale": {"color": "independent", "shape": "independent", "opacity": "independent"}},
    }
    findings = document.get("findings") or {}
    subtitle = f"{figures.count(findings.get('requests'))} requests; {'; '.join(thinning(document).sentences())}"
    return charts.finished(
        spec, theme, title=title, subtitle=charts.short(subtitle.rstrip("; "), 150) if title else None
    )


def _time(field: str, domain: list[float], axis_title: str | None = None) -> Spec:
    axis = {"title": axis_title, "grid": False, "tickCount": 10} if axis_title else None
    return {
        "field": field,
        "type": "quantitative",
        "scale": {"domain": domain, "nice": False, "clamp": True},
        "axis": axis,
    }


def _lanes(document: dict[str, Any], theme: charts.Theme, factor: float, domain: list[float]) -> Spec:
    shown, origin = lanes(document), zero(document)
    names = [lane.name for lane in shown]
    step = 22 if len(shown) <= 12 else max(9, 264 // len(shown))
    y: Spec = {
        "field": "lane",
        "type": "ordinal",
        "sort": names,
        "scale": {"domain": names, "padding": 0.22},
        "axis": {"title": "Sandbox", "grid": False, "ticks": False, "domain": False, "labelOverlap": "greedy"},
    }
    entries = [("init", theme.init), ("invoke", theme.invoke), ("frozen", theme.frozen)]
    colour = charts.legend(entries, theme)
    if _number_of_spans(shown, origin) <= MAX_SPANS:
        layers = [_spans(shown, origin, factor, domain, y, colour)]
    else:
        layers = _slices(shown, origin, domain, factor, y, colour, end=span_s(document))
    layers += _marks(shown, origin, factor, domain, y, theme)
    return {"width": charts.WIDTH, "height": {"step": step}, "layer": layers}


def _spans(shown: list[Lane], origin: float, factor: float, domain: list[float], y: Spec, colour: Spec) -> Spec:
    rows = []
    for lane in shown:
        for one in lane.records:
            name = f"sandbox {lane.number}, invocation {one['sequence']}"
            for phase, begun, ended in _phases(one, origin):
                told = {
                    "frozen": f"sandbox {lane.number}: frozen for {figures.duration(one.get('frozen_ms'))}",
                    "init": f"{name}: cold start, init {figures.duration(one.get('init_ms'))}",
                    "invoke": f"{name}: {figures.duration(one.get('duration_ms'))}, {figures.words(one['outcome'])}",
                }[phase]
                rows.append(
                    {"lane": lane.name, "from": begun * factor, "to": ended * factor, "phase": phase, "told": told}
                )
    rows.sort(key=lambda row: row["phase"] != "frozen")  # what ran lies above what stood still
    return {
        "data": {"values": rows},
        "mark": {"type": "bar", "clip": True},
        "encoding": {
            "x": _time("from", domain),
            "x2": {"field": "to"},
            "y": y,
            "color": {"field": "phase", "type": "nominal", **colour},
            "description": {"field": "told"},
        },
    }


def busy_shares(lane: Lane, origin: float, width_s: float, cells: int) -> dict[int, float]:
    """For how much of each slice of time a sandbox was at work, from 0 to 1; slices in which it never was are left out."""
    busy: dict[int, float] = {}
    for begun, ended in filter(None, (_busy(one, origin) for one in lane.records)):
        for cell in range(int(begun / width_s), min(cells - 1, int(ended / width_s)) + 1):
            overlap = min(ended, (cell + 1) * width_s) - max(begun, cell * width_s)
            busy[cell] = busy.get(cell, 0.0) + max(0.0, overlap)
    return {cell: min(1.0, time / width_s) for cell, time in busy.items()}


def events(lane: Lane, origin: float) -> list[tuple[str, float]]:
    """A sandbox's cold start, kills and other failures, and when they were, in seconds."""
    found = []
    for one in lane.records:
        if one.get("cold"):
            found.append(("cold start", _start(one, origin)))
        if one["outcome"] != "success":
            span = _busy(one, origin)
            found.append(("kill" if _killed(one) else "failure", span[1] if span else _start(one, origin)))
    return found


def _slices(
    shown: list[Lane],
    origin: float,
    domain: list[float],
    factor: float,
    y: Spec,
    colour: Spec,
    *,
    end: float,
) -> list[Spec]:
    cells = _cells(len(shown))
    width = end / cells
    lifetimes, rows = [], []
    for lane in shown:
        spans = [span for one in lane.records if (span := _busy(one, origin))]
        if not spans:
            continue
        lifetimes.append(
            {"lane": lane.name, "from": spans[0][0] * factor, "to": max(span[1] for span in spans) * factor}
        )
        rows += [
            {"lane": lane.name, "from": cell * width * factor, "to": (cell + 1) * width * factor,
             "busy": round(share, 3), "phase": "invoke"}
            for cell, share in sorted(busy_shares(lane, origin, width, cells).items())
        ]  # fmt: skip
    inits = [
        {"lane": lane.name, "from": _start(one, origin) * factor,
         "to": (_start(one, origin) + one["init_ms"] / 1000) * factor, "phase": "init",
         "told": f"sandbox {lane.number}: cold start, init {figures.duration(one['init_ms'])}"}
        for lane in shown for one in lane.records if one.get("init_ms")
    ][:MAX_MARKS]  # fmt: skip
    return [
        {
            "data": {"values": [{**one, "phase": "frozen"} for one in lifetimes]},
            "mark": {"type": "bar", "clip": True, "aria": False},
            "encoding": {
                "x": _time("from", domain),
                "x2": {"field": "to"},
                "y": y,
                "color": {"field": "phase", "type": "nominal", **colour},
            },
        },
        {
            "data": {"values": rows},
            "mark": {"type": "bar", "clip": True, "aria": False},
            "encoding": {
                "x": _time("from", domain),
                "x2": {"field": "to"},
                "y": y,
                "color": {"field": "phase", "type": "nominal", **colour},
                "opacity": {"field": "busy", "type": "quantitative", "scale": {"domain": [0, 1], "range": [0, 1]},
                            "legend": None},
            },
        },
        {
            "data": {"values": inits},
            "mark": {"type": "bar", "clip": True},
            "encoding": {
                "x": _time("from", domain),
                "x2": {"field": "to"},
                "y": y,
                "color": {"field": "phase", "type": "nominal", **colour},
                "description": {"field": "told"},
            },
        },
    ]  # fmt: skip


def _marks(
    shown: list[Lane], origin: float, factor: float, domain: list[float], y: Spec, theme: charts.Theme
) -> list[Spec]:
    cold, failed = [], []
    for lane in shown:
        for one in lane.records:
            name = f"sandbox {lane.number}, invocation {one['sequence']}"
            if one.get("cold"):
                cold.append({"lane": lane.name, "at": _start(one, origin) * factor, "told": f"{name}: cold start"})
            if one["outcome"] != "success":
                span = _busy(one, origin)
                at = span[1] if span else _start(one, origin)
                failed.append(
                    {
                        "lane": lane.name,
                        "at": at * factor,
                        "kind": "killed" if _killed(one) else "other",
                        "told": f"{name}: {figures.words(one['outcome'])}",
                    }
                )
    marks: list[Spec] = []
    if cold:
        marks.append(
            {
                "data": {"values": cold[:MAX_MARKS]},
                "mark": {
                    "type": "point",
                    "shape": "triangle-right",
                    "filled": True,
                    "size": 44,
                    "opacity": 1,
                    "xOffset": 6,
                    "color": "#1c2430",  # it lies upon the colour of init, which is bright in both themes
                },
                "encoding": {"x": _time("at", domain), "y": y, "description": {"field": "told"}},
            }
        )
    encoding = {"x": _time("at", domain), "y": y, "description": {"field": "told"}}
    if others := [one for one in failed if one["kind"] != "killed"][:MAX_MARKS]:
        marks.append(
            {
                "data": {"values": others},
                "mark": {
                    "type": "point",
                    "shape": "diamond",
                    "filled": True,
                    "size": 70,
                    "opacity": 1,
                    "color": theme.predicted,
                    "stroke": theme.halo,
                    "strokeWidth": 1.4,
                },
                "encoding": encoding,
            }
        )
    if killed := [one for one in failed if one["kind"] == "killed"][:MAX_MARKS]:
        marks += charts.crosses(encoding, theme, killed, size=64)
    return marks


def _concurrency(document: dict[str, Any], theme: charts.Theme, factor: float, domain: list[float]) -> Spec | None:
    """How many sandboxes were at work at each moment: a step up at each begin, a step down at each end."""
    origin, changes = zero(document), []
    for lane in all_lanes(document):
        for one in lane.records:
            span = _busy(one, origin)
            if span:
                changes += [(span[0], 1), (span[1], -1)]
    if not changes:
        return None
    level, steps = 0, [{"at": 0.0, "busy": 0}]
    for at, change in sorted(changes):
        level += change
        steps.append({"at": at * factor, "busy": level})
    return {
        "width": charts.WIDTH,
        "height": 70,
        "data": {"values": _envelope(steps, domain[1])},
        "mark": {"type": "area", "interpolate": "step-after", "color": theme.invoke, "opacity": 0.55, "clip": True,
                 "aria": False},
        "encoding": {
            "x": _time("at", domain),
            "y": {
                "field": "busy",
                "type": "quantitative",
                "axis": {"title": ["Sandboxes", "at work"], "tickCount": 3, "tickMinStep": 1, "format": "d", "grid": True},
                "scale": {"zero": True, "nice": False},
            },
        },
    }  # fmt: skip


def _envelope(steps: list[dict[str, Any]], end: float) -> list[dict[str, Any]]:
    """Where there are more steps than could be told apart, the highest of each slice of time."""
    if len(steps) <= MAX_STEPS:
        return steps
    highest: dict[int, int] = {}
    level = before = 0
    for one in steps:
        slice_ = min(MAX_STEPS - 1, int(one["at"] / end * MAX_STEPS))
        for between in range(before + 1, slice_):
            highest.setdefault(between, level)
        highest[slice_] = max(highest.get(slice_, level), one["busy"])
        before, level = slice_, one["busy"]
    found = [{"at": at / MAX_STEPS * end, "busy": value} for at, value in sorted(highest.items())]
    return [*found, {"at": end, "busy": level}]


def _waiting(document: dict[str, Any]) -> list[Record]:
    return [
        one
        for one in document.get("invocations") or []
        if one.get("client_ms") is not None and charts.seconds(one.get("started_at")) is not None
    ]


_ENDS = ("success, warm", "success, cold start", "out of memory", "throttled", "other failure")


def _end(one: Record) -> str:
    if one["outcome"] == "success":
        return "success, cold start" if one.get("cold") else "success, warm"
    return {"out_of_memory": "out of memory", "throttled": "throttled"}.get(one["outcome"], "other failure")


def _waits(
    document: dict[str, Any], theme: charts.Theme, factor: float, domain: list[float], title: str
) -> Spec | None:
    found, origin = _waiting(document), zero(document)
    if not found:
        return None
    many = len(found) > MAX_DOTS
    shades = dict(zip(_ENDS, (theme.cost, theme.init, theme.warning, theme.muted, theme.predicted), strict=True))
    shapes = dict(zip(_ENDS, ("circle", "triangle-up", charts.CROSS, "square", "diamond"), strict=True))
    longest = max(one["client_ms"] for one in found)
    unit, divisor = ("s", 1000.0) if longest >= 10_000 else ("ms", 1.0)
    y: Spec = {
        "type": "quantitative",
        "axis": {"title": ["What callers", f"waited ({unit})"], "tickCount": 5, "grid": True},
        "scale": {"zero": True, "nice": True},
    }
    layers: list[Spec] = []
    single = found
    if many:
        width = span_s(document) / SLICES
        slices: dict[int, list[float]] = {}
        for one in found:
            slices.setdefault(min(SLICES - 1, int(_start(one, origin) / width)), []).append(one["client_ms"] / divisor)
        rows = [
            {
                "at": (at + 0.5) * width * factor,
                "low": min(values),
                "middle": statistics.median(values),
                "high": max(values),
                "told": f"{len(values)} requests: median {figures.duration(statistics.median(values) * divisor)}, "
                f"{figures.duration(min(values) * divisor)} to {figures.duration(max(values) * divisor)}",
            }
            for at, values in sorted(slices.items())
        ]
        layers += [
            {
                "data": {"values": rows},
                "mark": {"type": "rule", "strokeWidth": 7, "opacity": 0.28, "color": theme.cost},
                "encoding": {
                    "x": _time("at", domain, title),
                    "y": {"field": "low", **y},
                    "y2": {"field": "high"},
                    "description": {"field": "told"},
                },
            },
            {
                "data": {"values": rows},
                "mark": {"type": "line", "color": theme.cost, "strokeWidth": 2, "aria": False},
                "encoding": {"x": _time("at", domain, title), "y": {"field": "middle", **y}},
            },
        ]
        # Failures stay single: they are what people look for.
        single = [one for one in found if one["outcome"] != "success"][:MAX_MARKS]
    ends = [end for end in _ENDS if any(_end(one) == end for one in single)]
    legend = charts.shape_legend(theme)
    if single:
        layers.append(
            {
                "data": {
                    "values": [
                        {
                            "at": _start(one, origin) * factor,
                            "wait": one["client_ms"] / divisor,
                            "end": _end(one),
                            "told": f"after {figures.duration(_start(one, origin) * 1000)}: waited "
                            f"{figures.duration(one['client_ms'])}, {figures.words(one['outcome'])}",
                        }
                        for one in single
                    ]
                },
                "mark": {"type": "point", "size": 26, "strokeWidth": 1.8, "opacity": 0.9},
                "encoding": {
                    "x": _time("at", domain, title),
                    "y": {"field": "wait", **y},
                    "color": {
                        "field": "end",
                        "type": "nominal",
                        "scale": {"domain": ends, "range": [shades[end] for end in ends]},
                        "legend": legend,
                    },
                    "shape": {
                        "field": "end",
                        "type": "nominal",
                        "scale": {"domain": ends, "range": [shapes[end] for end in ends]},
                        "legend": legend,
                    },
                    "description": {"field": "told"},
                },
            }
        )
    return {"width": charts.WIDTH, "height": 170, "layer": layers}


def loop(document: dict[str, Any]) -> str:
    """How the requests were made, from the plan."""
    plan = document.get("plan") or {}
    if plan.get("rate_per_s") is not None:
        return f"open loop, {plan['rate_per_s']:g} a second{', at random' if plan.get('poisson') else ''}"
    if plan.get("concurrency") is not None:
        return f"closed loop, {plan['concurrency']} clients"
    return ""


def sentence(document: dict[str, Any]) -> str:
    """What became of the requests."""
    findings = document.get("findings") or {}
    outcomes = findings.get("outcomes") or {}
    parts = [f"{figures.count(number)} {figures.words(name)}" for name, number in outcomes.items()]
    took = findings.get("wall_s")
    length = "" if took is None else f" in {figures.duration(took * 1000)}"
    return f"{', '.join(parts) or 'None'}{length}."


def per_second(findings: dict[str, Any]) -> str:
    """Throughput."""
    found = findings.get("throughput_per_s")
    return figures.NOT_MEASURED if found is None else f"{found:,.1f}"


def tail(client: dict[str, Any] | None) -> tuple[str, str]:
    """The largest percentile of the client time that there are enough requests for, or else the largest time."""
    for name in ("p99", "p95", "p90"):
        if client and client.get(name) is not None:
            return f"Client time, {name}", figures.duration(client[name])
    return "Client time, largest", figures.duration((client or {}).get("max"))
