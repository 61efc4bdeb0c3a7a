"""Vantage ``agent``: a container beside the sandboxes does on their kernel what the vantage ``host`` does on this one.

For engines in a virtual machine or on another computer, and for users who may use the engine but are not root. Limits,
freezing, peaks, relay and clock are the same code, so records are as exact; what is not: /tmp has no size of its own, and
an invocation's ``started_at`` is by this process's clock. Started once for a command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import harness
from harness import kernel
from harness.agent import wire
from harness.agent.forwarding import HarnessEnd
from harness.agent.link import Link, Listener
from harness.context import RequestContext
from harness.engine import images
from harness.engine.agent_container import AgentContainer
from harness.engine.client import Engine
from harness.engine.containers import RIE_PORT, Container
from harness.engine.volumes import Volumes
from harness.errors import EngineError, HarnessError
from harness.memory_watch import MemorySeen
from harness.rie import Answer
from harness.tiers import Tier
from harness.vantage import Endpoints, Granted, Observation, SocketServer, TmpVolume, anonymous_tmp
from harness.watch import Exchange, Tell

_PARTS = (
    "agent/__init__.py",
    "agent/forwarding.py",
    "agent/inside.py",
    "agent/wire.py",
    "cgroup",
    "context.py",
    "errors.py",
    "invocation.py",
    "kernel.py",
    "memory_watch.py",
    "procfs.py",
    "rie.py",
    "runtime_api.py",
    "tiers.py",
    "vantage/__init__.py",
    "vantage/attending.py",
    "vantage/listening.py",
    "vantage/reach.py",
    "watch.py",
)
"""What travels: modules that need Python's standard library alone."""
_HELLO_S = 120.0
"""How long the agent may take to start; under a second, but a minute in an emulated machine."""
_SLACK_S = 30.0
"""How much longer than the agent itself waits its answer is waited for."""
_SETTLE_SLACK_S = 5.0
"""The same for what runs after each invocation, and only makes sure that nothing is on its way."""
_CHUNK = 64 * 1024
_DRAIN_S = 5.0
_BEHIND = 64
"""How many messages may wait for a slow reader of the function's output before no more of it is taken from the engine."""


class AgentVantage:
    """See the module. Starts its agent when it is first needed; `start` does so at once."""

    name = "agent"
    relays = True
    in_process = False
    sees_files = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._volumes = Volumes(engine)
        self._undo = contextlib.ExitStack()
        self._starting = threading.Lock()
        self._link: Link | None = None

    def start(self) -> None:
        """Raises `EngineError` where the agent cannot be started, or cannot do its work."""
        _ = self.link

    @property
    def link(self) -> Link:
        with self._starting:
            if self._link is not None and self._link.over:
                self._end()  # what it attended to is lost, but a service goes on
            if self._link is None:
                self._link = self._started()
            return self._link

    def _started(self) -> Link:
        image_id = _image(self._engine)
        if image_id is None:
            raise EngineError(
                "vantage agent is not possible: the engine has no image with Python 3.11 or newer to start it in",
                remedy="'lambda-harness images build python3.13' makes one, or use --vantage api",
            )
        with contextlib.ExitStack() as undo:
            # On this host it is needed until the engine has it: who is killed later leaves none behind.
            with tempfile.TemporaryDirectory(prefix="lambda-harness-agent-") as folder:
                code = Path(folder)
                _lay_out(code)
                container = undo.enter_context(
                    AgentContainer(
                        self._engine, self._volumes, image_id=image_id, code=code, module="harness.agent.inside"
                    )
                )
            link = Link(container, on_silence=self._engine.presume_silent)
            undo.callback(link.close)
            link.open(boot_id=kernel.boot_id(), patience_s=_HELLO_S)
            self._undo.push(undo.pop_all())
            return link

    def describe(self) -> dict[str, Any]:
        about = self.link.about
        return {"hz": about["hz"], "cpu_model": about["cpu_model"]}

    def spare_memory_bytes(self) -> int | None:
        found: int | None = self.link.call("available_bytes")[0]
        return found

    def carry(self, binds: Mapping[str, tuple[str, str]], image_id: str) -> dict[str, tuple[str, str]]:
        return self._volumes.carry(binds, image_id)

    def tmp(self, size_mb: int, sandbox_id: str, work_dir: Path) -> TmpVolume:  # noqa: ARG002  # the same call as on `host`
        return anonymous_tmp(size_mb)

    def attend(self, container: Container, tmp_mb: int) -> RemoteAttendant:
        return RemoteAttendant(self.link, container, tmp_mb)

    def cpus(self) -> tuple[int, ...]:
        return tuple(self.link.about["cpus"])

    def let_go(self, container_id: str, pid: int) -> None:  # noqa: ARG002  # the same call as elsewhere
        if pid > 0:
            with contextlib.suppress(HarnessError):  # the container may be gone, or half gone: removal says the rest
                self.link.call("let_go", pid=pid)

    def close(self) -> None:
        self._end()

    def _end(self) -> None:
        self._link = None
        self._undo.close()


def _image(engine: Engine) -> str | None:
    """The newest Python image that the engine has."""
    found = [
        each for each in images.survey(engine.docker) if each.chosen is not None and each.runtime.startswith("python3.")
    ]
    usable = [each for each in found if int(each.runtime.removeprefix("python3.")) >= 11]
    if not usable:
        return None
    best = max(usable, key=lambda each: int(each.runtime.removeprefix("python3.")))
    assert best.chosen is not None  # noqa: S101  # asked above
    return best.chosen.image_id


def _lay_out(folder: Path) -> None:
    """Copy the modules that travel, below a package without the harness's own (which would want all of it)."""
    home = Path(harness.__file__).parent
    target = folder / "harness"
    target.mkdir()
    empty = target / "__init__.py"
    empty.write_text("")
    # The volume's key counts times: one that is always new would make a volume for each command.
    os.utime(empty, (0, 0))
    for name in _PARTS:
        source, to = home / name, target / name
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, to)


class RemoteAttendant:
    """See `harness.vantage.Attendant`: everything is done by the agent, for a seat that it keeps for the sandbox."""

    def __init__(self, link: Link, container: Container, tmp_mb: int) -> None:
        self._link, self._container = link, container
        self._seat = container.id[:12]
        self._watch: RemoteWatch | None = None
        link.call("sit", seat=self._seat, pid=container.pid, port=RIE_PORT, tmp_mb=tmp_mb)
        self.rie = self

    # -- the RIE --------------------------------------------------------------------------------------------------------

    def wait_until_ready(self, timeout_s: float) -> None:
        self._link.call("ready", seat=self._seat, patience_s=timeout_s + _SLACK_S, timeout_s=timeout_s)

    def invoke(self, event: bytes, *, timeout_s: float, client_context: str | None = None) -> Answer:  # noqa: ARG002  # the relay hands it out
        found, body = self._link.call(
            "request", seat=self._seat, body=event, patience_s=timeout_s + _SLACK_S, timeout_s=timeout_s
        )
        if self._watch is not None:
            self._watch.take(found["exchange"])
        return Answer(status=found["status"], body=body)

    # -- the rest ---------------------------------------------------------------------------------------------------------

    def reach(self) -> RemoteReach:
        return RemoteReach(self._link, self._seat, self._container)

    def watch(
        self,
        *,
        name: str,
        log: socket.socket,
        tell: Tell,
        event_headers: Callable[[RequestContext], dict[bytes, bytes]],
        sample_s: float,
    ) -> RemoteWatch:
        self._watch = RemoteWatch(
            self._link, self._seat, name=name, log=log, tell=tell, event_headers=event_headers, sample_s=sample_s
        )
        return self._watch

    def listen(self, endpoints: Endpoints, server: SocketServer) -> RemoteListening:
        return RemoteListening(self._link, self._seat, endpoints, server)

    def close(self) -> None:
        with contextlib.suppress(HarnessError):
            self._link.call("close", seat=self._seat)


class RemoteListening:
    """See `harness.vantage.Listening`: the agent accepts and reads, and forwards all of it to a thread here."""

    def __init__(self, link: Link, seat: str, endpoints: Endpoints, server: SocketServer) -> None:
        self._link, self._seat = link, seat
        self._forwarder = HarnessEnd(f"sockets-{seat}", self._send, server)
        self._forwarder.start()
        link.attach(wire.sockets_of(seat), self._forwarder)
        try:
            found, _ = link.call("listen", seat=seat, tcp=dict(endpoints.tcp), udp=endpoints.udp)
        except BaseException:
            link.forget(wire.sockets_of(seat))
            raise
        self.addresses = {name: (host, port) for name, (host, port) in found.items()}

    def _send(self, what: str, about: dict[str, Any], body: bytes) -> None:
        self._link.tell(what, seat=self._seat, body=body, **about)

    def settle(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        if timeout_s <= 0:
            return
        # The agent's own time ends first: a call without an answer says that there is no agent.
        patience_s = timeout_s + _SETTLE_SLACK_S
        with contextlib.suppress(HarnessError):  # that it is gone is for the record to tell
            self._link.call("settle_sockets", seat=self._seat, patience_s=patience_s, timeout_s=timeout_s)
        self._forwarder.settle(deadline - time.monotonic())

    def close(self) -> None:
        with contextlib.suppress(HarnessError):
            self._link.call("unlisten", seat=self._seat)
        self._link.forget(wire.sockets_of(self._seat))


class RemoteReach:
    """See `harness.vantage.Reach`. What has to happen at an instant of an invocation is done by the agent's own watch."""

    def __init__(self, link: Link, seat: str, container: Container) -> None:
        self._link, self._seat, self._container = link, seat, container
        self._stood_still_ns = 0
        self._call("reach")

    def _call(self, do: str, **given: Any) -> Any:
        return self._link.call(do, seat=self._seat, **given)[0]

    def prepare(self, tier: Tier, cpus: tuple[int, ...]) -> Granted:
        return wire.granted(self._call("prepare", memory_mb=tier.memory_mb, cpus=list(cpus)))

    def mark(self) -> None:
        self._call("mark")
        self._stood_still_ns = self._link.stood_still_ns

    def observe(self) -> Observation:
        found = wire.observation(self._call("observe"))
        return dataclasses.replace(found, notes=(*found.notes, *self._standstill()))

    def _standstill(self) -> tuple[str, ...]:
        """Durations are by the machine's own clock, which stands still with it; what a caller waits is by this process's."""
        seconds = (self._link.stood_still_ns - self._stood_still_ns) / 1e9
        if not seconds:
            return ()
        return (
            f"the engine's machine stood still for {seconds:.1f} s meanwhile: client_ms holds that, duration_ms does not",
        )

    def resident_bytes(self) -> int | None:
        found: int | None = self._call("resident_bytes")
        return found

    def charged_bytes(self) -> int | None:
        found: int | None = self._call("charged_bytes")
        return found

    def watch_memory(self) -> RemoteMemoryWatch:
        return RemoteMemoryWatch(self._link, self._seat)

    def freeze(self) -> None:
        self._call("freeze")

    def thaw(self) -> None:
        self._call("thaw")
        # Of a standstill while the sandbox was frozen no figure knows but frozen_ms.
        self._stood_still_ns = self._link.stood_still_ns

    def frozen(self) -> bool:
        """Whether every process stands still, by the kernel's word."""
        return bool(self._call("frozen"))

    def release(self) -> None:
        try:
            self._call("release")
        except HarnessError:
            # Without its agent a frozen container could not be removed on cgroup version 1. The engine's unpause thaws
            # whoever froze it, but only what the engine has paused.
            with contextlib.suppress(HarnessError):
                self._container.pause()
                self._container.unpause()


class RemoteMemoryWatch:
    """See `harness.vantage.MemoryWatching`: the agent samples, and hands over all that it saw when it is stopped.

    Its times count from when the agent began, half a round trip before the request at most.
    """

    def __init__(self, link: Link, seat: str) -> None:
        self._link, self._seat = link, seat
        self._watching = False
        self.found = MemorySeen()

    def __enter__(self) -> RemoteMemoryWatch:
        try:
            self._link.call("watch_memory", seat=self._seat)
            self._watching = True
        except HarnessError as error:  # the request comes to know of it too
            self.found = MemorySeen(ended_by=str(error))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if not self._watching:
            return
        self._watching = False
        try:
            told, _ = self._link.call("memory_watched", seat=self._seat)
            self.found = wire.memory_seen(told)
        except HarnessError as error:
            self.found = MemorySeen(ended_by=str(error))


class RemoteWatch:
    """See `harness.vantage.Watching`: passes the engine's log on to the agent's watch, and what that saw back."""

    relayed = True

    def __init__(
        self,
        link: Link,
        seat: str,
        *,
        name: str,
        log: socket.socket,
        tell: Tell,
        event_headers: Callable[[RequestContext], dict[bytes, bytes]],
        sample_s: float,
    ) -> None:
        self._link, self._seat, self._log, self._tell = link, seat, log, tell
        self._event_headers, self._sample_s = event_headers, sample_s
        self._exchange: Exchange | None = None
        self._number = 0
        self._taking = threading.Lock()
        self._stopping = False
        self._listener: Listener | None = None
        self._pump = threading.Thread(target=self._pass_on, name=f"log-of-{name}", daemon=True)
        self.failure: BaseException | None = None
        self.log_lines: list[str] = []

    @property
    def current(self) -> Exchange | None:
        return self._exchange

    def begin_watching(self) -> None:
        self._listener = self._link.listen(self._seat, self._told)
        self._link.call("watch", seat=self._seat, sample_s=self._sample_s)
        self._pump.start()

    def expect(
        self, *, timeout_s: float, init_limit_s: float, context: RequestContext | None = None, ahead: bool = False
    ) -> Exchange:
        context = context or RequestContext()
        headers = {name.decode(): value.decode() for name, value in self._event_headers(context).items()}
        exchange = Exchange(
            timeout_s=timeout_s,
            init_limit_s=init_limit_s,
            begun_ns=time.monotonic_ns(),
            context=context,
            ahead=ahead,
        )
        with self._taking:
            self._number += 1
            self._exchange = exchange
        self._link.call(
            "expect",
            seat=self._seat,
            timeout_s=timeout_s,
            init_limit_s=init_limit_s,
            request_id=context.request_id,
            headers=headers,
            ahead=ahead,
            number=self._number,
        )
        return exchange

    def take(self, told: dict[str, Any] | None) -> None:
        """Write what the agent saw of the exchange under way into it; what it says of an earlier one is over."""
        with self._taking:
            if told is not None and self._exchange is not None and told["number"] == self._number:
                wire.take_over(told, self._exchange, self._link.here_ns)

    def release(self, event: bytes) -> None:
        self._link.call("hand_over", seat=self._seat, body=event)

    def settle(self, exchange: Exchange, *, timeout_s: float) -> None:  # noqa: ARG002  # it is the one under way
        told, _ = self._link.call("settle", seat=self._seat, timeout_s=timeout_s)
        self.take(told)

    def finish(self, exchange: Exchange) -> None:  # noqa: ARG002  # it is the one under way
        found, _ = self._link.call("finish", seat=self._seat)
        self.take(found["exchange"])
        self.log_lines = found["log_lines"]
        if self._listener is not None:
            self._listener.drain(_DRAIN_S)
        with self._taking:
            self._exchange = None

    def stop(self) -> None:
        self._stopping = True
        with contextlib.suppress(HarnessError):
            self._link.call("stop", seat=self._seat)
        self._link.forget(self._seat)

    def _told(self, what: str, about: dict[str, Any], body: bytes) -> None:
        try:
            self._pass_back(what, about, body)
        except BaseException as error:  # noqa: BLE001  # a thread's failure is handed to the sandbox that owns it
            self.failure = error

    def _pass_back(self, what: str, about: dict[str, Any], body: bytes) -> None:
        if what == "init_begun":
            self._tell.init_begun(about["suppressed"])
        elif what == "handed_over":
            self._tell.handed_over()
        elif what == "output":
            start = 0
            for size in about["sizes"]:
                self._tell.output(about["request_id"], body[start : start + size])
                start += size
        elif what == "held":
            self.take(about)
            if self._exchange is not None:
                self._exchange.held.set()

    def _pass_on(self) -> None:
        """One chunk at a time, each answered before the next is read: a function that floods its log waits for the agent."""
        try:
            while data := self._log.recv(_CHUNK):
                self._link.call("log", seat=self._seat, body=data)
                while self._listener is not None and self._listener.behind > _BEHIND and not self._stopping:
                    self._listener.drain(_DRAIN_S)
            self._link.call("log_end", seat=self._seat)
        except (OSError, HarnessError) as error:
            if not self._stopping:
                self.failure = error
