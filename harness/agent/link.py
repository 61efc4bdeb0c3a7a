"""The harness's side of its agent: calls and their answers over one stream, and what the agent tells of each sandbox.

Must not know the engine: it is given a stream. A call that the agent cannot answer any more raises `EngineError`.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from harness.agent import wire
from harness.errors import EngineError

_CALL_S = 60.0
"""How long a call may take that waits for nothing but the kernel; in a loaded virtual machine that is long."""
_PINGS = 7
_PING_S = 10.0
_DRIFT = 1000
"""Two clocks that run differ by less than a thousandth."""
_STANDSTILL_NS = 100_000_000
"""By so much beyond that has its clock to fall behind to be told."""
_END_S = 5.0

Told = Callable[[str, dict[str, Any], bytes], None]


class Stream(Protocol):
    """Both directions of the agent's standard streams. ``read`` returns b"" at the end."""

    def read(self) -> bytes: ...

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...

    def last_words(self) -> str:
        """What the other side printed to its standard error last."""


class Hears(Protocol):
    """Is told what the agent tells, in order."""

    def put(self, what: str, about: dict[str, Any], body: bytes) -> None:
        """In the link's own thread: must wait for nothing."""

    def close(self) -> None: ...


class Link:
    """One agent. Safe to use from threads. ``on_silence`` is called once it answers nothing any more."""

    def __init__(self, stream: Stream, *, on_silence: Callable[[], None] = lambda: None) -> None:
        self._stream, self._on_silence = stream, on_silence
        self._writing = threading.Lock()
        self._state = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, _Call] = {}
        self._listeners: dict[str, Hears] = {}
        self._over: EngineError | None = None
        self._one_clock = False
        self._ahead_ns = 0
        self._floor: tuple[int, int] | None = None
        """By how much its clock was ahead at least, and when."""
        self.stood_still_ns = 0
        """For how long in all its clock did not go on while this one's did: a paused virtual machine."""
        self.about: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._listen, name="agent-link", daemon=True)

    def open(self, *, boot_id: str | None, patience_s: float) -> None:
        """Say hello and find out how the agent's clock stands to this process's; raises `EngineError`."""
        self._thread.start()
        self.about, _ = self.call("hello", patience_s=patience_s)
        if boot_id is not None and self.about["boot_id"] == boot_id:
            self._one_clock = True
            self._ahead_ns = 0
            return
        quickest = None
        for _ in range(_PINGS):
            before = time.monotonic_ns()
            there, _ = self.call("now")
            took = time.monotonic_ns() - before
            if quickest is None or took < quickest:
                quickest, self._ahead_ns = took, there - (before + took // 2)

    @property
    def over(self) -> bool:
        """Whether the agent is gone: every call fails from now on."""
        with self._state:
            return self._over is not None

    def here_ns(self, there_ns: int) -> int:
        """An instant of the agent's monotonic clock by this process's. Differences of two are exact."""
        return there_ns - self._ahead_ns

    def call(
        self, do: str, *, seat: str | None = None, body: bytes = b"", patience_s: float = _CALL_S, **given: Any
    ) -> tuple[Any, bytes]:
        """Ask the agent, and wait for its answer at most ``patience_s``; raises what went wrong there."""
        number = next(self._numbers)
        data = wire.Frame({"id": number, "seat": seat, "do": do, "with": given}, body).pack()
        call = _Call()
        with self._state:
            if self._over is not None:
                raise self._fresh(self._over)
            self._waiting[number] = call
        try:
            self._write(data)
            return call.answer.result(patience_s)
        except TimeoutError:
            raise self._unanswered(do, patience_s) from None
        finally:
            with self._state:
                self._waiting.pop(number, None)

    def _unanswered(self, do: str, patience_s: float) -> EngineError:
        """The error to raise. Where a question that needs no time gets no answer, nothing else will."""
        reason = f"the agent has not answered '{do}' within {patience_s:g} s"
        remedy = "see that the engine's machine runs, and is not overloaded, and run the command again"
        if do != "now":
            with contextlib.suppress(EngineError):
                self.call("now", patience_s=_PING_S)
                return EngineError(reason, remedy=remedy)
        if do == "now":
            reason = "the agent does not answer any more"
        error = EngineError(f"{reason}, as if the engine's machine were paused or overloaded", remedy=remedy)
        self._end(error)
        self._on_silence()
        return error

    def _write(self, data: bytes) -> None:
        with self._writing:
            try:
                self._stream.write(data)
            except BaseException as error:
                # Interrupted, perhaps: what of the frame has gone out is not known, and whatever followed would be taken
                # for the rest of it.
                reason = f"the agent is gone: {str(error) or type(error).__name__}"
                gone = EngineError(reason, remedy="run the command again")
                self._end(gone)
                if isinstance(error, OSError):
                    raise self._fresh(gone) from error
                raise

    def tell(self, what: str, *, seat: str, body: bytes = b"", **about: Any) -> None:
        """Say something that is not answered; arrives in order. Raises `EngineError` where the agent is gone."""
        with self._state:
            if self._over is not None:
                raise self._fresh(self._over)
        self._write(wire.Frame({"seat": seat, "tell": what, "with": about}, body).pack())

    def attach(self, name: str, hears: Hears) -> None:
        """What the agent tells under this name goes to ``hears``, which is closed by `forget`."""
        with self._state:
            self._listeners[name] = hears

    def listen(self, seat: str, told: Told) -> Listener:
        """What the agent tells of a sandbox from now on goes to ``told``, in order, in a thread of its own."""
        listener = Listener(seat, told)
        self.attach(seat, listener)
        return listener

    def forget(self, seat: str) -> None:
        with self._state:
            listener = self._listeners.pop(seat, None)
        if listener is not None:
            listener.close()

    def close(self) -> None:
        """End the agent: it makes every sandbox removable first."""
        self._stream.close()
        if self._thread.is_alive():
            self._thread.join(_END_S)

    def _listen(self) -> None:
        frames, reason = wire.Frames(), "it ended"
        try:
            while data := self._stream.read():
                for frame in frames.feed(data):
                    self._take(frame)
        except Exception as error:  # noqa: BLE001  # whatever it is: nobody else would end the calls that wait
            reason = str(error) if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {error}"
        words = self._stream.last_words()
        self._end(
            EngineError(
                f"the agent is gone: {reason}" + (f" (it said: {words})" if words else ""),
                remedy="see that the engine still runs, and run the command again",
            )
        )

    def _take(self, frame: wire.Frame) -> None:
        head = frame.head
        with self._state:
            call = self._waiting.get(head["id"]) if "id" in head else None
            listener = self._listeners.get(head["seat"]) if "tell" in head else None
        if listener is not None:
            listener.put(head["tell"], head["with"], frame.body)
        if call is None:
            return  # given up, or of a sandbox that is over
        self._set_clock(call.asked_ns, head["now"])
        with self._state:
            if call.answer.done():
                return
            if "failed" in head:
                call.answer.set_exception(wire.raised(head["failed"]))
            else:
                call.answer.set_result((head["found"], frame.body))

    def _set_clock(self, asked_ns: int, there_ns: int) -> None:
        """Clocks drift, and a machine may sleep: the agent's instant lies between the question and its answer's arrival."""
        if self._one_clock:
            return
        now = time.monotonic_ns()
        least, most, before = there_ns - now, there_ns - asked_ns, self._ahead_ns
        self._ahead_ns = min(max(before, least), most)
        if self._floor is not None:
            floor, since = self._floor
            floor -= (now - since) // _DRIFT
            if most < floor - _STANDSTILL_NS:
                # It was ahead by more than it can be now: no slow answer does that, only a clock that stood.
                self.stood_still_ns += before - self._ahead_ns
            else:
                least = max(least, floor)
        self._floor = least, now

    def _end(self, error: EngineError) -> None:
        with self._state:
            self._over = self._over or error  # the first reason is the cause of the others
            for each in self._waiting.values():
                if not each.answer.done():
                    each.answer.set_exception(self._fresh(error))

    @staticmethod
    def _fresh(error: EngineError) -> EngineError:
        # One exception raised in many threads would collect all their tracebacks.
        return EngineError(str(error), remedy=error.remedy)


class _Call:
    """One that waits for its answer."""

    def __init__(self) -> None:
        self.asked_ns = time.monotonic_ns()
        self.answer: Future[tuple[Any, bytes]] = Future()


class Listener:
    """The queue between the link's thread, which must not wait, and whoever is told."""

    def __init__(self, name: str, told: Told) -> None:
        self._told = told
        self._queue: queue.SimpleQueue[tuple[str, dict[str, Any], bytes] | threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"told-of-{name}", daemon=True)
        self._thread.start()

    def put(self, what: str, about: dict[str, Any], body: bytes) -> None:
        self._queue.put((what, about, body))

    @property
    def behind(self) -> int:
        """How much has arrived that has not been told yet."""
        return self._queue.qsize()

    def drain(self, timeout_s: float) -> None:
        """Return once everything has been told that had arrived before."""
        if self._thread.is_alive():
            done = threading.Event()
            self._queue.put(done)
            done.wait(timeout_s)

    def close(self) -> None:
        self._queue.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(_END_S)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            else:
                self._told(*item)
