"""What a handful of measurements says, and what it does not. Pure; knows numbers only, no records.

Intervals are 95 % and reproducible: resampling starts from a fixed seed. They speak of the noise within one run; a host
that was busier on another day is not in them.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import InvalidInput

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 1769

PERCENTILE_NEEDS = {"p90": 50, "p95": 100, "p99": 500}
PERCENTILE_RULE = (
    "a percentile is given only where at least five measurements lie beyond it: p90 from 50, p95 from 100, p99 from 500"
)

MIN_EFFECT = 0.02
"""A difference below 2 % is called none, however certain: hosts drift by as much."""

WARM_UP_MIN_EFFECT = 0.05
WARM_UP_SIGNIFICANCE = 0.05
WARM_UP_METHOD = (
    "the leading invocations that are slower than the median of the later half by more than 3.5 robust standard "
    "deviations and 5 %, if a one-sided rank test against all the later ones gives at most 5 %"
)
MIN_FOR_WARM_UP = 5
MIN_FOR_INTERVAL = 3


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A sample in figures. Intervals are None below three values, percentiles below `PERCENTILE_NEEDS`."""

    n: int
    mean: float
    p50: float
    stdev: float | None
    min: float
    max: float
    ci_low: float | None
    ci_high: float | None
    p50_ci_low: float | None
    p50_ci_high: float | None
    p90: float | None
    p95: float | None
    p99: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarize(values: Sequence[float]) -> Summary | None:
    """The `Summary` of a sample; None of an empty one."""
    if not values:
        return None
    mean, p50 = statistics.fmean(values), float(statistics.median(values))
    low, high = interval(values, "mean")
    p50_low, p50_high = interval(values, "median")
    return Summary(
        n=len(values),
        mean=mean,
        p50=p50,
        stdev=statistics.stdev(values) if len(values) > 1 else None,
        min=float(min(values)),
        max=float(max(values)),
        ci_low=None if low is None else min(low, mean),
        ci_high=None if high is None else max(high, mean),
        p50_ci_low=None if p50_low is None else min(p50_low, p50),
        p50_ci_high=None if p50_high is None else max(p50_high, p50),
        **{
            name: float(np.percentile(values, int(name[1:]))) if len(values) >= needed else None
            for name, needed in PERCENTILE_NEEDS.items()
        },
    )


_STATISTICS: dict[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median}


def interval(values: Sequence[float], statistic: str = "mean") -> tuple[float | None, float | None]:
    """The 95 % bootstrap interval of the ``mean`` or ``median``: BCa, or percentiles where BCa has no answer.

    Below three values there is nothing to resample: (None, None). Of equal values both ends are that value.
    """
    if len(values) < MIN_FOR_INTERVAL:
        return None, None
    sample = np.sort(np.asarray(values, dtype=np.float64))  # so that the order of measuring changes nothing
    if np.ptp(sample) <= 1e-12 * max(1.0, abs(float(sample[0]))):
        return float(sample[0]), float(sample[0])
    from scipy.stats import bootstrap

    for method in ("BCa", "percentile"):
        # BCa divides by the spread of the leave-one-out statistic, which a median of few distinct values does not have.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = bootstrap(
                (sample,),
                _STATISTICS[statistic],
                n_resamples=RESAMPLES,
                batch=max(1, 2_000_000 // len(sample)),
                confidence_level=CONFIDENCE,
                method=method,
                rng=np.random.default_rng(SEED),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return float(found.low), float(found.high)
    return None, None


def warm_up(values: Sequence[float]) -> int:
    """How many of the first values belong to a warm-up, in the order in which they were measured.

    The rule is `WARM_UP_METHOD`. Nothing is found in fewer than five values; at most half of them can be warm-up. One
    slow value alone is only told from chance among twenty.
    """
    if len(values) < MIN_FOR_WARM_UP:
        return 0
    settled = np.asarray(values[len(values) // 2 :], dtype=np.float64)
    median = float(np.median(settled))
    spread = 1.4826 * float(np.median(np.abs(settled - median)))
    bound = median + max(3.5 * spread, WARM_UP_MIN_EFFECT * abs(median))
    leading = 0
    while leading < len(values) // 2 and values[leading] > bound:
        leading += 1
    if not leading:
        return 0
    from scipy.stats import mannwhitneyu

    chance = mannwhitneyu(values[:leading], values[leading:], alternative="greater").pvalue
    return leading if chance <= WARM_UP_SIGNIFICANCE else 0


def trimmed(values: Sequence[float], share: float) -> list[int]:
    """The indices left when ``share`` of the values is dropped at either end, in their order."""
    if not 0 <= share < 0.5:
        raise InvalidInput(f"discard share {share}", remedy="give a share from 0 to below 0.5, taken off at either end")
    drop = int(len(values) * share)
    ranked = sorted(range(len(values)), key=lambda index: values[index])
    return sorted(ranked[drop : len(values) - drop])


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The candidate's mean over the baseline's, of something that is better when smaller.

    ``verdict`` is ``faster``, ``slower`` or ``no_difference``: the last when the interval holds 1, when the difference
    is below 2 %, or when there are too few values to have an interval.
    """

    ratio: float
    ci_low: float | None
    ci_high: float | None
    verdict: str


def difference(baseline: Sequence[float], candidate: Sequence[float], statistic: str = "mean") -> Difference:
    """Tell a difference from noise, by the ratio of the means (or medians).

    The interval is the wider of two: the bootstrap's, which knows skewed samples, and Welch's for the logarithm of the
    ratio, which knows how little a few values say (a bootstrap of five values is too narrow).
    """
    if not baseline or not candidate:
        raise InvalidInput("a comparison with no measurement on one side", remedy="run both sides first")
    if statistic not in _STATISTICS:
        raise InvalidInput(f"statistic {statistic!r}", remedy="compare means or medians")
    centre: Callable[[Sequence[float]], float] = statistics.fmean if statistic == "mean" else statistics.median
    before, after = centre(baseline), centre(candidate)
    if before <= 0 or after <= 0:
        equal = before == after
        return Difference(
            ratio=1.0 if equal else math.inf if before <= 0 else 0.0, ci_low=None, ci_high=None, verdict="no_difference"
        )
    ratio = after / before
    if min(len(baseline), len(candidate)) < MIN_FOR_INTERVAL:
        return Difference(ratio=ratio, ci_low=None, ci_high=None, verdict="no_difference")
    first, second = (np.sort(np.asarray(side, dtype=np.float64)) for side in (baseline, candidate))
    rng = np.random.default_rng(SEED)
    ratios = _resampled(second, statistic, rng) / np.maximum(_resampled(first, statistic, rng), 1e-300)
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(found) for found in np.quantile(ratios, [tail, 1 - tail]))
    factor = math.exp(_welch_half_width(first, second, before, after))
    low, high = min(low, ratio / factor), max(high, ratio * factor)
    verdict = "no_difference"
    if abs(ratio - 1) >= MIN_EFFECT and (high < 1 or low > 1):
        verdict = "faster" if ratio < 1 else "slower"
    return Difference(ratio=ratio, ci_low=low, ci_high=high, verdict=verdict)


def _resampled(sample: NDArray[np.float64], statistic: str, rng: np.random.Generator) -> NDArray[np.float64]:
    chunk = max(1, 2_000_000 // len(sample))
    found = [
        _STATISTICS[statistic](rng.choice(sample, size=(min(chunk, RESAMPLES - start), len(sample))), axis=1)
        for start in range(0, RESAMPLES, chunk)
    ]
    return np.concatenate(found)


def _welch_half_width(first: NDArray[np.float64], second: NDArray[np.float64], before: float, after: float) -> float:
    """Half of the 95 % interval of the logarithm of a ratio of means (delta method, Welch's degrees of freedom)."""
    from scipy.stats import t as student

    parts = [
        float(np.var(first, ddof=1)) / before**2 / len(first),
        float(np.var(second, ddof=1)) / after**2 / len(second),
    ]
    variance = sum(parts)
    if variance <= 0:
        return 0.0
    freedom = variance**2 / sum(part**2 / (n - 1) for part, n in zip(parts, (len(first), len(second)), strict=True))
    return float(student.ppf(1 - (1 - CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
