"""The agent's own process: `python -m harness.agent.inside`, in a container with the engine's host's PID and cgroup namespaces.

Takes calls from standard input, each in a thread of its own, and answers on standard output. For each sandbox it holds a
`_Seat`: reach, RIE client, watch and sockets, as the vantage ``host`` has them. When its standard input ends, whoever started
it is gone: every sandbox is made removable, and the process ends, its sockets with it. Must not know containers or the engine.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from harness import cgroup, kernel
from harness.agent import wire
from harness.agent.forwarding import SandboxEnd
from harness.context import RequestContext
from harness.errors import EngineError
from harness.memory_watch import MemoryWatch
from harness.rie import RieClient
from harness.tiers import tier
from harness.vantage import Endpoints
from harness.vantage.attending import watch_over
from harness.vantage.listening import open_sockets
from harness.vantage.reach import CgroupReach
from harness.watch import Exchange, Tell, Watch, in_network_namespace

_CHUNK = 256 * 1024
_GATHERED_BYTES = 256 * 1024
"""How much output is gathered before the watch itself waits until it has been passed on."""
_THREADS = 4096
"""Calls wait in threads, two for each sandbox at most; the engine's memory ends before this does."""
_CONNECT_S = 5.0
_LOG_PATIENCE_S, _LOG_LOOK_S = 0.5, 0.002

Answer = tuple[Any, bytes]


class _Outlet:
    """What goes to the harness, in order, from any thread. ``write`` takes whole frames.

    A function's output is gathered while earlier frames are on their way: one for each line would cost the function, which
    waits when its pipe is full, 15 times what printing costs it.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._writing, self._gathering = threading.Lock(), threading.Lock()
        self._gathered: list[tuple[str, str | None, bytes]] = []
        self._gathered_bytes = 0
        self._more = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="outlet", daemon=True)
        self._thread.start()

    def send(self, data: bytes) -> None:
        """One whole frame."""
        with self._writing:
            self._write_gathered()
            self._write(data)

    def output(self, seat: str, request_id: str | None, data: bytes) -> None:
        with self._gathering:
            self._gathered.append((seat, request_id, data))
            self._gathered_bytes += len(data)
            many = self._gathered_bytes > _GATHERED_BYTES
        if many:
            with self._writing:
                self._write_gathered()
        else:
            self._more.set()

    def close(self) -> None:
        self._over = True
        self._more.set()

    def _write_gathered(self) -> None:
        with self._gathering:
            gathered, self._gathered, self._gathered_bytes = self._gathered, [], 0
        for (seat, request_id), group in itertools.groupby(gathered, key=lambda each: each[:2]):
            pieces = [data for _, _, data in group]
            about = {"request_id": request_id, "sizes": [len(each) for each in pieces]}
            self._write(wire.Frame({"seat": seat, "tell": "output", "with": about}, b"".join(pieces)).pack())

    def _run(self) -> None:
        while not self._over:
            self._more.wait()
            self._more.clear()
            with contextlib.suppress(OSError), self._writing:  # nobody listens any more
                self._write_gathered()


class _Seat:
    """Everything around one sandbox."""

    def __init__(self, outlet: _Outlet, name: str, *, pid: int, port: int, tmp_mb: int) -> None:
        self._outlet, self._name, self._pid, self._tmp_mb = outlet, name, pid, tmp_mb

        def connect(address: tuple[str, int]) -> socket.socket:
            return in_network_namespace(pid, lambda: socket.create_connection(address, timeout=_CONNECT_S))

        # The container's loopback: no port has to be published, and no address of it known.
        self._rie = RieClient(f"127.0.0.1:{port}", connect=connect)
        self._reach: CgroupReach | None = None
        self._watch: Watch | None = None
        self._memory_watch: MemoryWatch | None = None
        self._forwarder: SandboxEnd | None = None
        self._exchange: Exchange | None = None
        self._log: socket.socket | None = None
        self._headers: dict[bytes, bytes] = {}
        self._number = 0

    @property
    def reach(self) -> CgroupReach:
        if self._reach is None:
            raise EngineError(f"the agent does not attend to sandbox {self._name} yet")
        return self._reach

    @property
    def watch(self) -> Watch:
        if self._watch is None:
            raise EngineError(f"the agent does not watch sandbox {self._name} yet")
        return self._watch

    def call(self, do: str, given: dict[str, Any], body: bytes) -> Answer:
        found: Answer = getattr(self, f"do_{do}")(body, **given)
        return found

    def hear(self, what: str, about: dict[str, Any], body: bytes) -> None:
        """What the harness tells: of forwarded sockets alone. Waits for nothing."""
        if self._forwarder is not None:
            self._forwarder.put(what, about, body)

    # -- the RIE --------------------------------------------------------------------------------------------------------

    def do_ready(self, _: bytes, *, timeout_s: float) -> Answer:
        self._rie.wait_until_ready(timeout_s)
        return None, b""

    def do_request(self, event: bytes, *, timeout_s: float) -> Answer:
        asked = self._exchange
        if asked is not None:
            asked.answered_ns = None  # of an earlier try
        try:
            answer = self._rie.invoke(event, timeout_s=timeout_s)
        finally:
            # Of an init ahead the answer is that of the first event, which has an exchange of its own by then.
            for exchange in (asked, self._exchange):
                if exchange is not None:
                    exchange.answered_ns = time.monotonic_ns()
                    exchange.held.set()
        return {"status": answer.status, "exchange": self._told()}, answer.body

    # -- the reach ------------------------------------------------------------------------------------------------------

    def do_reach(self, _: bytes) -> Answer:
        self._reach = CgroupReach(self._pid, self._tmp_mb)
        return None, b""

    def do_prepare(self, _: bytes, *, memory_mb: int, cpus: list[int]) -> Answer:
        return wire.plain(self.reach.prepare(tier(memory_mb), tuple(cpus))), b""

    def do_mark(self, _: bytes) -> Answer:
        self.reach.mark()
        return None, b""

    def do_observe(self, _: bytes) -> Answer:
        return wire.plain(self.reach.observe()), b""

    def do_resident_bytes(self, _: bytes) -> Answer:
        return self.reach.resident_bytes(), b""

    def do_charged_bytes(self, _: bytes) -> Answer:
        return self.reach.charged_bytes(), b""

    def do_watch_memory(self, _: bytes) -> Answer:
        self._memory_watch = self.reach.watch_memory()
        self._memory_watch.begin()
        return None, b""

    def do_memory_watched(self, _: bytes) -> Answer:
        watch, self._memory_watch = self._memory_watch, None
        if watch is None:
            raise EngineError(f"the agent does not watch the memory of sandbox {self._name}")
        watch.stop()
        return wire.told_of_memory(watch.found), b""

    def do_freeze(self, _: bytes) -> Answer:
        self.reach.freeze()
        return None, b""

    def do_thaw(self, _: bytes) -> Answer:
        self.reach.thaw()
        return None, b""

    def do_frozen(self, _: bytes) -> Answer:
        return self.reach.frozen(), b""

    def do_release(self, _: bytes) -> Answer:
        if self._reach is not None:
            self._reach.release()
            self._reach = None
        return None, b""

    # -- the watch ------------------------------------------------------------------------------------------------------

    def do_watch(self, _: bytes, *, sample_s: float) -> Answer:
        self._log, log = socket.socketpair()
        tell = Tell(
            init_begun=lambda suppressed: self._tell("init_begun", {"suppressed": suppressed}),
            handed_over=lambda: self._tell("handed_over", {}),
            output=lambda request_id, data: self._outlet.output(self._name, request_id, data),
        )
        self._watch = watch_over(
            self.reach,
            name=self._name,
            log=log,
            tell=tell,
            event_headers=lambda _: self._headers,
            sample_s=sample_s,
        )
        self._watch.begin_watching()
        return None, b""

    def do_log(self, data: bytes) -> Answer:
        """What the engine passed on of the container's output; one call at a time."""
        if self._log is not None:
            with contextlib.suppress(OSError):  # the watch has ended
                self._log.sendall(data)
        return None, b""

    def do_log_end(self, _: bytes) -> Answer:
        if self._log is not None:
            self._log.close()
        return None, b""

    def do_expect(
        self,
        _: bytes,
        *,
        timeout_s: float,
        init_limit_s: float,
        request_id: str,
        headers: dict[str, str],
        ahead: bool,
        number: int,
    ) -> Answer:
        self._number = number
        self._headers = {name.encode(): value.encode() for name, value in headers.items()}
        self._exchange = exchange = self.watch.expect(
            timeout_s=timeout_s, init_limit_s=init_limit_s, context=RequestContext(request_id=request_id), ahead=ahead
        )
        if ahead:
            threading.Thread(target=self._tell_held, args=(exchange,), name=f"held-{self._name}", daemon=True).start()
        return None, b""

    def _tell_held(self, exchange: Exchange) -> None:
        exchange.held.wait()
        # The log takes another way, by the harness: what it says of the init may come after the runtime's own word.
        deadline = time.monotonic() + _LOG_PATIENCE_S
        while exchange.init_ms is None and exchange.answered_ns is None and time.monotonic() < deadline:
            time.sleep(_LOG_LOOK_S)
        told = self._told()
        if exchange.answered_ns is None and told is not None:  # else the init failed, and the answer says so
            self._tell("held", told)

    def do_hand_over(self, event: bytes) -> Answer:
        self.watch.release(event)
        return None, b""

    def do_settle(self, _: bytes, *, timeout_s: float) -> Answer:
        exchange = self._exchange
        if exchange is not None:
            self.watch.settle(exchange, timeout_s=timeout_s)
        return self._told(), b""

    def do_finish(self, _: bytes) -> Answer:
        if self._exchange is not None:
            self.watch.finish(self._exchange)
        found = {"exchange": self._told(), "log_lines": self.watch.log_lines}
        self._exchange = None
        if self.watch.failure is not None:
            raise self.watch.failure
        return found, b""

    # -- the sockets ----------------------------------------------------------------------------------------------------

    def do_listen(self, _: bytes, *, tcp: dict[str, int], udp: str | None) -> Answer:
        sockets = open_sockets(self._pid, Endpoints(tcp=tcp, udp=udp))
        name = wire.sockets_of(self._name)

        def send(what: str, about: dict[str, Any], body: bytes) -> None:
            self._outlet.send(wire.Frame({"seat": name, "tell": what, "with": about}, body).pack())

        self._forwarder = SandboxEnd(f"sockets-in-{self._name}", send, sockets)
        addresses = sockets.addresses
        self._forwarder.start()
        return addresses, b""

    def do_settle_sockets(self, _: bytes, *, timeout_s: float) -> Answer:
        if self._forwarder is not None:
            self._forwarder.settle(timeout_s)
        return None, b""

    def end_sockets(self) -> None:
        """As `do_unlisten`, but waits for nothing: nobody may read any more what their thread still says."""
        if self._forwarder is not None:
            self._forwarder.end()

    def do_unlisten(self, _: bytes) -> Answer:
        if self._forwarder is not None:
            self._forwarder.close()
        return None, b""

    # -- the end --------------------------------------------------------------------------------------------------------

    def do_stop(self, _: bytes) -> Answer:
        if self._watch is not None:
            self._watch.stop()
        return None, b""

    def do_close(self, _: bytes) -> Answer:
        self.do_stop(b"")
        self.do_unlisten(b"")
        self.do_release(b"")
        self.do_log_end(b"")
        self._rie.close()
        return None, b""

    def _told(self) -> dict[str, Any] | None:
        exchange = self._exchange
        return None if exchange is None else wire.told_of(exchange) | {"number": self._number}

    def _tell(self, what: str, about: dict[str, Any]) -> None:
        self._outlet.send(wire.Frame({"seat": self._name, "tell": what, "with": about}).pack())


class Agent:
    """Serves one stream of calls until it ends. ``read`` returns b"" at the end; ``write`` takes whole frames."""

    def __init__(self, read: Callable[[], bytes], write: Callable[[bytes], None]) -> None:
        self._read, self._outlet = read, _Outlet(write)
        self._seats: dict[str, _Seat] = {}
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="call")

    def serve(self) -> None:
        frames = wire.Frames()
        try:
            while data := self._read():
                for frame in frames.feed(data):
                    if "tell" in frame.head:
                        self._hear(frame)
                    else:
                        self._threads.submit(self._answer, frame)
        finally:
            for seat in list(self._seats.values()):
                with contextlib.suppress(Exception):  # the next one must be released whatever became of this one
                    seat.do_release(b"")
            for seat in list(self._seats.values()):
                seat.end_sockets()
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._outlet.close()

    def _answer(self, frame: wire.Frame) -> None:
        number = frame.head["id"]
        try:
            found, body = self._do(frame.head, frame.body)
            answer = wire.Frame({"id": number, "now": time.monotonic_ns(), "found": found}, body).pack()
        except BaseException as error:  # noqa: BLE001  # whoever asked is told
            answer = wire.Frame({"id": number, "now": time.monotonic_ns(), "failed": wire.failed(error)}).pack()
        with contextlib.suppress(OSError):  # nobody listens any more: the end of the input is on its way
            self._outlet.send(answer)

    def _hear(self, frame: wire.Frame) -> None:
        seat = self._seats.get(frame.head["seat"])
        if seat is not None:  # else it has been closed meanwhile
            seat.hear(frame.head["tell"], frame.head["with"], frame.body)

    def _do(self, head: dict[str, Any], body: bytes) -> Answer:
        do, given, name = head["do"], head["with"], head["seat"]
        if name is None:
            return getattr(self, f"do_{do}")(**given), b""
        if do == "sit":
            self._seats[name] = _Seat(self._outlet, name, **given)
            return None, b""
        seat = self._seats.get(name)
        if seat is None:
            raise EngineError(f"the agent knows no sandbox {name}")
        if do == "close":
            self._seats.pop(name, None)
        return seat.call(do, given, body)

    # -- calls that are of no sandbox -------------------------------------------------------------------------------------

    @staticmethod
    def do_hello() -> dict[str, Any]:
        """What this kernel is; `EngineError` where its cgroups are out of reach, or cannot be written."""
        for directory in cgroup.locate(os.getpid()).directories.values():
            if not os.access(f"{directory}/cgroup.procs", os.W_OK):
                raise EngineError(f"the agent may not write cgroups: {directory} is read-only for it")
        return {
            "boot_id": kernel.boot_id(),
            "hz": kernel.tick_hz(),
            "cpu_model": kernel.cpu_model(),
            "cpus": sorted(os.sched_getaffinity(0)),
        }

    @staticmethod
    def do_now() -> int:
        return time.monotonic_ns()

    @staticmethod
    def do_available_bytes() -> int | None:
        return kernel.available_bytes()

    @staticmethod
    def do_let_go(*, pid: int) -> None:
        found = cgroup.open_cgroup(pid)
        if found.frozen():
            found.thaw()


def main() -> None:
    """Speak over the standard streams. What is printed by accident goes to standard error."""
    inlet, outlet = os.dup(0), os.dup(1)
    os.dup2(2, 1)

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the descriptor's number may be another file's by then
        os.close(inlet)

    # As PID 1 or not: a signal must not end this process before the sandboxes were released; the end of the input does.
    signal.signal(signal.SIGTERM, end)

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(outlet, view) :]

    def read() -> bytes:
        try:
            return os.read(inlet, _CHUNK)
        except OSError:
            return b""

    Agent(read, write).serve()
    sys.stderr.flush()
    os._exit(0)  # threads may wait for answers that nobody takes any more


if __name__ == "__main__":
    main()
