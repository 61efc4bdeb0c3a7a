"""Stand-ins for what a sandbox is made of: a cell whose runtime does as the event says, with no container anywhere."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from harness.cell import CpuBoard, Surroundings
from harness.context import RequestContext
from harness.engine.client import Engine
from harness.engine.resolved import ImageSource, ResolvedImage
from harness.errors import EngineError, SandboxGone
from harness.function import DirectoryCode, Function, Laid
from harness.invocation import PeakMethod
from harness.rie import Answer, RieGoneError
from harness.vantage import Attendant, Granted, MemoryWatching, Observation, Reach, TmpVolume, Vantage
from harness.watch import Exchange

MS = 1_000_000
MIB = 1024 * 1024


def function(**changes: Any) -> Function:
    settings: dict[str, Any] = {
        "name": "probe",
        "runtime": "python3.13",
        "handler": "app.handler",
        "memory_mb": 256,
        "code": DirectoryCode(path=Path("/nowhere")),
        "source": "/nowhere",
    }
    return Function(**(settings | changes))


class FakeVantage:
    name = "fake"
    relays = True
    in_process = False
    sees_files = True
    available_bytes: int | None = None

    def describe(self) -> dict[str, Any]:
        return {"hz": None, "cpu_model": None}

    def spare_memory_bytes(self) -> int | None:
        return self.available_bytes

    def carry(self, binds: Mapping[str, tuple[str, str]], image_id: str) -> dict[str, tuple[str, str]]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def tmp(self, size_mb: int, sandbox_id: str, work_dir: Path) -> TmpVolume:
        raise NotImplementedError

    def attend(self, container: object, tmp_mb: int) -> Attendant:
        raise NotImplementedError

    def cpus(self) -> tuple[int, ...]:
        return (0, 1)

    def let_go(self, container_id: str, pid: int) -> None:
        raise NotImplementedError


def surroundings(**changes: Any) -> Surroundings:
    image = ResolvedImage(
        reference="image:tag",
        image_id="sha256:0",
        runtime="python3.13",
        architecture="x86_64",
        source=ImageSource.NAMED,
        why="it was named",
        size_bytes=1,
    )
    settings: dict[str, Any] = {
        "engine": cast("Engine", None),
        "vantage": cast("Vantage", FakeVantage()),
        "image": image,
        "laid": cast("Laid", None),
        "work_dir": Path("/nowhere"),
        "start": (None, ()),
        "rie_version": "1.37",
        "cpus": CpuBoard((0, 1)),
    }
    return Surroundings(**(settings | changes))


@dataclass
class FakeReach:
    """Knows whether the sandbox stands still; `trouble` is raised by the step of that name."""

    cell: FakeCell
    frozen: bool = False
    freezes: int = 0
    thaws: int = 0
    marks: int = 0
    oom_kills: int = 0
    peak_bytes: int | None = None
    trouble: dict[str, Exception] = field(default_factory=dict)

    def _step(self, name: str) -> None:
        assert not self.cell.closed, f"{name} after the sandbox was given back"
        if name in self.trouble:
            raise self.trouble.pop(name)

    def prepare(self, tier: object, cpus: tuple[int, ...]) -> Granted:
        raise NotImplementedError

    def boost(self) -> None: ...

    def restrict(self) -> None: ...

    def throttled_init(self) -> None: ...

    def sample(self) -> None: ...

    def resident_bytes(self) -> int | None:
        return self.peak_bytes

    def charged_bytes(self) -> int | None:
        return None

    def watch_memory(self) -> MemoryWatching | None:
        return None

    def release(self) -> None: ...

    def kill_runtime(self) -> None: ...

    def mark(self) -> None:
        self._step("mark")
        self.marks += 1
        self.oom_kills = 0
        self.peak_bytes = None

    def observe(self) -> Observation:
        self._step("observe")
        return Observation(
            cpu_ms=1.0,
            peak_rss_bytes=self.peak_bytes,
            peak_method=PeakMethod.RESET if self.peak_bytes is not None else None,
            oom_kills=self.oom_kills,
            notes=("observed by a fake",),
        )

    def freeze(self) -> None:
        self._step("freeze")
        assert not self.cell.requesting, "frozen while a request is under way"
        assert not self.frozen, "frozen twice"
        self.frozen = True
        self.freezes += 1

    def thaw(self) -> None:
        self._step("thaw")
        assert self.frozen, "thawed, but not frozen"
        self.frozen = False
        self.thaws += 1


@dataclass
class FakeCell:
    """One sandbox as Lambda has it: globals live as long as the runtime, /tmp as long as the container.

    An event is ``{"do": ..., "fail_inits": 0..2, "peak_mb": ...}``. `while_requesting` runs in the middle of a request.
    """

    granted: Granted = field(
        default_factory=lambda: Granted(
            cpu_quota_us=2894,
            cpu_period_us=20_000,
            cpuset="0-1",
            memory_limit_bytes=256 * MIB,
            cgroup_version=2,
            cpu_capped=False,
        )
    )
    notes: tuple[str, ...] = ("a fake",)
    closed: int = 0
    starts: int = 0
    requesting: bool = False
    runtime_lives: bool = False
    init_phase_over: bool = False
    in_globals: int = 0
    in_tmp: int = 0
    lost: bool = False
    died_unnoticed: bool = False
    while_requesting: Callable[[], None] = lambda: None
    start_trouble: Exception | None = None
    fail_inits_ahead: int = 0
    settle_trouble: Exception | None = None
    log_comes_to_its_end: bool = True
    exchange: Exchange | None = None

    def __post_init__(self) -> None:
        self.fake_reach = FakeReach(cell=self)
        self.reach: Reach = self.fake_reach

    def start(self) -> None:
        self.starts += 1
        if self.start_trouble is not None:
            raise self.start_trouble

    def expect(self, *, timeout_s: float, init_limit_s: float, context: RequestContext | None = None) -> Exchange:
        assert not self.closed
        self.exchange = Exchange(
            timeout_s=timeout_s,
            init_limit_s=init_limit_s,
            begun_ns=time.monotonic_ns(),
            context=context or RequestContext(),
        )
        return self.exchange

    def initialise(self, *, limit_s: float) -> tuple[Exchange, Answer | None]:
        exchange = self.expect(timeout_s=limit_s, init_limit_s=limit_s)
        went_well = self._init(exchange, self.fail_inits_ahead)
        return exchange, None if went_well else Answer(status=502, body=b"")

    def request(self, event: bytes, *, timeout_s: float) -> Answer:
        assert not self.fake_reach.frozen, "a request reached a frozen sandbox"
        assert not self.closed
        self.requesting = True
        try:
            self.while_requesting()
            return self._answer(json.loads(event))
        finally:
            self.requesting = False

    def _answer(self, event: dict[str, Any]) -> Answer:
        exchange = self.exchange
        assert exchange is not None
        if event["do"] == "lose":
            self.lost = True
            raise RieGoneError("connection reset")
        if event["do"] == "interrupt":
            raise KeyboardInterrupt
        if self.died_unnoticed:
            self.died_unnoticed = False
            return Answer(status=502, body=b"")  # the RIE fails one request before it starts a new runtime
        now = exchange.begun_ns
        if not self.runtime_lives and not self._init(exchange, event.get("fail_inits", 0)):
            return Answer(status=502, body=b"")
        exchange.request_id = exchange.context.request_id
        exchange.event_ns = now + 200 * MS
        self.in_globals += 1
        self.in_tmp += 1
        peak = event.get("peak_mb")
        self.fake_reach.peak_bytes = None if peak is None else peak * MIB
        return self._handle(exchange, event["do"])

    def _init(self, exchange: Exchange, failing: int) -> bool:
        """As the RIE does it: one init a request, whatever Lambda would do."""
        phase = "invoke" if self.init_phase_over else "init"
        self.init_phase_over = True
        exchange.inits.append(phase)
        exchange.init_begun_ns = exchange.begun_ns + len(exchange.inits) * 10 * MS
        if len(exchange.inits) <= failing:
            exchange.exits.append("exit status 1")
            exchange.exit_ns = exchange.begun_ns + len(exchange.inits) * 20 * MS
            return False
        self.runtime_lives = True
        self.in_globals = 0
        if phase == "init":
            exchange.init_ms = 123.456
            exchange.boost_lag_ms = 0.2
        return True

    def _handle(self, exchange: Exchange, what: str) -> Answer:
        over = exchange.begun_ns + 250 * MS
        if what in ("succeed", "raise"):
            exchange.done_ns = over
            exchange.reply_status = 202
            if what == "succeed":
                exchange.reply = "response"
                return Answer(status=200, body=json.dumps([self.in_globals, self.in_tmp]).encode())
            exchange.reply = "error"
            exchange.error_body = b'{"errorType": "ValueError", "errorMessage": "boom"}'
            return Answer(status=200, body=exchange.error_body)
        self.runtime_lives = False
        exchange.exit_ns = over
        if what == "time_out":
            exchange.overrun = True
            exchange.killed_ns = over
        if what == "run_out_of_memory":
            self.fake_reach.oom_kills = 1
        exchange.exits.append("exit status 3" if what == "crash" else "signal: killed")
        return Answer(status=502, body=b"")

    def settle(self, exchange: Exchange) -> None:
        assert exchange is self.exchange
        if self.settle_trouble is not None:
            raise self.settle_trouble
        exchange.output.ended = self.log_comes_to_its_end

    def gone(self, error: BaseException) -> SandboxGone:
        return SandboxGone("the container was removed by someone else")

    def close(self) -> None:
        self.closed += 1


def event(do: str = "succeed", **more: Any) -> bytes:
    return json.dumps({"do": do, **more}).encode()


ENGINE_TROUBLE = EngineError("the engine went away")

NO_ENGINE = "unix:///nowhere/docker.sock"


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No engine answers. Tests that get so far as to ask one should ignore the SDK's unclosed socket."""
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE)
    yield
    gc.collect()
