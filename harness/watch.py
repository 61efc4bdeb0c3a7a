"""The watch over one sandbox: one thread that reads its log, relays its Runtime API and minds its clock.

Everything that must happen at an instant of the sandbox's life happens here, while the runtime waits for it: the tier's
quota is written when init is over, the timeout is counted from the hand-over of the event. What was seen of an invocation
is collected in an `Exchange`. Must not know Docker: it is given a socket that carries the log, and a network namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from harness.context import RequestContext
from harness.errors import EngineError
from harness.rie import STDOUT, Frames, Lines, LogLine, Output, Said, parse_log
from harness.runtime_api import Handlers, Relay

RELAY_PORT = 9001
"""Where the runtime finds its Runtime API, as under the bare RIE."""
RIE_API_PORT = 9101
"""Where the RIE is told to offer it, behind the relay."""

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_DEATH_PATIENCE_S = 0.5
_LONGEST_SETTLE_S = 30.0
"""How long a log that goes on coming is waited for, after the response: over a slow line, much output takes its time."""
_CHUNK = 64 * 1024  # one of 256 KiB costs ten times as much, however little arrives
_MS = 1e-6


def enter_network_namespace(pid: int) -> None:
    """Move the calling thread (alone) into the network namespace of a process; needs CAP_SYS_ADMIN."""
    # os.setns came with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), f"/proc/{pid}/ns/net")
    finally:
        os.close(descriptor)


def in_network_namespace(pid: int, make: Callable[[], T]) -> T:
    """What ``make`` returns in the network namespace of a process: sockets stay in the one they were made in."""
    made: list[T] = []
    failure: list[BaseException] = []

    def there() -> None:
        try:
            enter_network_namespace(pid)
            made.append(make())
        except BaseException as error:  # noqa: BLE001  # handed to the thread that waits
            failure.append(error)

    # A thread that has entered a namespace must not do anything else afterwards: this one ends.
    thread = threading.Thread(target=there, name=f"in-namespace-of-{pid}", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return made[0]


@dataclass(kw_only=True)
class Exchange:
    """What was seen of one invocation. Instants are `time.monotonic_ns`; None until seen."""

    timeout_s: float
    init_limit_s: float
    begun_ns: int
    context: RequestContext = field(default_factory=RequestContext)
    ahead: bool = False
    """An init alone, ahead of any request: the event is a placeholder that the relay keeps back."""
    held: threading.Event = field(default_factory=threading.Event)
    """The init ahead is over, and its runtime waits for the first event."""
    request_id: str = ""
    """As the runtime was told it; the RIE's own where nothing is relayed."""
    inits: list[str] = field(default_factory=list)
    """The phases of the inits that began meanwhile, as the RIE names them: "init", then perhaps "invoke" (suppressed)."""
    init_begun_ns: int | None = None
    init_done_ns: int | None = None
    init_ms: float | None = None
    suppressed_ms: float | None = None
    """The time of a suppressed init, as the RIE tells it."""
    init_error: bytes | None = None
    init_overrun: bool = False
    """Init took longer than Lambda's limit and was ended."""
    boost_lag_ms: float | None = None
    event_ns: int | None = None
    reply: str = ""
    reply_status: int = 0
    error_body: bytes | None = None
    done_ns: int | None = None
    rie_duration_ms: float | None = None
    rie_status: str = ""
    exits: list[str] = field(default_factory=list)
    exit_ns: int | None = None
    answered_ns: int | None = None
    overrun: bool = False
    """The function's timeout passed and its runtime was killed."""
    killed_ns: int | None = None
    output: Output = field(default_factory=Output)

    @property
    def invoke_begun_ns(self) -> int | None:
        """When Lambda's invoke phase began: a suppressed init is part of it, and stands under the same timeout."""
        if self.inits and self.inits[-1] != "init":
            return self.init_begun_ns
        return self.event_ns


def _death_is_unexplained(exchange: Exchange) -> bool:
    """Whether the runtime ended without being ready again, and the log has not said yet that it did."""
    if exchange.done_ns is not None or (exchange.exit_ns or 0) > (exchange.init_begun_ns or 0):
        return False
    return bool(exchange.inits) or exchange.event_ns is not None


@dataclass(frozen=True, kw_only=True)
class Tell:
    """What a watch tells of an invocation while it is under way; called from the watch's thread."""

    init_begun: Callable[[bool], None] = lambda _: None
    """An init begins; whether it is a suppressed one."""
    handed_over: Callable[[], None] = lambda: None
    """The event has reached the runtime."""
    output: Callable[[str | None, bytes], None] = lambda *_: None


class Watch(threading.Thread):
    """See the module. Callbacks run in this thread; what they raise ends up in `failure`."""

    def __init__(
        self,
        *,
        name: str,
        log: socket.socket,
        relay_pid: int | None,
        on_init_begun: Callable[[], None],
        on_init_done: Callable[[], None],
        kill_runtime: Callable[[], None],
        event_headers: Callable[[RequestContext], dict[bytes, bytes]],
        on_event: Callable[[], None] = lambda: None,
        on_output: Callable[[str | None, bytes], None] | None = None,
        on_sample: Callable[[], None] | None = None,
        sample_s: float = 0.02,
    ) -> None:
        super().__init__(name=f"watch-{name}", daemon=True)
        self._log_socket = log
        self._relay_pid = relay_pid
        self._on_init_begun = on_init_begun
        self._on_init_done = on_init_done
        self._kill_runtime = kill_runtime
        self._event_headers = event_headers
        self._on_handed_over = on_event
        self._on_output = on_output
        self._on_sample = on_sample
        self._sample_ns = int(sample_s * 1e9)
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pipe_closed = False
        self._frames, self._stdout, self._stderr = Frames(), Lines(), Lines()
        self._pairs: dict[socket.socket, tuple[socket.socket, Relay, bool]] = {}
        self._listener: socket.socket | None = None
        self._holding: tuple[socket.socket, Relay] | None = None
        self._to_release: bytes | None = None
        self._ids: dict[str, str] = {}
        self._exchange: Exchange | None = None
        self._initialised = False
        self._next_sample_ns = 0
        self._stopping = False
        self._ready = threading.Event()
        self._changed = threading.Condition()
        self.failure: BaseException | None = None
        self.log_lines: list[str] = []
        """The RIE's last log lines, for error messages."""
        self.log_ended = False
        self._log_reads = 0

    # -- called by the sandbox's thread ---------------------------------------------------------------------------

    @property
    def current(self) -> Exchange | None:
        """The exchange under way."""
        return self._exchange

    @property
    def relayed(self) -> bool:
        """Whether the Runtime API is relayed, or only the RIE's log is read."""
        return self._relay_pid is not None

    def begin_watching(self) -> None:
        """Start the thread and return once it listens. Raises what kept it from doing so."""
        self.start()
        self._ready.wait()
        if self.failure is not None:
            raise EngineError(f"the Runtime API cannot be relayed: {self.failure}") from self.failure

    def expect(
        self,
        *,
        timeout_s: float,
        init_limit_s: float,
        context: RequestContext | None = None,
        ahead: bool = False,
    ) -> Exchange:
        """To be called before each request; what happens from now on belongs to the returned exchange."""
        exchange = Exchange(
            timeout_s=timeout_s,
            init_limit_s=init_limit_s,
            begun_ns=time.monotonic_ns(),
            context=context or RequestContext(),
            ahead=ahead,
        )
        # The watch need not be woken: whatever sets a deadline comes through it, and it works the deadline out then.
        self._exchange = exchange
        return exchange

    def release(self, event: bytes) -> None:
        """Hand an event to the runtime that was initialised ahead of it, in place of the placeholder."""
        self._to_release = event
        self._wake()

    def settle(self, exchange: Exchange, *, timeout_s: float) -> None:
        """Wait until the log of a finished exchange has come through (its END line), or nothing of it has come for so long.

        What a runtime died of stands in the log alone: that is waited for longer, as the record would lack its end.
        """
        deadline, seen = time.monotonic() + _LONGEST_SETTLE_S, -1
        while not exchange.output.ended and seen != self._log_reads and time.monotonic() < deadline:
            seen = self._log_reads
            self._wait_while(lambda: not exchange.output.ended, timeout_s)
        if self.relayed:
            self._wait_while(lambda: _death_is_unexplained(exchange), _DEATH_PATIENCE_S)

    def _wait_while(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while condition() and not self.log_ended:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break

    def finish(self, exchange: Exchange) -> None:
        """The exchange is over; what is printed from now on belongs to none."""
        with self._changed:
            rest = self._stdout.flush()
            if rest and not exchange.output.ended:
                self._emit(exchange.output.rest(rest))
            self._exchange = None

    def stop(self) -> None:
        """End the thread; safe to call twice, and before it was started."""
        self._stopping = True
        self._wake()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(timeout=5)

    def _wake(self) -> None:
        # Once closed, the descriptor's number may be another file's.
        with self._changed, contextlib.suppress(OSError):
            if not self._pipe_closed:
                os.write(self._wake_write, b"x")

    # -- the thread -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._open()
            self._ready.set()
            while not self._stopping:
                for key, _ in self._selector.select(self._patience_s()):
                    key.data()
                self._mind_the_clock()
        except BaseException as error:  # noqa: BLE001  # a thread's failure is handed to the sandbox that owns it
            self.failure = error
        finally:
            self._ready.set()
            self._close()

    def _open(self) -> None:
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._woken)
        self._selector.register(self._log_socket, selectors.EVENT_READ, self._read_log)
        if self._relay_pid is None:
            return
        enter_network_namespace(self._relay_pid)
        self._listener = socket.create_server(("127.0.0.1", RELAY_PORT), backlog=16)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _close(self) -> None:
        with self._changed:
            self.log_ended = True
            self._changed.notify_all()
        for sock in list(self._pairs):
            sock.close()
        self._pairs.clear()
        if self._listener is not None:
            self._listener.close()
        self._selector.close()
        with contextlib.suppress(OSError):
            self._log_socket.close()
        with self._changed:
            self._pipe_closed = True
            for descriptor in (self._wake_read, self._wake_write):
                os.close(descriptor)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        event, self._to_release = self._to_release, None
        holding, self._holding = self._holding, None
        if event is None:
            self._holding = holding
        elif holding is not None and holding[0] in self._pairs:
            runtime, relay = holding
            try:
                runtime.sendall(relay.release(event))
            except OSError:
                self._hang_up(runtime)

    def _patience_s(self) -> float | None:
        exchange = self._exchange
        if exchange is None:
            return None
        now = time.monotonic_ns()
        until = [when for when in (self._deadline_ns(exchange), self._init_deadline_ns(exchange)) if when is not None]
        if self._on_sample is not None:
            if self._next_sample_ns <= now:
                self._next_sample_ns = now + self._sample_ns
            until.append(self._next_sample_ns)
        return max(0.0, (min(until) - now) / 1e9) if until else None

    @staticmethod
    def _deadline_ns(exchange: Exchange) -> int | None:
        """When the function's timeout passes."""
        if exchange.overrun or exchange.done_ns is not None or exchange.answered_ns is not None:
            return None
        begun = exchange.invoke_begun_ns
        return None if begun is None else begun + int(exchange.timeout_s * 1e9)

    @staticmethod
    def _init_deadline_ns(exchange: Exchange) -> int | None:
        if exchange.inits != ["init"] or exchange.init_begun_ns is None or exchange.init_overrun:
            return None
        if exchange.init_done_ns is not None or exchange.event_ns is not None:
            return None
        return exchange.init_begun_ns + int(exchange.init_limit_s * 1e9)

    def _mind_the_clock(self) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        now = time.monotonic_ns()
        init_deadline, deadline = self._init_deadline_ns(exchange), self._deadline_ns(exchange)
        if init_deadline is not None and now >= init_deadline:
            exchange.init_overrun = True
            self._kill_runtime()
        elif deadline is not None and now >= deadline:
            exchange.overrun = True
            exchange.killed_ns = now
            self._kill_runtime()
        if self._on_sample is not None and now >= self._next_sample_ns and exchange.done_ns is None:
            self._on_sample()

    # -- the log ----------------------------------------------------------------------------------------------------

    def _read_log(self) -> None:
        try:
            data = self._log_socket.recv(_CHUNK)
        except (ConnectionError, TimeoutError):
            data = b""
        if not data:
            self._selector.unregister(self._log_socket)
            with self._changed:
                self.log_ended = True
                self._changed.notify_all()
            return
        self._log_reads += 1
        for stream, payload in self._frames.feed(data):
            if stream == STDOUT:
                self._function_output(payload)
            else:
                for line in self._stderr.feed(payload):
                    self._log_line(line.decode("utf-8", errors="replace"))

    def _function_output(self, payload: bytes) -> None:
        with self._changed:
            exchange = self._exchange
            for line in self._stdout.feed(payload):
                given = exchange.output.line(line) if exchange is not None else line
                self._emit(given)
            if exchange is not None and exchange.output.ended:
                self._changed.notify_all()

    def _emit(self, data: bytes) -> None:
        if data and self._on_output is not None:
            exchange = self._exchange
            during = exchange is not None and exchange.event_ns is not None
            self._on_output(exchange.request_id if exchange is not None and during else None, data)

    def _log_line(self, text: str) -> None:
        self.log_lines = [*self.log_lines[-19:], text.rstrip()]
        line, exchange = parse_log(text), self._exchange
        if line is None:
            return
        if line.said is Said.INIT_START:
            self._initialised = False
            if exchange is not None:
                exchange.inits.append(line.text)
                exchange.init_begun_ns = time.monotonic_ns()
                exchange.init_done_ns = None
            self._on_init_begun()
        elif line.said is Said.INIT_DONE and line.text == "success" and not self.relayed:
            self._init_done()
        elif exchange is not None:
            self._note(line, exchange)

    def _note(self, line: LogLine, exchange: Exchange) -> None:
        if line.said is Said.INIT_REPORT:
            # Of a suppressed init it is reported too; Lambda's Init Duration is that of the init phase alone.
            # The relay holds the runtime's first call back while the quota is written, which is not the function's time.
            exchange.suppressed_ms = line.value if exchange.inits[-1:] != ["init"] else None
            if exchange.inits == ["init"] and line.value is not None:
                exchange.init_ms = line.value - (exchange.boost_lag_ms or 0.0) * self.relayed
        elif line.said is Said.INVOKE_START and not self.relayed:
            exchange.request_id = line.text
            # After an init that failed the RIE says so too, though there is no runtime to begin anything.
            if self._initialised:
                exchange.event_ns = time.monotonic_ns()
        elif line.said is Said.INVOKE_DONE:
            exchange.rie_status, exchange.rie_duration_ms = line.text, line.value
            if not self.relayed:
                # The line may have waited while the engine was asked for the quota: the RIE's own clock did not.
                exchange.done_ns = time.monotonic_ns()
                if line.value is not None:
                    exchange.event_ns = exchange.done_ns - int(line.value / _MS)
                    if exchange.suppressed_ms is not None:
                        exchange.init_begun_ns = exchange.event_ns - int(exchange.suppressed_ms / _MS)
        elif line.said is Said.RUNTIME_EXIT:
            with self._changed:
                exchange.exits.append(line.text)
                exchange.exit_ns = time.monotonic_ns()
                self._changed.notify_all()

    def _init_done(self) -> None:
        if self._initialised:
            return
        self._initialised = True
        before = time.monotonic_ns()
        exchange = self._exchange  # the sandbox's thread may end it while the quota is written
        self._on_init_done()
        if exchange is not None:
            exchange.init_done_ns = before
            exchange.boost_lag_ms = (time.monotonic_ns() - before) * _MS

    # -- the relay --------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None  # noqa: S101  # registered with the listener alone
        runtime, _ = self._listener.accept()
        try:
            rie = socket.create_connection(("127.0.0.1", RIE_API_PORT), timeout=5)
        except OSError:
            runtime.close()
            return
        relay = Relay(
            handlers=Handlers(
                on_next=self._on_next,
                on_event=self._on_event,
                on_reply=self._on_reply,
                rie_id=self._rie_id,
                holds=self._holds,
                on_held=lambda: self._on_held(runtime, relay),
            )
        )
        for sock, other, from_runtime in ((runtime, rie, True), (rie, runtime, False)):
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[sock] = (other, relay, from_runtime)
            self._selector.register(sock, selectors.EVENT_READ, lambda sock=sock: self._pass_on(sock))

    def _pass_on(self, sock: socket.socket) -> None:
        if sock not in self._pairs:
            return  # closed by an earlier event of the same round
        other, relay, from_runtime = self._pairs[sock]
        try:
            data = sock.recv(_CHUNK)
            if data:
                data = relay.from_runtime(data) if from_runtime else relay.from_rie(data)
                if data:
                    other.sendall(data)
                return
        except OSError:
            pass
        self._hang_up(sock)

    def _hang_up(self, sock: socket.socket) -> None:
        other = self._pairs[sock][0]
        for closed in (sock, other):
            if self._pairs.pop(closed, None) is not None:
                self._selector.unregister(closed)
                closed.close()

    def _on_next(self) -> None:
        exchange = self._exchange
        if exchange is not None and exchange.event_ns is not None and exchange.done_ns is None:
            exchange.done_ns = time.monotonic_ns()
        else:
            self._init_done()

    def _holds(self) -> bool:
        return self._exchange is not None and self._exchange.ahead

    def _on_held(self, runtime: socket.socket, relay: Relay) -> None:
        self._holding = (runtime, relay)
        if self._exchange is not None:
            self._exchange.held.set()

    def _rie_id(self, given: str) -> str:
        return self._ids.get(given, given)

    def _on_event(self, request_id: str) -> dict[bytes, bytes]:
        exchange = self._exchange
        headers = dict(self._event_headers(exchange.context)) if exchange is not None else {}
        if exchange is not None:
            self._ids = {exchange.context.request_id: request_id}
            exchange.request_id = exchange.context.request_id
            self._on_handed_over()
            # The wall clock, as on Lambda: runtimes compare the deadline with theirs.
            now = time.monotonic_ns()
            exchange.event_ns = now
            spent_s = (now - (exchange.invoke_begun_ns or now)) / 1e9
            deadline_ms = int((time.time() + exchange.timeout_s - spent_s) * 1000)
            headers[b"lambda-runtime-deadline-ms"] = str(deadline_ms).encode()
        return headers

    def _on_reply(self, kind: str, status: int, body: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        if kind == "init_error":
            exchange.init_error = body
            return
        if not exchange.reply or kind == "error":
            exchange.reply, exchange.reply_status = kind, status
        if kind == "error":
            exchange.error_body = body
