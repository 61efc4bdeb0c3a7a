"""A sweep fanned out over the workers of a cluster: every memory size on every host. A plan in, records out.

A plan becomes blocks: some invocations at one size and variant, in a sandbox of their own. Every worker measures every
size, in as many rounds, the same events in the same order; in each round the workers go through the sizes in one random
order, each from another place in it. So no two measure the same size at a time, and a host that drifts does so for all
sizes alike: what differs between hosts can be told from what differs between sizes (`harness.analysis.hosts`).

A worker has one block at a time, and gets the next when that has ended; nothing waits in the cluster. A block that is
lost (its worker died, or its engine refused) is not measured again, neither there nor elsewhere: it leaves a record that
says so, and everything else is kept.

Must not know `distributed`: that is in `harness.experiments.cluster`.
"""

from __future__ import annotations

import collections
import contextlib
import pickle
import pydoc
import random
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness._version import __version__
from harness.errors import EngineError, InvalidInput
from harness.experiments import outpost
from harness.experiments.cluster import RESOURCE, Cluster, DaskCluster, Worker
from harness.experiments.outpost import Block, Job, Measured, Prepared, Refused
from harness.experiments.sweep import EventStream, SweepPlan, Tally, Variant, WeightedEvent
from harness.function import Function
from harness.invocation import WORKER_LOST, Invocation, Outcome, not_run

MIN_BLOCK = 5
"""So many invocations a block has at least, where that leaves two rounds: each sandbox warms up anew."""
ROUNDS = (2, 4)
"""At least two sandboxes for each size on each host, or a sandbox that differs would pass for a host that does."""
LOOK_S = 1.0
"""How often the workers are looked after while they measure."""
PARTING_S = 5.0
"""How long a worker that is no longer needed, or may be gone, is asked for something."""
STOP_S = 20.0
"""How long a sweep that is interrupted waits for what is running."""
_PART_BYTES = 8 * 1024 * 1024

_Key = tuple[int, str | None]


def start_worker(address: str) -> str:
    """How a worker is started that this module uses."""
    return (
        f"start one on each host with: dask worker {address} --nworkers 1 --nthreads 1 --resources '{RESOURCE}=1'"
        " (lambda-harness installed, and DOCKER_HOST as its engine needs it)"
    )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One memory size and variant in one round: what a worker measures as one block. ``number`` is the round's."""

    memory_mb: int
    variant: Variant
    number: int
    plan: SweepPlan

    @property
    def key(self) -> _Key:
        return self.memory_mb, self.variant.name


def arrange(plan: SweepPlan, workers: int) -> list[list[Cell]]:
    """The blocks of each worker, in the order in which it measures them. Depends on the plan, with its seed, alone.

    ``plan.count`` is shared by the workers, rounded up so that each has as many.
    """
    rng = random.Random(plan.seed)  # noqa: S311  # an order, not a secret
    each = -(-plan.count // workers)
    rounds = min(each, max(ROUNDS[0], min(ROUNDS[1], each // MIN_BLOCK)))
    stream = EventStream(plan.events, random.Random(plan.seed))  # noqa: S311
    events = [stream.next() for _ in range(each)]
    pairs = [(size, variant) for size in plan.memory_mb for variant in plan.variants]
    found: list[list[Cell]] = [[] for _ in range(workers)]
    for number in range(rounds):
        part = events[number * each // rounds : (number + 1) * each // rounds]
        seed = rng.randrange(2**31)
        cells = [
            Cell(memory_mb=size, variant=variant, number=number, plan=_plan_of(plan, size, variant, part, seed))
            for size, variant in pairs
        ]
        rng.shuffle(cells)
        for worker in range(workers):
            first = worker * len(cells) // workers
            found[worker] += cells[first:] + cells[:first]
    return found


def _plan_of(plan: SweepPlan, size: int, variant: Variant, events: Sequence[bytes], seed: int) -> SweepPlan:
    whole = plan.count if plan.cold_only else plan.count + 1
    own = len(events) if plan.cold_only else len(events) + 1
    return replace(
        plan,
        memory_mb=(size,),
        variants=(variant,),
        count=len(events),
        events=tuple(WeightedEvent(event=event) for event in events),
        seed=seed,
        # Whether a size failed too often is judged over all of its blocks; none ends before that many.
        allowed_error_share=min(1.0, plan.allowed_error_share * whole / own),
    )


@dataclass(frozen=True, kw_only=True)
class _Running:
    worker: Worker
    cell: Cell


class Fleet:
    """The workers of a cluster that offer to measure, prepared for one function. A context manager.

    Entering it raises:
        UsageError: `distributed` is not installed, or the address is none.
        EngineError: no scheduler, no worker that offers to measure, another version of the harness, or a worker that
            cannot run the function (no engine, no image).
    """

    def __init__(
        self,
        function: Function,
        *,
        scheduler: str,
        vantage: str = "auto",
        pull: bool = True,
        progress: Callable[[str], None] = lambda _: None,
        connect: Callable[[str], Cluster] = DaskCluster,
    ) -> None:
        self._function, self._address = function, scheduler
        self._vantage, self._pull = vantage, pull
        self._progress, self._connect = progress, connect
        self._sweep_id = uuid.uuid4().hex
        self._running: dict[str, _Running] = {}
        self._pending: collections.deque[Invocation] = collections.deque()
        self._planned = self._ended = self._tasks = 0
        self._undo = contextlib.ExitStack()
        self._cluster: Cluster
        self.workers: tuple[Worker, ...] = ()
        self._posts: dict[str, Prepared] = {}
        self.host: dict[str, Any] = {}
        self.warnings: tuple[str, ...] = ()

    def __enter__(self) -> Fleet:
        try:
            self._open()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _open(self) -> None:
        self._progress(f"connecting to {self._address}")
        self._cluster = self._undo.enter_context(contextlib.closing(self._connect(self._address)))
        there = self._cluster.workers()
        self.workers = tuple(sorted((w for w in there.values() if w.slots > 0), key=lambda worker: worker.address))
        if not self.workers:
            number = f"{len(there)} workers, none of which offers" if there else "no workers, and needs one that offers"
            raise EngineError(
                f"the cluster at {self._address} has {number} the resource '{RESOURCE}'",
                remedy=start_worker(self._address),
            )
        self._check_versions()
        self._undo.callback(self._forget)
        self._progress(f"sending {self._function.name} to {_workers(len(self.workers))}")
        code = self._send()
        self._progress(f"waiting for {_workers(len(self.workers))} to have a sandbox's surroundings ready")
        self._prepare(code)
        self.host = hosts_of({worker.address: self._posts[worker.address] for worker in self.workers})
        self.warnings = (*self._what_disturbs(), *self._what_they_say())

    @property
    def room_bytes(self) -> float:
        """How much memory a sandbox may have on every one of the hosts."""
        return min(post.room_bytes for post in self._posts.values())

    def _check_versions(self) -> None:
        wrong = []
        for worker in self.workers:
            # A function of the standard library: nothing of ours may travel before both sides are known to be alike.
            version = self._cluster.ask(worker.address, pydoc.locate, "harness._version.__version__")
            if version != __version__:
                has = f"lambda-harness {version}" if version else "no lambda-harness"
                wrong.append(f"worker {worker.address} has {has}")
        if wrong:
            raise EngineError(
                f"{'; '.join(wrong)}; this is lambda-harness {__version__}",
                remedy="install the same version on the workers, and start them anew",
            )

    def _send(self) -> dict[str, str]:
        """Send what the function is made of to whoever does not have it; the paths here -> their keys."""
        parcels = outpost.parcels(self._function)
        for worker in self.workers:
            keys = sorted({parcel.key for parcel in parcels.values()})
            missing = set(self._cluster.ask(worker.address, outpost.missing, keys))
            for parcel in {parcel.key: parcel for parcel in parcels.values() if parcel.key in missing}.values():
                for at in range(0, max(1, len(parcel.packed)), _PART_BYTES):
                    part = parcel.packed[at : at + _PART_BYTES]
                    self._cluster.ask(worker.address, outpost.receive, parcel.key, at, part)
        return {path: parcel.key for path, parcel in parcels.items()}

    def _prepare(self, code: Mapping[str, str]) -> None:
        job = pickle.dumps(
            Job(sweep_id=self._sweep_id, function=self._function, code=code, vantage=self._vantage, pull=self._pull)
        )
        waiting = {}
        for worker in self.workers:
            task_id = self._task_id("prepare")
            self._cluster.submit(worker, task_id, outpost.prepare, job)
            waiting[task_id] = worker
        while waiting:
            done = self._cluster.next_done(LOOK_S)
            if done is not None and done.task_id in waiting:
                worker = waiting.pop(done.task_id)
                answer = done.result if not done.failure else Refused(message=done.failure)
                if isinstance(answer, Refused):
                    raise EngineError(
                        f"worker {worker.address} cannot measure: {answer.message}",
                        remedy=answer.remedy or "look at the worker's own output",
                    )
                self._posts[worker.address] = answer
                continue
            there = self._cluster.workers()
            for worker in waiting.values():
                if worker.address not in there:
                    raise EngineError(
                        f"worker {worker.address} went away before it could measure", remedy=start_worker(self._address)
                    )

    def _what_disturbs(self) -> list[str]:
        found = []
        by_host: dict[str, list[str]] = {}
        for worker in self.workers:
            by_host.setdefault(self._posts[worker.address].host_id, []).append(worker.address)
            if worker.threads > 1:
                found.append(
                    f"worker {worker.address} has {worker.threads} threads: other tasks of the cluster may run beside a "
                    "measurement; start it with --nthreads 1"
                )
        found += [
            f"workers {' and '.join(addresses)} are on the same host ({host}): they measure at the same time, and share "
            "its CPUs, caches and memory"
            for host, addresses in by_host.items()
            if len(addresses) > 1
        ]
        return found

    def _what_they_say(self) -> list[str]:
        said: dict[str, list[str]] = {}
        for address, post in self._posts.items():
            for warning in post.warnings:
                said.setdefault(warning, []).append(address)
        everybody = len(self._posts)
        return [
            text if len(addresses) == everybody else f"{', '.join(sorted(addresses))}: {text}"
            for text, addresses in said.items()
        ]

    def run(self, plan: SweepPlan) -> Generator[Invocation, None, None]:
        """The records, a block's at a time, as the blocks end. A size that fails more than is allowed is not continued.

        Where it is left early, `stop` has what was running. Raises `EngineError` when the scheduler went away, and
        `InvalidInput` before anything is measured if a size does not fit into a host's memory.
        """
        self._refuse_what_does_not_fit(plan)
        arranged = arrange(plan, len(self.workers))
        queues = dict(zip((worker.address for worker in self.workers), map(list, arranged), strict=True))
        tallies = {cell.key: Tally(plan=plan) for cells in arranged for cell in cells}
        gone: dict[str, str] = {}
        self._planned += sum(map(len, arranged))
        for worker in self.workers:
            self._begin(worker, queues[worker.address], tallies)
        while self._running:
            for running, measured in self._ends(gone):
                worker = running.worker
                for record in self._records(running, measured):
                    if record.error_type != WORKER_LOST:
                        tallies[running.cell.key].add(record)
                    self._pending.append(record)
                if worker.address in gone:
                    self._pending += self._never_begun(worker, queues[worker.address], tallies, gone[worker.address])
                else:
                    self._begin(worker, queues[worker.address], tallies)
            while self._pending:  # what is not taken from here is left to `stop`
                yield self._pending.popleft()

    def told(self) -> str:
        """How far it is, for people."""
        return f"sweep: {self._ended} of {self._planned} blocks on {_workers(len(self.workers))}"

    def stop(self) -> Generator[Invocation, None, None]:
        """Begin nothing more, and wait for what is running, for `STOP_S` at most; the records that `run` did not give.

        A worker that is not waited for any longer ends its block by itself, after the invocation that is running.
        """
        while self._pending:
            yield self._pending.popleft()
        for running in self._running.values():
            with contextlib.suppress(EngineError):
                self._cluster.ask(running.worker.address, outpost.stop, self._sweep_id, seconds=PARTING_S)
        deadline = time.monotonic() + STOP_S
        while self._running and (left := deadline - time.monotonic()) > 0:
            try:
                for running, measured in self._ends({}, wait_s=min(LOOK_S, left)):
                    if measured.records:
                        yield from self._records(running, replace(measured, lost=""))
            except EngineError:  # nobody is left to wait for
                break
        for task_id, running in self._running.items():
            self._cluster.cancel(task_id)
            why = f"{running.cell.plan.each} of its invocations: not over when it was no longer waited for"
            yield self._lost(running.worker, running.cell, why)
        self._running.clear()

    def _refuse_what_does_not_fit(self, plan: SweepPlan) -> None:
        largest = max(plan.memory_mb)
        for address, post in self._posts.items():
            if largest * 1024 * 1024 > post.room_bytes:
                raise InvalidInput(
                    f"{largest} MB do not fit into the memory of worker {address}'s host: "
                    f"{post.room_bytes / 1024 / 1024:.0f} MB may be given to sandboxes",
                    remedy="leave that size out, or end that worker",
                )

    def _task_id(self, what: str) -> str:
        self._tasks += 1
        return f"{RESOURCE}-{what}-{self._sweep_id}-{self._tasks}"

    def _begin(self, worker: Worker, waiting: list[Cell], tallies: Mapping[_Key, Tally]) -> None:
        """Hand the worker its next block, if there is one."""
        while waiting:
            cell = waiting.pop(0)
            if tallies[cell.key].given_up:
                self._ended += 1
                continue
            task_id = self._task_id("block")
            block = Block(
                block_id=task_id,
                sweep_id=self._sweep_id,
                process=self._posts[worker.address].process,
                plan=cell.plan,
            )
            self._running[task_id] = _Running(worker=worker, cell=cell)
            self._cluster.submit(worker, task_id, outpost.measure, pickle.dumps(block))
            return

    def _ends(self, gone: dict[str, str], *, wait_s: float = LOOK_S) -> list[tuple[_Running, Measured]]:
        """The blocks that ended, in one way or another; ``gone`` gets the workers that are no more, and why."""
        done = self._cluster.next_done(wait_s)
        if done is not None:
            running = self._running.pop(done.task_id, None)
            if running is None:
                return []
            self._ended += 1
            measured = done.result if not done.failure else Measured(lost=f"the cluster gave it up: {done.failure}")
            if measured.lost and not self._as_prepared(running.worker, self._cluster.workers()):
                gone[running.worker.address] = "its worker went away"
            return [(running, measured)]
        there = self._cluster.workers()
        found = []
        for task_id, running in list(self._running.items()):
            if running.worker.address not in there:
                self._cluster.cancel(task_id)
                del self._running[task_id]
                self._ended += 1
                gone[running.worker.address] = "its worker went away"
                found.append((running, Measured(lost="its worker went away while it was measured")))
        return found

    def _as_prepared(self, worker: Worker, there: Mapping[str, Worker]) -> bool:
        """Whether the worker is still the process that was prepared."""
        if worker.address not in there:
            return False
        try:
            process = self._cluster.ask(worker.address, outpost.process, seconds=PARTING_S)
            return bool(process == self._posts[worker.address].process)
        except EngineError:
            return False

    def _records(self, running: _Running, measured: Measured) -> list[Invocation]:
        found = [Invocation.from_dict(each) for each in measured.records]
        if measured.lost:
            cell = running.cell
            missing = cell.plan.each - len(found)
            found.append(self._lost(running.worker, cell, f"{missing} of its invocations: {measured.lost}"))
        return found

    def _never_begun(
        self, worker: Worker, waiting: list[Cell], tallies: Mapping[_Key, Tally], why: str
    ) -> Iterable[Invocation]:
        """What a worker that is gone leaves unmeasured: a record for each size."""
        left: dict[_Key, list[Cell]] = {}
        for cell in waiting:
            if not tallies[cell.key].given_up:
                left.setdefault(cell.key, []).append(cell)
        self._ended += len(waiting)
        waiting.clear()
        for cells in left.values():
            missing = sum(cell.plan.each for cell in cells)
            yield self._lost(worker, cells[0], f"{missing} further invocations were not begun: {why}")

    def _lost(self, worker: Worker, cell: Cell, why: str) -> Invocation:
        function = self._function
        post = self._posts[worker.address]
        size = f"{cell.memory_mb} MB" + (f" ({cell.variant.name})" if cell.variant.name else "")
        said = f"lost at {size} on host {post.host_id} (worker {worker.address}): {why}"
        return not_run(
            replace(function, memory_mb=cell.memory_mb),
            vantage=str(post.host["vantage"]),
            outcome=Outcome.ENGINE_ERROR,
            sequence=1,
            cold=True,
            error_type=WORKER_LOST,
            error_message=said,
            variant=cell.variant.name,
            host_id=post.host_id,
        )

    def _forget(self) -> None:
        """Tell the workers that it is over, those that are left."""
        with contextlib.suppress(EngineError):
            there = self._cluster.workers()
            for worker in self.workers:
                if worker.address in there:
                    self._cluster.ask(worker.address, outpost.forget, self._sweep_id, seconds=PARTING_S)


def hosts_of(posts: Mapping[str, Prepared]) -> dict[str, Any]:
    """The ``host`` of a document: the first host's description, its ``host_id`` and its workers.

    Where there are several it has ``hosts``: all of them, each described in the same way.
    """
    found: dict[str, dict[str, Any]] = {}
    for address, post in posts.items():
        described = found.setdefault(post.host_id, {**post.host, "host_id": post.host_id, "workers": []})
        described["workers"].append(address)
    every = list(found.values())
    return {**every[0], "hosts": every} if len(every) > 1 else every[0]


def _workers(number: int) -> str:
    return f"{number} worker{'s' if number != 1 else ''}"
