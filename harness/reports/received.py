"""What local receivers got, as text: metric data as rows, traces as trees. Pure: takes the findings, returns strings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness import format as form

METRIC_HEADER = ("metric", "namespace", "dimensions", "value", "unit")


def metric_rows(metrics: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row a metric datum, in the order of arrival; `METRIC_HEADER` names the columns."""
    return [
        [
            str(each.get("MetricName", "")),
            str(each.get("Namespace", "")),
            ", ".join(f"{one.get('Name')}={one.get('Value')}" for one in each.get("Dimensions") or ()),
            _value(each),
            str(each.get("Unit") or "None"),
        ]
        for each in metrics
    ]


def _value(datum: Mapping[str, Any]) -> str:
    if datum.get("StatisticValues"):
        found = datum["StatisticValues"]
        return f"{found.get('SampleCount'):g} samples, {found.get('Minimum'):g} to {found.get('Maximum'):g}"
    if datum.get("Values"):
        counts = datum.get("Counts") or [1] * len(datum["Values"])
        return ", ".join(
            f"{value:g}" + (f" ({count:g} times)" if count != 1 else "")
            for value, count in zip(datum["Values"], counts, strict=False)
        )
    value = datum.get("Value")
    return "not given" if value is None else f"{value:g}"


def trace_lines(segment: Mapping[str, Any]) -> list[str]:
    """A segment and all below it, indented: name, time, what went wrong, annotations."""
    return list(_lines(segment, 0))


def _lines(segment: Mapping[str, Any], depth: int) -> Iterator[str]:
    begun, ended = segment.get("start_time"), segment.get("end_time")
    took = form.duration((ended - begun) * 1000) if begun is not None and ended is not None else "in progress"
    parts = [f"{'  ' * depth}{segment.get('name', 'unnamed')}", took]
    parts += [flag for flag in ("error", "fault", "throttle") if segment.get(flag)]
    if segment.get("origin"):
        parts.append(str(segment["origin"]))
    parts += [f"{name}={value}" for name, value in (segment.get("annotations") or {}).items()]
    yield "  ".join(parts)
    for each in segment.get("subsegments") or ():
        yield from _lines(each, depth + 1)
