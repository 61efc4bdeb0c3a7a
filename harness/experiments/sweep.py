"""A sweep: the same work at several memory sizes, each in a sandbox of its own. A plan in, records out.

All sandboxes of a batch stay open and frozen while the others are measured, and each round visits them in a new random
order: a host that gets slower or faster meanwhile does so for all sizes alike. A batch is as many sandboxes as memory can
hold without being overcommitted.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import psutil

from harness.errors import InvalidInput
from harness.function import Function
from harness.invocation import Invocation, Outcome
from harness.sandbox import Sandbox
from harness.stand import Stand
from harness.tiers import MAX_MEMORY_MB, MIN_MEMORY_MB, tier

COARSE_MB = (128, 256, 512, 1024, 1769, 3008)
"""Where `auto` starts: the doublings, the size with one whole vCPU, and the largest with two visible ones."""

_ALL_STEP_MB = 64
_MEMORY_SHARE = 0.7
"""Share of the available memory that the sandboxes of a batch may have together; the rest is the host's."""
_MIB = 1024 * 1024


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


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """What to measure. ``count`` warm invocations a size, or with ``cold_only`` as many cold ones and no warm one."""

    memory_mb: tuple[int, ...]
    count: int
    events: tuple[WeightedEvent, ...]
    variants: tuple[Variant, ...] = (Variant(),)
    cold_only: bool = False
    pause_s: float = 0.0
    seed: int
    parallel: bool = False
    allowed_error_share: float = 0.0

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

    @property
    def total(self) -> int:
        """How many invocations the plan has: where nothing fails, one cold one a size comes before the warm ones."""
        each = self.count if self.cold_only else self.count + 1
        return len(self.memory_mb) * len(self.variants) * each


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


def between(memory_mb: int, measured: Sequence[int]) -> tuple[int, ...]:
    """Where to look next around a size that came out best: half-way to its neighbours among those measured.

    Nothing closer than an eighth: CPU follows memory, and so small a step drowns in noise.
    """
    ordered = sorted(measured)
    at = ordered.index(memory_mb)
    found = []
    for neighbour in (*ordered[max(0, at - 1) : at], *ordered[at + 1 : at + 2]):
        middle = round((memory_mb * neighbour) ** 0.5)
        if min(abs(middle - memory_mb), abs(middle - neighbour)) >= memory_mb / 8:
            found.append(middle)
    return tuple(found)


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


def run(stand: Stand, plan: SweepPlan) -> Iterator[Invocation]:
    """The records as they are measured. A size whose function fails more than is allowed is not measured further."""
    rng = random.Random(plan.seed)  # noqa: S311  # an order, not a secret
    cells = [
        _Cell(
            function=stand.variant(memory_mb=memory, environment=each.environment),
            variant=each.name,
            plan=plan,
            rng=rng,
        )
        for memory in plan.memory_mb
        for each in plan.variants
    ]
    rng.shuffle(cells)
    for batch in _batches(cells, psutil.virtual_memory().available * _MEMORY_SHARE):
        with contextlib.ExitStack() as open_sandboxes:
            for cell in batch:
                open_sandboxes.callback(cell.close)
            for _ in range(plan.count if plan.cold_only else plan.count + 1):
                rng.shuffle(batch)
                groups = _side_by_side(batch, stand.facts.cpus) if plan.parallel else [[cell] for cell in batch]
                for group in groups:
                    yield from _measure(stand, [cell for cell in group if not cell.given_up], plan)


def _measure(stand: Stand, group: Sequence[_Cell], plan: SweepPlan) -> Iterator[Invocation]:
    if plan.pause_s:
        time.sleep(plan.pause_s)
    if len(group) < 2:
        for cell in group:
            yield cell.invoke(stand)
        return
    for cell in group:
        cell.open(stand)  # starting a container would disturb the one that is measured
    with ThreadPoolExecutor(max_workers=len(group), thread_name_prefix="sweep") as threads:
        pending = [threads.submit(cell.invoke, stand) for cell in group]
        try:
            for each in pending:
                yield each.result()
        except BaseException:
            for cell in group:  # what is under way ends with its sandbox
                cell.close()
            raise


@dataclass(kw_only=True)
class _Cell:
    """One memory size and variant: its sandbox, while it has one, and how it fares."""

    function: Function
    variant: str | None
    plan: SweepPlan
    rng: random.Random
    sandbox: Sandbox | None = None
    done: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        self.events = EventStream(self.plan.events, self.rng)

    @property
    def given_up(self) -> bool:
        return self.failed > self.plan.allowed_error_share * (self.plan.count + 1)

    def open(self, stand: Stand) -> Sandbox:
        if self.sandbox is None:
            sandbox = stand.sandbox(self.function)
            sandbox.start()
            self.sandbox = sandbox
        return self.sandbox

    def invoke(self, stand: Stand) -> Invocation:
        record = self.open(stand).invoke(self.events.next())
        self.done += 1
        self.failed += record.outcome is not Outcome.SUCCESS
        if self.plan.cold_only or record.outcome is Outcome.ENGINE_ERROR:
            self.close()
        return replace(record, variant=self.variant)

    def close(self) -> None:
        sandbox, self.sandbox = self.sandbox, None
        if sandbox is not None:
            sandbox.shut_down()


def _batches(cells: Sequence[_Cell], memory_bytes: float) -> Iterator[list[_Cell]]:
    """Split so that the sandboxes of a batch together have no more than ``memory_bytes``; none is left out."""
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
    stand: Stand, plan: SweepPlan, best: Callable[[Sequence[Invocation]], int | None], *, rounds: int = 2
) -> Iterator[Invocation]:
    """`auto`: measure the plan's sizes, then around the one that ``best`` names, ``rounds`` times."""
    records: list[Invocation] = []
    measured = list(plan.memory_mb)
    for number in range(rounds + 1):
        for record in run(stand, plan):
            records.append(record)
            yield record
        chosen = best(records) if number < rounds else None
        closer = tuple(size for size in between(chosen, measured) if size not in measured) if chosen else ()
        if not closer:
            return
        measured += closer
        plan = replace(plan, memory_mb=closer)
