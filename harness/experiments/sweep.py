"""A sweep: the same work at several memory sizes, each in a sandbox of its own. A plan in, records out.

All sandboxes of a batch stay open and frozen while the others are measured, and each round visits them in a new random
order: a host that gets slower or faster meanwhile does so for all sizes alike. A batch is as many sandboxes as memory can
hold without being overcommitted. Every size gets the same events in the same order.

A sandbox whose runtime was lost (time-out, out of memory, exit, failed init) is replaced by a new one, since what follows in
it would wait for a suppressed init and be neither a cold start nor a warm invocation.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from statistics import fmean

import psutil

from harness.errors import EngineError, InvalidInput
from harness.function import Function
from harness.invocation import Invocation, Outcome, not_run
from harness.sandbox import Sandbox
from harness.stand import Stand
from harness.tiers import CPU_PERIOD_US, MAX_MEMORY_MB, MIN_MEMORY_MB, tier

COARSE_MB = (128, 256, 512, 1024, 1769, 3008)
"""Where `auto` starts: the doublings, the size with one whole vCPU, and the largest with two visible ones."""

_ALL_STEP_MB = 64
_MEMORY_SHARE = 0.7
"""Share of the available memory that the sandboxes of a batch may have together; the rest is the host's."""
_MIB = 1024 * 1024
LOST_LIMIT = 3
"""So many invocations of a size may be lost to the engine before it is given up; they say nothing about the size."""
_WAITS_FOR_INIT = frozenset(
    {Outcome.TIMEOUT, Outcome.OUT_OF_MEMORY, Outcome.RUNTIME_EXIT, Outcome.INIT_ERROR, Outcome.INIT_TIMEOUT}
)
"""After these the next invocation in the same sandbox begins with a suppressed init."""
_NOT_THE_SIZES_FAULT = frozenset({Outcome.ENGINE_ERROR, Outcome.THROTTLED})


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One side of an A/B comparison: variables laid over the function's own. ``name`` None: the function as it is."""

    name: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WeightedEvent:
    """An event and how often it comes, relative to the others."""

    event: bytes
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise InvalidInput(f"an event of weight {self.weight}", remedy="weights are finite numbers above 0")


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What to measure. ``count`` warm invocations a size, or with ``cold_only`` as many cold ones and no warm one.

    A failure whose error type is in ``allowed_error_types`` counts as none (``allowedExceptions`` of
    aws-lambda-power-tuning); of the others a size may have the share ``allowed_error_share``.
    """

    memory_mb: tuple[int, ...]
    count: int
    events: tuple[WeightedEvent, ...]
    variants: tuple[Variant, ...] = (Variant(),)
    cold_only: bool = False
    pause_s: float = 0.0
    seed: int
    parallel: bool = False
    allowed_error_share: float = 0.0
    allowed_error_types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.memory_mb:
            raise InvalidInput("no memory sizes to sweep", remedy="give sizes as -m 128,512,1024, or -m ALL or auto")
        twice = sorted({size for size in self.memory_mb if self.memory_mb.count(size) > 1})
        if twice:
            raise InvalidInput(f"memory size {twice[0]} MB stands twice in the list", remedy="name each size once")
        for size in self.memory_mb:
            tier(size)
        if self.count < 1:
            raise InvalidInput(f"{self.count} invocations a size", remedy="measure at least one")
        if not self.events:
            raise InvalidInput("no event to invoke the function with", remedy="give one with -e")
        if not (math.isfinite(self.pause_s) and self.pause_s >= 0):
            raise InvalidInput(f"a pause of {self.pause_s} s", remedy="give 0 or more seconds")
        if not 0 <= self.allowed_error_share <= 1:
            raise InvalidInput(
                f"allowed error share {self.allowed_error_share}", remedy="give a share from 0 (none) to 1 (all)"
            )

    @property
    def each(self) -> int:
        """How many invocations a size has where nothing fails: one cold one comes before the warm ones."""
        return self.count if self.cold_only else self.count + 1

    @property
    def total(self) -> int:
        """How many invocations the plan has where nothing fails."""
        return len(self.memory_mb) * len(self.variants) * self.each


def sizes(text: str) -> tuple[int, ...] | None:
    """``128,512,1024`` or ``ALL`` (every 64 MB) as sizes in MB; None for ``auto``. Raises `InvalidInput`."""
    given = text.strip()
    if given.lower() == "auto":
        return None
    if given.upper() == "ALL":
        return (*range(MIN_MEMORY_MB, MAX_MEMORY_MB + 1, _ALL_STEP_MB),)
    found = []
    for part in given.split(","):
        if not part.strip().isdecimal():
            raise InvalidInput(
                f"-m {text!r}: {part.strip()!r} is no memory size",
                remedy="give whole MB such as -m 128,512,1024, or ALL, or auto",
            )
        found.append(int(part))
    return tuple(found)


def with_allowed(records: Sequence[Invocation], error_types: Sequence[str]) -> list[Invocation]:
    """The records as they are to be judged: errors of the allowed types count, with their durations, as successes."""
    return [replace(record, outcome=Outcome.SUCCESS) if _allowed(record, error_types) else record for record in records]


def _allowed(record: Invocation, error_types: Sequence[str]) -> bool:
    return (
        record.outcome is not Outcome.SUCCESS
        and record.outcome not in _NOT_THE_SIZES_FAULT
        and record.error_type in error_types
    )


def between(memory_mb: int, measured: Sequence[int]) -> tuple[int, ...]:
    """Where to look next around a size that came out best: half-way to its neighbours among those measured, and at twice
    the size where it is the largest. Nothing closer than an eighth: CPU follows memory, and so small a step drowns in noise.
    """  # noqa: D205
    ordered = sorted(measured)
    at = ordered.index(memory_mb)
    found = []
    for neighbour in (*ordered[max(0, at - 1) : at], *ordered[at + 1 : at + 2]):
        middle = round((memory_mb * neighbour) ** 0.5)
        if min(abs(middle - memory_mb), abs(middle - neighbour)) >= memory_mb / 8:
            found.append(middle)
    if memory_mb == ordered[-1]:
        found += _above(ordered)
    return tuple(found)


def _above(measured: Sequence[int]) -> tuple[int, ...]:
    largest = max(measured)
    return (min(2 * largest, MAX_MEMORY_MB),) if largest < MAX_MEMORY_MB else ()


class EventStream:
    """Events in the proportion of their weights, in an order that depends on the seed alone."""

    def __init__(self, events: Sequence[WeightedEvent], rng: random.Random) -> None:
        self._events = events
        self._rng = rng
        self._owed = [0.0] * len(events)

    def next(self) -> bytes:
        """The event that is most overdue; so even a short series has the proportions right, which chance would not."""
        total = sum(each.weight for each in self._events)
        for number, each in enumerate(self._events):
            self._owed[number] += each.weight / total
        most = max(self._owed)
        number = self._rng.choice([at for at, owed in enumerate(self._owed) if owed >= most - 1e-9])
        self._owed[number] -= 1
        return self._events[number].event


@dataclass(kw_only=True)
class Tally:
    """How far one memory size and variant has come."""

    plan: SweepPlan
    cold: int = 0
    warm: int = 0
    failed: int = 0
    lost: int = 0

    def add(self, record: Invocation) -> None:
        if record.outcome in _NOT_THE_SIZES_FAULT:
            self.lost += 1
            return
        if record.cold:
            self.cold += 1
        else:
            self.warm += 1
        self.failed += record.outcome is not Outcome.SUCCESS and not _allowed(record, self.plan.allowed_error_types)

    @property
    def given_up(self) -> bool:
        plan, made = self.plan, self.cold + self.warm
        return (
            self.failed > plan.allowed_error_share * max(plan.each, made)
            or self.lost >= LOST_LIMIT
            # Where failures are allowed and each costs the sandbox, warm invocations may never come.
            or (self.failed > 0 and made >= 2 * plan.each)
        )

    @property
    def left(self) -> tuple[int, int]:
        """Cold and warm invocations that are still to come."""
        if self.given_up:
            return 0, 0
        if self.plan.cold_only:
            return max(0, self.plan.count - self.cold), 0
        return max(0, 1 - self.cold), max(0, self.plan.count - self.warm)

    @property
    def finished(self) -> bool:
        return self.left == (0, 0)


class TimeLeft:
    """How long the rest of a sweep takes. Estimated for each size by itself: small ones may take a hundred times as long.

    Pure: it is told what was measured and how long each record was waited for, and asks no clock.
    """

    def __init__(self) -> None:
        self._tallies: dict[tuple[int, str | None], Tally] = {}
        self._cold_s: list[float] = []
        self._warm_s: dict[tuple[int, str | None], list[float]] = {}
        self._first_s: dict[tuple[int, str | None], float] = {}

    def expect(self, plan: SweepPlan) -> None:
        """A plan begins; `auto` has several, one after the other."""
        for memory in plan.memory_mb:
            for variant in plan.variants:
                self._tallies.setdefault((memory, variant.name), Tally(plan=plan))

    def add(self, record: Invocation, waited_s: float) -> None:
        """A record came, so long after the one before it."""
        key = (record.memory_mb, record.variant)
        tally = self._tallies[key]
        tally.add(record)
        if record.cold:
            self._cold_s.append(waited_s)
            if record.duration_ms is not None:
                self._first_s[key] = record.duration_ms / 1000 + tally.plan.pause_s
        else:
            self._warm_s.setdefault(key, []).append(waited_s)

    @property
    def invocations(self) -> int:
        """How many are still to come."""
        return sum(sum(tally.left) for tally in self._tallies.values())

    def seconds(self) -> float | None:
        """None before anything is known."""
        if not self._cold_s:
            return None
        # A size that was only seen cold: what its handler took then is the best guess at what it takes warm.
        warm_s = self._first_s | {key: fmean(waited) for key, waited in self._warm_s.items()}
        cold_s, typical_s = fmean(self._cold_s), fmean(warm_s.values()) if warm_s else 0.0
        total = 0.0
        for key, tally in self._tallies.items():
            cold, warm = tally.left
            total += cold * cold_s + warm * warm_s.get(key, typical_s)
        return total


def run(stand: Stand, plan: SweepPlan) -> Generator[Invocation, None, None]:
    """The records as they are measured. A size whose function fails more than is allowed is not measured further.

    Close it before the stand (`contextlib.closing`) when it is left early. Raises `InvalidInput` before anything is
    measured if a size does not fit into the host's memory.
    """
    rng = random.Random(plan.seed)  # noqa: S311  # an order, not a secret
    cells = [
        _Cell(function=stand.variant(memory_mb=memory, environment=each.environment), variant=each.name, plan=plan)
        for memory in plan.memory_mb
        for each in plan.variants
    ]
    rng.shuffle(cells)
    for batch in list(_batches(cells, room_bytes(stand), one_at_a_time=plan.cold_only)):
        with contextlib.ExitStack() as open_sandboxes:
            for cell in batch:
                open_sandboxes.callback(cell.close)
            while going := [cell for cell in batch if not cell.tally.finished]:
                rng.shuffle(going)
                groups = (
                    _side_by_side(going, len(stand.vantage.cpus())) if plan.parallel else [[cell] for cell in going]
                )
                for group in groups:
                    yield from _measure(stand, group, plan, rng)


def room_bytes(stand: Stand) -> float:
    """How much memory the sandboxes of a batch may have together."""
    # An engine in a virtual machine has less memory than this host.
    return min(psutil.virtual_memory().available, stand.facts.memory_bytes) * _MEMORY_SHARE


def _pause(plan: SweepPlan, rng: random.Random) -> None:
    """The plan's pause, and up to one period more.

    Back to back all invocations would begin in the same part of a period, as real arrivals do not; and where in a period
    a short handler begins is worth up to a third of its duration.
    """
    time.sleep(plan.pause_s + rng.random() * CPU_PERIOD_US / 1e6)


def _measure(stand: Stand, group: Sequence[_Cell], plan: SweepPlan, rng: random.Random) -> Iterator[Invocation]:
    # Init runs at two vCPUs whatever the size, so a cold start never fits beside anything.
    together = [cell for cell in group if cell.sandbox is not None]
    alone = [cell for cell in group if cell.sandbox is None]
    if len(together) < 2:
        alone, together = list(group), []
    for cell in alone:
        _pause(plan, rng)
        yield cell.invoke(stand)
    if not together:
        return
    _pause(plan, rng)
    with ThreadPoolExecutor(max_workers=len(together), thread_name_prefix="sweep") as threads:
        pending = [threads.submit(cell.invoke, stand) for cell in together]
        try:
            for each in as_completed(pending):
                yield each.result()
        except BaseException:
            for cell in together:  # what is under way ends with its sandbox
                cell.close()
            raise


@dataclass(kw_only=True)
class _Cell:
    """One memory size and variant: its sandbox, while it has one, and how it fares."""

    function: Function
    variant: str | None
    plan: SweepPlan
    sandbox: Sandbox | None = None

    def __post_init__(self) -> None:
        self.tally = Tally(plan=self.plan)
        # The same seed for every size: all get the same events in the same order, or a mixture that differs would look
        # like a difference between sizes. The cold one does not disturb the proportions of the warm ones.
        self._cold_events, self._warm_events = (
            EventStream(self.plan.events, random.Random(self.plan.seed))  # noqa: S311
            for _ in range(2)
        )

    def invoke(self, stand: Stand) -> Invocation:
        events = self._cold_events if self.sandbox is None else self._warm_events
        try:
            record = self._open(stand).invoke(events.next())
        except EngineError as error:
            record = _not_measured(self.function, error, stand.vantage.name)
        self.tally.add(record)
        over = self.plan.cold_only or self.tally.finished
        if over or record.outcome in _WAITS_FOR_INIT or record.outcome is Outcome.ENGINE_ERROR:
            self.close()
        return replace(record, variant=self.variant)

    def _open(self, stand: Stand) -> Sandbox:
        if self.sandbox is None:
            sandbox = stand.sandbox(self.function)
            sandbox.start()
            self.sandbox = sandbox
        return self.sandbox

    def close(self) -> None:
        sandbox, self.sandbox = self.sandbox, None
        if sandbox is not None:
            sandbox.shut_down()


def _not_measured(function: Function, error: EngineError, vantage: str) -> Invocation:
    """The record of an invocation for which there was no sandbox: the engine refused this size, others may do."""
    remedy = f" ({error.remedy})" if error.remedy else ""
    return not_run(
        function,
        vantage=vantage,
        outcome=Outcome.ENGINE_ERROR,
        sequence=1,
        cold=True,
        error_type=type(error).__name__,
        error_message=f"{error}{remedy}",
        notes=(f"not measured, because the sandbox could not be started: {error}",),
    )


def _batches(cells: Sequence[_Cell], memory_bytes: float, *, one_at_a_time: bool = False) -> Iterator[list[_Cell]]:
    """Split so that the sandboxes of a batch together have no more than ``memory_bytes``; none is left out.

    ``one_at_a_time``: no two are ever open, so what counts is the largest.
    """
    batch: list[_Cell] = []
    held = 0
    for cell in cells:
        size = cell.function.memory_mb * _MIB
        if size > memory_bytes:
            raise InvalidInput(
                f"{cell.function.memory_mb} MB do not fit into this host's memory: "
                f"{memory_bytes / _MIB:.0f} MB may be given to sandboxes",
                remedy="leave that size out, or free memory",
            )
        if one_at_a_time:
            size = 0
        if batch and held + size > memory_bytes:
            yield batch
            batch, held = [], 0
        batch.append(cell)
        held += size
    if batch:
        yield batch


def _side_by_side(batch: Sequence[_Cell], cpus: int) -> list[list[_Cell]]:
    """Groups whose quotas together fit the host's CPUs, one of them kept for the harness."""
    room = max(1, cpus - 1)
    groups: list[tuple[float, list[_Cell]]] = []
    for cell in batch:
        vcpus = tier(cell.function.memory_mb).vcpus
        for number, (used, group) in enumerate(groups):
            if used + vcpus <= room:
                groups[number] = (used + vcpus, [*group, cell])
                break
        else:
            groups.append((vcpus, [cell]))
    return [group for _, group in groups]


def explore(
    measure: Callable[[SweepPlan], Generator[Invocation, None, None]],
    plan: SweepPlan,
    best: Callable[[Sequence[Invocation]], int | None],
    *,
    room: Callable[[], float],
    rounds: int = 2,
    on_plan: Callable[[SweepPlan], None] = lambda _: None,
) -> Generator[Invocation, None, None]:
    """`auto`: measure the plan's sizes, then around the one that ``best`` names, ``rounds`` times.

    Where no size had enough memory or time, it goes up, as far as there is ``room`` (in bytes). ``measure`` runs a plan;
    ``on_plan`` hears of each further one.
    """
    records: list[Invocation] = []
    measured = list(plan.memory_mb)
    for number in range(rounds + 1):
        with contextlib.closing(measure(plan)) as found:
            for record in found:
                records.append(record)
                yield record
        if number == rounds:
            return
        closer = tuple(size for size in _next(best(records), measured, records) if size * _MIB <= room())
        if not closer:
            return
        measured += closer
        plan = replace(plan, memory_mb=closer)
        on_plan(plan)


def _next(chosen: int | None, measured: Sequence[int], records: Sequence[Invocation]) -> tuple[int, ...]:
    if chosen is not None:
        return tuple(size for size in between(chosen, measured) if size not in measured)
    short = {Outcome.OUT_OF_MEMORY, Outcome.TIMEOUT}
    return _above(measured) if any(record.outcome in short for record in records) else ()
