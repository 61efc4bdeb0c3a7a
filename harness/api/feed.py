"""What happens in the service, as events for the page: kept as a snapshot, handed to every page that is connected.

Observers are called from the threads of sandboxes, in the middle of invocations, so nothing here waits for anybody: an
event is noted and put into bounded queues, and a page that does not keep up is dropped and told to come back for a new
snapshot. Memory is read by one thread, and only while a page looks. Must not know HTTP, and must not keep payloads:
of a response the feed keeps its beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness import lifecycle
from harness.function.model import DEFAULT_REGION, LATEST
from harness.invocation import Outcome
from harness.observer import Observer

if TYPE_CHECKING:
    from harness.context import RequestContext
    from harness.function import Function
    from harness.invocation import Invocation
    from harness.sandbox import Sandbox

Event = dict[str, Any]

SAMPLE_S = 0.25
_FROZEN_SAMPLED_EVERY = 8
"""A frozen sandbox allocates nothing; the kernel may only take pages away. So after one look it is looked at rarely."""
_SAMPLES_AT_ONCE = 200
BATCH_S = 0.05
"""Events of this long go out as one message: the eye sees no less, and a busy service sends no thousand messages."""
QUEUE_EVENTS = 4000
MAX_PAGES = 32
_TEXT = 2000
"""Characters that are kept of whatever a function can make arbitrarily long."""
_PREVIEW_BYTES = 64 * 1024
"""Larger responses are not even turned into text for a preview: that would hold up the invocation's thread."""
_SEGMENTS = 200
_HISTORY = 240
"""Changes of phase, and samples of memory, that are kept of each sandbox: what a page draws when it has just connected."""

_RUNTIME_LOST = frozenset(
    {Outcome.OUT_OF_MEMORY, Outcome.TIMEOUT, Outcome.RUNTIME_EXIT, Outcome.INIT_ERROR, Outcome.INIT_TIMEOUT}
)
"""After these the box of a sandbox says what ended its runtime, until the next init."""

_PHASES: dict[type[object], str] = {
    lifecycle.Created: "created",
    lifecycle.Started: "started",
    lifecycle.Initialising: "initialising",
    lifecycle.Reinitialising: "reinitialising",
    lifecycle.Invoking: "invoking",
    lifecycle.Idle: "idle",
    lifecycle.Frozen: "frozen",
    lifecycle.Broken: "broken",
    lifecycle.FrozenBroken: "frozen_broken",
    lifecycle.ShutDown: "shut_down",
}

_REPORTED = (
    "request_id",
    "function",
    "memory_mb",
    "sandbox_id",
    "sequence",
    "cold",
    "phase_init",
    "started_at",
    "outcome",
    "error_type",
    "error_message",
    "init_ms",
    "duration_ms",
    "billed_ms",
    "frozen_ms",
    "thaw_ms",
    "freeze_ms",
    "client_ms",
    "cpu_ms",
    "throttled_ms",
    "peak_rss_bytes",
    "max_memory_used_mb",
    "cost_usd",
    "response_bytes",
    "log_tail",
    "report",
)
"""The fields of a record that a page is given."""


@dataclass(kw_only=True)
class _Box:
    """A sandbox as the page shows it."""

    sandbox: Sandbox
    version: str
    phase: str
    at_ms: float
    invocations: int = 0
    failure: Event | None = None
    resident_bytes: int | None = None
    looked_ms: float = 0.0
    phases: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    memory: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_HISTORY))

    def event(self) -> Event:
        function = self.sandbox.function
        return {
            "type": "sandbox",
            "id": self.sandbox.id,
            "function": function.name,
            "version": self.version,
            "memory_mb": function.memory_mb,
            "phase": self.phase,
            "at_ms": self.at_ms,
            "log_stream": self.sandbox.log_stream,
        }

    def whole(self) -> Event:
        return self.event() | {
            "limit_bytes": _limit_bytes(self.sandbox.function),
            "resident_bytes": self.resident_bytes,
            "invocations": self.invocations,
            "failure": self.failure,
            "phases": list(self.phases),
            "memory": list(self.memory),
        }


class _Page:
    """One page that is connected: a bounded queue, filled from any thread and emptied by one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: list[Event] = []
        self._awake = False
        self.something = asyncio.Event()
        self.lost = False
        self.over = False

    # The feed's lock is held in all of these.

    def put(self, events: Iterable[Event]) -> None:
        if self.lost:
            return
        self._queue.extend(events)
        if len(self._queue) > QUEUE_EVENTS:
            self._queue.clear()
            self.lost = True
        self.wake()

    def wake(self) -> None:
        if not self._awake:
            self._awake = True
            with contextlib.suppress(RuntimeError):  # the loop was closed under us: nobody is there to be woken
                self._loop.call_soon_threadsafe(self.something.set)

    def take(self) -> list[Event]:
        found, self._queue = self._queue, []
        self._awake = False
        self.something.clear()
        return found


class TooManyPages(Exception):
    """More pages are connected than a feed serves."""


class Feed(Observer):
    """Give it to the service as its observer, tell it of functions and of what receivers take; then `close` it."""

    def __init__(self, *, region: str = DEFAULT_REGION, sample_s: float = SAMPLE_S) -> None:
        self._region = region
        self._sample_s = sample_s
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._functions: dict[tuple[str, str], Event] = {}
        self._boxes: dict[str, _Box] = {}
        self._reports: deque[Event] = deque(maxlen=50)
        self._metrics: deque[Event] = deque(maxlen=300)
        self._segments: dict[tuple[str, str], Event] = {}
        self._messages: deque[Event] = deque(maxlen=30)
        self._outcomes: Counter[str] = Counter()
        self._cold = 0
        self._pages: set[_Page] = set()
        self._sampler: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Send every page away and end the sampling; safe to call twice, and from any thread."""
        with self._lock:
            self._closed = True
            for page in self._pages:
                page.over = True
                page.wake()
            self._changed.notify_all()
            sampler = self._sampler
        if sampler is not None and sampler is not threading.current_thread():
            sampler.join()

    # -- what sandboxes tell --------------------------------------------------------------------------------------

    def phase(self, sandbox: Sandbox, phase: lifecycle.Phase) -> None:
        name, now = _PHASES[type(phase)], _now_ms()
        with self._lock:
            box = self._boxes.get(sandbox.id)
            if box is None:
                if name == "shut_down":
                    return
                box = self._boxes[sandbox.id] = _Box(
                    sandbox=sandbox, version=_version(sandbox.function), phase=name, at_ms=now
                )
                self._know(sandbox.function)
            box.phase, box.at_ms = name, now
            box.phases.append((now, name))
            if name in {"reinitialising", "invoking"}:
                box.failure = None
            if name in {"broken", "frozen_broken"}:
                box.resident_bytes = None  # nothing is left that could hold memory, until the next init
            if name == "shut_down":
                del self._boxes[sandbox.id]
            self._publish(box.event())

    def invoked(self, sandbox: Sandbox, record: Invocation, context: RequestContext) -> None:  # noqa: ARG002
        self.recorded(record, version=_version(sandbox.function))

    def recorded(self, record: Invocation, *, version: str = LATEST) -> None:
        """A record that no sandbox stands behind, a throttled request say, is told here; all others come by `invoked`."""
        report = {"type": "report", "at_ms": _now_ms(), "version": version} | _reported(record)
        with self._lock:
            self._outcomes[str(record.outcome)] += 1
            self._cold += record.cold and record.outcome is not Outcome.THROTTLED
            self._reports.append(report)
            box = self._boxes.get(record.sandbox_id)
            if box is not None:
                box.invocations = record.sequence
                if record.outcome in _RUNTIME_LOST:
                    box.failure = {
                        "outcome": str(record.outcome),
                        "error_type": record.error_type,
                        "error_message": report["error_message"],
                        "max_memory_used_mb": record.max_memory_used_mb,
                    }
            self._publish(report)

    # -- what the service and its receivers tell -------------------------------------------------------------------

    def function(self, found: Mapping[str, Any]) -> None:
        """A function or one of its versions is there, or has changed.

        ``name`` is needed; ``version``, ``runtime``, ``memory_mb``, ``timeout_s``, ``state``, ``state_reason``,
        ``description`` and ``events`` (a list of ``{"name", "text"}``) are shown where they are known.
        """
        with self._lock:
            key = (str(found["name"]), str(found.get("version") or LATEST))
            kept = {"events": self._functions.get(key, {}).get("events")}
            self._functions[key] = {"type": "function", "name": key[0], "version": key[1]} | kept | dict(found)
            self._publish(self._functions[key])

    def function_deleted(self, name: str, version: str | None = None) -> None:
        """A function is gone, or one version of it."""
        with self._lock:
            for key in [key for key in self._functions if key[0] == name and version in {None, key[1]}]:
                del self._functions[key]
            self._publish({"type": "function_deleted", "name": name, "version": version})

    def metrics(self, found: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
        """Metric data arrived: one, or several."""
        data = [found] if isinstance(found, Mapping) else list(found)
        events = [{"type": "metric", "at_ms": _now_ms(), "datum": dict(each)} for each in data]
        with self._lock:
            self._metrics.extend(events)
            self._publish(*events)

    def segment(self, found: Mapping[str, Any]) -> None:
        """A segment arrived, or one that is known has grown: its trace and ``id`` tell."""
        event = {"type": "segment", "at_ms": _now_ms(), "segment": dict(found)}
        with self._lock:
            key = (str(found.get("trace_id")), str(found.get("id")))
            self._segments.pop(key, None)
            self._segments[key] = event
            while len(self._segments) > _SEGMENTS:
                del self._segments[next(iter(self._segments))]
            self._publish(event)

    def message(self, text: str, *, level: str = "info") -> None:
        """Something that people should read; ``level`` is info, warning or error."""
        event = {"type": "message", "at_ms": _now_ms(), "level": level, "text": text[:_TEXT]}
        with self._lock:
            self._messages.append(event)
            self._publish(event)

    # -- what pages get -------------------------------------------------------------------------------------------

    def snapshot(self) -> Event:
        """Everything that a page needs in order to begin; times are milliseconds since the epoch by this clock."""
        with self._lock:
            return {
                "type": "snapshot",
                "now_ms": _now_ms(),
                "region": self._region,
                "functions": list(self._functions.values()),
                "sandboxes": [box.whole() for box in self._boxes.values()],
                "reports": list(self._reports),
                "metrics": list(self._metrics),
                "segments": list(self._segments.values()),
                "messages": list(self._messages),
                "totals": {"outcomes": dict(self._outcomes), "cold": self._cold},
            }

    async def frames(self) -> AsyncGenerator[dict[str, str], None]:
        """Server-sent events for one page: ``snapshot``, then ``events`` (a list each), at last ``reconnect``.

        Raises `TooManyPages` at the first step where there are too many already.
        """
        page, snapshot = self._join()
        try:
            yield {"event": "snapshot", "data": text_of(snapshot)}
            while True:
                await page.something.wait()
                await asyncio.sleep(BATCH_S)
                with self._lock:
                    events = page.take()
                if events:
                    yield {"event": "events", "data": text_of(events)}
                if page.lost or page.over:
                    yield {"event": "reconnect", "data": "over" if page.over else "behind"}
                    return
        finally:
            with self._lock:
                self._pages.discard(page)
                self._changed.notify_all()

    @property
    def pages(self) -> int:
        """How many pages are connected."""
        with self._lock:
            return len(self._pages)

    @property
    def full(self) -> bool:
        """Whether one page more would be too many."""
        return self.pages >= MAX_PAGES

    def _join(self) -> tuple[_Page, Event]:
        page = _Page(asyncio.get_running_loop())
        with self._lock:
            if len(self._pages) >= MAX_PAGES:
                raise TooManyPages
            page.over = self._closed
            if page.over:
                page.something.set()
            self._pages.add(page)
            if self._sampler is None and not self._closed:
                self._sampler = threading.Thread(target=self._sample, name="feed-memory", daemon=True)
                self._sampler.start()
            # In the same breath as the page's first event: nothing is missing between the two, and nothing comes twice.
            return page, self.snapshot()

    def _publish(self, *events: Event) -> None:
        for page in self._pages:
            page.put(events)

    def _know(self, function: Function) -> None:
        """Functions make themselves known by their sandboxes where nobody has told of them before."""
        if (function.name, _version(function)) not in self._functions:
            self.function(card(function))

    # -- memory ---------------------------------------------------------------------------------------------------

    def _sample(self) -> None:
        beat = 0
        while True:
            with self._lock:
                if self._pages and not self._closed:
                    self._changed.wait(self._sample_s)
                if not self._pages or self._closed:
                    self._sampler = None
                    return
                due = [
                    box
                    for at, box in enumerate(self._boxes.values())
                    if "frozen" not in box.phase
                    or box.looked_ms < box.at_ms
                    or (beat + at) % _FROZEN_SAMPLED_EVERY == 0
                ]
            start = beat * _SAMPLES_AT_ONCE % max(1, len(due))
            turn = due if len(due) <= _SAMPLES_AT_ONCE else (due[start:] + due[:start])[:_SAMPLES_AT_ONCE]
            for box in turn:
                box.looked_ms = _now_ms()
            # The lock is not held while /proc is read: invocations go on meanwhile.
            found = [(box, box.sandbox.resident_bytes()) for box in turn]
            self._sampled([(box, resident) for box, resident in found if resident is not None])
            beat += 1

    def _sampled(self, found: list[tuple[_Box, int]]) -> None:
        now = _now_ms()
        with self._lock:
            found = [(box, resident) for box, resident in found if "broken" not in box.phase]
            for box, resident in found:
                box.resident_bytes = resident
                box.memory.append((now, resident))
            self._publish(
                *(
                    {
                        "type": "memory",
                        "id": box.sandbox.id,
                        "at_ms": now,
                        "resident_bytes": resident,
                        "limit_bytes": _limit_bytes(box.sandbox.function),
                    }
                    for box, resident in found
                )
            )


def card(function: Function) -> Event:
    """What a page shows of a function, and the sample events that its form offers."""
    return {
        "name": function.name,
        "version": _version(function),
        "runtime": function.runtime or "image",
        "memory_mb": function.memory_mb,
        "timeout_s": function.timeout_s,
        "architecture": function.architecture,
        "description": function.description[:_TEXT],
    } | ({"events": list(_sample_events(function))} if function.events else {})


def text_of(found: Any) -> str:
    """JSON on one line, and such that a browser can read: what a function sends may hold NaN."""
    from harness.reports.export import strict_json

    return strict_json(found)


def _sample_events(function: Function) -> Iterable[Event]:
    for path in function.events[:20]:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if len(text) <= _PREVIEW_BYTES:
            yield {"name": path.name, "text": text}


def _reported(record: Invocation) -> Event:
    found: Event = {name: getattr(record, name) for name in _REPORTED}
    for name in ("error_message", "log_tail"):
        found[name] = _cut(found[name], 2 * _TEXT)
    found["response"] = _preview(record)
    return found


def _preview(record: Invocation) -> str | None:
    if record.response_bytes is None:
        return None
    if record.response_bytes > _PREVIEW_BYTES:
        return ""
    return _cut(json.dumps(record.response, ensure_ascii=False, default=str), _TEXT)


def _cut(text: str | None, most: int) -> str | None:
    return text if text is None or len(text) <= most else text[:most] + " ..."


def _version(function: Function) -> str:
    return function.version


def _limit_bytes(function: Function) -> int:
    return function.memory_mb * 1024 * 1024


def _now_ms() -> float:
    return round(time.time() * 1000, 1)
