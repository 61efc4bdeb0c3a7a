"""What a sandbox is made of below its phases: a container with its limits, its watch and its RIE; started, asked, given back.

Must not know phases, records or prices (those are `harness.sandbox`'s), must not import ``docker``, and must not know how a
cgroup is written.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from harness import environment
from harness.context import RequestContext
from harness.debugger import NOTE as DEBUG_NOTE
from harness.debugger import Debug
from harness.engine import relay_mount
from harness.engine.client import Engine, owner_labels
from harness.engine.containers import Container, ContainerSpec
from harness.engine.entrypoint import Start
from harness.engine.images import ResolvedImage
from harness.errors import EngineError, NotMeasurable, SandboxGone
from harness.function import Function, Laid
from harness.observer import Observer
from harness.rie import Answer, RieGoneError
from harness.tiers import Tier, tier
from harness.vantage import Granted, Reach, Rie, Vantage, Watching
from harness.watch import Exchange, Tell

if TYPE_CHECKING:
    from harness.receivers import Receivers

_TMP = "/tmp"
PROVISIONED = "provisioned-concurrency"
"""AWS_LAMBDA_INITIALIZATION_TYPE of sandboxes that are initialised ahead of requests."""
INIT_LIMIT_S = 10.0
"""Lambda ends an init after this long and tries again inside the first invocation [AWS developer guide]."""
SAMPLE_S = 0.02
"""How often memory is looked at while the runtime works, for what the kernel's marks do not tell: children that are gone."""
GRACE_S = 30.0
"""How much longer than every limit the RIE may take before it is given up."""
_LOG_PATIENCE_S = 0.5
"""How long the last lines of an invocation's log are waited for while none comes; they take about 1 ms."""
_AHEAD_S = 20 * 86400.0
"""How long the answer to a request that stands for an init ahead may take; poll(2) takes some 24 days at most."""
_MIB = 1024 * 1024


class Cell(Protocol):
    """What a sandbox is made of below its phases: a started container, its reach, its watch and its RIE.

    Tests put a fake here; `ContainerCell` is the real one.
    """

    granted: Granted
    reach: Reach
    notes: tuple[str, ...]

    def start(self) -> None: ...

    def expect(self, *, timeout_s: float, init_limit_s: float, context: RequestContext | None = None) -> Exchange: ...

    def request(self, event: bytes, *, timeout_s: float) -> Answer: ...

    def initialise(self, *, limit_s: float) -> tuple[Exchange, Answer | None]: ...

    def settle(self, exchange: Exchange) -> None: ...

    def gone(self, error: BaseException) -> SandboxGone: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What sandboxes of one command share."""

    engine: Engine
    vantage: Vantage
    image: ResolvedImage
    laid: Laid
    work_dir: Path
    """Of this command alone, on disk; its owner removes it."""
    start: Start
    """How the containers begin."""
    rie_version: str | None
    cpus: CpuBoard
    on_output: Callable[[bytes], None] | None = None
    observer: Observer = field(default_factory=Observer)
    receivers: Receivers | None = None
    debug: Debug | None = None
    initialization_type: str = "on-demand"
    freeze: bool = True
    sample_s: float = SAMPLE_S


class CpuBoard:
    """Which CPUs the sandboxes of a command are pinned to: those that fewest others have. Safe to use from threads."""

    def __init__(self, cpus: tuple[int, ...]) -> None:
        self._held = dict.fromkeys(cpus, 0)
        self._lock = threading.Lock()

    def take(self, count: int) -> tuple[int, ...]:
        """The ``count`` CPUs that are held least; all where there are fewer."""
        with self._lock:
            chosen = sorted(self._held, key=lambda cpu: (self._held[cpu], cpu))[:count]
            for cpu in chosen:
                self._held[cpu] += 1
            return tuple(sorted(chosen))

    def give_back(self, cpus: tuple[int, ...]) -> None:
        with self._lock:
            for cpu in cpus:
                self._held[cpu] -= 1


class ContainerCell:
    """A real container with everything around it. Everything is given back in `close`, in the reverse order."""

    def __init__(
        self,
        function: Function,
        around: Surroundings,
        sandbox_id: str,
        *,
        log_stream: str,
        tell: Tell,
        extra_binds: Mapping[Path, str],
    ) -> None:
        self._function, self._around, self._id = function, around, sandbox_id
        self._log_stream, self._tell = log_stream, tell
        self._ahead: Future[Answer] | None = None
        self._cpus: tuple[int, ...] = ()
        self._extra_binds = extra_binds
        self._undo = contextlib.ExitStack()
        self.granted: Granted
        self.reach: Reach
        self.notes: tuple[str, ...] = ()
        self._watch: Watching
        self._rie: Rie
        self._container: Container

    def start(self) -> None:
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        around, function, size = self._around, self._function, tier(self._function.memory_mb)
        self._cpus = around.cpus.take(size.visible_vcpus)
        self._undo.callback(around.cpus.give_back, self._cpus)
        volume = around.vantage.tmp(function.tmp_mb, self._id, around.work_dir)
        self._undo.callback(volume.discard)
        container = Container(around.engine, self._spec(size, volume.source))
        self._container = self._undo.enter_context(container)
        log = container.attach()
        self._undo.callback(log.close)
        container.start()
        volume.mounted()
        attendant = around.vantage.attend(container, function.tmp_mb)
        self._undo.callback(attendant.close)
        self._rie = attendant.rie
        try:
            self._rie.wait_until_ready(GRACE_S)
        except RieGoneError as error:
            raise self.gone(error) from error
        self.reach = attendant.reach()
        self._undo.callback(self.reach.release)
        if around.receivers is not None and around.vantage.relays:
            self._undo.callback(around.receivers.attend(self._id, attendant).close)
        self.granted = self.reach.prepare(size, self._cpus)
        self._watch = attendant.watch(
            name=self._id,
            log=log,
            tell=self._tell,
            event_headers=self._event_headers,
            sample_s=around.sample_s,
        )
        self._undo.callback(self._watch.stop)
        self._watch.begin_watching()
        debug_note = DEBUG_NOTE if around.debug is not None else ""
        notes = [*self.granted.notes, volume.note, debug_note, *getattr(self.reach, "notes", ())]
        self.notes = tuple(note for note in notes if note)

    def _spec(self, size: Tier, tmp: str) -> ContainerSpec:
        function, around = self._function, self._around
        files = relay_mount.directory(function.architecture)
        binds = {str(files): (relay_mount.MOUNTED_AT, "ro")}
        relayed = around.vantage.relays
        if around.vantage.sees_files:
            starter = files / ("aws-lambda-rie" if relayed else "rie")
            binds[str(starter)] = (relay_mount.RIE_PATH, "ro")
        if around.laid.task_dir is not None:
            binds[str(around.laid.task_dir)] = ("/var/task", "ro")
        if around.laid.layers_dir is not None:
            binds[str(around.laid.layers_dir)] = ("/opt", "ro")
        binds |= {str(source): (target, "ro") for source, target in self._extra_binds.items()}
        variables = environment.variables(
            function, log_stream=self._log_stream, initialization_type=around.initialization_type
        )
        if around.receivers is not None and relayed:
            variables |= around.receivers.environment()
        if around.debug is not None:
            variables |= around.debug.environment(function.runtime, function.environment)
            debugger = around.debug.binds(function.runtime, around.work_dir)
            binds |= {source: (target, "ro") for source, target in debugger.items()}
        # The RIE's own timer starts before init and only takes whole seconds: it must never be the first to fire.
        patience_s = 2 * INIT_LIMIT_S + GRACE_S
        if around.initialization_type == PROVISIONED or around.debug is not None:
            patience_s = _AHEAD_S
        rie_timeout = str(function.timeout_s + int(patience_s))
        variables[relay_mount.TIMEOUT_VARIABLE if relayed else "AWS_LAMBDA_FUNCTION_TIMEOUT"] = rie_timeout
        variables |= around.start.environment
        binds = around.vantage.carry(binds, around.image.image_id)
        if tmp:
            binds[tmp] = (_TMP, "rw")
        return ContainerSpec(
            name=f"lambda-harness-{self._id}",
            image=around.image.image_id,
            command=around.start.command,
            entrypoint=around.start.entrypoint,
            environment=variables,
            labels=owner_labels(self._id),
            binds=binds,
            volumes=() if tmp else (_TMP,),
            cpuset=",".join(map(str, self._cpus)),
            memory_bytes=size.memory_bytes + 64 * _MIB,  # room for the RIE until its share has been measured
            publish=not relayed,
            ports=(around.debug.port,) if around.debug is not None else (),
        )

    def _event_headers(self, context: RequestContext) -> dict[bytes, bytes]:
        """As Lambda sets them on ``/next`` [developer guide, "Using the Lambda runtime API"]."""
        found = {
            "aws-request-id": context.request_id,
            "invoked-function-arn": context.invoked_arn or environment.function_arn(self._function),
        }
        if context.trace is not None:
            found["trace-id"] = context.trace.header
        if context.client_context is not None:
            found["client-context"] = " ".join(context.client_context.splitlines())
        return {f"lambda-runtime-{name}".encode(): value.encode() for name, value in found.items()}

    def expect(self, *, timeout_s: float, init_limit_s: float, context: RequestContext | None = None) -> Exchange:
        self._check_watch()
        return self._watch.expect(timeout_s=timeout_s, init_limit_s=init_limit_s, context=context)

    def initialise(self, *, limit_s: float) -> tuple[Exchange, Answer | None]:
        """An init without an event; the answer is None where it went well, and the runtime waits for its first event."""
        if not self._watch.relayed:
            raise NotMeasurable(
                "no init can be made ahead of a request from here: the Runtime API is not relayed",
                remedy="use the vantage host or agent",
            )
        exchange = self._watch.expect(timeout_s=limit_s, init_limit_s=limit_s, ahead=True)
        waiting = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"ahead-{self._id}")
        self._undo.callback(waiting.shutdown, wait=False)
        # The RIE begins an init only for a request: this one's event is kept back, and its answer is that of the first.
        self._ahead = waiting.submit(self._rie.invoke, b"{}", timeout_s=_AHEAD_S)
        self._ahead.add_done_callback(lambda _: exchange.held.set())
        if not exchange.held.wait(limit_s + GRACE_S):
            raise EngineError(f"the init of sandbox {self._id} neither ended nor failed")
        if self._ahead.done():
            return exchange, self._take_ahead(0)
        return exchange, None

    def _take_ahead(self, timeout_s: float) -> Answer:
        ahead, self._ahead = self._ahead, None
        assert ahead is not None  # noqa: S101  # asked only where there is one
        try:
            return ahead.result(timeout=timeout_s)
        except TimeoutError as error:
            raise RieGoneError("no answer") from error

    def request(self, event: bytes, *, timeout_s: float) -> Answer:
        if self._ahead is not None:
            self._watch.release(event)
            return self._take_ahead(timeout_s)
        exchange = self._watch.current
        told = exchange.context.client_context if exchange is not None and not self._watch.relayed else None
        answer = self._rie.invoke(event, timeout_s=timeout_s, client_context=told)
        if answer.status >= 500 and exchange is not None and not self._watch.relayed:
            # Whether the event was handed over stands in the log alone, and that may lag behind the answer.
            self._watch.settle(exchange, timeout_s=_LOG_PATIENCE_S)
        return answer

    def settle(self, exchange: Exchange) -> None:
        # After a crash the RIE prints no END line. Without the relay it is the log that tells whether there was one.
        crashed = exchange.done_ns is None and (self._watch.relayed or bool(exchange.exits))
        self._watch.settle(exchange, timeout_s=_LOG_PATIENCE_S / 10 if crashed else _LOG_PATIENCE_S)
        self._watch.finish(exchange)
        self._check_watch()

    def _check_watch(self) -> None:
        failure = self._watch.failure
        if failure is not None:
            raise EngineError(f"the watch over sandbox {self._id} failed: {failure}") from failure

    def gone(self, error: BaseException) -> SandboxGone:
        watch: Watching | None = getattr(self, "_watch", None)  # the RIE may be gone before it is watched
        if watch is not None and watch.failure is not None:
            return SandboxGone(f"the watch over sandbox {self._id} failed: {watch.failure}")
        found = self._container.why_gone()
        last = watch.log_lines[-1:] if watch is not None else []
        return SandboxGone(f"{found} ({type(error).__name__}; last line of the RIE: {last[0] if last else 'none'})")

    def close(self) -> None:
        self._undo.close()
