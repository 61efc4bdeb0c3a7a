"""What every chart is made of, and the charts of a sweep and of a single sandbox, as SVG and PNG from documents alone.

No browser, no network, nothing measured here. The charts of leaks, kills and loads are in modules of their names.

Why Vega-Lite through vl-convert, and no more than that:

- vl-convert is one wheel (34 MB; no dependencies of its own) that carries Vega-Lite and draws SVG and PNG in process:
  import 0.04 s, first chart 0.5 s, every other 0.03 to 0.06 s (measured with 1.9). It is imported where it is used.
- Altair would write the same specifications from Python objects, but costs four more packages (17 MB) and 0.4 s of
  import, and these six specifications are short enough to be written as what they are.
- The HTML report embeds the SVG and not Vega's JavaScript: bundled it is 0.9 MB in each report, wants `eval` unless
  it is given an interpreter, and shows nothing where scripts are off. What interaction adds (the figure under the
  pointer) the report's own few lines do from the `aria-label` that Vega writes on every mark.

Colours: duration is vermillion and cost is blue, as users of aws-lambda-power-tuning know them, in the shades of
Okabe and Ito, which the colour-blind can tell apart; no meaning rests on a colour alone. In the page the colours are
CSS variables, so that one SVG serves light and dark; a file gets the light ones, since few viewers know variables.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from harness import format as figures

if TYPE_CHECKING:
    from collections.abc import Callable

Spec = dict[str, Any]
Record = dict[str, Any]
Tier = dict[str, Any]

WIDTH, HEIGHT = 860, 360
MAX_DOTS = 600
"""Above this many single invocations the main chart draws each size's range instead of a dot for each."""
MAX_TIMELINE = 80
"""A timeline shows the first so many invocations of its sandbox; more could not be told apart."""
_FONT = "Liberation Sans, Helvetica, Arial, sans-serif"


@dataclass(frozen=True, kw_only=True)
class Theme:
    """The colours of a chart, as anything that SVG takes for a colour."""

    background: str | None
    text: str
    muted: str
    grid: str
    duration: str
    cost: str
    predicted: str
    mark: str
    warning: str
    init: str
    invoke: str
    frozen: str
    peak: str
    halo: str
    variants: tuple[str, ...]


LIGHT = Theme(
    background="#ffffff",
    text="#1c2430",
    muted="#5b6675",
    grid="#e3e7ec",
    duration="#c8500a",
    cost="#0072b2",
    predicted="#7a5195",
    mark="#f0c419",
    warning="#b42318",
    init="#e69f00",
    invoke="#0072b2",
    frozen="#cfd8e3",
    peak="#c8500a",
    halo="#ffffff",
    variants=("#0072b2", "#e69f00", "#009e73", "#cc79a7"),
)
DARK = Theme(
    background="#12171e",
    text="#e6eaf0",
    muted="#9aa7b8",
    grid="#2a333f",
    duration="#ff9a57",
    cost="#56b4e9",
    predicted="#c3a0e0",
    mark="#f0c419",
    warning="#ff8f80",
    init="#f0b429",
    invoke="#4a9fd4",
    frozen="#3d4a5b",
    peak="#ff9a57",
    halo="#12171e",
    variants=("#56b4e9", "#e6a61f", "#2fc49a", "#e39ac4"),
)
PAGE = Theme(
    background=None,
    variants=tuple(f"var(--chart-variant-{at})" for at in range(4)),
    **{
        field.name: f"var(--chart-{field.name})"
        for field in dataclasses.fields(Theme)
        if field.name not in {"background", "variants"}
    },
)
"""Nothing but names: the page sets them from LIGHT and from DARK, see `variables`."""


def variables(theme: Theme) -> dict[str, str]:
    """The CSS variables that PAGE names, with the colours of a theme."""
    found = dataclasses.asdict(theme)
    shades = found.pop("variants")
    del found["background"]
    return {f"--chart-{name}": colour for name, colour in found.items()} | {
        f"--chart-variant-{at}": colour for at, colour in enumerate(shades)
    }


def svg(spec: Spec) -> str:
    """Draw a specification; offline, since specifications hold their data."""
    import vl_convert

    drawn = vl_convert.vegalite_to_svg(_drawable(spec), allowed_base_urls=[])
    assert isinstance(drawn, str)  # noqa: S101 (the library promises it)
    return drawn


def _drawable(found: Any) -> Any:
    """The same with lone surrogates replaced: they are no text that a renderer could draw, but functions return them."""
    if isinstance(found, str):
        return found if found.isascii() else found.encode("utf-8", "replace").decode("utf-8")
    if isinstance(found, dict):
        return {key: _drawable(value) for key, value in found.items()}
    return [_drawable(one) for one in found] if isinstance(found, list) else found


def png(spec: Spec, *, scale: float = 2) -> bytes:
    """Draw a specification as PNG, at twice its size by default: screens are dense."""
    import vl_convert

    drawn = vl_convert.vegalite_to_png(_drawable(spec), scale=scale, allowed_base_urls=[])
    assert isinstance(drawn, bytes)  # noqa: S101
    return drawn


def tiers_of(document: dict[str, Any]) -> list[Tier]:
    """The measured memory sizes of a document, variant by variant, smallest first."""
    found = [one for one in (document.get("findings") or {}).get("tiers") or [] if judged(one)]
    variants = list(dict.fromkeys(one.get("variant") for one in found))
    return sorted(found, key=lambda one: (variants.index(one.get("variant")), one["memory_mb"]))


def judged(tier: Tier) -> dict[str, Any] | None:
    """The statistics of the duration that a tier is judged by: warm ones, or cold where only those were measured."""
    stats: dict[str, Any] | None = tier.get("duration_ms") or (tier.get("cold") or {}).get("duration_ms")
    return stats


def judged_cost_usd(tier: Tier) -> float | None:
    """The cost of one invocation that a tier is judged by."""
    warm: float | None = tier.get("cost_usd_per_invocation")
    return (tier.get("cold") or {}).get("cost_usd_per_invocation") if warm is None else warm


def judged_records(document: dict[str, Any], tier: Tier) -> list[Record]:
    """The successful invocations that `judged` speaks of."""
    cold = not tier.get("duration_ms")
    return [
        one
        for one in document.get("invocations") or []
        if one["memory_mb"] == tier["memory_mb"]
        and one.get("variant") == tier.get("variant")
        and one["outcome"] == "success"
        and bool(one["cold"]) is cold
        and one.get("duration_ms") is not None
    ]


def predicted_points(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The predicted sizes, smallest first; empty where nothing was predicted, or for which variant cannot be said."""
    if len({one.get("variant") for one in tiers_of(document)}) > 1:
        return []
    prediction = (document.get("findings") or {}).get("prediction") or {}
    return sorted(prediction.get("tiers") or [], key=lambda one: int(one["memory_mb"]))


def sandboxes(document: dict[str, Any]) -> list[list[Record]]:
    """The invocations of each sandbox that can be drawn on a time axis, in order; the recommended size's come first."""
    found: dict[str, list[Record]] = {}
    for one in document.get("invocations") or []:
        if one.get("duration_ms") is not None and seconds(one.get("started_at")) is not None:
            found.setdefault(str(one["sandbox_id"]), []).append(one)
    chosen = (document.get("findings") or {}).get("recommendation") or {}

    def order(records: list[Record]) -> tuple[bool, int]:
        first = records[0]
        fits = first["memory_mb"] == chosen.get("memory_mb") and first.get("variant") == chosen.get("variant")
        return (not fits, first["memory_mb"])

    return sorted((sorted(one, key=lambda record: record["sequence"]) for one in found.values()), key=order)


def duration_and_cost(document: dict[str, Any], theme: Theme = PAGE, *, title: str | None = None) -> Spec:
    """Duration (left axis) and cost (right axis) over memory, one panel for each variant, all on the same scales."""
    tiers = tiers_of(document)
    variants = list(dict.fromkeys(one.get("variant") for one in tiers))
    dots = {
        _key(one): [record["duration_ms"] for record in judged_records(document, one)] for one in tiers
    }  # what the spread is drawn from
    many = sum(map(len, dots.values())) > MAX_DOTS
    points = predicted_points(document)
    measured = [judged(one) or {} for one in tiers]
    longest = max(
        [one["mean"] for one in measured]
        + [one.get("ci_high") or 0 for one in measured]
        + [one.get("max") or 0 for one in measured]
        + [one.get("high_ms") or one["duration_ms"] for one in points]
    )
    unit, divisor = ("s", 1000.0) if longest >= 10_000 else ("ms", 1.0)
    dearest = max(max(one.get("cost_ci_high") or 0, judged_cost_usd(one) or 0) for one in tiers)
    sizes = sorted({one["memory_mb"] for one in tiers} | {one["memory_mb"] for one in points})
    scales = _Scales(
        memory_x=_memory_axis(sizes, theme),
        duration_y=_value_axis(f"Duration ({unit})", longest / divisor * 1.12, theme.duration, ",.4~r", grid=True),
        cost_y=_value_axis(
            "Cost of a million invocations (USD)",
            dearest * figures.PER_MILLION * 1.12,
            theme.cost,
            "$,.2f" if dearest * figures.PER_MILLION < 10 else "$,.4~r",
            grid=False,
        ),
        divisor=divisor,
    )
    panels = []
    for variant in variants:
        own = [one for one in tiers if one.get("variant") == variant]
        panel = _panel(
            document, own, {_key(one): dots[_key(one)] for one in own}, points, scales, theme=theme, many=many
        )
        if len(variants) > 1:
            panel["title"] = {"text": short(str(variant or "as configured")), "fontSize": 13, "anchor": "start"}
        panels.append(panel)
    spread = "pale bars: range of all invocations" if many else "dots: single invocations"
    subtitle = f"{spread}; whiskers: 95 % confidence interval of the mean"
    spec: Spec = panels[0] if len(panels) == 1 else {"vconcat": panels, "spacing": 28}
    return finished(spec, theme, title=title, subtitle=subtitle if title else None)


@dataclass(frozen=True, kw_only=True)
class _Scales:
    memory_x: Spec
    duration_y: Spec
    cost_y: Spec
    divisor: float


def _panel(
    document: dict[str, Any],
    tiers: list[Tier],
    dots: dict[tuple[int, str | None], list[float]],
    points: list[dict[str, Any]],
    scales: _Scales,
    *,
    theme: Theme,
    many: bool,
) -> Spec:
    chosen = ((document.get("findings") or {}).get("recommendation")) or {}
    rows = []
    for one in tiers:
        stats = judged(one) or {}
        cost = judged_cost_usd(one)
        warm = "warm" if one.get("duration_ms") else "cold"
        rows.append(
            {
                "memory": one["memory_mb"],
                "mean": stats["mean"] / scales.divisor,
                "low": _over(stats.get("ci_low"), scales.divisor),
                "high": _over(stats.get("ci_high"), scales.divisor),
                "min": _over(stats.get("min"), scales.divisor),
                "max": _over(stats.get("max"), scales.divisor),
                "cost": None if cost is None else cost * figures.PER_MILLION,
                "cost_low": _times(one.get("cost_ci_low"), figures.PER_MILLION),
                "cost_high": _times(one.get("cost_ci_high"), figures.PER_MILLION),
                "mean_label": figures.duration(stats["mean"]),
                "cost_label": figures.per_million(cost),
                "told": f"{one['memory_mb']} MB: mean {figures.duration(stats['mean'])}"
                f"{_told_interval(stats.get('ci_low'), stats.get('ci_high'), figures.duration)}, median "
                f"{figures.duration(stats.get('p50'))}, {stats['n']} {warm} invocations",
                "cost_told": f"{one['memory_mb']} MB: {figures.per_million(cost)} for a million {warm} invocations"
                f"{_told_interval(one.get('cost_ci_low'), one.get('cost_ci_high'), figures.per_million)}",
            }
        )
    x, y, cost_y = scales.memory_x, scales.duration_y, scales.cost_y
    colour = legend(
        [
            ("Duration (mean)", theme.duration),
            ("Cost", theme.cost),
            *([("Predicted duration", theme.predicted)] if points else []),
        ],
        theme,
        lines=True,
    )

    def series(name: str) -> Spec:
        return {"datum": name, "type": "nominal", **colour}

    below: list[Spec] = []
    recommended = [row for row in rows if row["memory"] == chosen.get("memory_mb")]
    if recommended and tiers[0].get("variant") == chosen.get("variant"):
        below += [
            {
                "data": {"values": recommended[:1]},
                "mark": {"type": "rule", "strokeWidth": 34, "opacity": 0.22, "color": theme.mark, "aria": False},
                "encoding": {"x": _at("memory", x)},
            },
            {
                "data": {"values": recommended[:1]},
                "mark": {
                    "type": "text",
                    "text": "recommended",
                    "y": -8,
                    "fontWeight": "bold",
                    "color": theme.text,
                    "aria": False,
                },
                "encoding": {"x": _at("memory", x)},
            },
        ]
    if points:
        predicted = [
            {
                "memory": one["memory_mb"],
                "mean": one["duration_ms"] / scales.divisor,
                "low": _over(one.get("low_ms"), scales.divisor),
                "high": _over(one.get("high_ms"), scales.divisor),
            }
            for one in sorted(points, key=lambda one: one["memory_mb"])
        ]
        if all(one["low"] is not None and one["high"] is not None for one in predicted):
            below.append(
                {
                    "data": {"values": predicted},
                    "mark": {"type": "area", "opacity": 0.14, "color": theme.predicted, "aria": False},
                    "encoding": {"x": _at("memory", x), "y": _at("low", y), "y2": {"field": "high"}},
                }
            )
        below.append(
            {
                "data": {"values": predicted},
                "mark": {"type": "line", "strokeDash": [5, 4], "strokeWidth": 1.8, "aria": False},
                "encoding": {"x": _at("memory", x), "y": _at("mean", y), "color": series("Predicted duration")},
            }
        )
    if many:
        below.append(
            {
                "mark": {"type": "rule", "strokeWidth": 7, "opacity": 0.25, "color": theme.duration, "aria": False},
                "encoding": {"x": _at("memory", x), "y": _at("min", y), "y2": {"field": "max"}},
            }
        )
    else:
        low, high = x["scale"]["domain"]
        ratio = high / low
        single = [
            # Beside the mean and not behind it, in a narrow column, so that dots of one height stay apart.
            {"memory": memory_mb * ratio ** ((at % 5 * 2.5 - 20) / WIDTH), "single": value / scales.divisor}
            for (memory_mb, _), values in dots.items()
            for at, value in enumerate(values)
        ]
        below.append(
            {
                "data": {"values": single},
                "mark": {"type": "circle", "size": 15, "opacity": 0.4, "color": theme.duration, "aria": False},
                "encoding": {"x": _at("memory", x), "y": _at("single", y)},
            }
        )
    _place_labels(rows, y["scale"]["domain"][1], cost_y["scale"]["domain"][1])
    few = len(rows) <= 9
    duration_layers = [
        *below,
        {
            "mark": {"type": "line", "strokeWidth": 2.4, "aria": False},
            "encoding": {"x": _at("memory", x), "y": _at("mean", y), "color": series("Duration (mean)")},
        },
        _interval("low", "high", x, y, theme.duration),
        _points("mean", "told", x, y, colour=theme.duration, shape="circle"),
        *(_labels("mean", x, y, theme.duration) if few else []),
    ]
    cost_layers = [
        {
            "mark": {"type": "line", "strokeWidth": 2.4, "aria": False},
            "encoding": {"x": _at("memory", x), "y": _at("cost", cost_y), "color": series("Cost")},
        },
        _interval("cost_low", "cost_high", x, cost_y, theme.cost),
        _points("cost", "cost_told", x, cost_y, colour=theme.cost, shape="square"),
        *(_labels("cost", x, cost_y, theme.cost) if few else []),
    ]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "data": {"values": rows},
        "layer": [{"layer": duration_layers}, {"layer": cost_layers}],
        "resolve": {"scale": {"y": "independent"}},
    }


def throttling(document: dict[str, Any], theme: Theme = PAGE) -> Spec:
    """The share of its time for which a size had used up its CPU quota."""
    rows = [
        _bar(one, one.get("throttled_share"), figures.share(one.get("throttled_share")), "throttled for")
        for one in tiers_of(document)
    ]
    return _bars(rows, "Share of the duration, throttled", theme, theme.duration)


def peak_memory(document: dict[str, Any], theme: Theme = PAGE) -> Spec:
    """Memory used at the peak as a share of the size, with the mark above which a size counts as too small."""
    rows = []
    for one in tiers_of(document):
        used_mb = one.get("max_memory_used_mb")
        label = figures.size(one.get("peak_rss_bytes")) if used_mb is None else figures.memory(used_mb)
        rows.append(_bar(one, one.get("memory_used_share"), label, "at most"))
    return _bars(
        rows, "Share of the memory size used", theme, theme.cost, rule=0.8, rule_label="80 %: little room left"
    )


def timeline(records: list[Record], theme: Theme = PAGE, *, title: str | None = None) -> Spec:
    """One sandbox over time: init, invoke and frozen spans above, its memory below."""
    records = records[:MAX_TIMELINE]
    spans, memory = [], []
    zero = seconds(records[0]["started_at"]) or 0.0
    for one in records:
        start = (seconds(one["started_at"]) or 0.0) - zero
        frozen, init = (one.get("frozen_ms") or 0.0) / 1000, (one.get("init_ms") or 0.0) / 1000
        name = f"invocation {one['sequence']}"
        if frozen:
            spans.append(_span(start - frozen, start, "frozen", f"frozen for {figures.duration(one['frozen_ms'])}"))
        if init:
            told = f"{name}: init {figures.duration(one['init_ms'])}"
            spans.append(_span(start, start + init, "init", told))
        end = start + init + one["duration_ms"] / 1000
        told = f"{name}: {figures.duration(one['duration_ms'])}, {figures.words(one['outcome'])}"
        spans.append(_span(start + init, end, "invoke", told))
        for kind, field in (("resident after", "resident_after_bytes"), ("peak RSS", "peak_rss_bytes")):
            if one.get(field) is not None:
                told = f"{name}: {kind} {figures.size(one[field])}"
                memory.append({"at": end, "mb": one[field] / 1024 / 1024, "kind": kind, "told": told})
    last = max(span["to"] for span in spans)
    unit, factor = ("ms", 1000.0) if last < 1 else ("s", 1.0)
    for span in spans:
        span["from"], span["to"] = span["from"] * factor, span["to"] * factor
    for point in memory:
        point["at"] *= factor
    axis = {"title": f"Time since the first request ({unit})", "grid": False, "tickCount": 8}
    scale = {"domain": [min(0.0, *(span["from"] for span in spans)), last * factor], "nice": False}
    phases = legend([("init", theme.init), ("invoke", theme.invoke), ("frozen", theme.frozen)], theme)
    lane: Spec = {
        "width": WIDTH,
        "height": 40,
        "data": {"values": spans},
        # The stroke keeps a span of a millisecond visible beside minutes of frozen time.
        "mark": {"type": "bar", "height": 26, "strokeWidth": 0.8},
        "encoding": {
            "x": {"field": "from", "type": "quantitative", "axis": None if memory else axis, "scale": scale},
            "x2": {"field": "to"},
            "color": {"field": "phase", "type": "nominal", **phases},
            "stroke": {"field": "phase", "type": "nominal", **phases, "legend": None},
            "description": {"field": "told"},
        },
    }
    if not memory:
        return finished(lane, theme, title=title)
    kinds = legend([("resident after", theme.cost), ("peak RSS", theme.peak)], theme)
    at = {"field": "at", "type": "quantitative", "axis": axis, "scale": scale}
    mb: Spec = {
        "field": "mb",
        "type": "quantitative",
        "axis": {"title": "Memory (MB)", "tickCount": 4, "grid": True},
        "scale": {"zero": True, "nice": True},
    }
    colour = {"field": "kind", "type": "nominal", **kinds}
    below: Spec = {
        "width": WIDTH,
        "height": 150,
        "data": {"values": memory},
        "layer": [
            {
                "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 1.6, "aria": False},
                "encoding": {"x": at, "y": mb, "color": colour},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 34},
                "encoding": {
                    "x": at,
                    "y": mb,
                    "color": colour,
                    "shape": {
                        "field": "kind",
                        "type": "nominal",
                        "scale": {"domain": ["resident after", "peak RSS"], "range": ["circle", "triangle-up"]},
                        "legend": None,
                    },
                    "description": {"field": "told"},
                },
            },
        ],
    }
    spec: Spec = {"vconcat": [lane, below], "spacing": 10, "resolve": {"scale": {"color": "independent"}}}
    return finished(spec, theme, title=title)


def _span(start: float, end: float, phase: str, told: str) -> dict[str, Any]:
    return {"from": start, "to": end, "phase": phase, "told": told}


def _bar(tier: Tier, value: float | None, label: str, told: str) -> dict[str, Any]:
    variant = tier.get("variant")
    name = f"{tier['memory_mb']} MB" + (f", {short(str(variant))}" if variant else "")
    return {
        "memory": tier["memory_mb"],
        "variant": short(str(variant)) if variant else "",
        "value": value,
        "label": label,
        "told": f"{name}: {told} {label}" + ("" if value is None else f" ({figures.share(value)})"),
    }


def _bars(
    rows: list[dict[str, Any]],
    y_title: str,
    theme: Theme,
    colour: str,
    *,
    rule: float | None = None,
    rule_label: str = "",
) -> Spec:
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    highest = max([row["value"] or 0 for row in rows] + [rule or 0, 0.05])
    x: Spec = {
        "field": "memory",
        "type": "ordinal",
        "axis": {"title": "Memory size (MB)", "labelAngle": 0, "labelOverlap": "greedy", "grid": False},
        "scale": {"paddingInner": 0.3, "paddingOuter": 0.2},
    }
    y: Spec = {
        "field": "value",
        "type": "quantitative",
        "axis": {"title": y_title, "format": ".0%", "tickCount": 5, "grid": True},
        "scale": {"domain": [0, highest * 1.12 if highest > 0.9 else min(1.0, highest * 1.25)], "nice": False},
    }
    bars: Spec = {
        "mark": {"type": "bar", "cornerRadiusEnd": 2, "color": colour},
        "encoding": {"x": x, "y": y, "description": {"field": "told"}},
    }
    measured: Spec = {
        "transform": [{"filter": "datum.value !== null"}],
        "mark": {"type": "text", "dy": -7, "color": theme.text, "aria": False},
        "encoding": {"x": x, "y": y, "text": {"field": "label"}},
    }
    missing: Spec = {
        "transform": [{"filter": "datum.value === null"}],
        "mark": {"type": "text", "angle": 270, "align": "left", "y": {"expr": "height - 6"}, "color": theme.muted},
        "encoding": {"x": x, "text": {"field": "label"}, "description": {"field": "told"}},
    }
    labels = [measured, missing] if len(rows) <= 9 else [missing]
    if len(variants) > 1:
        names = [variant or "as configured" for variant in variants]
        palette = [theme.variants[at % len(theme.variants)] for at in range(len(variants))]
        for row in rows:
            row["variant"] = row["variant"] or "as configured"
        for layer in (bars, *labels):
            layer["encoding"]["xOffset"] = {"field": "variant", "sort": names}
        bars["encoding"]["color"] = {
            "field": "variant",
            "type": "nominal",
            **legend(list(zip(names, palette, strict=True)), theme),
        }
    layers = [bars, *labels]
    if rule is not None:
        layers += [
            {
                "data": {"values": [{}]},
                "mark": {"type": "rule", "strokeDash": [4, 3], "color": theme.warning, "aria": False},
                "encoding": {"y": {"datum": rule}},
            },
            {
                "data": {"values": [{}]},
                "mark": {
                    "type": "text",
                    "text": rule_label,
                    "align": "right",
                    "x": {"expr": "width - 4"},
                    "dy": -7,
                    "color": theme.warning,
                    "aria": False,
                },
                "encoding": {"y": {"datum": rule}},
            },
        ]
    return finished({"width": 380, "height": 210, "data": {"values": rows}, "layer": layers}, theme)


def legend(entries: list[tuple[str, str]], theme: Theme, *, lines: bool = False) -> Spec:
    """The colour scale of named entries and the legend that explains it, as members of a channel."""
    return {
        "scale": {"domain": [name for name, _ in entries], "range": [colour for _, colour in entries]},
        "legend": {
            "title": None,
            "orient": "top",
            "direction": "horizontal",
            "symbolType": "stroke" if lines else "square",
            "symbolSize": 420 if lines else 110,
            "symbolStrokeWidth": 2.6 if lines else 0,
            "symbolOpacity": 1,
            "labelColor": theme.text,
            "columnPadding": 18,
            "offset": 24 if lines else 12,
        },
    }


def shape_legend(theme: Theme) -> Spec:
    """The legend of marks that are told apart by shape and colour at once: to be given to both channels, unchanged."""
    found: Spec = {**legend([], theme)["legend"], "symbolStrokeWidth": 2.2, "symbolSize": 64}
    del found["symbolType"]
    return found


def _memory_axis(sizes: list[int], theme: Theme) -> Spec:
    """Memory on a logarithmic scale: the steps people choose double, so they stand evenly apart."""
    ratio = max(sizes[-1] / sizes[0], 1.3)
    return {
        "type": "quantitative",
        # Room at the left for the dots of the first size, at the right for the labels of the last.
        "scale": {
            "type": "log",
            "base": 2,
            "domain": [sizes[0] / ratio**0.05, sizes[-1] * ratio**0.07],
            "nice": False,
        },
        "axis": {
            "title": "Memory size (MB), logarithmic",
            "values": _thinned(sizes),
            "format": "d",
            "grid": True,
            "gridColor": theme.grid,
            "labelOverlap": "greedy",
            "labelSeparation": 6,
        },
    }


def _thinned(ticks: list[int]) -> list[int]:
    """Ticks that leave room for their labels: the first, the last, and those 6 % of the axis apart."""
    if len(ticks) < 3:
        return ticks
    room = math.log2(ticks[-1] / ticks[0]) * 0.06
    kept = [ticks[0]]
    for tick in ticks[1:-1]:
        if math.log2(tick / kept[-1]) >= room and math.log2(ticks[-1] / tick) >= room:
            kept.append(tick)
    return [*kept, ticks[-1]]


def _value_axis(title: str, top: float, colour: str, number: str, *, grid: bool) -> Spec:
    return {
        "type": "quantitative",
        "scale": {"domain": [0, top or 1], "nice": False},
        "axis": {
            "title": title,
            "titleColor": colour,
            "labelColor": colour,
            "format": number,
            "tickCount": 6,
            "grid": grid,
            "titleFontWeight": "bold",
        },
    }


def _at(field: str, axis: Spec) -> Spec:
    return {"field": field, **axis}


def _interval(low: str, high: str, x: Spec, y: Spec, colour: str) -> Spec:
    return {
        "transform": [{"filter": f"datum.{low} !== null && datum.{high} !== null"}],
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.6, "color": colour, "aria": False},
                "encoding": {"x": _at("memory", x), "y": _at(low, y), "y2": {"field": high}},
            },
            *(
                {
                    "mark": {
                        "type": "tick",
                        "orient": "horizontal",
                        "size": 9,
                        "thickness": 1.6,
                        "color": colour,
                        "aria": False,
                    },
                    "encoding": {"x": _at("memory", x), "y": _at(end, y)},
                }
                for end in (low, high)
            ),
        ],
    }


def _points(field: str, told: str, x: Spec, y: Spec, *, colour: str, shape: str) -> Spec:
    return {
        "mark": {"type": "point", "filled": True, "shape": shape, "size": 62, "opacity": 1, "color": colour},
        "encoding": {"x": _at("memory", x), "y": _at(field, y), "description": {"field": told}},
    }


def _told_interval(low: float | None, high: float | None, formatted: Callable[[float | None], str]) -> str:
    return "" if low is None or high is None else f" (95 % interval {formatted(low)} to {formatted(high)})"


def _place_labels(rows: list[dict[str, Any]], mean_top: float, cost_top: float) -> None:
    """Put each row's two labels on the sides of their points on which they do not meet."""
    for row in rows:
        apart = (row["cost"] or 0) / cost_top * HEIGHT - row["mean"] / mean_top * HEIGHT
        row["cost_side"] = "above" if apart > 0 else "below"
        row["mean_side"] = "below" if 0 < apart < 26 else "above"


def _labels(field: str, x: Spec, y: Spec, colour: str) -> list[Spec]:
    text: Spec = {"type": "text", "dx": 9, "align": "left", "fontSize": 11, "color": colour, "aria": False}
    return [
        {
            "transform": [{"filter": f"datum.{field} !== null && datum.{field}_side === '{side}'"}],
            "mark": {**text, "dy": dy},
            "encoding": {"x": _at("memory", x), "y": _at(field, y), "text": {"field": f"{field}_label"}},
        }
        for side, dy in (("above", -11), ("below", 14))
    ]


def finished(spec: Spec, theme: Theme, *, title: str | None = None, subtitle: str | None = None) -> Spec:
    """A specification with the look that all charts share; a title is for files, a page has headings of its own."""
    found: Spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": theme.background,
        "padding": 12 if title else 4,
        **spec,
        "config": {
            "font": _FONT,
            "background": theme.background,
            "view": {"stroke": None},
            "axis": {
                "domainColor": theme.muted,
                "tickColor": theme.muted,
                "gridColor": theme.grid,
                "labelColor": theme.muted,
                "titleColor": theme.text,
                "labelFontSize": 11,
                "titleFontSize": 12,
                "titlePadding": 10,
                "titleFontWeight": "normal",
            },
            "legend": {"labelFontSize": 12, "labelLimit": 300},
            "text": {"fontSize": 11},
            "title": {"color": theme.text, "subtitleColor": theme.muted},
        },
    }
    if title:
        found["title"] = {
            "text": short(title, 90),
            "anchor": "start",
            "fontSize": 17,
            "offset": 16,
            **({"subtitle": subtitle, "subtitleFontSize": 12, "subtitlePadding": 6} if subtitle else {}),
        }
    return found


def short(text: str, limit: int = 60) -> str:
    """Text that somebody chose, cut at the limit."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _key(tier: Tier) -> tuple[int, str | None]:
    return (tier["memory_mb"], tier.get("variant"))


def _over(value: float | None, divisor: float) -> float | None:
    return None if value is None else value / divisor


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def seconds(iso: Any) -> float | None:
    """A moment in seconds since the epoch; None for what is no ISO 8601."""
    try:
        return datetime.fromisoformat(str(iso)).timestamp()
    except ValueError:
        return None


def rule(at: float, text: str, theme: Theme, *, side: str = "right") -> list[Spec]:
    """A dashed line across the chart at a height of its y scale, with its name above at that side."""
    colour = theme.warning
    return [
        {
            "data": {"values": [{"at": at}]},
            "mark": {"type": "rule", "strokeDash": [5, 4], "strokeWidth": 1.6, "color": colour, "aria": False},
            "encoding": {"y": {"field": "at", "type": "quantitative"}},
        },
        {
            "data": {"values": [{"at": at}]},
            "mark": {
                "type": "text",
                "text": text,
                "align": side,
                "x": {"expr": "width - 4"} if side == "right" else 6,
                "dy": -7,
                "color": colour,
                "aria": False,
            },
            "encoding": {"y": {"field": "at", "type": "quantitative"}},
        },
    ]


CROSS = "M-0.8,-0.8L0.8,0.8M0.8,-0.8L-0.8,0.8"
"""The shape that stands for a kill in every chart; it is stroked, and needs a halo wherever it lies upon other marks."""


def crosses(encoding: Spec, theme: Theme, rows: list[dict[str, Any]], *, size: int = 90, **mark: Any) -> list[Spec]:
    """Kills, as crosses that stand out from whatever is below them. The encoding places them and tells what they are."""
    shape = {"type": "point", "shape": CROSS, "size": size, "opacity": 1, **mark}
    placed = {name: channel for name, channel in encoding.items() if name != "description"}
    return [
        {
            "data": {"values": rows},
            "mark": {**shape, "strokeWidth": 6, "color": theme.halo, "aria": False},
            "encoding": placed,
        },
        {"data": {"values": rows}, "mark": {**shape, "strokeWidth": 2.8, "color": theme.warning}, "encoding": encoding},
    ]
