"""What differs between the hosts of a sweep, and what that means for its figures. Pure; sees records only.

Every host measured every memory size with the same events (`harness.experiments.fanout`), so at one size two hosts differ
by nothing but themselves. At each size the host's median duration is divided by that of the reference host; a host's
*ratio* is the geometric mean of these over the sizes that both have. Medians, since one disturbed invocation says nothing
about a host; ratios, since a slower CPU stretches a duration and does not add to it.

Two sandboxes on one host differ too, and that must not pass for a difference between hosts: a sandbox is the unit, not an
invocation. Intervals are 95 % and the widest of three: a bootstrap that draws sandboxes, and then invocations in each;
Student's, from how far the medians of sandboxes of one size and host lie apart, pooled over all of them (the error term
of a two-way layout), because a bootstrap of two or three sandboxes is too narrow; and Welch's, from the invocations of
the two cells. At a single size intervals are widened for the number of sizes and hosts that are looked at (Bonferroni):
among twenty, one would differ by chance.

What then? Nothing is normalised. A duration under a CPU quota is no multiple of CPU time: it moves in steps of the
period, and it is billed in whole milliseconds, so that a figure divided by a host's ratio is one that no host would
measure, and the ratio is another one at each size. Nor does a mean over hosts stand for any: it would compare sizes on a
machine that does not exist. So, where hosts differ beyond noise, a size's own figures stay those of all of its records
and are said to be mixed, and by how much; the recommendation, savings and the prediction are those of one reference host,
all of whose sizes were measured on the same machine. It is the one with most sizes, then most successes, then the first by its
fingerprint; which one it is does not matter if all come to the same choice, and whether they do is said. Where hosts do
not differ beyond noise, everything rests on all records.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.analysis.statistics import CONFIDENCE, MIN_EFFECT, MIN_FOR_INTERVAL, RESAMPLES, SEED
from harness.invocation import WORKER_LOST, Invocation, Outcome

METHOD = (
    "geometric mean over the sizes of the ratios of median durations; 95 % intervals: the widest of a bootstrap of sandboxes "
    "and of the invocations in each, of Student's from the medians of sandboxes, and of Welch's; at a single size widened for "
    "the number of comparisons"
)

Size = tuple[int, str | None]
_Sandboxes = list[NDArray[np.float64]]
_Durations = dict[str, dict[Size, _Sandboxes]]


def host_findings(records: Sequence[Invocation], variant: Callable[[Invocation], str | None]) -> dict[str, Any] | None:
    """How the hosts compare; None where a single one measured.

    ``mixed`` says whether they differ beyond noise, ``reference_host_id`` whose figures the recommendation then rests
    on. ``ratios`` holds every other host against it: over all sizes, and at each.
    """
    hosts = sorted({record.host_id for record in records if record.host_id is not None})
    if len(hosts) < 2:
        return None
    durations = _durations(records, hosts, variant)
    reference = _reference(durations)
    others = [host for host in hosts if host != reference]
    shared = {host: sorted(set(durations[host]) & set(durations[reference]), key=_order) for host in others}
    comparisons = sum(map(len, shared.values()))
    ratios = [_against(host, durations[host], durations[reference], shared[host], comparisons) for host in others]
    mixed = any(found["verdict"] != "no_difference" or found["sizes_that_differ"] for found in ratios)
    return {
        "reference_host_id": reference,
        "mixed": mixed,
        "ratios": ratios,
        "spread": _spread(durations),
        "sentence": _sentence(reference, ratios, mixed=mixed, spread=_spread(durations)),
        "method": METHOD,
    }


def of_host(records: Sequence[Invocation], host_id: str) -> list[Invocation]:
    """The records that one host measured."""
    return [record for record in records if record.host_id == host_id]


def lost_warnings(records: Sequence[Invocation], variant: Callable[[Invocation], str | None]) -> list[dict[str, Any]]:
    """A warning for each block of invocations that was lost with a worker."""
    return [
        {
            "kind": "lost_with_a_worker",
            "memory_mb": record.memory_mb,
            "variant": variant(record),
            "sentence": f"{str(record.error_message)[:1].upper()}{str(record.error_message)[1:]}.",
            "remedy": "nothing was measured twice; sweep again for what is missing",
        }
        for record in records
        if record.error_type == WORKER_LOST
    ]


def choices_sentence(findings: Mapping[str, Any], chosen: Mapping[str, Size | None]) -> str:
    """Whether the hosts come to the same choice."""
    reference = findings["reference_host_id"]
    other = {host: size for host, size in chosen.items() if host != reference and size != chosen[reference]}
    if not other:
        return "Every host by itself comes to the same choice, within noise."
    told = "; ".join(f"{host}: {_name(size) if size else 'none'}" for host, size in other.items())
    return f"Judged by itself, another host comes to another choice ({told})."


def _order(size: Size) -> tuple[int, str]:
    return size[0], size[1] or ""


def _name(size: Size) -> str:
    return f"{size[0]} MB" + (f" ({size[1]})" if size[1] else "")


def _durations(
    records: Sequence[Invocation], hosts: Sequence[str], variant: Callable[[Invocation], str | None]
) -> _Durations:
    """The durations that hosts are compared by: warm successes, or cold ones where nothing else was measured."""
    timed = [
        record
        for record in records
        if record.outcome is Outcome.SUCCESS and record.duration_ms is not None and record.host_id is not None
    ]
    timed = [record for record in timed if not record.cold] or timed
    found: dict[str, dict[Size, dict[str, list[float]]]] = {host: {} for host in hosts}
    for record in timed:
        # Cold starts have a sandbox each, so there a sandbox is drawn whenever an invocation is.
        sandboxes = found[str(record.host_id)].setdefault((record.memory_mb, variant(record)), {})
        sandboxes.setdefault(record.sandbox_id, []).append(float(record.duration_ms or 0.0))
    return {
        host: {
            size: [np.sort(np.asarray(values, dtype=np.float64)) for _, values in sorted(sandboxes.items())]
            for size, sandboxes in sizes.items()
        }
        for host, sizes in found.items()
    }


def _reference(durations: _Durations) -> str:
    def rank(host: str) -> tuple[int, int, str]:
        sizes = durations[host]
        return -len(sizes), -sum(len(values) for sandboxes in sizes.values() for values in sandboxes), host

    return min(durations, key=rank)


def _against(
    host: str,
    own: Mapping[Size, _Sandboxes],
    reference: Mapping[Size, _Sandboxes],
    sizes: Sequence[Size],
    comparisons: int,
) -> dict[str, Any]:
    """One host against the reference host."""
    rng = np.random.default_rng(SEED)
    between, freedom = _between_sandboxes([cells[size] for cells in (own, reference) for size in sizes])
    level = 1 - (1 - CONFIDENCE) / max(1, comparisons)
    each: list[dict[str, Any]] = []
    resampled, errors = [], []
    for size in sizes:
        ratio = _median(own[size]) / _median(reference[size])
        drawn = np.log(_drawn(own[size], rng)) - np.log(_drawn(reference[size], rng))
        resampled.append(drawn)
        errors.append(
            (
                _Error(variance=between * (1 / len(own[size]) + 1 / len(reference[size])), freedom=freedom),
                _welch(own[size], reference[size]),
            )
        )
        low, high = _interval(math.log(ratio), drawn, errors[-1], level)
        each.append(
            {
                "memory_mb": size[0],
                "variant": size[1],
                "ratio": ratio,
                "ci_low": low,
                "ci_high": high,
                "verdict": _verdict(ratio, low, high),
            }
        )
    if not each:
        return _nothing_shared(host)
    centre = statistics.fmean(math.log(float(found["ratio"])) for found in each)
    pooled = _Error(variance=sum(one.variance for one, _ in errors) / len(each) ** 2, freedom=freedom)
    low, high = _interval(
        centre, np.mean(resampled, axis=0), (pooled, _of_mean([one for _, one in errors])), CONFIDENCE
    )
    ratio = math.exp(centre)
    return {
        "host_id": host,
        "ratio": ratio,
        "ci_low": low,
        "ci_high": high,
        "verdict": _verdict(ratio, low, high),
        "sizes": each,
        "sizes_that_differ": sum(found["verdict"] != "no_difference" for found in each),
    }


def _nothing_shared(host: str) -> dict[str, Any]:
    return {
        "host_id": host,
        "ratio": None,
        "ci_low": None,
        "ci_high": None,
        "verdict": "no_difference",
        "sizes": [],
        "sizes_that_differ": 0,
    }


def _median(sandboxes: _Sandboxes) -> float:
    # A duration is never 0, but a clock that coarse must not end in a division by it.
    return max(float(np.median(np.concatenate(sandboxes))), 1e-9)


def _drawn(sandboxes: _Sandboxes, rng: np.random.Generator) -> NDArray[np.float64]:
    """Medians of resamples: as many sandboxes as there are, with replacement, and in each as many invocations as it has."""
    sizes = np.array([len(values) for values in sandboxes])
    widest = int(sizes.max())
    padded = np.array([np.pad(values, (0, widest - len(values))) for values in sandboxes])
    chunk = max(1, 2_000_000 // (len(sandboxes) * widest))
    found = []
    for start in range(0, RESAMPLES, chunk):
        number = min(chunk, RESAMPLES - start)
        picked = rng.integers(0, len(sandboxes), (number, len(sandboxes)))
        held = sizes[picked]
        inside = (rng.random((number, len(sandboxes), widest)) * held[..., None]).astype(np.intp)
        values = padded[picked[..., None], inside]
        if sizes.min() == widest:
            medians = np.median(values.reshape(number, -1), axis=1)
        else:
            values[np.arange(widest) >= held[..., None]] = np.nan
            medians = np.nanmedian(values.reshape(number, -1), axis=1)
        found.append(np.maximum(medians, 1e-9))
    return np.concatenate(found)


@dataclass(frozen=True, kw_only=True)
class _Error:
    """How uncertain a logarithm is. No degree of freedom: nothing was repeated, so nothing is known."""

    variance: float
    freedom: float


def _logs(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(np.maximum(values, 1e-9))


def _between_sandboxes(cells: Sequence[_Sandboxes]) -> tuple[float, float]:
    """The variance of the logarithm of a sandbox's median within a size and host, pooled, and its degrees of freedom."""
    medians = [_logs(np.array([np.median(values) for values in sandboxes])) for sandboxes in cells]
    freedom = sum(len(found) - 1 for found in medians)
    if not freedom:
        return 0.0, 0.0
    return sum(float(np.var(found)) * len(found) for found in medians) / freedom, float(freedom)


def _welch(first: _Sandboxes, second: _Sandboxes) -> _Error:
    """From the invocations of two cells. The variance of a median is pi / 2 times that of a mean, for a normal sample."""
    parts = []
    for sandboxes in (first, second):
        values = _logs(np.concatenate(sandboxes))
        if len(values) < MIN_FOR_INTERVAL:
            return _Error(variance=0.0, freedom=0.0)
        variance = math.pi / 2 * float(np.var(values, ddof=1)) / len(values)
        parts.append(_Error(variance=variance, freedom=len(values) - 1))
    return _sum(parts)


def _sum(parts: Sequence[_Error]) -> _Error:
    """Of independent parts; degrees of freedom by Welch and Satterthwaite."""
    variance = sum(part.variance for part in parts)
    below = sum(part.variance**2 / part.freedom for part in parts)
    return _Error(variance=variance, freedom=variance**2 / below if below > 0 else parts[0].freedom)


def _of_mean(parts: Sequence[_Error]) -> _Error:
    if not all(part.freedom for part in parts):
        return _Error(variance=0.0, freedom=0.0)
    found = _sum(parts)
    return _Error(variance=found.variance / len(parts) ** 2, freedom=found.freedom)


def _interval(
    centre: float, drawn: NDArray[np.float64], errors: Sequence[_Error], level: float
) -> tuple[float | None, float | None]:
    """The interval of a ratio from the logarithms of its resamples and from its errors: the widest at either end."""
    known = [error for error in errors if error.freedom]
    if not known:
        return None, None
    from scipy.stats import t as student

    tail = (1 - level) / 2
    low, high = (float(found) for found in np.quantile(drawn, [tail, 1 - tail]))
    half = max(float(student.ppf(1 - tail, error.freedom)) * math.sqrt(error.variance) for error in known)
    return math.exp(min(low, centre - half)), math.exp(max(high, centre + half))


def _verdict(ratio: float, low: float | None, high: float | None) -> str:
    if low is None or high is None or abs(ratio - 1) < MIN_EFFECT or low <= 1 <= high:
        return "no_difference"
    return "slower" if ratio > 1 else "faster"


def _spread(durations: _Durations) -> list[dict[str, Any]]:
    """How far apart the hosts' medians are at each size: the largest over the smallest."""
    sizes = sorted({size for of_host_ in durations.values() for size in of_host_}, key=_order)
    found = []
    for size in sizes:
        medians = {host: _median(own[size]) for host, own in durations.items() if size in own}
        found.append(
            {
                "memory_mb": size[0],
                "variant": size[1],
                "ratio": max(medians.values()) / min(medians.values()) if len(medians) > 1 else None,
                "p50_ms": medians,
                "n": {host: sum(map(len, own[size])) for host, own in durations.items() if size in own},
            }
        )
    return found


def _sentence(
    reference: str, ratios: Sequence[Mapping[str, Any]], *, mixed: bool, spread: Sequence[Mapping[str, Any]]
) -> str:
    known = [found for found in ratios if found["ratio"] is not None]
    if not known:
        return f"Hosts cannot be compared: no size was measured both on {reference} and on another."
    told = "; ".join(
        f"{found['host_id']} takes {found['ratio']:.2f} times as long as {reference}{_between(found)}"
        for found in known
    )
    if not mixed:
        return f"The hosts do not differ beyond noise ({told}); their figures are taken together."
    widest = max((found for found in spread if found["ratio"]), key=lambda found: float(found["ratio"]))
    uneven = [found for found in known if found["verdict"] == "no_difference" and found["sizes_that_differ"]]
    evenly = ", not at every size alike" if uneven else ""
    return (
        f"The hosts differ{evenly}: at the same size {told}. So the figures of a size are a mixture of hosts that are up to "
        f"{float(widest['ratio']) - 1:.0%} apart ({_name((widest['memory_mb'], widest['variant']))}); recommendation and "
        f"prediction rest on host {reference} alone."
    )


def _between(found: Mapping[str, Any]) -> str:
    if found["ci_low"] is None:
        return " (too few invocations for an interval)"
    return f" (95 %: {found['ci_low']:.2f} to {found['ci_high']:.2f})"
