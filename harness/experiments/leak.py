"""A leak hunt: one sandbox, the same work again and again; then, where growth has to be told from garbage, once more.

Up to three series, each in a sandbox of its own: the function as it is; with the garbage collector run after each
invocation, as long as the question is open; and with a probe that names what grew. The records of the second and third
carry their name as `variant`. Which of them are needed is the caller's judgement: this module judges nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from harness import lifecycle
from harness.errors import InvalidInput
from harness.experiments import explain
from harness.function import Function
from harness.invocation import Invocation, Outcome
from harness.stand import Stand

SETTLED = "settled"
EXPLAINED = "explained"

_MOST_ROUNDS = 3
"""How often a settled series may be prolonged by as many invocations again."""
_EXPLAIN_MEMORY_MB = 1024
"""What the probe needs, which keeps a second book of every allocation, or takes heap snapshots."""
_FIRST, _LAST = 8, 18
_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class LeakPlan:
    """``events`` are used in turn. ``settle``: run the second series where it is needed; ``explain``: run the third."""

    events: tuple[bytes, ...]
    count: int
    gap_s: float = 0.0
    settle: bool = True
    explain: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidInput(f"{self.count} invocations", remedy="measure at least one; ten are needed for a verdict")
        if not self.events:
            raise InvalidInput("no events", remedy="give an event with -e")


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Of the third series: between which invocations growth was looked for, and at which memory size."""

    first: int
    last: int
    memory_mb: int


class Hunt:
    """One run of a plan. `records` measures; what the probe said is in the listener, its frame in `explained`."""

    def __init__(
        self,
        stand: Stand,
        plan: LeakPlan,
        listener: explain.Listener,
        *,
        undecided: Callable[[Sequence[Invocation]], bool],
        hopeless: Callable[[Sequence[Invocation]], bool],
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._stand, self._plan, self._listener = stand, plan, listener
        self._undecided, self._hopeless, self._progress = undecided, hopeless, progress
        self.can_settle = explain.probe(stand.function, "settle") is not None
        self.explained: Explained | None = None

    def records(self) -> Generator[Invocation, None, None]:
        """Each record as it is measured. Raises `EngineError` when a sandbox cannot be started."""
        function, plan = self._stand.function, self._plan
        seen: list[Invocation] = []
        for record in self._series(function, {}, plan.count, self._hopeless):
            seen.append(record)
            yield record
        if plan.settle and self.can_settle and self._undecided(seen):
            self._progress("running the garbage collector after each invocation")
            yield from self._settle(seen)
        if plan.explain and any(each.outcome is Outcome.SUCCESS for each in seen):
            self._progress("looking for what grew")
            yield from self._explain(seen)

    def _settle(self, seen: list[Invocation]) -> Iterator[Invocation]:
        probe = explain.probe(self._stand.function, "settle")
        assert probe is not None  # noqa: S101  # the caller asked
        rounds = self._plan.count * _MOST_ROUNDS

        def enough(series: Sequence[Invocation]) -> bool:
            if len(series) % self._plan.count:
                return False
            return not self._undecided([*seen, *(replace(each, variant=SETTLED) for each in series)])

        for record in self._series(probe.over(self._stand.function), probe.binds, rounds, enough):
            yield self._marked(record, SETTLED, probe)

    def _explain(self, seen: Sequence[Invocation]) -> Iterator[Invocation]:
        function = self._stand.function
        memory_mb = max(function.memory_mb, _EXPLAIN_MEMORY_MB)
        first, last = _FIRST, _LAST
        per_invocation = _rough_growth_bytes(seen)
        while last > 3 and per_invocation * last > memory_mb * _MIB / 4:
            first, last = max(2, first // 2), max(3, last // 2)
        probe = explain.probe(function, f"explain:{first}:{last}")
        if probe is None:
            return
        self.explained = Explained(first=first, last=last, memory_mb=memory_mb)
        self._listener.listen_to(probe)
        for record in self._series(probe.over(function, memory_mb=memory_mb), probe.binds, last, self._hopeless):
            yield self._marked(record, EXPLAINED, probe)

    @staticmethod
    def _marked(record: Invocation, variant: str, probe: explain.Probe) -> Invocation:
        return replace(record, variant=variant, log_tail=explain.without_probe(record.log_tail, probe.token))

    def _series(
        self,
        function: Function,
        binds: Mapping[Path, str],
        count: int,
        enough: Callable[[Sequence[Invocation]], bool],
    ) -> Iterator[Invocation]:
        """In one sandbox, until ``count``, until it is ``enough``, or until the sandbox is gone."""
        measured: list[Invocation] = []
        with self._stand.sandbox(function, extra_binds=binds) as sandbox:
            for number in range(count):
                if number and self._plan.gap_s:
                    time.sleep(self._plan.gap_s)
                record = sandbox.invoke(self._plan.events[number % len(self._plan.events)])
                measured.append(record)
                yield record
                if isinstance(sandbox.phase, lifecycle.ShutDown) or enough(measured):
                    return


def _rough_growth_bytes(records: Sequence[Invocation]) -> float:
    """How much an invocation leaves behind, as far as a first look tells: enough to size what looks closer."""
    sizes = [each.resident_after_bytes for each in records if each.resident_after_bytes is not None]
    steps = sorted(after - before for before, after in pairwise(sizes))
    return float(max(0, steps[len(steps) // 2])) if steps else 0.0
