"""Tries at several memory sizes -> the smallest that survives, and the story of the kill below it. Pure.

Too little memory shows itself in more than one way: the kernel kills the runtime, or a process that it started; the
runtime gives up by itself at a limit of its own heap; or everything that is left is taken back and read again until the
timeout ends it. A timeout for lack of CPU and an error of the function are none of these, and are told apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from harness.invocation import Invocation, Outcome

if TYPE_CHECKING:
    from harness.experiments.oom import Search, Try, Watched
    from harness.memory_watch import MemoryPoint

_MIB = 1024 * 1024
AT_LIMIT_SHARE = 0.9
"""From this share of the memory size on, held by what cannot be given back, a timeout is put down to memory."""

MOST_POINTS = 2000
"""A timeline has no more points than this; its end is kept as it was sampled."""

_HEAP_LIMITS = ("heap out of memory", "Reached heap limit", "OutOfMemoryError")
_ALLOCATION_ERRORS = frozenset({"MemoryError", "java.lang.OutOfMemoryError", "OutOfMemoryError"})
_ALLOCATION_MESSAGES = ("Array buffer allocation failed", "Cannot allocate memory", "Invalid array buffer length")

_LIMIT_RULE = (
    "a timeout is put down to memory where what cannot be given back (anonymous and kernel memory) held "
    f"{AT_LIMIT_SHARE:.0%} of the memory size; page cache gives way and is not counted"
)


class Fate(StrEnum):
    """What became of an invocation as far as memory goes: a closed set."""

    SURVIVED = "survived"
    FAILED_BY_ITSELF = "failed_by_itself"
    """It ended with an error of its own; memory was not the reason."""
    KILLED = "killed"
    CHILD_KILLED = "child_killed"
    """A process that the runtime had started was killed; the runtime lived on."""
    HEAP_LIMIT = "heap_limit"
    """The runtime, or an allocation, gave up by itself before the kernel had to."""
    RECLAIM = "reclaim"
    """Memory was at its limit and the timeout came before a kill."""
    TIMED_OUT = "timed_out"
    """The timeout came with memory to spare."""
    ENDED = "ended"
    """The runtime exited, or init failed; nothing says that memory was the reason."""


SURVIVING = frozenset({Fate.SURVIVED, Fate.FAILED_BY_ITSELF})
OF_MEMORY = frozenset({Fate.KILLED, Fate.CHILD_KILLED, Fate.HEAP_LIMIT, Fate.RECLAIM})


def fate(
    record: Invocation, *, oom_kills: int | None = None, runtime_killed: bool = False, held_bytes: int | None = None
) -> Fate:
    """The fate of an invocation. ``held_bytes``: the most that it held of memory which cannot be given back.

    A runtime may also be killed once it has answered: the caller has a response then, and the next one has to wait.
    """
    if record.outcome is Outcome.OUT_OF_MEMORY or (oom_kills and runtime_killed):
        return Fate.KILLED
    if oom_kills:
        return Fate.CHILD_KILLED
    if record.outcome is Outcome.SUCCESS:
        return Fate.SURVIVED
    if record.outcome in (Outcome.TIMEOUT, Outcome.INIT_TIMEOUT):
        held = record.peak_rss_bytes if held_bytes is None else held_bytes
        return Fate.RECLAIM if held is not None and held >= AT_LIMIT_SHARE * record.memory_mb * _MIB else Fate.TIMED_OUT
    message = record.error_message or ""
    if record.error_type in _ALLOCATION_ERRORS or any(each in message for each in _ALLOCATION_MESSAGES):
        return Fate.HEAP_LIMIT
    if record.outcome in (Outcome.FUNCTION_ERROR, Outcome.RESPONSE_TOO_LARGE):
        return Fate.FAILED_BY_ITSELF
    if any(each in record.log_tail for each in _HEAP_LIMITS):
        return Fate.HEAP_LIMIT
    return Fate.ENDED


def fate_of(watched: Watched) -> Fate:
    return fate(
        watched.record,
        oom_kills=watched.oom_kills,
        runtime_killed=any(each.runtime for each in watched.killed),
        held_bytes=held_bytes(watched.timeline),
    )


def held_bytes(timeline: Sequence[MemoryPoint]) -> int | None:
    """The most memory that could not be given back; None where nothing was sampled."""
    held = [
        point.anon_bytes + (point.kernel_bytes or 0) if point.anon_bytes is not None else point.memory_bytes
        for point in timeline
    ]
    return max(held, default=None)


def oom_findings(
    tries: Sequence[Try], search: Search, *, from_mb: int, to_mb: int, confirm: int, configured_mb: int | None = None
) -> dict[str, Any]:
    """The findings of a search, in JSON types. ``verdict``: found, no_size_saves_it, no_size_kills_it, or unfinished."""
    unfinished = search.next() is not None
    killing = search.died is not None
    smallest = search.smallest if killing and not unfinished else None
    verdict = (
        "unfinished" if unfinished else "found" if smallest else "no_size_saves_it" if killing else "no_size_kills_it"
    )
    told = _told(tries)
    found: dict[str, Any] = {
        "verdict": verdict,
        "smallest_memory_mb": smallest,
        "from_mb": from_mb,
        "to_mb": to_mb,
        "confirm": confirm,
        "configured_mb": configured_mb,
        "tries": [_try(each) for each in tries],
        "flaky_mb": sorted(
            {each.memory_mb for each in tries if each.survived} & {e.memory_mb for e in tries if not e.survived}
        ),
        "near_limit": [
            {"memory_mb": each.memory_mb, "why": why(_decisive(each))}
            for each in tries
            if fate_of(_decisive(each)) is Fate.RECLAIM
        ],
        "kill": None if told is None else kill(told),
        "rules": {"reclaim": _LIMIT_RULE},
    }
    return found | {"reason": _reason(found, tries, search)}


def _decisive(found: Try) -> Watched:
    """The invocation that made a try what it is: the last one, as a try ends with what did not survive."""
    return found.invocations[-1]


def _told(tries: Sequence[Try]) -> Try | None:
    """The try whose story is told: the largest size that the kernel killed, else the largest that died of memory."""
    dead = [each for each in tries if not each.survived]
    for wanted in (frozenset({Fate.KILLED}), OF_MEMORY):
        those = [each for each in dead if fate_of(_decisive(each)) in wanted]
        if those:
            return max(those, key=lambda each: each.memory_mb)
    return None


def _try(found: Try) -> dict[str, Any]:
    decisive = _decisive(found)
    peaks = [each.record.peak_memory_bytes for each in found.invocations if each.record.peak_memory_bytes is not None]
    held = [held_bytes(each.timeline) for each in found.invocations]
    return {
        "memory_mb": found.memory_mb,
        "survived": found.survived,
        "outcomes": [each.record.outcome.value for each in found.invocations],
        "fate": fate_of(decisive).value,
        "why": why(decisive),
        "peak_memory_bytes": max(peaks, default=None),
        "held_bytes": max((each for each in held if each is not None), default=None),
        "request_ids": [each.record.request_id for each in found.invocations],
    }


def why(watched: Watched) -> str:
    """A fate as a clause, such as "python3.13 was killed by the kernel with 321 MB in use".

    What is in use at a kill is all that is charged; else page cache, which would have given way, is left out if known.
    """
    record, used = watched.record, _used(watched)
    held = held_bytes(watched.timeline)
    kept = used if held is None else f"{held / _MIB:.0f} MB"
    match fate_of(watched):
        case Fate.SURVIVED:
            return f"it succeeded with {kept} in use at most"
        case Fate.FAILED_BY_ITSELF:
            return f"it lived, and ended with an error of its own ({record.error_type}), with {kept} in use at most"
        case Fate.KILLED:
            late = "" if record.outcome is Outcome.OUT_OF_MEMORY else ", when it had answered already"
            return f"{_names(watched) or 'the runtime'} was killed by the kernel with {used} in use{late}"
        case Fate.CHILD_KILLED:
            return f"{_names(watched) or 'a process'}, started by the function, was killed by the kernel with {used} in use"
        case Fate.HEAP_LIMIT:
            return f"the runtime gave up at a limit of its own ({record.error_type}) with {used} in use"
        case Fate.RECLAIM:
            return (
                f"it timed out with {used} in use: memory was at its limit, and the kernel took back what it could and "
                "read it again, but had no reason to kill yet"
            )
        case Fate.TIMED_OUT:
            return (
                f"it timed out with {kept} in use: too little CPU or too short a timeout (see --timeout), "
                "not too little memory"
            )
        case _:
            return f"it ended with {record.error_type}, with {used} in use; nothing says that memory was the reason"


def _names(watched: Watched) -> str:
    return " and ".join(each.name for each in watched.killed)


def _used(watched: Watched) -> str:
    sampled = max((point.memory_bytes for point in watched.timeline), default=None)
    known = [each for each in (sampled, watched.record.peak_memory_bytes) if each is not None]
    return f"{max(known) / _MIB:.0f} MB" if known else "an unknown amount of memory"


def kill(found: Try) -> dict[str, Any]:
    """The story of a try that died, in JSON types. Times are counted from the request, init included."""
    watched = _decisive(found)
    record, timeline = watched.record, watched.timeline
    gaps = [after.ms - before.ms for before, after in itertools.pairwise(timeline)]
    return {
        "memory_mb": found.memory_mb,
        "invocation": len(found.invocations),
        "request_id": record.request_id,
        "fate": fate_of(watched).value,
        "why": why(watched),
        "killed_process": watched.killed[0].name if watched.killed else None,
        "killed": [asdict(each) for each in watched.killed],
        "killed_at_ms": watched.killed_at_ms,
        "outcome": record.outcome.value,
        "error_type": record.error_type,
        "error_message": record.error_message,
        "response": record.response,
        "report": record.report,
        "log_tail": record.log_tail,
        "last_output": last_output(record),
        "growth_bytes_per_s": growth_bytes_per_s(timeline),
        "limit_bytes": found.memory_mb * _MIB,
        "timeline": [asdict(point) for point in thinned(timeline)],
        "timeline_gap_ms": {"median": sorted(gaps)[len(gaps) // 2], "max": max(gaps)} if gaps else None,
        "timeline_reason": None if timeline else _no_timeline(watched),
    }


def _no_timeline(watched: Watched) -> str:
    if watched.unseen_reason is not None:
        return f"nothing could be sampled: {watched.unseen_reason}"
    return f"vantage {watched.record.vantage} does not show the cgroup while a request runs"


def last_output(record: Invocation) -> list[str]:
    """The last lines that the function itself printed, without Lambda's."""
    own = []
    for line in record.log_tail.splitlines():
        lambdas = line.startswith(("START RequestId: ", "END RequestId: ", "REPORT RequestId: "))
        said = line == record.error_type or (record.error_message is not None and line == record.error_message)
        if line.strip() and not lambdas and not said:
            own.append(line)
    return own[-5:]


def growth_bytes_per_s(timeline: Sequence[MemoryPoint]) -> float | None:
    """How fast memory grew on its last climb to the peak: the mean from a tenth of it on. None of fewer than two points."""
    if len(timeline) < 2:
        return None
    top = max(range(len(timeline)), key=lambda at: timeline[at].memory_bytes)
    floor = min(point.memory_bytes for point in timeline[: top + 1])
    bottom = floor + (timeline[top].memory_bytes - floor) / 10
    start = top
    while start > 0 and timeline[start].memory_bytes > bottom:
        start -= 1
    passed_s = (timeline[top].ms - timeline[start].ms) / 1000
    if passed_s <= 0:
        return None
    return (timeline[top].memory_bytes - timeline[start].memory_bytes) / passed_s


def thinned(timeline: Sequence[MemoryPoint], most: int = MOST_POINTS) -> list[MemoryPoint]:
    """No more than ``most`` points: the later half of them as sampled, before that the highest of each stretch."""
    if len(timeline) <= most:
        return list(timeline)
    late = most // 2
    early = timeline[: len(timeline) - late]
    stretch = -(-len(early) // (most - late))
    kept = [max(early[at : at + stretch], key=lambda point: point.memory_bytes) for at in range(0, len(early), stretch)]
    return [*kept, *timeline[len(timeline) - late :]]


def _reason(found: Mapping[str, Any], tries: Sequence[Try], search: Search) -> str:
    """What was found, in a sentence or two."""
    if not tries:
        return "nothing was tried"
    sentence = _verdict(found, tries, search)
    failing = next(
        (each for each in tries if each.survived and fate_of(_decisive(each)) is Fate.FAILED_BY_ITSELF), None
    )
    if failing is not None:
        sentence += f"; but the function fails there: {_decisive(failing).record.error_type}"
    configured, smallest = found["configured_mb"], found["smallest_memory_mb"]
    if smallest and configured and configured < smallest:
        sentence += f"; its own memory size of {configured} MB is too small"
    return sentence


def _verdict(found: Mapping[str, Any], tries: Sequence[Try], search: Search) -> str:
    if found["verdict"] == "unfinished":
        lived = "none yet" if search.smallest is None else f"{search.smallest} MB"
        return f"the search was not finished: of the sizes tried the smallest that survives is {lived}"
    if found["verdict"] == "no_size_kills_it":
        smallest = [each for each in tries if each.memory_mb == found["from_mb"]]
        return f"no memory size from {found['from_mb']} MB on kills it: at {found['from_mb']} MB {why(_decisive(smallest[-1]))}"
    dead = max((each for each in tries if not each.survived), key=lambda each: each.memory_mb)
    if found["verdict"] == "no_size_saves_it":
        sentence = f"no memory size up to {found['to_mb']} MB saves it: at {dead.memory_mb} MB {why(_decisive(dead))}"
        grew = {each.memory_mb: _decisive(each) for each in tries}
        if len(grew) > 1 and all(fate_of(each) is Fate.KILLED for each in grew.values()):
            sentence += "; it takes all that it gets"
        return sentence
    return (
        f"{found['smallest_memory_mb']} MB is the smallest memory size that survives (tried {_times(found['confirm'])}); "
        f"at {dead.memory_mb} MB {why(_decisive(dead))}"
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
