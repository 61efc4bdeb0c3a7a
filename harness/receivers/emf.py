"""CloudWatch's embedded metric format: metrics inside of log lines. Pure: a line in, metric data and complaints out.

A log event is one JSON object with ``_aws.CloudWatchMetrics`` [CloudWatch user guide, "Specification: Embedded metric
format"]. Of an event that breaks the rules CloudWatch makes no metric and says nothing in the log; here each part that is
left out is named, and why.
"""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import dataclass, field
from typing import Any

from harness.receivers.cloudwatch import LARGEST_VALUE, MOST_DIMENSIONS, timestamp_text, units

MOST_METRICS = 100
"""In one directive."""
MOST_VALUES = 100
"""In one array of values."""
_NAME_LENGTH = 1024
_DIMENSION_NAME_LENGTH = 250
_DIMENSION_VALUE_LENGTH = 1024
_OLDEST = datetime.timedelta(weeks=2)
_NEWEST = datetime.timedelta(hours=2)

_MARK = b"CloudWatchMetrics"
# AWS's Node runtime puts time, request id and level before what is given to console.log; AWS's own library for the format
# prints by it on Lambda, so CloudWatch finds the object behind that. Python's print has no such prefix.
_CONSOLE_PREFIX = re.compile(rb"\S+\t\S+\t[A-Z]+\t(?=\{)")


@dataclass(kw_only=True)
class Found:
    """What one line held: metric data, and a sentence for each part that is no valid one."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


class _Bad(Exception):
    """A part of the event breaks a rule; the message names both."""


def read(line: bytes, *, now: datetime.datetime) -> Found | None:
    """What a line of output holds; None for a line that has nothing to do with the format."""
    if _MARK not in line:
        return None
    prefix = _CONSOLE_PREFIX.match(line)
    text = line[prefix.end() if prefix else 0 :].strip()
    if not text.startswith(b"{"):
        return None  # somebody's own words about the format
    found = Found()
    try:
        event = json.loads(text)
    except (ValueError, RecursionError) as error:
        found.complaints.append(f"the line is no JSON: {error}")
        return found
    if not isinstance(event.get("_aws"), dict) or "CloudWatchMetrics" not in event["_aws"]:
        return None
    _read_event(event, found, now)
    return found


def _read_event(event: dict[str, Any], found: Found, now: datetime.datetime) -> None:
    head: dict[str, Any] = event["_aws"]
    try:
        when = _timestamp(head, now)
    except _Bad as error:
        found.complaints.append(str(error))
        return
    directives = head["CloudWatchMetrics"]
    if not isinstance(directives, list):
        found.complaints.append("_aws.CloudWatchMetrics is no array")
        return
    for at, directive in enumerate(directives):
        where = f"_aws.CloudWatchMetrics[{at}]"
        try:
            _read_directive(event, directive, where, timestamp_text(when), found)
        except _Bad as error:
            found.complaints.append(str(error))


def _timestamp(head: dict[str, Any], now: datetime.datetime) -> datetime.datetime:
    value = head.get("Timestamp")
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Bad("_aws.Timestamp is not there or no whole number of milliseconds")
    try:
        when = datetime.datetime.fromtimestamp(value / 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        raise _Bad(f"_aws.Timestamp {value} is no time") from None
    if not now - _OLDEST <= when <= now + _NEWEST:
        raise _Bad(f"_aws.Timestamp {value} is more than two weeks ago or two hours ahead")
    return when


def _read_directive(event: dict[str, Any], directive: Any, where: str, when: str, found: Found) -> None:
    if not isinstance(directive, dict):
        raise _Bad(f"{where} is no object")
    namespace = _name(directive.get("Namespace"), f"{where}.Namespace")
    metrics = directive.get("Metrics")
    if not isinstance(metrics, list):
        raise _Bad(f"{where}.Metrics is not there or no array")
    if len(metrics) > MOST_METRICS:
        raise _Bad(f"{where}.Metrics has {len(metrics)} metrics, {MOST_METRICS} are allowed")
    sets = directive.get("Dimensions")
    if not isinstance(sets, list):
        raise _Bad(f"{where}.Dimensions is not there or no array")
    resolved = []
    for at, names in enumerate(sets):
        try:
            resolved.append(_dimensions(event, names, f"{where}.Dimensions[{at}]"))
        except _Bad as error:
            found.complaints.append(str(error))
    if not sets:
        resolved = [[]]
    for at, metric in enumerate(metrics):
        try:
            entry = _metric(event, metric, f"{where}.Metrics[{at}]")
        except _Bad as error:
            found.complaints.append(str(error))
            continue
        found.metrics += [
            {"Namespace": namespace, **entry, "Dimensions": list(chosen), "Timestamp": when} for chosen in resolved
        ]


def _name(value: Any, where: str, length: int = _NAME_LENGTH) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > length:
        raise _Bad(f"{where} is no text of 1 to {length} characters")
    return value


def _dimensions(event: dict[str, Any], names: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(names, list):
        raise _Bad(f"{where} is no array of names")
    if len(names) > MOST_DIMENSIONS:
        raise _Bad(f"{where} has {len(names)} dimensions, {MOST_DIMENSIONS} are allowed")
    found = []
    for name in names:
        _name(name, f"a name in {where}", _DIMENSION_NAME_LENGTH)
        value = event.get(name)
        if not isinstance(value, str) or not 1 <= len(value) <= _DIMENSION_VALUE_LENGTH:
            what = "is not there" if name not in event else f"is no text of 1 to {_DIMENSION_VALUE_LENGTH} characters"
            raise _Bad(f"the dimension {name!r} of {where} {what}")
        found.append({"Name": name, "Value": value})
    return found


def _metric(event: dict[str, Any], metric: Any, where: str) -> dict[str, Any]:
    if not isinstance(metric, dict):
        raise _Bad(f"{where} is no object")
    name = _name(metric.get("Name"), f"{where}.Name")
    unit = metric.get("Unit", "None")
    if not isinstance(unit, str) or unit not in units():
        raise _Bad(f"{where}.Unit {unit!r} is no unit of CloudWatch")
    resolution = metric.get("StorageResolution", 60)
    if isinstance(resolution, bool) or resolution not in (1, 60):
        raise _Bad(f"{where}.StorageResolution is {resolution!r}, not 1 or 60")
    if name not in event:
        raise _Bad(f"the value of {name!r}, which {where} names, is not there")
    value = event[name]
    found: dict[str, Any] = {"MetricName": name, "Unit": unit, "StorageResolution": resolution}
    if isinstance(value, list):
        if not 1 <= len(value) <= MOST_VALUES:
            raise _Bad(f"the metric {name!r} has {len(value)} values, from 1 to {MOST_VALUES} are allowed")
        found["Values"] = [_number(one, name) for one in value]
    else:
        found["Value"] = _number(value, name)
    return found


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Bad(f"the metric {name!r} has the value {json.dumps(value)[:40]}, which is no number")
    if not abs(value) <= LARGEST_VALUE:  # so that NaN is refused too
        raise _Bad(f"the metric {name!r} has a value that CloudWatch does not take: {value}")
    return value
