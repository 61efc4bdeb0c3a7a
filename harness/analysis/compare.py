"""Two runs against each other, tier by tier, and thresholds on what changed. Pure; records in, findings out."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.analysis.statistics import difference
from harness.analysis.sweep import Reading, VariantOf, tier_findings, variant_of, warm_successes
from harness.errors import InvalidInput
from harness.invocation import Invocation

_STATS = ("mean", "p50", "stdev", "min", "max", "p90", "p95", "p99")
_WITH_STATS = ("duration_ms", "billed_ms", "cpu_ms", "client_ms", "cold.init_ms", "cold.duration_ms", "cold.billed_ms")
_PLAIN = (
    "cost_usd_per_invocation",
    "max_memory_used_mb",
    "peak_rss_bytes",
    "peak_memory_bytes",
    "throttled_share",
    "memory_used_share",
    "cold.cost_usd_per_invocation",
)

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_THRESHOLD = re.compile(
    r"\s*(?P<figure>[a-z0-9_.]+)\s*(?P<operator>>=|<=|>|<)\s*(?P<sign>[+-]?)(?P<number>\d+(?:\.\d+)?)\s*(?P<percent>%?)\s*"
)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A condition under which a comparison fails: a figure's change by percent, or its value in the candidate.

    ``percent`` says that ``bound`` is a change in percent against the baseline; ``absolute_change`` that it is a change
    in the figure's own unit. Otherwise ``bound`` is a value.
    """

    text: str
    figure: str
    comparison: str
    bound: float
    percent: bool
    absolute_change: bool


def parse_threshold(text: str) -> Threshold:
    """``duration_ms.p50>+20%``, ``cost_usd_per_invocation>+5%``, ``max_memory_used_mb>200``, ``duration_ms.mean>+3``.

    A figure with statistics and none named means its mean. Raises `InvalidInput` that says what is understood.
    """
    understood = "write FIGURE>+N% (change), FIGURE>+N (change in its unit) or FIGURE>N (value), with > >= < or <="
    found = _THRESHOLD.fullmatch(text)
    if found is None:
        raise InvalidInput(f"threshold {text!r} is not understood", remedy=understood)
    figure = found["figure"]
    if figure in _WITH_STATS:
        figure += ".mean"
    head, _, last = figure.rpartition(".")
    if not (figure in _PLAIN or (head in _WITH_STATS and last in _STATS)):
        known = ", ".join([*(f"{name}.p50" for name in _WITH_STATS), *_PLAIN])
        raise InvalidInput(f"threshold {text!r}: there is no figure {found['figure']!r}", remedy=f"figures are {known}")
    if found["percent"] and not found["sign"]:
        raise InvalidInput(f"threshold {text!r}: a percentage is a change", remedy="write +N% or -N%")
    number = float(found["number"]) * (-1 if found["sign"] == "-" else 1)
    return Threshold(
        text=text.strip(),
        figure=figure,
        comparison=found["operator"],
        bound=number,
        percent=bool(found["percent"]),
        absolute_change=bool(found["sign"]) and not found["percent"],
    )


def compare_runs(
    baseline: Sequence[Invocation],
    candidate: Sequence[Invocation],
    thresholds: Sequence[Threshold] = (),
    *,
    reading: Reading | None = None,
    variant: VariantOf = variant_of,
) -> dict[str, Any]:
    """The findings of a comparison: ``tiers`` with ratio, interval and verdict, what only one run has, thresholds.

    The verdict is about the duration of warm successes; ``baseline`` and ``candidate`` of a tier are its findings.
    """
    reading = reading or Reading()
    before, after = _by_tier(baseline, reading, variant), _by_tier(candidate, reading, variant)
    both = sorted(before.keys() & after.keys(), key=_tier_order)
    if not both:
        raise InvalidInput(
            f"the runs share no memory size: {_sizes(before)} against {_sizes(after)}",
            remedy="compare runs of the same memory sizes and variants, in which the function succeeded",
        )
    tiers = [
        _compare_tier(
            key, before[key], after[key], _durations(baseline, key, variant), _durations(candidate, key, variant)
        )
        for key in both
    ]
    checked = [check(threshold, tier) for threshold in thresholds for tier in tiers]
    return {
        "tiers": tiers,
        "only_in_baseline": [_name(key) for key in sorted(before.keys() - after.keys(), key=_tier_order)],
        "only_in_candidate": [_name(key) for key in sorted(after.keys() - before.keys(), key=_tier_order)],
        "thresholds": checked,
        "met": all(found["met"] for found in checked),
    }


_Key = tuple[int, str | None]


def _tier_order(key: _Key) -> tuple[int, str]:
    return key[0], key[1] or ""


def _name(key: _Key) -> dict[str, Any]:
    return {"memory_mb": key[0], "variant": key[1]}


def _sizes(tiers: Mapping[_Key, Any]) -> str:
    return ", ".join(f"{key[0]} MB" for key in sorted(tiers, key=_tier_order)) or "none that succeeded"


def _by_tier(records: Sequence[Invocation], reading: Reading, variant: VariantOf) -> dict[_Key, dict[str, Any]]:
    tiers, _ = tier_findings(records, reading, variant=variant)
    return {(found["memory_mb"], found["variant"]): found for found in tiers}


def _durations(records: Sequence[Invocation], key: _Key, variant: VariantOf) -> list[float]:
    return [
        record.duration_ms
        for record in warm_successes(records)
        if (record.memory_mb, variant(record)) == key and record.duration_ms is not None
    ]


def _compare_tier(
    key: _Key, before: Mapping[str, Any], after: Mapping[str, Any], first: Sequence[float], second: Sequence[float]
) -> dict[str, Any]:
    found: dict[str, Any] = {**_name(key), "ratio": None, "ci_low": None, "ci_high": None, "verdict": "no_difference"}
    if first and second:
        told = difference(first, second)
        found |= {"ratio": told.ratio, "ci_low": told.ci_low, "ci_high": told.ci_high, "verdict": told.verdict}
    return {**found, "sentence": _sentence(found), "baseline": dict(before), "candidate": dict(after)}


def _sentence(found: Mapping[str, Any]) -> str:
    size = f"{found['memory_mb']} MB" + (f" ({found['variant']})" if found["variant"] else "")
    if found["ratio"] is None:
        return f"{size}: no warm success on one side, nothing to compare."
    if found["ci_low"] is None:
        return f"{size}: {found['ratio']:.2f} times the duration, from too few measurements to tell it from noise."
    interval = (
        f"{found['ratio']:.2f} times the duration (95 % interval {found['ci_low']:.2f} to {found['ci_high']:.2f})"
    )
    word = {"faster": "faster", "slower": "slower", "no_difference": "no difference beyond noise"}[found["verdict"]]
    return f"{size}: {word}, {interval}."


def _figure(tier: Mapping[str, Any], path: str) -> float | None:
    found: Any = tier
    for part in path.split("."):
        if found is None:
            return None
        found = found.get(part)
    return None if found is None else float(found)


def check(threshold: Threshold, tier: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a tier of a comparison meets a threshold (``met``: the condition to fail on does not hold).

    A figure that was not measured cannot be met: a gate that passes because nothing was measured is none.
    """
    before, after = _figure(tier["baseline"], threshold.figure), _figure(tier["candidate"], threshold.figure)
    size = f"{tier['memory_mb']} MB" + (f" ({tier['variant']})" if tier["variant"] else "")
    relative = threshold.percent or threshold.absolute_change
    found: dict[str, Any] = {
        "threshold": threshold.text,
        "memory_mb": tier["memory_mb"],
        "variant": tier["variant"],
        "figure": threshold.figure,
        "baseline": before,
        "candidate": after,
    }
    if after is None or (relative and before is None) or (threshold.percent and before == 0):
        side = "candidate" if after is None else "baseline"
        why = "not measured" if before != 0 or after is None else "0"
        return {**found, "met": False, "sentence": f"{size}: {threshold.figure} of the {side} is {why}: not met."}
    value = after
    if threshold.percent and before is not None:
        value = (after / before - 1) * 100
    elif threshold.absolute_change and before is not None:
        value = after - before
    met = not _OPERATORS[threshold.comparison](value, threshold.bound)
    change = f"{before:g} to {after:g}" if before is not None else f"{after:g}"
    if threshold.percent:
        change += f" ({value:+.1f} %)"
    return {
        **found,
        "met": met,
        "sentence": f"{size}: {threshold.figure} {change}, fails on {threshold.text}: {'met' if met else 'not met'}.",
    }
