"""The smallest memory size that survives, and the story of the kill below it. A plan in, records out as they are measured.

Every try is a fresh sandbox, so that no try inherits what another left behind. While a request runs, the sandbox's
memory is watched where the files of its cgroup can be read; elsewhere there is no timeline.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

from harness.errors import EngineError, InvalidInput, UsageError
from harness.invocation import Invocation, Outcome
from harness.memory_watch import Killed, MemoryPoint
from harness.pool import spare_memory_bytes
from harness.sandbox import Sandbox
from harness.stand import Stand
from harness.tiers import MAX_MEMORY_MB, MIN_MEMORY_MB, tier

_MIB = 1024 * 1024
CONFIRM = 2


@dataclass(frozen=True, kw_only=True)
class OomPlan:
    """Between ``from_mb`` and ``to_mb`` MB; a size survives when ``confirm`` tries in a row do.

    A try is ``count`` invocations in one sandbox, frozen in between, with the events in turn.
    """

    events: tuple[bytes, ...]
    from_mb: int = MIN_MEMORY_MB
    to_mb: int
    confirm: int = CONFIRM
    count: int = 1

    def __post_init__(self) -> None:
        tier(self.from_mb)
        tier(self.to_mb)
        if self.from_mb > self.to_mb:
            raise UsageError(
                f"--from {self.from_mb} is above --to {self.to_mb}", remedy="give the smaller size as --from"
            )
        if self.confirm < 1 or self.count < 1:
            raise UsageError("a size that is not tried says nothing", remedy="give --confirm and -n of at least 1")


def largest_mb(stand: Stand, wanted_mb: int | None, from_mb: int) -> int:
    """The upper end of the search: as wanted, or what Lambda offers as far as this host's memory holds it."""
    holds_mb = spare_memory_bytes(stand) // _MIB
    found = min(MAX_MEMORY_MB, holds_mb) if wanted_mb is None else wanted_mb
    if found > holds_mb or found < from_mb:
        raise InvalidInput(
            f"a sandbox of {max(found, from_mb)} MB does not fit into this host's memory: {holds_mb} MB may be given to it",
            remedy="search among smaller sizes with --from and --to, or free memory",
        )
    return found


class Search:
    """Which size to try next: doubled until one survives, then halved between the largest that died and it. Pure.

    A size that died once is too small, however often it survives otherwise.
    """

    def __init__(self, from_mb: int, to_mb: int, confirm: int = CONFIRM) -> None:
        self._from, self._to, self._confirm = from_mb, to_mb, confirm
        self._survived: dict[int, int] = {}
        self.died: int | None = None
        """The largest size known to be too small."""
        self.smallest: int | None = None
        """The smallest size that has survived as often as it takes, so far."""

    def next(self) -> int | None:
        """The size of the next try; None when the answer stands."""
        if self.smallest is None:
            if self.died is None:
                return self._from
            return None if self.died >= self._to else min(2 * self.died, self._to)
        if self.died is None or self.smallest - self.died <= 1:
            return None
        return (self.smallest + self.died) // 2

    def tell(self, memory_mb: int, *, survived: bool) -> None:
        """What became of a try at the size that `next` gave."""
        if not survived:
            self.died = memory_mb  # sizes that are tried are above the last that died
            return
        self._survived[memory_mb] = self._survived.get(memory_mb, 0) + 1
        if self._survived[memory_mb] >= self._confirm:
            self.smallest = memory_mb


@dataclass(kw_only=True)
class Watched:
    """One invocation of a try, and what was seen beside its record."""

    record: Invocation
    timeline: list[MemoryPoint] = field(default_factory=list)
    killed: list[Killed] = field(default_factory=list)
    oom_kills: int | None = None
    killed_at_ms: float | None = None
    """When a sample first found the kernel's counter of kills risen."""
    unseen_reason: str | None = None
    """What ended the watch over its memory too early; None also where the vantage shows nothing of it."""


@dataclass(frozen=True, kw_only=True)
class Try:
    """One fresh sandbox at one size."""

    memory_mb: int
    invocations: tuple[Watched, ...]
    survived: bool


class Oom:
    """One search. ``survives`` judges an invocation; `tries` grows while `records` is read."""

    def __init__(self, stand: Stand, plan: OomPlan, survives: Callable[[Watched], bool]) -> None:
        self._stand = stand
        self._plan = plan
        self._survives = survives
        self.search = Search(plan.from_mb, plan.to_mb, plan.confirm)
        self.tries: list[Try] = []

    def records(self) -> Generator[Invocation, None, None]:
        """Every record as it is measured. Raises `EngineError` when the engine fails twice at the same try."""
        lost = 0
        while (memory_mb := self.search.next()) is not None:
            watched: list[Watched] = []
            for each in self._try(memory_mb):
                watched.append(each)
                yield each.record
            if watched[-1].record.outcome is Outcome.ENGINE_ERROR:
                lost += 1
                if lost > 1:
                    raise EngineError(watched[-1].record.error_message or "the engine failed")
                continue  # it says nothing about the size
            lost = 0
            survived = all(self._survives(each) for each in watched)
            self.tries.append(Try(memory_mb=memory_mb, invocations=tuple(watched), survived=survived))
            self.search.tell(memory_mb, survived=survived)

    def _try(self, memory_mb: int) -> Iterator[Watched]:
        events = self._plan.events
        with self._stand.sandbox(self._stand.variant(memory_mb=memory_mb)) as sandbox:
            for number in range(self._plan.count):
                found = _watched(sandbox, events[number % len(events)])
                yield found
                if found.record.outcome is Outcome.ENGINE_ERROR or not self._survives(found):
                    return


# -- watching one invocation -----------------------------------------------------------------------------------------


def _watched(sandbox: Sandbox, event: bytes) -> Watched:
    watch = sandbox.cell.reach.watch_memory()
    if watch is None:
        record = sandbox.invoke(event)
        return Watched(record=record, killed=_from_exit_line(record))
    with watch:
        record = sandbox.invoke(event)
    seen = watch.found
    return Watched(
        record=record,
        timeline=list(seen.points),
        killed=list(seen.killed) or _from_exit_line(record),
        oom_kills=seen.oom_kills,
        killed_at_ms=seen.killed_at_ms,
        unseen_reason=seen.ended_by,
    )


def _from_exit_line(record: Invocation) -> list[Killed]:
    """The RIE says of its runtime alone how it ended, and names no process."""
    if record.outcome is Outcome.OUT_OF_MEMORY:
        return [Killed(name="the runtime", source="exit_line", runtime=True)]
    return []
