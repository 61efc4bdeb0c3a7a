"""A leak's charts: what stayed after each invocation, the slope with its interval, and the way to the memory size.

From documents of kind ``leak`` alone. Must not judge and must not fit: slope, interval and verdict are the findings'.
"""

from __future__ import annotations

import statistics
from typing import Any

from harness import format as figures
from harness.reports import charts

Spec = charts.Spec
_MB = 1024 * 1024
_NEAR = 0.5
"""The memory size is drawn where the points come this near to it; below, it would press them flat."""
RESOURCES = {
    "open_files": "open files",
    "threads": "threads",
    "processes": "processes",
    "tmp": "/tmp",
}
"""What is judged beside memory, and what it is called."""
_FIELDS = {"open_files": "open_files", "threads": "threads", "processes": "processes", "tmp": "tmp_bytes"}
MEASURES = {
    "anonymous": "Anonymous memory of the runtime's processes, read after the response and before the freeze. Not max "
    "memory used, which never falls, and not pages of files, which the kernel takes back.",
    "resident": "Resident memory of the runtime's processes, read after the response and before the freeze. It also "
    "holds pages of files: this vantage cannot tell the anonymous part.",
    "shared": "Resident memory that is not anonymous: shared memory and mapped files, read after the response and "
    "before the freeze.",
}
PERTURBED = (
    "Found by a probe in a series of its own, which makes the function slower and larger: the figures are to be "
    "compared with each other, not with those above. The same bytes may stand under several names."
)


def measure(document: dict[str, Any]) -> str:
    """Which memory was judged: one of `MEASURES`.

    Where a leak was found in shared memory the fitted line is of that; it is told by what the line runs through.
    """
    findings = document.get("findings") or {}
    named = str(findings.get("memory") or "anonymous")
    fitted = [one for one in findings.get("series") or [] if one.get("fitted_bytes") is not None]
    if named != "anonymous" or not fitted:
        return named if named in MEASURES else "anonymous"
    off = {
        name: [abs(value - one["fitted_bytes"]) for one in fitted if (value := _read(one, name)) is not None]
        for name in ("anonymous", "shared")
    }
    if not off["shared"] or not off["anonymous"]:
        return "anonymous"
    return min(off, key=lambda name: statistics.median(off[name]))


def _read(point: dict[str, Any], name: str) -> int | None:
    anonymous, resident = point.get("anonymous_after_bytes"), point.get("resident_after_bytes")
    if name == "anonymous":
        return anonymous
    if name == "resident":
        return resident
    return None if anonymous is None or resident is None else resident - anonymous


def points(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What stayed after each invocation that left a figure: ``sequence``, ``bytes``, ``fitted_bytes``, ``kind``.

    ``kind``: ``judged``, ``warm-up`` (cut off), ``another life`` (of a runtime that began anew, not judged).
    """
    series = (document.get("findings") or {}).get("series") or []
    name = measure(document)
    found = []
    for one in series:
        value = _read(one, name)
        if value is None or one.get("outcome") == "out_of_memory":
            continue
        kind = "warm-up" if one.get("warm_up") else "judged" if one.get("judged", True) else "another life"
        fitted = one.get("fitted_bytes")
        found.append({"sequence": one["sequence"], "bytes": value, "fitted_bytes": fitted, "kind": kind})
    return found


def judged(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The points that the slope was found in."""
    return [one for one in points(document) if one["kind"] == "judged"]


def main_records(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of the function as it is: without those of the series in which a probe ran."""
    return [one for one in document.get("invocations") or [] if one.get("variant") is None]


def kills(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The invocations of the function as it is in which memory ran out."""
    return [one for one in main_records(document) if one["outcome"] == "out_of_memory"]


def memory_mb(document: dict[str, Any]) -> int | None:
    """The memory size of the series."""
    found = next((one["memory_mb"] for one in main_records(document)), None)
    size: int | None = found if found is not None else (document.get("function") or {}).get("memory_mb")
    return size


_VERDICTS = {
    "leak": ("A leak", "bad"),
    "no_leak": ("No leak", "good"),
    "inconclusive": ("Inconclusive", "open"),
}


def verdict(findings: dict[str, Any]) -> tuple[str, str, str]:
    """The verdict in a word, what else leaks, and its tone: good, bad or open.

    What leaks beside memory is part of it: a page that says "no leak" while descriptors run out would mislead.
    """
    headline, tone = _VERDICTS.get(str(findings.get("verdict")), ("Not judged", "open"))
    others = [
        RESOURCES.get(str(one.get("what")), str(one.get("what")))
        for one in findings.get("also") or []
        if one.get("verdict") == "leak"
    ]
    if not others:
        return headline, "", tone
    listed = " and ".join(filter(None, (", ".join(others[:-1]), others[-1])))
    if findings.get("verdict") == "leak":
        return headline, f"{listed} grow as well", tone
    memory = "memory does not leak" if findings.get("verdict") == "no_leak" else "whether memory does is inconclusive"
    return f"A leak: {listed}", memory, "bad"


def growth_sentence(findings: dict[str, Any]) -> str:
    """The slope as people say it, with its interval."""
    slope, low, high = (findings.get(name) for name in ("slope_bytes_per_invocation", "ci_low", "ci_high"))
    if slope is None:
        return figures.NOT_MEASURED
    interval = "" if low is None or high is None else f" ({signed(low)} to {signed(high)})"
    return f"{signed(slope)} an invocation{interval}"


def rate(one: dict[str, Any]) -> str:
    """By how much one of `RESOURCES` changes from one invocation to the next."""
    return quantity(str(one.get("what")), one.get("slope_per_invocation"), sign=True)


def rate_interval(one: dict[str, Any]) -> str:
    """The 95 % interval of `rate`."""
    low, high = one.get("ci_low"), one.get("ci_high")
    if low is None or high is None:
        return "too few"
    what = str(one.get("what"))
    return f"{quantity(what, low, sign=True)} to {quantity(what, high, sign=True)}"


def quantity(what: str, found: float | None, *, sign: bool = False) -> str:
    """How much of one of `RESOURCES`."""
    if found is None:
        return "too few" if sign else figures.NOT_MEASURED
    if what == "tmp":
        return signed(found) if sign else figures.size(found)
    return number(found, sign=sign)


def number(found: float | None, *, sign: bool = True) -> str:
    """A number of things that need not be whole."""
    if found is None:
        return figures.NOT_MEASURED
    text = f"{found:,.2f}".rstrip("0").rstrip(".")
    return f"+{text}" if sign and found > 0 and text != "0" else "0" if text == "-0" else text


def signed(found: float | None) -> str:
    """Bytes with their sign."""
    if found is None:
        return figures.NOT_MEASURED
    return ("+" if round(found) > 0 else "") + figures.size(found)


def span(lowest_mb: float, highest_mb: float) -> float:
    """How many MB an axis spans at least: noise of a page or two must not look like a mountain."""
    return max(highest_mb - lowest_mb, 0.25, highest_mb * 0.02)


def memory(document: dict[str, Any], theme: charts.Theme = charts.PAGE, *, title: str | None = None) -> Spec:
    """Memory after each invocation: warm-up grey, the slope with its band, kills, and the memory size where it is near."""
    findings = document.get("findings") or {}
    found = points(document)
    after = judged(document)
    killed = kills(document)
    limit = memory_mb(document)
    rows = [
        {
            "n": one["sequence"],
            "mb": one["bytes"] / _MB,
            "kind": one["kind"],
            "told": f"after invocation {one['sequence']}: {figures.size(one['bytes'])}"
            + ("" if one["kind"] == "judged" else f" ({one['kind']})"),
        }
        for one in found
    ]
    lowest, highest = min(row["mb"] for row in rows), max(row["mb"] for row in rows)
    near = limit is not None and (bool(killed) or highest >= _NEAR * limit)
    if near and limit is not None:
        domain = [0.0, max(limit, highest) * 1.09]
    else:
        room = span(lowest, highest)
        domain = [max(0.0, lowest - room * 0.18), highest + room * 0.28]
    last = max([row["n"] for row in rows] + [one["sequence"] for one in killed])
    x: Spec = {
        "type": "quantitative",
        "scale": {"domain": [0, last + max(1, last * 0.02)], "nice": False},
        "axis": {"title": "Invocation in this sandbox", "grid": False, "tickMinStep": 1, "format": "d"},
    }
    y: Spec = {
        "type": "quantitative",
        "scale": {"domain": domain, "nice": False, "zero": False},
        "axis": {"title": f"{measure(document).capitalize()} memory after (MB)", "tickCount": 6, "grid": True},
    }
    layers: list[Spec] = []
    cut = max((row["n"] for row in rows if row["kind"] == "warm-up"), default=None)
    first = after[0]["sequence"] if after else 0
    if cut is not None and cut < first:
        begun = min(row["n"] for row in rows if row["kind"] == "warm-up")
        layers += _warm_up(begun, cut, x, theme)
    layers += _slope(findings, after, x, y, theme)
    shades = {"judged": theme.cost, "warm-up": theme.muted, "another life": theme.predicted}
    kinds = [kind for kind in _SHAPES if any(row["kind"] == kind for row in rows)]
    layers.append(
        {
            "mark": {"type": "point", "filled": True, "size": 46, "opacity": 0.95},
            "encoding": {
                "x": {"field": "n", **x},
                "y": {"field": "mb", **y},
                "color": {
                    "field": "kind",
                    "type": "nominal",
                    **charts.legend([(kind, shades[kind]) for kind in kinds], theme),
                },
                "shape": {
                    "field": "kind",
                    "type": "nominal",
                    "scale": {"domain": kinds, "range": [_SHAPES[kind] for kind in kinds]},
                    "legend": None,
                },
                "description": {"field": "told"},
            },
        }
    )
    if killed:
        layers += _kills(killed, x, theme)
    if near and limit is not None:
        layers += charts.rule(limit, f"memory size: {limit} MB", theme)
    spec: Spec = {"width": charts.WIDTH, "height": 330, "data": {"values": rows}, "layer": layers}
    return charts.finished(spec, theme, title=title, subtitle=_subtitle(findings) if title else None)


_SHAPES = {"judged": "circle", "warm-up": "diamond", "another life": "square"}


def _subtitle(findings: dict[str, Any]) -> str:
    verdict = figures.words(str(findings.get("verdict") or "not judged"))
    return f"{verdict}: {growth_sentence(findings)}"


def _warm_up(begun: float, cut: float, x: Spec, theme: charts.Theme) -> list[Spec]:
    region = [{"from": begun - 0.5, "to": cut + 0.5, "middle": (begun + cut) / 2}]
    return [
        {
            "data": {"values": region},
            "mark": {"type": "rect", "color": theme.frozen, "opacity": 0.35, "aria": False},
            "encoding": {"x": {"field": "from", **x}, "x2": {"field": "to"}},
        },
    ]


def _line(
    after: list[dict[str, Any]], *, slope: float | None, low: float | None, high: float | None
) -> list[dict[str, Any]]:
    """The fitted line, with the lines of the interval's slopes through its middle as a band."""
    fitted = [one for one in after if one.get("fitted_bytes") is not None]
    if len(fitted) < 2:
        return []
    first, last = fitted[0], fitted[-1]
    steps = last["sequence"] - first["sequence"]
    rise = (last["fitted_bytes"] - first["fitted_bytes"]) / steps if steps else 0.0
    middle = (first["sequence"] + last["sequence"]) / 2
    level = first["fitted_bytes"] + rise * (middle - first["sequence"])
    line = []
    for n in (first["sequence"], middle, last["sequence"]):
        one: dict[str, Any] = {"n": n, "mb": (level + rise * (n - middle)) / _MB}
        if slope is not None and low is not None and high is not None:
            ends = sorted((level + rate * (n - middle)) / _MB for rate in (low, high))
            one |= {"low": ends[0], "high": ends[1]}
        line.append(one)
    return line


def _slope(findings: dict[str, Any], after: list[dict[str, Any]], x: Spec, y: Spec, theme: charts.Theme) -> list[Spec]:
    own = findings.get("slope_series", "measured") == "measured"  # else the slope is that of the settled series
    slope, low, high = (
        findings.get(name) if own else None for name in ("slope_bytes_per_invocation", "ci_low", "ci_high")
    )
    line = _line(after, slope=slope, low=low, high=high)
    if not line:
        return []
    colour = theme.duration if findings.get("verdict") == "leak" else theme.muted
    return _line_layers(line, growth_sentence(findings) if own else "", colour, x, y, theme)


def _line_layers(
    line: list[dict[str, Any]], label: str, colour: str, x: Spec, y: Spec, theme: charts.Theme
) -> list[Spec]:
    layers: list[Spec] = []
    if "low" in line[0]:
        layers.append(
            {
                "data": {"values": line},
                "mark": {"type": "area", "color": colour, "opacity": 0.2, "clip": True, "aria": False},
                "encoding": {"x": {"field": "n", **x}, "y": {"field": "low", **y}, "y2": {"field": "high"}},
            }
        )
    layers.append(
        {
            "data": {"values": line},
            "mark": {"type": "line", "color": colour, "strokeWidth": 2.2, "clip": True, "aria": False},
            "encoding": {"x": {"field": "n", **x}, "y": {"field": "mb", **y}},
        }
    )
    if label:
        layers.append(
            {
                "data": {"values": [{}]},
                "mark": {
                    "type": "text",
                    "text": label,
                    "align": "left",
                    "x": 8,
                    "y": 12,
                    "fontWeight": "bold",
                    "fontSize": 12,
                    "color": theme.text if colour == theme.muted else colour,
                    "aria": False,
                },
            }
        )
    return layers


def _kills(killed: list[dict[str, Any]], x: Spec, theme: charts.Theme) -> list[Spec]:
    rows = [
        {"n": one["sequence"], "told": f"invocation {one['sequence']}: memory ran out, the runtime was killed"}
        for one in killed
    ]
    return [
        {
            "data": {"values": rows},
            "mark": {"type": "rule", "color": theme.warning, "strokeWidth": 1.2, "opacity": 0.7, "aria": False},
            "encoding": {"x": {"field": "n", **x}},
        },
        *charts.crosses(
            {"x": {"field": "n", **x}, "description": {"field": "told"}}, theme, rows, y={"expr": "height - 12"}
        ),
        {
            "data": {"values": rows[:1]},
            "mark": {
                "type": "text",
                "text": "killed",
                "align": "left",
                "dx": 10,
                "y": {"expr": "height - 12"},
                "color": theme.warning,
                "aria": False,
            },
            "encoding": {"x": {"field": "n", **x}},
        },
    ]


def projection(document: dict[str, Any], theme: charts.Theme = charts.PAGE) -> Spec | None:
    """The slope carried on until memory is out; None where there is no leak, no end is foreseen, or it was seen."""
    findings = document.get("findings") or {}
    left, slope = findings.get("invocations_until_out_of_memory"), findings.get("slope_bytes_per_invocation")
    after, limit = judged(document), memory_mb(document)
    if findings.get("verdict") != "leak" or not left or not slope or not after or limit is None or kills(document):
        return None
    last = after[-1]
    rows = [
        {
            "n": one["sequence"],
            "mb": one["bytes"] / _MB,
            "told": f"after invocation {one['sequence']}: {figures.size(one['bytes'])}",
        }
        for one in points(document)
    ]
    end = last["sequence"] + left
    line = [{"n": last["sequence"], "mb": last["bytes"] / _MB}, {"n": end, "mb": (last["bytes"] + slope * left) / _MB}]
    x: Spec = {
        "type": "quantitative",
        "scale": {"domain": [0, end * 1.06], "nice": False},
        "axis": {"title": "Invocation in this sandbox", "grid": False, "tickCount": 5, "format": ",d"},
    }
    y: Spec = {
        "type": "quantitative",
        "scale": {"domain": [0, limit * 1.16], "nice": False},
        "axis": {"title": "Memory after (MB)", "tickCount": 5, "grid": True},
    }
    spec: Spec = {
        "width": 380,
        "height": 200,
        "layer": [
            {
                "data": {"values": line},
                "mark": {
                    "type": "line",
                    "strokeDash": [6, 4],
                    "color": theme.duration,
                    "strokeWidth": 2,
                    "aria": False,
                },
                "encoding": {"x": {"field": "n", **x}, "y": {"field": "mb", **y}},
            },
            {
                "data": {"values": rows},
                "mark": {"type": "circle", "size": 16, "opacity": 0.9, "color": theme.cost},
                "encoding": {"x": {"field": "n", **x}, "y": {"field": "mb", **y}, "description": {"field": "told"}},
            },
            *charts.crosses({"x": {"field": "n", **x}, "y": {"field": "mb", **y}}, theme, line[-1:], aria=False),
            *charts.rule(limit, f"memory size: {limit} MB", theme, side="left"),
        ],
    }
    return charts.finished(spec, theme)


def settled(document: dict[str, Any], theme: charts.Theme = charts.PAGE) -> Spec | None:
    """Memory in the series in which the garbage collector ran after each invocation; None where there was none."""
    found = (document.get("findings") or {}).get("settled") or {}
    values = found.get("values_bytes") or []
    if len(values) < 2:
        return None
    cut = found.get("warm_up_invocations") or 0
    rows = [
        {
            "n": n,
            "mb": value / _MB,
            "kind": "warm-up" if n <= cut else "judged",
            "told": f"invocation {n}, garbage collected: {figures.size(value)}",
        }
        for n, value in enumerate(values, start=1)
    ]
    lowest, highest = min(row["mb"] for row in rows), max(row["mb"] for row in rows)
    room = span(lowest, highest)
    spec: Spec = {
        "width": 380,
        "height": 200,
        "data": {"values": rows},
        "mark": {"type": "point", "filled": True, "size": 22, "opacity": 0.95},
        "encoding": {
            "x": {
                "field": "n",
                "type": "quantitative",
                "axis": {"title": "Invocation in its sandbox", "grid": False, "tickMinStep": 1, "tickCount": 6},
                "scale": {"nice": False, "zero": True},
            },
            "y": {
                "field": "mb",
                "type": "quantitative",
                "axis": {"title": "Memory after (MB)", "tickCount": 5, "grid": True},
                "scale": {"domain": [max(0.0, lowest - room * 0.18), highest + room * 0.2], "nice": False},
            },
            "color": {
                "field": "kind",
                "type": "nominal",
                "scale": {"domain": ["judged", "warm-up"], "range": [theme.variants[2], theme.muted]},
                "legend": None,
            },
            "description": {"field": "told"},
        },
    }
    return charts.finished(spec, theme)


def grown(document: dict[str, Any]) -> list[str]:
    """Those of `RESOURCES` that were found to leak."""
    also = (document.get("findings") or {}).get("also") or []
    names = [str(one.get("what")) for one in also if one.get("verdict") == "leak"]
    return [name for name in names if name in RESOURCES and len(_resource(document, name)) > 1]


def _resource(document: dict[str, Any], what: str) -> list[dict[str, Any]]:
    return [one for one in main_records(document) if one.get(_FIELDS[what]) is not None]


def resource(document: dict[str, Any], what: str, theme: charts.Theme = charts.PAGE) -> Spec:
    """One of `RESOURCES` after each invocation."""
    name, field = RESOURCES[what], _FIELDS[what]
    scale, unit = (_MB, " (MB)") if field.endswith("_bytes") else (1, "")
    rows = []
    for one in _resource(document, what):
        value = f"{quantity(what, one[field])} {'in ' if what == 'tmp' else ''}{name}"
        rows.append(
            {
                "n": one["sequence"],
                "value": one[field] / scale,
                "told": f"after invocation {one['sequence']}: {value}",
            }
        )
    spec: Spec = {
        "width": 380,
        "height": 200,
        "data": {"values": rows},
        "layer": [
            {
                "mark": {"type": "line", "interpolate": "step-after", "color": theme.duration, "aria": False},
                "encoding": {
                    "x": {
                        "field": "n",
                        "type": "quantitative",
                        "axis": {
                            "title": "Invocation in this sandbox",
                            "grid": False,
                            "tickMinStep": 1,
                            "tickCount": 6,
                        },
                        "scale": {"nice": False, "zero": True},
                    },
                    "y": {
                        "field": "value",
                        "type": "quantitative",
                        "axis": {"title": f"{name[0].upper()}{name[1:]} after{unit}", "tickCount": 5, "grid": True},
                        "scale": {"zero": True},
                    },
                },
            },
            {
                "mark": {"type": "circle", "size": 22, "opacity": 1, "color": theme.duration},
                "encoding": {
                    "x": {"field": "n", "type": "quantitative"},
                    "y": {"field": "value", "type": "quantitative"},
                    "description": {"field": "told"},
                },
            },
        ],
    }
    return charts.finished(spec, theme)
