"""The receivers of one command or service: sockets on 127.0.0.1 of each sandbox, and what came in by them.

The sandbox's vantage opens them, where nobody but the function finds them, and one loop serves those of all sandboxes. The
function's CPU and memory pay nothing for them. Must not know sandboxes, only their ids, nor how their networks are reached.
"""

from __future__ import annotations

import datetime
import functools
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from harness.errors import EngineError, HarnessError, UsageError
from harness.receivers import cloudwatch, emf, lambda_segments, xray
from harness.receivers.http_exchange import Reply, Request
from harness.receivers.loop import Bounds, Handlers, Loop
from harness.vantage import Endpoints, Listening, SocketServer
from harness.vantage.listening import HOST

if TYPE_CHECKING:
    from harness.context import Trace
    from harness.invocation import Invocation

KINDS = ("cloudwatch", "xray")
MOST_SEGMENTS = 50_000
_MOST_METRICS = 100_000
_MOST_WARNINGS = 200
_SETTLE_S = 2.0
_LOST = "datagrams were lost, as UDP loses them: a function sent them faster than they were taken"

OnMetrics = Callable[[list[dict[str, Any]]], None]
OnSegment = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the receivers listen in each namespace. 2000 is the X-Ray daemon's; 9102 stands next to the RIE's API."""

    xray: int = 2000
    cloudwatch: int = 9102


class Network(Protocol):
    """The way into one sandbox's network; see `harness.vantage.Attendant.listen`."""

    def listen(self, endpoints: Endpoints, server: SocketServer) -> Listening: ...


class Attendance:
    """The open sockets of one sandbox. `close` reads what has arrived and closes them; safe to call twice."""

    def __init__(self, sandbox_id: str, loop: Loop, listening: Listening, forget: Callable[[], None]) -> None:
        self._forget = forget
        self.sandbox_id = sandbox_id
        self.addresses = listening.addresses
        """``xray`` (UDP and TCP) and ``cloudwatch`` (TCP), those that were opened; valid in the sandbox's namespace."""
        self._listening = listening
        self._loop = loop

    def settle(self, timeout_s: float) -> None:
        """Return once everything that the function had sent before has been handled, or the time is up."""
        deadline = time.monotonic() + timeout_s
        if threading.current_thread() is not self._loop:
            self._listening.settle(timeout_s)
            self._loop.settle(self.sandbox_id, timeout_s=deadline - time.monotonic())

    def close(self) -> None:
        self.settle(_SETTLE_S)
        self._loop.remove(self.sandbox_id, timeout_s=_SETTLE_S)
        self._listening.close()
        self._forget()


class _Sandbox:
    """See `harness.vantage.SocketServer`: hands everything to the loop, under the sandbox's id."""

    def __init__(self, sandbox_id: str, loop: Loop, lost: Callable[[int], None]) -> None:
        self._id, self._loop, self._lost = sandbox_id, loop, lost

    def serve(self, listeners: Mapping[str, socket.socket], datagrams: socket.socket | None) -> None:
        self._loop.add(self._id, datagrams, listeners)

    def connected(self, name: str, connection: socket.socket) -> None:
        self._loop.connect(self._id, name, connection)

    def received(self, datagrams: Sequence[bytes], done: Callable[[], None]) -> None:
        self._loop.receive(self._id, datagrams, done)

    def lost(self, datagrams: int) -> None:
        self._lost(datagrams)


class Receivers:
    """See the module. A context manager; every method may be called from any thread and after the end.

    Args:
        kinds: Which to open, of ``cloudwatch`` and ``xray``.
        on_metrics: Called with each batch of metric data as it comes in, from a thread of the receivers.
        on_segment: Called with each segment document as it comes in, those that Lambda itself would send included.
        ports: Others than usual, for sandboxes that share a namespace; 0 takes a free one.
        bounds: Limits of connections, sizes and times.
        on_warning: Called with each of `warnings` when it comes for the first time.
        most_segments: How many are kept for `xray`; whoever takes them by ``on_segment`` needs few.
    """

    def __init__(
        self,
        kinds: Collection[str] = KINDS,
        *,
        on_metrics: OnMetrics | None = None,
        on_segment: OnSegment | None = None,
        ports: Ports | None = None,
        bounds: Bounds | None = None,
        most_segments: int = MOST_SEGMENTS,
        on_warning: Callable[[str], None] = lambda _: None,
    ) -> None:
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown:
            raise UsageError(f"there is no receiver {unknown[0]!r}", remedy=f"choose from {', '.join(KINDS)}")
        self.kinds = tuple(kind for kind in KINDS if kind in kinds)
        self._on_metrics, self._on_segment = on_metrics, on_segment
        self._ports = ports or Ports()
        self._bounds = bounds
        self._lock = threading.Lock()
        self._loop: Loop | None = None
        self._closed = False
        self._metrics: deque[dict[str, Any]] = deque(maxlen=_MOST_METRICS)
        self._metrics_dropped = 0
        self._on_warning = on_warning
        self._at_work: dict[str, tuple[str, str | None]] = {}
        self._attendances: dict[str, Attendance] = {}
        self._datagrams_lost = 0
        self._traces = xray.Traces(most_segments=most_segments)
        self._warnings: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every socket and end the threads; what came in stays readable."""
        with self._lock:
            loop, self._closed = self._loop, True
            attendances = list(self._attendances.values())
        for each in attendances:
            each.close()
        if loop is not None:
            loop.stop()

    # -- for sandboxes ------------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """What the function's environment needs so that SDKs send here."""
        found: dict[str, str] = {}
        if "cloudwatch" in self.kinds:
            url = f"http://{HOST}:{self._ports.cloudwatch}"
            # CloudWatch Logs is not stood for: its calls get an error that says so, and do not leave the machine.
            found |= {"AWS_ENDPOINT_URL_CLOUDWATCH": url, "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": url}
        if "xray" in self.kinds:
            found |= {
                "AWS_XRAY_DAEMON_ADDRESS": f"{HOST}:{self._ports.xray}",
                "_AWS_XRAY_DAEMON_ADDRESS": HOST,
                "_AWS_XRAY_DAEMON_PORT": str(self._ports.xray),
                "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
                "AWS_ENDPOINT_URL_XRAY": f"http://{HOST}:{self._ports.xray}",
            }
        return found

    def attend(self, sandbox_id: str, network: Network) -> Attendance:
        """Open the sockets in a sandbox's network; `EngineError` where that is not possible."""
        loop = self._running_loop()
        loop.add(sandbox_id)
        server = _Sandbox(sandbox_id, loop, self._lost)
        ports = {kind: getattr(self._ports, kind) for kind in self.kinds}
        endpoints = Endpoints(tcp=ports, udp="xray" if "xray" in self.kinds else None)
        try:
            listening = network.listen(endpoints, server)
        except (OSError, HarnessError) as error:
            loop.remove(sandbox_id, timeout_s=_SETTLE_S)
            raise EngineError(
                f"the receivers cannot be opened in sandbox {sandbox_id}: {error}",
                remedy="see that nothing in the image listens on these ports, or run without receivers",
            ) from error
        attendance = Attendance(sandbox_id, loop, listening, functools.partial(self._left, sandbox_id))
        with self._lock:
            self._attendances[sandbox_id] = attendance
        return attendance

    def _lost(self, datagrams: int) -> None:
        with self._lock:
            first = not self._datagrams_lost
            self._datagrams_lost += datagrams
        if first:
            self._on_warning(_LOST)

    def _left(self, sandbox_id: str) -> None:
        with self._lock:
            self._at_work.pop(sandbox_id, None)
            self._attendances.pop(sandbox_id, None)

    def _running_loop(self) -> Loop:
        with self._lock:
            if self._closed:
                raise EngineError("the receivers have been closed already")
            if self._loop is None:
                if "cloudwatch" in self.kinds:
                    cloudwatch.preload()
                self._loop = Loop(
                    Handlers(
                        datagram=self._datagram,
                        request=self._request,
                        overloaded=_overloaded,
                        trouble=self._warn,
                    ),
                    self._bounds,
                )
                self._loop.start()
            return self._loop

    def output(self, sandbox_id: str, request_id: str | None, function: str, data: bytes) -> None:
        """Whole lines that a function printed: metrics in the embedded format are taken from them."""
        if "cloudwatch" not in self.kinds or b"CloudWatchMetrics" not in data:
            return
        now = datetime.datetime.now(datetime.UTC)
        for line in data.split(b"\n"):
            found = emf.read(line, now=now)
            if found is None:
                continue
            at = f"function {function}" + (f", request {request_id}" if request_id else ", outside of any request")
            for complaint in found.complaints:
                self._warn(f"embedded metric format of {at}: {complaint}")
            origin = {"source": "emf", "function": function, "sandbox_id": sandbox_id, "request_id": request_id}
            self._keep([{**entry, **origin} for entry in found.metrics])

    def begin(self, sandbox_id: str, function: str, request_id: str) -> None:
        """A request begins in a sandbox: what comes by its sockets from now on is this one's, until `invocation`."""
        with self._lock:
            self._at_work[sandbox_id] = (function, request_id)

    def invocation(self, record: Invocation, trace: Trace, *, caller_id: str | None = None) -> None:
        """An invocation is over: makes the segments that Lambda itself would send.

        ``caller_id`` is the ``Parent`` of the header that the caller sent, which Lambda's own segment hangs below.
        """
        with self._lock:
            attendance = self._attendances.get(record.sandbox_id)
        if attendance is not None:
            attendance.settle(
                _SETTLE_S
            )  # what it sent without waiting for an answer has arrived, and may not be read yet
        if record.freeze_ms is None:
            # It runs on, and what it sends before the next request is nobody's. Frozen, it sends nothing.
            with self._lock:
                self._at_work[record.sandbox_id] = (record.function, None)
        if "xray" in self.kinds:
            for document in lambda_segments.segments(record, trace, caller_id=caller_id):
                self._take_segment(document)

    # -- what came in -------------------------------------------------------------------------------------------------

    @property
    def cloudwatch(self) -> list[dict[str, Any]]:
        """Metric data in the order in which they came.

        Each has PutMetricData's members and ``source`` (api or emf), ``function``, ``sandbox_id`` and ``request_id``: None
        where it came outside of any request.
        """
        self._settle()
        with self._lock:
            return [dict(entry) for entry in self._metrics]

    @property
    def xray(self) -> list[dict[str, Any]]:
        """Segments as trees; see `harness.receivers.xray.Traces.trees`."""
        self._settle()
        return self._traces.trees()

    @property
    def warnings(self) -> list[str]:
        """What was refused or not understood, one sentence each; the same sentence once."""
        self._settle()
        with self._lock:
            found = [text if times == 1 else f"{text} ({times} times)" for text, times in self._warnings.items()]
            if self._metrics_dropped:
                found.append(f"{self._metrics_dropped} metric data were let go: {_MOST_METRICS} are kept")
            if self._datagrams_lost:
                found.append(f"{self._datagrams_lost} {_LOST}")
        if self._traces.dropped:
            found.append(f"{self._traces.dropped} segments of the oldest traces were let go")
        return found

    def _settle(self) -> None:
        deadline = time.monotonic() + _SETTLE_S
        with self._lock:
            loop, attendances = self._loop, list(self._attendances.values())
        for each in attendances:
            each.settle(deadline - time.monotonic())
        if loop is not None and threading.current_thread() is not loop:
            loop.settle(timeout_s=deadline - time.monotonic())  # sandboxes that are gone, too

    def _warn(self, text: str) -> None:
        with self._lock:
            new = text not in self._warnings
            if new and len(self._warnings) >= _MOST_WARNINGS:
                return
            self._warnings[text] = self._warnings.get(text, 0) + 1
        if new:
            self._on_warning(text)

    def _datagram(self, sandbox_id: str, data: bytes) -> None:
        try:
            document = xray.read_datagram(data)
        except xray.InvalidSegment as error:
            self._warn(f"X-Ray receiver did not take a datagram of sandbox {sandbox_id}: {error}")
            return
        self._take_segment(document)

    def _request(self, sandbox_id: str, service: str, request: Request) -> Reply:
        now = datetime.datetime.now(datetime.UTC)
        if service == "xray":
            traced = xray.answer(request, now=now)
            for warning in traced.warnings:
                self._warn(warning)
            for document in traced.documents:
                self._take_segment(document)
            return traced.reply
        answered = cloudwatch.answer(request, now=now)
        if answered.warning:
            self._warn(answered.warning)
        with self._lock:
            name, request_id = self._at_work.get(sandbox_id, (None, None))
        origin = {"source": "api", "function": name, "sandbox_id": sandbox_id, "request_id": request_id}
        self._keep([{**entry, **origin} for entry in answered.metrics])
        return answered.reply

    def _take_segment(self, document: dict[str, Any]) -> None:
        self._traces.add(document)
        if self._on_segment is not None:
            self._told(functools.partial(self._on_segment, document))

    def _keep(self, entries: list[dict[str, Any]]) -> None:
        if not entries:
            return
        with self._lock:
            self._metrics_dropped += max(0, len(self._metrics) + len(entries) - _MOST_METRICS)
            self._metrics.extend(entries)
            copies = [dict(entry) for entry in entries]
        if self._on_metrics is not None:
            self._told(functools.partial(self._on_metrics, copies))

    def _told(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  # whoever listens must not end the receivers
            self._warn(f"a listener of the receivers failed: {type(error).__name__}: {error}")


def _overloaded(service: str, request: Request) -> Reply:
    return xray.throttled() if service == "xray" else cloudwatch.throttled(request)
