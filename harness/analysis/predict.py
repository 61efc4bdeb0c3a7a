"""From the CPU time and the waiting time of one memory size to the duration at every other. Pure; sees no engine.

Two answers are given. The *closed form* spreads the quota evenly: a function that may use ``q`` of every ``T`` ms of
CPU needs ``cpu * T / q``. The *tick model* follows what the kernel does (kernel/sched/fair.c, documentation
"CFS Bandwidth Control"), which for handlers of a few periods is something else:

- Every period (20 ms on Lambda) the group's pool is filled up to the quota; what was left is not added.
- Each CPU takes slices (``sched_cfs_bandwidth_slice_us``, 5 ms) from the pool; what a CPU holds survives the period.
- Use is accounted when the timer ticks (4 ms at HZ 250). A group that has run out is stopped at the next tick, so it
  runs up to a tick too long, and pays that back from the following periods.
- A CPU that goes idle returns its slice but for 1 ms (``min_cfs_rq_runtime``).
- A group that was stopped waits for the next period, and on a busy host for a tick of the CPU that it resumes on.
- After the freeze the pool is full, but the timer of the period and the tick stand anywhere: the model is averaged over
  evenly spread phases.

Nothing here is fitted by memory size. Against what real Lambda measured at 98 memory sizes with a handler of 16.0 ms
of CPU (``harness/data/lambda_cpu_curve.csv``) the mean absolute relative error of the tick model is 0.04.
Two constants of `Scheduler` are judged, not measured: the CPU before the handler and what an idle CPU keeps. From 0.4 to
1.3 ms of the one and 0 to 1 ms of the other the error runs from 0.037 to 0.055; the even spread has 0.31.

What it cannot know: when in the handler the waiting happens, whether work would use more threads than it did, garbage
collection that a small memory size brings, other CPUs than those that were measured on.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import InvalidInput
from harness.tiers import CPU_PERIOD_US, MEMORY_MB_PER_VCPU, tier

Lanes = NDArray[np.float64]

MODEL_ERROR = 0.04
"""Mean absolute relative error of the tick model against real Lambda's curve."""

_SIMULATED_CPU_MS = 120.0
"""Beyond this much CPU the start no longer matters: the rest runs at the steady rate of the quota."""

_GOLDEN_SHARE = 0.6180339887498949
"""Multiples of it, modulo one, fill an interval evenly: phases of period and tick are spread, and not drawn."""


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """What the model has to know about the kernel that grants the CPU time. Times in ms."""

    period_ms: float = CPU_PERIOD_US / 1000
    slice_ms: float = 5.0
    tick_ms: float = 4.0
    kept_by_idle_cpu_ms: float = 1.0
    """What stays with the CPU that took part in the invocation and went idle (``min_cfs_rq_runtime``)."""
    resumes_at_tick: bool = True
    """On a host that others share, a group that may run again waits for the next tick of a busy CPU."""
    cpu_before_handler_ms: float = 0.65
    """CPU that the runtime has used before the handler's clock starts. On Lambda 1.3 ms lie between the handler's time
    and REPORT's duration (medians at full CPU, lambda_cpu_curve.csv); half of it is taken to come first."""
    resume_cost_ms: float = 0.15
    """CPU that each stop costs beyond itself (cold caches): real Lambda's plateaus lie at 20.15 and 40.35 ms."""


LAMBDA = Scheduler()


def host_scheduler(hz: int) -> Scheduler:
    """The scheduler of a machine of one's own: its tick, and CPUs that are free when the group may run again."""
    if hz <= 0:
        raise InvalidInput(f"HZ is {hz}", remedy="give the kernel's timer frequency, 100 to 1000")
    return Scheduler(tick_ms=1000 / hz, resumes_at_tick=False)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one invocation does: CPU on one thread, CPU that spreads over several, waiting (network, disk, sleep)."""

    serial_cpu_ms: float
    parallel_cpu_ms: float
    wait_ms: float
    parallelism: int
    """Threads of the parallel share; no more than the vCPUs that were visible where it was measured."""

    @property
    def cpu_ms(self) -> float:
        return self.serial_cpu_ms + self.parallel_cpu_ms


def work_of(*, cpu_ms: float, duration_ms: float, throttled_ms: float, memory_mb: int) -> Work:
    """Tell work from waiting, and one thread from several, by the figures of one tier.

    More CPU than time means threads beside each other. Then it is assumed that nothing waited and that the parallel
    share used every visible vCPU (Amdahl): ``cpu = s + k p`` and ``duration = s + p``. Otherwise one thread and
    waiting is assumed: ``wait = duration - cpu - throttled``.
    """
    if cpu_ms < 0 or duration_ms <= 0:
        raise InvalidInput(
            f"a prediction from {cpu_ms} ms of CPU in {duration_ms} ms", remedy="measure a tier with CPU counters first"
        )
    threads = tier(memory_mb).visible_vcpus
    # Counters and clock are read some tenths of a ms apart: only a clear excess is a second thread. A tier that was
    # throttled shows one only where its CPU exceeds even the whole duration.
    if cpu_ms <= duration_ms * 1.1 + 1.0:
        running_ms = max(duration_ms - throttled_ms, 0.0)
        return Work(serial_cpu_ms=cpu_ms, parallel_cpu_ms=0.0, wait_ms=max(0.0, running_ms - cpu_ms), parallelism=1)
    # The kernel adds up how long each CPU was stopped.
    running_ms = max(duration_ms - throttled_ms / threads, cpu_ms / threads)
    parallel_wall_ms = min((cpu_ms - running_ms) / (threads - 1), running_ms)
    parallel_cpu_ms = min(cpu_ms, threads * parallel_wall_ms)
    return Work(
        serial_cpu_ms=cpu_ms - parallel_cpu_ms, parallel_cpu_ms=parallel_cpu_ms, wait_ms=0.0, parallelism=threads
    )


@dataclass(frozen=True, kw_only=True)
class Point:
    """The expected duration at one memory size, in ms.

    ``duration_ms`` is the mean of the tick model, ``p05_ms`` to ``p95_ms`` its 5th to 95th percentile over phases,
    ``closed_form_ms`` the even spread. ``low_ms`` to ``high_ms`` is the error that must be expected of the mean: the
    model's own, and that of not knowing when the waiting happens.
    """

    memory_mb: int
    duration_ms: float
    p05_ms: float
    p95_ms: float
    closed_form_ms: float
    low_ms: float
    high_ms: float


def closed_form_ms(work: Work, memory_mb: int, scheduler: Scheduler = LAMBDA) -> float:
    """Duration if the quota were spread evenly over time and waiting never overlapped with being stopped."""
    granted = tier(memory_mb)
    share = granted.cpu_quota_us / 1000 / scheduler.period_ms
    threads = max(1, min(work.parallelism, granted.visible_vcpus))
    return work.serial_cpu_ms / min(1.0, share) + work.parallel_cpu_ms / min(threads, share) + work.wait_ms


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """A stretch of an invocation: ``amount`` ms of CPU at ``rate`` CPUs, or ``amount`` ms of waiting (``rate`` 0)."""

    amount: float
    rate: Lanes


class _Lanes:
    """Many invocations side by side: one row a memory size, one column a phase. Times are ms since the request."""

    def __init__(self, quota: Lanes, scheduler: Scheduler, phases: int) -> None:
        index = np.arange(phases) + 0.5
        shape = (len(quota), phases)
        self.scheduler = scheduler
        self.quota = np.broadcast_to(quota[:, None], shape)
        self.now = np.zeros(shape)
        self.next_period = np.broadcast_to(index / phases * scheduler.period_ms, shape).copy()
        self.next_tick = np.broadcast_to((index * _GOLDEN_SHARE % 1.0) * scheduler.tick_ms, shape).copy()
        self.pool = np.maximum(self.quota - scheduler.kept_by_idle_cpu_ms, 0.0)
        self.held = np.zeros(shape)
        self.unaccounted = np.zeros(shape)
        self.stopped = np.zeros(shape, dtype=bool)

    def run(self, segment: _Segment) -> None:
        """Advance every lane to the end of a stretch of CPU."""
        scheduler = self.scheduler
        rate = np.broadcast_to(segment.rate[:, None], self.now.shape)
        left = np.full(self.now.shape, segment.amount)
        self._take(np.ones_like(self.stopped))
        while (going := left > 1e-9).any():
            running = going & ~self.stopped
            event = np.where(
                running,
                np.minimum(np.minimum(self.next_tick, self.next_period), self.now + left / rate),
                np.where(going, self.next_period, self.now),
            )
            used = np.where(running, (event - self.now) * rate, 0.0)
            left -= used
            self.unaccounted += used
            self.now = event

            tick = running & (event >= self.next_tick) & (left > 1e-9)
            self.held -= np.where(tick, self.unaccounted, 0.0)
            self.unaccounted = np.where(tick, 0.0, self.unaccounted)
            self.next_tick += np.where(tick, scheduler.tick_ms, 0.0)
            self.stopped |= tick & self._take(tick)

            # A tick and a period that fall together: the tick comes first, the period with the next turn of the loop.
            period = going & ~tick & (event >= self.next_period) & (left > 1e-9)
            self._refill(period)
            resumed = period & self.stopped & (self.held > 0)
            self.stopped &= ~resumed
            left += np.where(resumed, scheduler.resume_cost_ms, 0.0)
            missed = np.ceil((self.now - self.next_tick) / scheduler.tick_ms - 1e-9)
            self.next_tick += np.where(resumed, np.maximum(missed, 0.0) * scheduler.tick_ms, 0.0)
            if scheduler.resumes_at_tick:
                self.now = np.where(resumed, self.next_tick, self.now)
                self.next_tick += np.where(resumed, scheduler.tick_ms, 0.0)

    def wait(self, amount: float) -> None:
        """Let every lane sleep: its CPU returns what it holds, debts are paid when a period begins."""
        scheduler = self.scheduler
        self.held -= self.unaccounted
        self.unaccounted = np.zeros_like(self.unaccounted)
        self.stopped = self._take(np.ones_like(self.stopped))
        returned = np.maximum(self.held - scheduler.kept_by_idle_cpu_ms, 0.0)
        self.held -= returned
        self.pool += returned
        until = self.now + amount
        while (due := self.next_period <= until).any():
            self._refill(due)
            self.stopped &= self.held <= 0
            if (until - self.next_period).max() > 100 * scheduler.period_ms:  # a full pool stays full
                skipped = np.maximum(np.floor((until - self.next_period) / scheduler.period_ms) - 100, 0.0)
                self.next_period += skipped * scheduler.period_ms
        self.now = until
        missed = np.ceil((self.now - self.next_tick) / scheduler.tick_ms)
        self.next_tick += np.maximum(missed, 0.0) * scheduler.tick_ms

    def _take(self, lanes: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A slice from the pool where a CPU has nothing left; True where there was none to take."""
        asks = lanes & (self.held <= 0)
        amount = np.where(asks, np.minimum(self.scheduler.slice_ms - self.held, self.pool), 0.0)
        self.held += amount
        self.pool -= amount
        return asks & (self.held <= 0)

    def _refill(self, lanes: NDArray[np.bool_]) -> None:
        """A period begins: the pool is full again, and whoever was stopped gets just enough to be out of debt."""
        self.pool = np.where(lanes, self.quota, self.pool)
        self.next_period += np.where(lanes, self.scheduler.period_ms, 0.0)
        amount = np.where(lanes & self.stopped, np.minimum(1e-6 - self.held, self.pool), 0.0)
        self.held += amount
        self.pool -= amount


def _tick_model(work: Work, memory_mb: Sequence[int], scheduler: Scheduler, phases: int) -> Lanes:
    """Durations in ms by memory size (rows) and phase (columns)."""
    tiers = [tier(size) for size in memory_mb]
    quota = np.array([found.cpu_quota_us / 1000 for found in tiers])
    one = np.ones(len(tiers))
    threads = np.array([max(1, min(work.parallelism, found.visible_vcpus)) for found in tiers], dtype=np.float64)

    shrink = min(1.0, _SIMULATED_CPU_MS / work.cpu_ms) if work.cpu_ms else 1.0
    lanes = _Lanes(quota, scheduler, phases)
    if scheduler.cpu_before_handler_ms:
        lanes.run(_Segment(amount=scheduler.cpu_before_handler_ms, rate=one))
    start = lanes.now.copy()
    # Read the request, wait for the answer of others, make one's own: waiting is taken to lie in the middle.
    halves = 2 if work.wait_ms else 1
    for half in range(halves):
        if half:
            lanes.wait(work.wait_ms)
        lanes.run(_Segment(amount=work.serial_cpu_ms * shrink / halves, rate=one))
        if work.parallel_cpu_ms:
            lanes.run(_Segment(amount=work.parallel_cpu_ms * shrink / halves, rate=threads))
    share = quota / scheduler.period_ms
    rest = (1 - shrink) * (
        work.serial_cpu_ms / np.minimum(one, share) + work.parallel_cpu_ms / np.minimum(threads, share)
    )
    return np.asarray(lanes.now - start + rest[:, None])


def predict(
    work: Work, memory_mb: Sequence[int], *, scheduler: Scheduler = LAMBDA, phases: int = 200
) -> tuple[Point, ...]:
    """The expected duration at each memory size. 160 sizes take a fraction of a second."""
    if not memory_mb:
        raise InvalidInput("no memory size to predict for", remedy="name at least one")
    found = _tick_model(work, memory_mb, scheduler, phases)
    p05, p95 = np.quantile(found, [0.05, 0.95], axis=1)
    points = []
    for row, size in enumerate(memory_mb):
        mean = float(found[row].mean())
        share = min(1.0, tier(size).cpu_quota_us / 1000 / scheduler.period_ms)
        # Were waiting spread so that every stop falls into it, only the longer of the two would show.
        overlapped = max(work.cpu_ms / max(share, 1e-9), work.cpu_ms + work.wait_ms) if work.wait_ms else mean
        points.append(
            Point(
                memory_mb=size,
                duration_ms=mean,
                p05_ms=float(p05[row]),
                p95_ms=float(p95[row]),
                closed_form_ms=closed_form_ms(work, size, scheduler),
                low_ms=min(mean, overlapped) * (1 - MODEL_ERROR),
                high_ms=mean * (1 + MODEL_ERROR),
            )
        )
    return tuple(points)


def prediction_of(
    tiers: Sequence[Mapping[str, Any]],
    memory_mb: Sequence[int] | None = None,
    *,
    scheduler: Scheduler = LAMBDA,
) -> dict[str, Any] | None:
    """The ``prediction`` of a sweep's findings, from its best provisioned tier; None where no tier has CPU figures.

    ``error`` compares with every other tier that was measured. ``tiers`` are of one variant.
    """
    usable = [
        found for found in tiers if found.get("duration_ms") and (found.get("cpu_ms") or {}).get("mean") is not None
    ]
    if not usable:
        return None
    # At 1769 MB one thread is never stopped; more memory shows parallel work as well. A capped host shows less.
    source = max(usable, key=lambda found: (not found.get("cpu_capped"), found["memory_mb"]))
    duration_ms = source["duration_ms"]["mean"]
    throttled_ms = (source.get("throttled_share") or 0.0) * duration_ms
    work = work_of(
        cpu_ms=source["cpu_ms"]["mean"],
        duration_ms=duration_ms,
        throttled_ms=throttled_ms,
        memory_mb=source["memory_mb"],
    )
    measured = {found["memory_mb"]: found["duration_ms"]["mean"] for found in usable}
    sizes = sorted({*(memory_mb or ()), *measured})
    points = predict(work, sizes, scheduler=scheduler)
    against = [
        {
            "memory_mb": point.memory_mb,
            "measured_ms": measured[point.memory_mb],
            "predicted_ms": point.duration_ms,
            "relative_error": point.duration_ms / measured[point.memory_mb] - 1,
        }
        for point in points
        if point.memory_mb in measured and point.memory_mb != source["memory_mb"]
    ]
    error = statistics.fmean(abs(found["relative_error"]) for found in against) if against else None
    notes = []
    if work.parallel_cpu_ms:
        notes.append(
            f"{source['cpu_ms']['mean']:.1f} ms of CPU in {duration_ms:.1f} ms: work on several threads; that it used "
            f"all {work.parallelism} visible vCPUs, and waited for nothing, is assumed"
        )
    elif work.wait_ms > 0.05 * duration_ms:
        notes.append(f"{work.wait_ms:.1f} ms of waiting are taken to lie in the middle of the handler")
    if source["memory_mb"] < MEMORY_MB_PER_VCPU:
        notes.append(
            f"the best provisioned tier has {source['memory_mb']} MB, less than one vCPU: measure 1769 MB or more to "
            "tell waiting from being stopped"
        )
    if source.get("cpu_capped"):
        notes.append("the host has fewer CPUs than that tier grants: parallel work is underestimated")
    return {
        "from_memory_mb": source["memory_mb"],
        "cpu_ms": work.cpu_ms,
        "wait_ms": work.wait_ms,
        "serial_cpu_ms": work.serial_cpu_ms,
        "parallel_cpu_ms": work.parallel_cpu_ms,
        "parallelism": work.parallelism,
        "scheduler": asdict(scheduler),
        "tiers": [asdict(point) for point in points],
        "against_measured": against,
        "error": error,
        "model_error": MODEL_ERROR,
        "notes": notes,
    }
