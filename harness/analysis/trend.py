"""Does a series of figures grow for good? Robust slopes, a trend test that stands autocorrelation, warm-up, teeth. Pure.

Knows numbers only: neither records nor what the figures mean. Three answers: ``grows``, ``flat`` (bounded, falling or
falling back to where it was) and ``unclear``. What is asked for is a steady growth that nothing takes back, so several
things have to agree before the answer is ``grows``; a cache that fills, a sawtooth or a single step fail one of them.

Sources of the formulas: the slope and its interval are those of Theil and Sen (P. K. Sen, "Estimates of the regression
coefficient based on Kendall's tau", 1968); the trend test is that of Mann and Kendall with the variance corrected for
autocorrelation as K. H. Hamed and A. R. Rao propose ("A modified Mann-Kendall trend test for autocorrelated data", 1998).
The corrected variance widens the slope's interval too, so that the two never contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

MIN_POINTS = 10
"""Below this no series is judged: the test has no power, and most runtimes are still warming up."""

_MOST_POINTS = 1500
_MOST_WARM_UP = 0.6
"""Share of a series that may be cut off as warm-up; what is left has to show the trend alone."""
_SIGNIFICANCE = 0.01
_Z = 1.959963984540054  # 95 % of a normal distribution lie within
_STEP_SHARE = 0.6
"""Growth of which more than this share came in one step is a step, not a steady growth."""
_FADING = 0.4
"""Growth whose last third is slower than this share of the first is fading: a cache that fills, a plateau to come."""
_FITS = 0.004
"""A line whose points lie within this share of the series' range fits."""
_TOOTH = 0.5
"""A fall by more than this share of the series' range ends a tooth."""
_FLOOR_SHARE = 0.1
"""Floors of teeth that differ by less than this share of the range are at the same height."""

Floats = NDArray[np.float64]


class Direction(StrEnum):
    """What a series does: a closed set."""

    GROWS = "grows"
    FLAT = "flat"
    UNCLEAR = "unclear"


@dataclass(frozen=True, kw_only=True)
class Trend:
    """``slope`` and its 95 % interval are per step, over the points after ``warm_up``; ``level`` is the fitted first one.

    ``p_value`` is that of the trend test, two-sided. ``falls_back``: how often the series fell back to where it began.
    """

    direction: Direction
    why: str
    """What decided, as a clause: "it rose by 60 steps in a row"."""
    points: int
    warm_up: int
    slope: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    level: float | None = None
    falls_back: int = 0


def judge(values: Sequence[float], *, material: float) -> Trend:
    """The `Trend` of a series. A slope of less than ``material`` a step is none, however certain it is."""
    series = np.asarray(values, dtype=np.float64)
    if len(series) < MIN_POINTS:
        return Trend(
            direction=Direction.UNCLEAR,
            why=f"{len(series)} points are fewer than the {MIN_POINTS} that a trend needs",
            points=len(series),
            warm_up=0,
        )
    if len(series) > _MOST_POINTS:
        return _thinned(series, material)
    floors = _floors(series[1:])
    cut = 0 if len(floors) > 1 else warm_up(series)  # a tooth is no warm-up
    rest = series[cut:]
    slope, low, high, p_value = slope_and_test(rest)
    found = Trend(
        direction=Direction.UNCLEAR,
        why="",
        points=len(series),
        warm_up=cut,
        slope=slope,
        ci_low=low,
        ci_high=high,
        p_value=p_value,
        level=float(np.median(rest - slope * np.arange(len(rest)))),
        falls_back=len(floors) - 1 if floors else 0,
    )
    direction, why = _decide(series, found, floors, material)
    return replace(found, direction=direction, why=why)


def _thinned(series: Floats, material: float) -> Trend:
    """Of a long series the medians of neighbours: the slopes between all pairs of its points would be too many."""
    width = -(-len(series) // _MOST_POINTS)
    groups = len(series) // width
    found = judge(
        np.median(series[: groups * width].reshape(groups, width), axis=1).tolist(), material=material * width
    )

    def scaled(value: float | None) -> float | None:
        return None if value is None else value / width

    return replace(
        found,
        points=len(series),
        warm_up=found.warm_up * width,
        slope=scaled(found.slope),
        ci_low=scaled(found.ci_low),
        ci_high=scaled(found.ci_high),
    )


def _decide(series: Floats, found: Trend, floors: list[tuple[int, float]], material: float) -> tuple[Direction, str]:
    rest = series[found.warm_up :]
    slope, low, high = found.slope or 0.0, found.ci_low or 0.0, found.ci_high or 0.0
    if len(floors) > 1:
        return _teeth(series, floors, material)
    if high < material:
        return Direction.FLAT, "the interval of the slope lies below what would matter"
    # A fall in what was cut off would be forgotten otherwise: one long tooth looks like growth after its first fall.
    if _largest_fall(series[2 : found.warm_up + 1]) > 0.5 * (rest.max() - rest.min()):
        return Direction.UNCLEAR, "it fell back once before it rose"
    if found.p_value is None or found.p_value > _SIGNIFICANCE or low <= 0:
        return Direction.UNCLEAR, "the points scatter too much to tell a trend"
    thirds = np.array_split(rest, 3)
    lows, highs = [part.min() for part in thirds], [part.max() for part in thirds]
    if not (lows[0] < lows[1] < lows[2] and highs[0] < highs[1] < highs[2]):
        return Direction.UNCLEAR, "its lowest and highest points do not rise from one third to the next"
    if np.diff(rest).max() > _STEP_SHARE * (rest[-1] - rest[0]):
        return Direction.UNCLEAR, "most of the growth came in one step"
    early, late = (_theil_sen(thirds[place])[1] if len(thirds[place]) > 2 else slope for place in (0, 2))
    if late < _FADING * early and lows[2] - lows[1] < 0.5 * (lows[1] - lows[0]):
        return Direction.UNCLEAR, "the growth fades out towards the end"
    if low < material:
        return Direction.UNCLEAR, "the slope may lie below what would matter"
    return Direction.GROWS, "it rises steadily and nothing is given back"


def _teeth(series: Floats, floors: list[tuple[int, float]], material: float) -> tuple[Direction, str]:
    """A series that falls again and again: what counts is where it falls to."""
    heights = np.array([height for _, height in floors])
    reach = float(np.ptp(series[1:]))
    times = len(floors) - 1
    often = "once" if times == 1 else f"{times} times"
    if heights[1:].max() <= heights[0] + _FLOOR_SHARE * reach:
        return Direction.FLAT, f"it fell back to where it began {often}"
    steps = np.diff([at for at, _ in floors])
    rises = np.diff(heights) / steps
    if times >= 3 and rises.min() > material:
        return Direction.GROWS, f"it fell {often}, each time to a higher floor"
    return Direction.UNCLEAR, f"it fell {often}, but not to where it began"


def _floors(series: Floats) -> list[tuple[int, float]]:
    """Where the series began, and the lowest point after each great fall; a lone beginning where there was none."""
    reach = float(np.ptp(series))
    if not reach:
        return []
    found = [(0, float(series[0]))]
    top, bottom, falling = float(series[0]), float(series[0]), False
    for at, value in enumerate(map(float, series)):
        if falling:
            if value < bottom:
                bottom = value
                found[-1] = (at, value)
            elif value > bottom + 0.25 * reach:
                falling, top = False, value
        elif value < top - _TOOTH * reach:
            falling, bottom = True, value
            found.append((at, value))
        else:
            top = max(top, value)
    return found


def _largest_fall(series: Floats) -> float:
    return float((np.maximum.accumulate(series) - series).max()) if len(series) else 0.0


# -- warm-up --------------------------------------------------------------------------------------------------------------


def warm_up(values: Sequence[float] | Floats) -> int:
    """How many leading points behave otherwise than the rest: the change-point of two lines, if two fit clearly better.

    Chosen by the Bayesian information criterion; at least `MIN_POINTS` and two fifths of the series are left.
    """
    series = np.asarray(values, dtype=np.float64)
    n = len(series)
    most = min(n - MIN_POINTS, int(n * _MOST_WARM_UP))
    if most < 1:
        return 0
    # Where one line fits as closely as this, the rest of its error is no warm-up: an exact line is not worth dividing.
    noise = (_FITS * max(float(np.ptp(series)), 1e-9)) ** 2 * n
    left, right = _line_errors(series), _line_errors(series[::-1])[::-1]
    best, cut = n * math.log((right[0] + noise) / n) + 2 * math.log(n), 0
    for k in range(1, most + 1):
        error = left[k - 1] + right[k] + noise
        score = n * math.log(error / n) + 5 * math.log(n)
        if score < best - 1e-9:
            best, cut = score, k
    return cut


def _line_errors(series: Floats) -> Floats:
    """The squared error of the best line through the first 1, 2, ... points."""
    y = series - series[0]
    n = np.arange(1, len(y) + 1, dtype=np.float64)
    x = n - 1
    sum_x, sum_y = np.cumsum(x), np.cumsum(y)
    var_x = np.cumsum(x * x) - sum_x**2 / n
    var_y = np.cumsum(y * y) - sum_y**2 / n
    cov = np.cumsum(x * y) - sum_x * sum_y / n
    errors = var_y - np.divide(cov**2, var_x, out=np.zeros_like(cov), where=var_x > 0)
    found: Floats = np.maximum(errors, 0.0)
    return found


# -- slope and test -------------------------------------------------------------------------------------------------------


def slope_and_test(values: Sequence[float] | Floats) -> tuple[float, float, float, float]:
    """Slope, both ends of its 95 % interval, and the p-value of the trend test. At least two points."""
    series = np.asarray(values, dtype=np.float64)
    if not np.ptp(series):
        return 0.0, 0.0, 0.0, 1.0
    slopes, slope = _theil_sen(series)
    score, variance = _mann_kendall(series)
    variance *= _autocorrelation_factor(series - slope * np.arange(len(series)))
    spread = _Z * math.sqrt(variance)
    count = len(slopes)
    low = slopes[max(0, min(count - 1, round((count - spread) / 2) - 1))]
    high = slopes[max(0, min(count - 1, round((count + spread) / 2)))]
    # The continuity correction of Kendall's score, which moves in steps of two.
    z = (score - math.copysign(1, score)) / math.sqrt(variance) if score and variance else 0.0
    return float(slope), float(low), float(high), math.erfc(abs(z) / math.sqrt(2))


def _theil_sen(series: Floats) -> tuple[Floats, float]:
    """All slopes between two points, sorted, and their median."""
    first, second = np.triu_indices(len(series), k=1)
    slopes: Floats = np.sort((series[second] - series[first]) / (second - first))
    return slopes, float(np.median(slopes))


def _mann_kendall(series: Floats) -> tuple[float, float]:
    """Kendall's score and its variance, ties taken into account."""
    n = len(series)
    first, second = np.triu_indices(n, k=1)
    score = float(np.sign(series[second] - series[first]).sum())
    _, ties = np.unique(series, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    return score, variance


def _autocorrelation_factor(residuals: Floats) -> float:
    """By how much autocorrelation of what is left without the trend widens the variance of Kendall's score; at least 1.

    Lags count as long as their correlation is significant, as Hamed and Rao advise, but only up to the first that is not
    positive: later ones, of opposite sign, would make the test bolder than for independent points.
    """
    from scipy.stats import rankdata

    n = len(residuals)
    if not np.ptp(residuals):
        return 1.0
    ranks = rankdata(np.round(residuals, 6))
    ranks -= ranks.mean()
    power = float((ranks**2).sum())
    if not power:
        return 1.0
    total = 0.0
    for lag in range(1, max(2, n // 4)):
        correlation = float((ranks[:-lag] * ranks[lag:]).sum()) / power
        if correlation <= _Z / math.sqrt(n):
            break
        total += (n - lag) * (n - lag - 1) * (n - lag - 2) * correlation
    return 1 + 2 / (n * (n - 1) * (n - 2)) * total
