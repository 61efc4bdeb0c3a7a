"""Does memory grow from one invocation to the next, how fast, when is it out, and what grew. Records in, findings out. Pure.

Three series may stand in the records, told apart by `Invocation.variant`. The first, without a variant, is the function as
it is; every figure that is called measured comes from it. In the series `SETTLED` the garbage collector ran after each
invocation: what a runtime merely has not collected yet, or its allocator keeps, is gone from it, so it says whether growth
is for good. In the series `EXPLAINED` a probe looked for what grew; its figures are perturbed and are not used here.

Memory is the anonymous memory of the runtime's processes after the response. Not judged by: max memory used, which never
falls, and resident memory, which holds pages of files that the kernel takes back when it needs them.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from harness import format as figures
from harness.analysis import trend
from harness.analysis.trend import Direction, Trend
from harness.invocation import Invocation, Outcome

SETTLED = "settled"
EXPLAINED = "explained"

HOPELESS = 10
"""So many failures at the beginning of a series, and no success, and the rest is not worth the time."""

OPEN_FILES_LIMIT = 1024
PROCESSES_LIMIT = 1024

_MIB = 1024 * 1024
_MATERIAL_BYTES = 2048
_MATERIAL_BYTES_NODE = 4096
"""Growth below which nothing is called a leak. Node.js itself still grows by 1 to 3 KB an invocation after dozens of them,
the collector run each time: compiled code and inline caches. Python does not grow at all."""
_NEAR_KILL_SHARE = 0.1
"""A life that ended in an out-of-memory kill ended by growth if no more than this share of the memory size was left."""


class Verdict(StrEnum):
    """A closed set."""

    LEAK = "leak"
    NO_LEAK = "no_leak"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a probe said: ``entries`` as they stand in the findings' ``growth``, or the ``error`` that kept it from it."""

    entries: Sequence[Mapping[str, Any]] = ()
    error: str | None = None
    first: int = 0
    last: int = 0
    memory_mb: int = 0


def why_unexplained(records: Iterable[Invocation]) -> str:
    """What to say where the probe told nothing: it works inside of the invocations of a series, and in the function's time."""
    why = "the probe's series ended before it could tell"
    for number, record in enumerate((each for each in records if each.variant == EXPLAINED), 1):
        if record.outcome is not Outcome.SUCCESS:
            more_time = "; with a longer --timeout the probe has more time" if record.outcome is Outcome.TIMEOUT else ""
            return f"{why}: invocation {number} of it ended in {record.outcome}{more_time}"
    return why


@dataclass(frozen=True, kw_only=True)
class _Thing:
    """Something that may grow, read off a record."""

    name: str
    read: Callable[[Invocation], int | None]
    material: float
    limit: Callable[[Invocation], float | None]


_ALSO = (
    _Thing(
        name="open_files", read=lambda each: each.open_files, material=0.05, limit=lambda _: float(OPEN_FILES_LIMIT)
    ),
    _Thing(name="threads", read=lambda each: each.threads, material=0.05, limit=lambda _: None),
    _Thing(name="processes", read=lambda each: each.processes, material=0.05, limit=lambda _: float(PROCESSES_LIMIT)),
    _Thing(name="tmp", read=lambda each: each.tmp_bytes, material=256.0, limit=lambda _: None),
)


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """One thing in one series: the longest life of a runtime, and how the others ended."""

    life: tuple[Invocation, ...]
    values: tuple[int, ...]
    trend: Trend
    kills: int
    killed_by_growth: tuple[int, ...] = ()
    """The lengths, in invocations, of the lives whose growth ended in an out-of-memory kill."""

    @property
    def grows(self) -> bool:
        return bool(self.killed_by_growth) or self.trend.direction is Direction.GROWS

    @property
    def flat(self) -> bool:
        return not self.killed_by_growth and self.trend.direction is Direction.FLAT

    @property
    def calm(self) -> bool:
        """Flat without falls: the collector's work may hide a slow leak under its teeth."""
        return self.flat and not self.trend.falls_back


def undecided(invocations: Sequence[Invocation]) -> bool:
    """Whether a settled series, longer than those so far, could tell more."""
    main, settled = _of(invocations, None), _of(invocations, SETTLED)
    if _hopeless(main) or _killed(_memory(main)) or len(max(_lives(main), key=len, default=())) < trend.MIN_POINTS:
        return False
    for thing in (_anonymous(main), *_ALSO, *([_SHARED] if _shared_is_told(main) else [])):
        judged = _judge(main, thing)
        if judged.calm or not judged.values:
            continue
        if not settled:
            return True
        after = _judge(settled, thing)
        if after.values and not (judged.flat or after.grows or after.flat or after.kills):
            return True
    return False


def hopeless(invocations: Sequence[Invocation]) -> bool:
    """Whether a series failed from its beginning for so long that the rest is not worth the time."""
    return len(invocations) >= HOPELESS and _hopeless(invocations)


def findings(
    invocations: Sequence[Invocation], explanation: Explanation | None = None, *, can_settle: bool = True
) -> dict[str, Any]:
    """The findings of `leak`; see docs/labs.md for each field. ``can_settle`` False: nobody could run the collector."""
    main, settled = _of(invocations, None), _of(invocations, SETTLED)
    memory = _memory(main)
    after = _judge(settled, _anonymous(settled)) if settled and memory is not None else None
    verdict, reason = _memory_verdict(main, memory, after, can_settle=can_settle)
    told = memory
    if verdict is not Verdict.LEAK and _shared_is_told(main):
        shared = _judge(main, _SHARED)
        shared_after = _judge(settled, _SHARED) if settled and _shared_is_told(settled) else None
        if shared.grows and (shared_after is None or shared_after.grows):
            verdict, told, after = Verdict.LEAK, shared, shared_after
            reason = f"shared memory, which is not in the anonymous memory, grew: {_grew(shared, after)}"
    source = _source(verdict, told, after)
    until = _until_out_of_memory(main, told, source) if verdict is Verdict.LEAK else None
    if until is not None and told is not None and not told.killed_by_growth:
        reason += f"; {figures.count(until)} more until the {main[-1].memory_mb} MB are used up"
    also = [found for thing in _ALSO if (found := _also(thing, main, settled)) is not None]
    return {
        "verdict": str(verdict),
        "reason": _sentence(reason),
        "slope_bytes_per_invocation": None if source is None else source.trend.slope,
        "ci_low": None if source is None else source.trend.ci_low,
        "ci_high": None if source is None else source.trend.ci_high,
        "slope_series": None if source is None else (SETTLED if source is after else "measured"),
        "invocations_until_out_of_memory": until,
        "p_value": None if source is None else source.trend.p_value,
        "warm_up_invocations": 0 if told is None else told.trend.warm_up,
        "memory": "resident" if main and _anonymous(main) is _RESIDENT else "anonymous",
        "out_of_memory_kills": sum(each.outcome is Outcome.OUT_OF_MEMORY for each in main),
        "also": also,
        "settled": None if after is None else _settled(after),
        "growth": _growth(explanation),
        "explained": _explained(invocations, explanation),
        "series": _series(main, told),
        "notes": _notes(main, settled, explanation),
    }


def _source(verdict: Verdict, told: _Judged | None, after: _Judged | None) -> _Judged | None:
    """The series whose slope is told: the function as it is, unless the settled one alone could give the verdict."""
    if told is None or after is None:
        return told
    if verdict is Verdict.LEAK:
        return told if told.grows else after
    return after if verdict is Verdict.NO_LEAK and after.flat and not told.calm else told


def leaks(found: Mapping[str, Any]) -> bool:
    """Whether memory, or anything else that was judged, leaks."""
    return found["verdict"] == Verdict.LEAK or any(each["verdict"] == Verdict.LEAK for each in found["also"])


# -- series and lives -----------------------------------------------------------------------------------------------------


def _of(invocations: Sequence[Invocation], variant: str | None) -> list[Invocation]:
    return [each for each in invocations if each.variant == variant]


def _hopeless(invocations: Sequence[Invocation]) -> bool:
    return not any(each.outcome is Outcome.SUCCESS for each in invocations)


def _lives(invocations: Sequence[Invocation]) -> list[tuple[Invocation, ...]]:
    """Split where a runtime began anew: by an init, by a suppressed one after a crash or a timeout, in a new sandbox.

    The invocation that ended a life is its last one; after it there is nothing to be measured.
    """
    found: list[list[Invocation]] = []
    for each in invocations:
        if not found or each.phase_init is not None or each.sandbox_id != found[-1][-1].sandbox_id:
            found.append([])
        found[-1].append(each)
    return [tuple(life) for life in found]


def _anonymous(invocations: Sequence[Invocation]) -> _Thing:
    """Anonymous memory, or resident memory where the vantage cannot tell the anonymous part."""
    runtime = next((each.runtime for each in invocations if each.runtime), "")
    known = any(each.anonymous_after_bytes is not None for each in invocations)
    if not known and any(each.resident_after_bytes is not None for each in invocations):
        return _RESIDENT
    return _ANONYMOUS if runtime and runtime.startswith("python") else _ANONYMOUS_OTHERS


def _memory_limit(invocation: Invocation) -> float:
    return float(invocation.memory_mb * _MIB)


def _shared(invocation: Invocation) -> int | None:
    """Resident memory that is not anonymous: shared memory, and pages of files that are mapped."""
    resident, anonymous = invocation.resident_after_bytes, invocation.anonymous_after_bytes
    return None if resident is None or anonymous is None else resident - anonymous


_ANONYMOUS = _Thing(
    name="memory", read=lambda each: each.anonymous_after_bytes, material=_MATERIAL_BYTES, limit=_memory_limit
)
_ANONYMOUS_OTHERS = _Thing(
    name="memory", read=lambda each: each.anonymous_after_bytes, material=_MATERIAL_BYTES_NODE, limit=_memory_limit
)
_RESIDENT = _Thing(
    name="memory", read=lambda each: each.resident_after_bytes, material=_MATERIAL_BYTES_NODE, limit=_memory_limit
)
_SHARED = _Thing(name="shared_memory", read=_shared, material=_MATERIAL_BYTES_NODE, limit=_memory_limit)


def _shared_is_told(invocations: Sequence[Invocation]) -> bool:
    """With several processes their resident sizes count shared pages several times."""
    counts = {each.processes for each in invocations if each.outcome is Outcome.SUCCESS}
    return len(counts) == 1 and any(_shared(each) is not None for each in invocations)


def _judge(invocations: Sequence[Invocation], thing: _Thing) -> _Judged:
    known = [
        tuple((each, value) for each in life if each.outcome in _STILL_RUNS and (value := thing.read(each)) is not None)
        for life in _lives(invocations)
    ]
    longest = max(known, key=len, default=())
    values = tuple(value for _, value in longest)
    kills = sum(each.outcome is Outcome.OUT_OF_MEMORY for each in invocations)
    by_growth = _killed_by_growth(invocations, thing) if kills and thing.limit is _memory_limit else ()
    judged = trend.judge(values, material=thing.material)
    if by_growth and judged.slope is None and len(values) > 1:
        slope, low, high, p_value = trend.slope_and_test(values)
        judged = Trend(
            direction=judged.direction,
            why=judged.why,
            points=len(values),
            warm_up=0,
            slope=slope,
            ci_low=low,
            ci_high=high,
            p_value=p_value,
            level=float(values[0]),
        )
    return _Judged(
        life=tuple(each for each, _ in longest), values=values, trend=judged, kills=kills, killed_by_growth=by_growth
    )


_STILL_RUNS = frozenset({Outcome.SUCCESS, Outcome.FUNCTION_ERROR, Outcome.RESPONSE_TOO_LARGE})
"""Outcomes after which the runtime goes on, and its memory can be compared with that before."""


def _killed_by_growth(invocations: Sequence[Invocation], thing: _Thing) -> tuple[int, ...]:
    """The lengths of those lives that rose until so little was left that the next invocations had to be killed."""
    found = []
    for life in _lives(invocations):
        if life[-1].outcome is not Outcome.OUT_OF_MEMORY:
            continue
        values = [value for each in life[:-1] if (value := thing.read(each)) is not None]
        if len(values) < 2:
            continue
        steps = [after - before for before, after in pairwise(values)]
        limit = life[-1].memory_mb * _MIB
        left = limit - values[-1] - _transient(life[:-1])
        typical = statistics.median(steps)
        rising = sum(step > 0 for step in steps) >= 0.8 * len(steps)
        if rising and typical > 0 and left <= max(3 * typical, _NEAR_KILL_SHARE * limit):
            found.append(len(life))
    return tuple(found)


def _transient(life: Sequence[Invocation]) -> float:
    """What an invocation needs on top of what it leaves behind."""
    found = [
        each.peak_rss_bytes - each.resident_after_bytes
        for each in life
        if each.peak_rss_bytes is not None and each.resident_after_bytes is not None
    ]
    return max(0.0, statistics.median(found)) if found else 0.0


def _memory(main: Sequence[Invocation]) -> _Judged | None:
    thing = _anonymous(main)
    return _judge(main, thing) if any(thing.read(each) is not None for each in main) else None


def _killed(memory: _Judged | None) -> bool:
    return memory is not None and bool(memory.killed_by_growth)


# -- verdicts -------------------------------------------------------------------------------------------------------------


def _memory_verdict(
    main: Sequence[Invocation], memory: _Judged | None, after: _Judged | None, *, can_settle: bool
) -> tuple[Verdict, str]:
    why_not = _not_judged(main, memory)
    if memory is None or why_not:
        return Verdict.INCONCLUSIVE, why_not
    if memory.killed_by_growth:
        return Verdict.LEAK, _killed_sentence(memory)
    if memory.trend.points < trend.MIN_POINTS:
        return Verdict.INCONCLUSIVE, _too_short(main, memory)
    if memory.calm or (memory.flat and (after is None or not after.grows)):
        return Verdict.NO_LEAK, _flat_sentence(memory)
    if after is None:
        hint = "" if can_settle else "; there is no probe for this runtime that could run its garbage collector"
        if memory.grows:
            return Verdict.LEAK, _grew(memory, None) + hint
        return Verdict.INCONCLUSIVE, f"memory neither stays nor grows steadily: {memory.trend.why}{hint}"
    if after.grows:
        return Verdict.LEAK, _grew(memory, after)
    if after.flat:
        return Verdict.NO_LEAK, _not_for_good(memory, after)
    why = (
        f"memory neither stays nor grows steadily, also where the garbage collector runs after each of "
        f"{after.trend.points} invocations: {after.trend.why}; more invocations (-n) may tell"
    )
    return Verdict.INCONCLUSIVE, why


def _not_judged(main: Sequence[Invocation], memory: _Judged | None) -> str:
    """Why nothing can be said at all; empty where something can."""
    if not main:
        return "nothing was measured"
    if _hopeless(main):
        outcomes = Counter(str(each.outcome) for each in main).most_common()
        how = ", ".join(f"{count} {figures.words(outcome)}" for outcome, count in outcomes)
        first = next((each for each in main if each.error_type), None)
        said = f"; the first said {first.error_type}: {first.error_message}" if first else ""
        return f"none of {len(main)} invocations succeeded ({how}{said}), so nothing is known of its usual work"
    if memory is None:
        return f"memory after an invocation cannot be measured from vantage {main[-1].vantage}"
    return ""


def _too_short(main: Sequence[Invocation], memory: _Judged) -> str:
    points = memory.trend.points
    ends = Counter(
        str(life[-1].outcome) for life in _lives(main)[:-1] if life[-1].outcome not in _STILL_RUNS
    ).most_common()
    if ends:
        how = ", ".join(f"{count} times by {figures.words(outcome)}" for outcome, count in ends)
        hint = "; give it more memory, or see `oom`" if memory.kills else ""
        return (
            f"the runtime ended {how} and lived for no more than {points} invocations: at least {trend.MIN_POINTS} in one "
            f"life are needed{hint}"
        )
    return f"{points} invocations are too few: at least {trend.MIN_POINTS} in one sandbox are needed"


def _killed_sentence(memory: _Judged) -> str:
    lives = memory.killed_by_growth
    times = "once" if len(lives) == 1 else f"{len(lives)} times"
    return (
        f"memory grew by {figures.size(memory.trend.slope)} from one invocation to the next until it was used up: the runtime "
        f"was killed {times}, after {figures.count(statistics.median_low(lives))} invocations, and began anew"
    )


def _flat_sentence(memory: _Judged) -> str:
    t = memory.trend
    if t.falls_back:
        return f"memory rises and falls, but does not grow: {t.why}"
    after = f" after {t.warm_up} of warm-up" if t.warm_up else ""
    return (
        f"memory stays: over {t.points - t.warm_up} invocations{after} it changed by {_per(t.slope)} "
        f"(95 % interval {_per(t.ci_low)} to {_per(t.ci_high)}) an invocation"
    )


def _not_for_good(memory: _Judged, after: _Judged) -> str:
    t = after.trend
    how = t.why if t.falls_back else f"it changed by {_per(t.slope)} (up to {_per(t.ci_high)}) an invocation"
    return (
        f"memory changes ({_per(memory.trend.slope)} an invocation), but not for good: where the garbage collector runs after "
        f"each invocation {how}"
    )


def _grew(memory: _Judged, after: _Judged | None) -> str:
    shown = memory if memory.grows or after is None else after
    t = shown.trend
    warm = f" after {t.warm_up} of warm-up" if t.warm_up else ""
    text = (
        f"memory grew by {_per(t.slope)} (95 % interval {_per(t.ci_low)} to {_per(t.ci_high)}) from one invocation to the "
        f"next over {t.points - t.warm_up} of them{warm}"
    )
    if after is None:
        return f"{text}, and nothing of it was given back"
    if shown is after:
        return (
            f"{text} in a series in which the garbage collector ran after each; without it the points scatter too much"
        )
    return f"{text}, and it stays where the garbage collector runs after each ({_per(after.trend.slope)})"


def _until_out_of_memory(main: Sequence[Invocation], told: _Judged | None, source: _Judged | None) -> int | None:
    """From the end of the series on: what is left at the slope. Of a series that was killed: how long a life lasted."""
    if told is None or source is None or not told.life:
        return None
    if told.killed_by_growth:
        return int(statistics.median_low(told.killed_by_growth))
    slope, end = source.trend.slope, told.life[-1]
    if not slope or slope <= 0:
        return None
    used = end.anonymous_after_bytes if end.anonymous_after_bytes is not None else end.resident_after_bytes
    left = _memory_limit(end) - (used or 0) - _transient(told.life)
    return max(0, int(left / slope)) if main else None


def _also(thing: _Thing, main: Sequence[Invocation], settled: Sequence[Invocation]) -> dict[str, Any] | None:
    """The verdict on something other than memory; None where it was not measured."""
    judged = _judge(main, thing)
    if not judged.values:
        return None
    after = _judge(settled, thing) if settled else None
    t, ends = judged.trend, (judged.values[0], judged.values[-1])
    verdict = Verdict.INCONCLUSIVE
    if _hopeless(main) or t.points < trend.MIN_POINTS:
        why = f"{t.points} invocations are too few" if not _hopeless(main) else "no invocation succeeded"
    elif judged.flat or (after is not None and after.flat):
        verdict, why = Verdict.NO_LEAK, (t if judged.flat or after is None else after.trend).why
    elif judged.grows and (after is None or after.grows or not after.values):
        verdict, why = Verdict.LEAK, t.why
    else:
        why = t.why
    limit = thing.limit(judged.life[-1])
    until = None
    if verdict is Verdict.LEAK and limit is not None and t.slope:
        until = max(0, int((limit - ends[1]) / t.slope))
    return {
        "what": thing.name,
        "verdict": str(verdict),
        "why": why,
        "slope_per_invocation": t.slope,
        "ci_low": t.ci_low,
        "ci_high": t.ci_high,
        "first": ends[0],
        "last": ends[1],
        "invocations_until_exhausted": until,
    }


# -- the rest of the findings ---------------------------------------------------------------------------------------------


def _settled(after: _Judged) -> dict[str, Any]:
    t = after.trend
    return {
        "direction": str(t.direction),
        "why": t.why,
        "perturbed": True,
        "invocations": t.points,
        "warm_up_invocations": t.warm_up,
        "slope_bytes_per_invocation": t.slope,
        "ci_low": t.ci_low,
        "ci_high": t.ci_high,
        "values_bytes": list(after.values),
    }


_TIE = 0.95
_WORTH = 0.01
"""What grew by less than this share of the largest is left out."""
_KINDS = ("module global", "retainer")


def _growth(explanation: Explanation | None) -> list[dict[str, Any]]:
    """What grew, largest first. The same bytes stand under several names; of about equals the one that is held is first."""
    if explanation is None:
        return []
    found = sorted((dict(each) for each in explanation.entries), key=lambda each: -each["grew_bytes_per_invocation"])
    if not found:
        return []
    found = [
        each for each in found if each["grew_bytes_per_invocation"] >= _WORTH * found[0]["grew_bytes_per_invocation"]
    ]
    near = _TIE * found[0]["grew_bytes_per_invocation"]
    for number, each in enumerate(found):
        if each["kind"] in _KINDS and each["grew_bytes_per_invocation"] >= near:
            return [each, *found[:number], *found[number + 1 :]]
    return found


def _explained(invocations: Sequence[Invocation], explanation: Explanation | None) -> dict[str, Any] | None:
    if explanation is None:
        return None
    records = _of(invocations, EXPLAINED)
    return {
        "perturbed": True,
        "memory_mb": explanation.memory_mb,
        "first_invocation": explanation.first,
        "last_invocation": explanation.last,
        "outcomes": dict(Counter(str(each.outcome) for each in records)),
        "error": explanation.error,
    }


def _series(main: Sequence[Invocation], told: _Judged | None) -> list[dict[str, Any]]:
    judged = {id(each): number for number, each in enumerate(told.life)} if told is not None else {}
    points = []
    for number, life in enumerate(_lives(main), 1):
        for each in life:
            place = judged.get(id(each))
            trended = told is not None and place is not None and place >= told.trend.warm_up
            fitted = None
            if trended and told is not None and place is not None and told.trend.level is not None:
                fitted = told.trend.level + (told.trend.slope or 0.0) * (place - told.trend.warm_up)
            points.append(
                {
                    "sequence": each.sequence,
                    "life": number,
                    "outcome": str(each.outcome),
                    "anonymous_after_bytes": each.anonymous_after_bytes,
                    "resident_after_bytes": each.resident_after_bytes,
                    "open_files": each.open_files,
                    "threads": each.threads,
                    "processes": each.processes,
                    "tmp_bytes": each.tmp_bytes,
                    "judged": place is not None,
                    "warm_up": place is not None and not trended,
                    "fitted_bytes": fitted,
                }
            )
    return points


def _notes(main: Sequence[Invocation], settled: Sequence[Invocation], explanation: Explanation | None) -> list[str]:
    found = []
    failed = Counter(str(each.outcome) for each in main if each.outcome is not Outcome.SUCCESS)
    if failed and not _hopeless(main):
        found.append(
            ", ".join(
                f"{count} of {len(main)} invocations ended as {figures.words(name)}" for name, count in failed.items()
            )
        )
    lives = len(_lives(main))
    if lives > 1:
        found.append(f"the runtime began anew {lives - 1} times; the longest of its {lives} lives was judged")
    if main and _anonymous(main) is _RESIDENT:
        found.append("only resident memory is known from this vantage, which also holds pages of files")
    if settled:
        found.append(
            "a second series ran the garbage collector after each invocation, in a sandbox of its own; its figures are not "
            "those of the function as it is"
        )
    if explanation is not None and explanation.error:
        found.append(f"what grew is not known: {explanation.error}")
    return found


def _per(slope: float | None) -> str:
    if slope is None:
        return figures.NOT_MEASURED
    return "nothing" if abs(slope) < 0.5 else figures.size(slope)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
