"""A service without sandboxes for the page: it plays what sandboxes do, at the speed of real ones.

As a script it serves the page with something to see: ``python tests/unit/fakes_page.py PORT [few|many|none]``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import uvicorn
from fakes import function
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from harness import lifecycle
from harness.api.feed import Feed
from harness.api.pages import routes
from harness.context import RequestContext
from harness.function import Function
from harness.invocation import Invocation, Outcome, PhaseInit, report_line
from harness.sandbox import Sandbox
from harness.store import Store

MIB = 1024 * 1024


class PlayedSandbox:
    """What the feed sees of a sandbox."""

    def __init__(self, played: Function, feed: Feed) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.function = played
        self.log_stream = f"2026/01/01/[$LATEST]{uuid.uuid4().hex}"
        self.resident: int | None = 4 * MIB
        self.sequence = 0
        self.lost = False
        self._feed = feed
        self.enter(lifecycle.Created())
        self.enter(lifecycle.Started())

    @property
    def seen(self) -> Sandbox:
        return cast(Sandbox, self)

    def resident_bytes(self) -> int | None:
        return self.resident

    def enter(self, phase: lifecycle.Phase) -> None:
        self._feed.phase(self.seen, phase)

    def tell(self, outcome: Outcome = Outcome.SUCCESS, **changes: Any) -> Invocation:
        found = record(self.function, sandbox_id=self.id, sequence=self.sequence, outcome=outcome, **changes)
        self._feed.invoked(self.seen, found, RequestContext(request_id=found.request_id))
        return found


def record(of: Function, **changes: Any) -> Invocation:
    request_id = changes.pop("request_id", str(uuid.uuid4()))
    outcome = changes.get("outcome", Outcome.SUCCESS)
    figures: dict[str, Any] = {
        "duration_ms": 12.34,
        "billed_ms": 13,
        "max_memory_used_mb": 38,
        "init_ms": None,
        "error_type": None,
    } | changes
    report = report_line(
        request_id=request_id,
        duration_ms=figures["duration_ms"],
        billed=figures["billed_ms"],
        memory_mb=of.memory_mb,
        max_memory_used_mb=figures["max_memory_used_mb"],
        init_ms=figures["init_ms"],
        outcome=outcome,
        error_type=figures["error_type"],
    )
    settings: dict[str, Any] = {
        "request_id": request_id,
        "function": of.name,
        "runtime": of.runtime,
        "memory_mb": of.memory_mb,
        "architecture": of.architecture,
        "image": "image:tag",
        "rie_version": None,
        "sandbox_id": "none",
        "sequence": 1,
        "cold": changes.get("sequence", 1) == 1,
        "phase_init": PhaseInit.INIT if figures["init_ms"] else None,
        "started_at": "2026-01-01T00:00:00+00:00",
        "outcome": outcome,
        "response": {"ok": True},
        "response_bytes": 11,
        "log_tail": f"START RequestId: {request_id} Version: $LATEST\nhello\nEND RequestId: {request_id}\n{report}\n",
        "report": report,
    }
    return Invocation(**(settings | figures))


class PlayedService:
    """Answers Invoke as the Lambda API does, and plays the life of a sandbox meanwhile.

    Events: ``work_ms``, ``oom``, ``fail``, ``timeout``. The pace of everything can be quickened by ``speed``.
    """

    def __init__(self, *functions: Function, store: Store | None = None, speed: float = 1.0) -> None:
        self.feed = Feed(sample_s=0.1)
        self.functions = {each.name: each for each in functions}
        self.sandboxes: list[PlayedSandbox] = []
        self.invoked: list[tuple[str, str, bytes]] = []
        self.most_at_once = 0
        self._idle: list[PlayedSandbox] = []
        self._speed = speed
        for each in functions:
            from harness.api.feed import card

            self.feed.function(card(each))

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await asyncio.to_thread(self.feed.close)

        invoke = Route("/2015-03-31/functions/{name}/invocations", self._invoke, methods=["POST"])
        self.app = Starlette(routes=[*routes(self.feed, store=store), invoke], lifespan=lifespan)

    async def _invoke(self, request: Request) -> Response:
        name, body = request.path_params["name"], await request.body()
        self.invoked.append((name, request.query_params.get("Qualifier", ""), body))
        played = self.functions.get(name)
        if played is None:
            return JSONResponse(
                {"Type": "User", "Message": f"Function not found: {name}"},
                404,
                headers={"x-amzn-ErrorType": "ResourceNotFoundException"},
            )
        event = json.loads(body or b"{}")
        done = await self.play(played, event if isinstance(event, dict) else {})
        headers = {"x-amzn-RequestId": done.request_id, "X-Amz-Executed-Version": "$LATEST"}
        if done.outcome is not Outcome.SUCCESS:
            headers["X-Amz-Function-Error"] = "Unhandled"
            return JSONResponse({"errorType": done.error_type, "errorMessage": done.error_message}, headers=headers)
        return JSONResponse(event, headers=headers)

    async def _wait(self, ms: float) -> None:
        await asyncio.sleep(ms / 1000 / self._speed)

    async def play(self, played: Function, event: dict[str, Any]) -> Invocation:
        warm = [each for each in self._idle if each.function is played]
        box = warm[-1] if warm else PlayedSandbox(played, self.feed)
        if warm:
            self._idle.remove(box)
            box.enter(lifecycle.Broken() if box.lost else lifecycle.Idle(warm=box.sequence))
        else:
            self.sandboxes.append(box)
        self.most_at_once = max(self.most_at_once, len(self.sandboxes) - len(self._idle))
        box.sequence += 1
        init_ms = None
        if not warm or box.lost:
            box.enter(lifecycle.Reinitialising() if box.lost else lifecycle.Initialising())
            init_ms = None if box.lost else 480.0
            await self._wait(480)
            box.resident = 34 * MIB
        box.lost = False
        box.enter(lifecycle.Invoking(warm=box.sequence))
        work_ms = float(event.get("work_ms", 30))
        try:
            return await self._work(box, event, work_ms, init_ms)
        finally:
            self._idle.append(box)

    async def _work(
        self, box: PlayedSandbox, event: dict[str, Any], work_ms: float, init_ms: float | None
    ) -> Invocation:
        found = {"init_ms": init_ms, "duration_ms": work_ms, "billed_ms": int(work_ms + (init_ms or 0)) + 1}
        if event.get("oom"):
            size = box.function.memory_mb
            for used in range(34, size, 12):
                box.resident = used * MIB
                await self._wait(90)
            box.resident = 3 * MIB
            self._lose(box)
            message = f"RequestId: {uuid.uuid4()} Error: Runtime exited with error: signal: killed"
            return box.tell(
                Outcome.OUT_OF_MEMORY,
                error_type="Runtime.OutOfMemory",
                error_message=message,
                **found | {"max_memory_used_mb": size},
            )
        await self._wait(work_ms)
        if event.get("timeout"):
            self._lose(box)
            return box.tell(
                Outcome.TIMEOUT,
                error_type="Sandbox.Timedout",
                error_message="Task timed out after 3.00 seconds",
                **found,
            )
        box.resident = int((34 + min(60, box.sequence * 1.5)) * MIB)
        box.enter(lifecycle.Idle(warm=box.sequence))
        box.enter(lifecycle.Frozen(warm=box.sequence))
        used = -(-box.resident // MIB)
        if event.get("fail"):
            return box.tell(
                Outcome.FUNCTION_ERROR,
                error_type="ValueError",
                error_message="<img src=x onerror=alert(1)> no such order",
                **found | {"max_memory_used_mb": used},
            )
        return box.tell(Outcome.SUCCESS, **found | {"max_memory_used_mb": used})

    def _lose(self, box: PlayedSandbox) -> None:
        box.lost = True
        box.enter(lifecycle.Broken())
        box.enter(lifecycle.FrozenBroken())

    def end(self, box: PlayedSandbox) -> None:
        self.sandboxes.remove(box)
        if box in self._idle:
            self._idle.remove(box)
        box.enter(lifecycle.ShutDown())


class Served:
    """An app on a free port of 127.0.0.1, in a thread."""

    def __init__(self, app: Starlette, port: int = 0) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline, "the server does not begin"
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=20)
        assert not self._thread.is_alive(), "the server does not end: a page's stream holds it"


def traces(feed: Feed) -> None:
    """Two traces and some metrics, as receivers hand them over."""
    begin = time.time() - 2
    feed.segment(
        {
            "id": "70de5b6f19ff9a0a",
            "trace_id": "1-581cf771-a006649127e371903a2de979",
            "name": "orders",
            "start_time": begin,
            "end_time": begin + 0.412,
            "subsegments": [
                {"id": "a1", "name": "Initialization", "start_time": begin, "end_time": begin + 0.18},
                {"id": "a5", "name": "Overhead", "start_time": begin + 0.4, "end_time": begin + 0.412},
            ],
        }
    )
    feed.segment(
        {
            "id": "a2",
            "parent_id": "70de5b6f19ff9a0a",
            "trace_id": "1-581cf771-a006649127e371903a2de979",
            "type": "subsegment",
            "name": "Invocation",
            "start_time": begin + 0.18,
            "end_time": begin + 0.4,
            "subsegments": [
                {"id": "a3", "name": "DynamoDB", "start_time": begin + 0.2, "end_time": begin + 0.29},
                {
                    "id": "a4",
                    "name": "payment.example",
                    "fault": True,
                    "start_time": begin + 0.3,
                    "end_time": begin + 0.39,
                },
            ],
        }
    )
    for value in (3, 5, 4, 9, 12, 8):
        feed.metrics(
            {
                "Namespace": "Shop",
                "MetricName": "OrdersPlaced",
                "Value": value,
                "Unit": "Count",
                "Dimensions": [{"Name": "Stage", "Value": "workshop"}],
                "source": "emf",
            }
        )
    feed.metrics(
        {
            "Namespace": "Shop",
            "MetricName": "PaymentLatency",
            "Value": 88.5,
            "Unit": "Milliseconds",
            "Dimensions": [],
            "source": "api",
        }
    )
    feed.message("code of orders has changed: the next invocation runs in a fresh sandbox")


async def _show(service: PlayedService, scenario: str) -> None:
    chance = random.Random(7)  # noqa: S311  # a play, no secret
    first, killed, *others = service.functions.values()

    async def keep_busy(played: Function, pause_ms: float, event: dict[str, Any]) -> None:
        while True:
            await service.play(played, event)
            await asyncio.sleep(pause_ms / 1000 * (0.5 + chance.random()))

    lanes = 150 if scenario == "many" else 2
    busy = [keep_busy(first, 3000 if scenario == "many" else 2200, {"work_ms": 900}) for _ in range(lanes)]
    busy.append(keep_busy(killed, 15000, {"oom": True}))
    busy += [keep_busy(each, 1500, {"work_ms": 5}) for each in others[:1]]
    busy += [keep_busy(others[0], 9000, {"fail": True})]
    await asyncio.gather(*busy)


def main() -> None:
    port, scenario = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "few"
    samples = Path(__file__).parents[2] / "sample_functions"
    played = (
        function(name="orders", memory_mb=256, events=(samples / "cpu_bound_python" / "events" / "default.json",)),
        function(name="out_of_memory_python", memory_mb=128, timeout_s=30),
        function(name="thumbnails", memory_mb=1024, runtime="nodejs22.x"),
        function(name="nightly-report", memory_mb=512),
    )
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Store(Path(sys.argv[3]))) if len(sys.argv) > 3 else None
        service = PlayedService(*(() if scenario == "none" else played), store=store)
        if scenario != "none":
            traces(service.feed)
        url = stack.enter_context(Served(service.app, port))
        sys.stderr.write(f"{url}\n")
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_show(service, scenario) if scenario != "none" else asyncio.sleep(10_000))


if __name__ == "__main__":
    main()
