"""What the service adds to an invocation: many requests in flight over few sandboxes, request by request.

Each answer says in its Server-Timing header how long the pool took; what a client waited beyond that is the service's, the
client's own time included. SAM CLI's `start-lambda` runs the same function in the same image next to it, one request at a
time, as it has one container; a floor is a request to the service that invokes nothing. Run it on a machine that has
nothing else to do:

    .venv/bin/python bench/service.py                  # some three minutes
    .venv/bin/python bench/service.py --check          # exit code 8 if an aim is missed
    .venv/bin/python bench/service.py --requests 10000 # and look at the threads and descriptors
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import subjects  # beside this file; neither is part of the package

from harness.errors import EngineError, HarnessError, ThresholdNotMet
from harness.function import Function, load
from harness.stand import Stand, work_base

AIM_MS = 3.0
"""At most this is what the service adds at the median, with `IN_FLIGHT` requests over `SANDBOXES` sandboxes."""
IN_FLIGHT, SANDBOXES = 50, 20
HANDLER = """
import time
def handler(event, context):
    time.sleep(event.get("sleep_s", 0))
    return {"message": "hello world"}
"""
MANIFEST = 'name = "hello"\nruntime = "python3.13"\nhandler = "app.handler"\nmemory_mb = 1769\ntimeout_s = 30\n'
_POOL = re.compile(rb"(?i)\r\nserver-timing:[^\r]*\bpool;dur=([\d.]+)")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_RETRY_S = 0.2
_WARM_UP_S = 3.0


@dataclass(kw_only=True)
class Load:
    """What one burst of load found; times in ms."""

    waited: list[float] = field(default_factory=list)
    pool: list[float] = field(default_factory=list)
    throttled: list[float] = field(default_factory=list)
    failed: list[bytes] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def added(self) -> list[float]:
        """What each request waited beyond its pool's time."""
        return [waited - pool for waited, pool in zip(self.waited, self.pool, strict=True)]


def request(method: str, path: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer."""
    writer.write(asked)
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return head, await reader.readexactly(int(length[1]) if length else 0)


async def drive(
    port: int, asked: Sequence[bytes], *, clients: int, requests: int | None, seconds: float | None
) -> Load:
    """Clients in a closed loop, a connection each, with one of ``asked`` at random; who is throttled asks again later."""
    chance = random.Random(1)  # noqa: S311  # not for secrets; the same order in each run
    found, left = Load(), requests if requests is not None else sys.maxsize
    begun = time.perf_counter()

    async def client() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while left > 0 and (seconds is None or time.perf_counter() - begun < seconds):
            before = time.perf_counter()
            head, body = await ask(reader, writer, chance.choice(asked))
            waited = (time.perf_counter() - before) * 1e3
            status, pool = head.split(b" ", 2)[1], _POOL.search(head)
            if status == b"200" and pool is not None and b"hello" in body:
                left -= 1
                found.waited.append(waited)
                found.pool.append(float(pool[1]))
            elif status == b"429":
                found.throttled.append(waited)
                await asyncio.sleep(chance.uniform(0.5, 1.5) * _RETRY_S)
            else:
                left -= 1
                found.failed.append(head[:200] + body[:200])
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    found.seconds = time.perf_counter() - begun
    return found


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running `lambda-harness serve`."""

    port: int
    process: psutil.Process

    def holds(self) -> dict[str, int]:
        """Threads and open descriptors now."""
        return {"threads": self.process.num_threads(), "descriptors": self.process.num_fds()}

    def cpu_s(self) -> float:
        """CPU time of the service's process so far, all of its threads together."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextlib.contextmanager
def service(folder: Path) -> Iterator[Service]:
    """`lambda-harness serve`, answering, with a history of its own."""
    port, log = subjects.free_port(), folder / "serve.log"
    words = [sys.executable, "-m", "harness", "serve", "--port", str(port), "--no-pull"]
    words += ["--store", str(folder / "data" / "runs.sqlite3")]
    with log.open("w") as out:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                asyncio.run(
                    drive(port, [request("GET", "/2016-08-19/account-settings/")], clients=1, requests=1, seconds=5)
                )
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise EngineError(f"serve does not answer: {log.read_text()[-300:]}") from error
                time.sleep(0.1)
        yield Service(port=port, process=psutil.Process(process.pid))
    finally:
        subjects.stop(process, signal.SIGTERM)


def deploy(port: int) -> None:
    """The function, made through the service's own API, with as many sandboxes as are wanted."""
    import boto3

    aws = boto3.client(
        "lambda",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",  # noqa: S106  # the service asks for none
    )
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("app.py", HANDLER)
    aws.create_function(
        FunctionName="hello",
        Runtime="python3.13",
        Handler="app.handler",
        Role="arn:aws:iam::000000000000:role/any",
        Code={"ZipFile": package.getvalue()},
        MemorySize=128,
        Timeout=30,
    )
    aws.get_waiter("function_active_v2").wait(FunctionName="hello")
    aws.put_function_concurrency(FunctionName="hello", ReservedConcurrentExecutions=SANDBOXES)


def percentiles(values: list[float]) -> dict[str, float | None]:
    if len(values) < 2:
        return {"p50": None, "p95": None, "p99": None}
    cuts = statistics.quantiles(values, n=100)
    return {"p50": statistics.median(values), "p95": cuts[94], "p99": cuts[98]}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole benchmark: see the module."""
    path = "/2015-03-31/functions/hello/invocations"
    # Handlers of different lengths: of one length they would all end at the same moment, again and again.
    sleeps = [options.sleep * (0.5 + number / 16) for number in range(17)]
    invoke = [request("POST", path, json.dumps({"sleep_s": each}).encode()) for each in sleeps]
    floor = request("GET", "/2015-03-31/functions/hello/configuration")
    with service(folder) as running:
        deploy(running.port)
        asyncio.run(drive(running.port, invoke, clients=IN_FLIGHT, requests=None, seconds=_WARM_UP_S))
        before, cpu_s = running.holds(), running.cpu_s()
        one = asyncio.run(drive(running.port, [request("POST", path, b"{}")], clients=1, requests=300, seconds=None))
        many = asyncio.run(drive(running.port, invoke, clients=IN_FLIGHT, requests=options.requests, seconds=None))
        cpu_s = running.cpu_s() - cpu_s
        time.sleep(12)  # threads without work end after ten seconds
        after = running.holds()
        idle = asyncio.run(_floor(running.port, floor))
    if many.failed or one.failed:
        raise EngineError(f"{len(many.failed) + len(one.failed)} requests failed: {(many.failed + one.failed)[0]!r}")
    return {
        "in_flight": IN_FLIGHT,
        "sandboxes": SANDBOXES,
        "requests": len(many.waited),
        "throttled": len(many.throttled),
        "requests_per_s": len(many.waited) / many.seconds,
        "added_ms": percentiles(many.added),
        "pool_ms": percentiles(many.pool),
        "throttled_ms": percentiles(many.throttled),
        "one_at_a_time_added_ms": percentiles(one.added),
        "one_at_a_time_ms": percentiles(one.waited),
        "get_configuration_ms": percentiles(idle),
        "service_cpu_ms_a_request": cpu_s * 1000 / (len(many.waited) + len(many.throttled) + len(one.waited)),
        "before": before,
        "after": after,
    }


async def _floor(port: int, asked: bytes) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = []
    for _ in range(300):
        begun = time.perf_counter()
        await ask(reader, writer, asked)
        found.append((time.perf_counter() - begun) * 1e3)
    writer.close()
    return found


def peers(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The same function one request at a time under SAM CLI, and why it cannot run under moto."""
    found: dict[str, Any] = {
        "moto": "not measured: its Lambda needs an image of the archived docker-lambda contract from a registry, "
        "and does not speak to the Runtime Interface Emulator"
    }
    if options.no_sam:
        return found | {"sam": "not measured: left out by --no-sam"}
    code = folder / "hello"
    code.mkdir()
    (code / "app.py").write_text(HANDLER)
    (code / "function.toml").write_text(MANIFEST)
    function: Function = load(str(code))
    try:
        executable = subjects.install_sam(lambda text: print(text, file=sys.stderr))
        with Stand(function, pull=False) as stand:
            image = stand.image.reference
        rooms = folder / "sam"
        rooms.mkdir()
        with subjects.sam(executable, function, image, rooms) as sam, sam.service() as running:
            for _ in range(5):
                running.request()
            return found | {"sam": percentiles([running.request() for _ in range(100)])}
    except HarnessError as error:
        return found | {"sam": f"not measured: {error}"}


def show(found: dict[str, Any]) -> None:
    def line(name: str, figures: Any) -> None:
        if isinstance(figures, str):
            print(f"{name:44} {figures}")
            return
        cells = "".join(f"{'-' if value is None else f'{value:.2f}':>10}" for value in figures.values())
        print(f"{name:44}{cells}")

    print(f"{'ms':44}{'p50':>10}{'p95':>10}{'p99':>10}")
    line(f"the service adds, {IN_FLIGHT} in flight over {SANDBOXES}", found["added_ms"])
    line("  the pool's own time", found["pool_ms"])
    line("  an answer to who was throttled", found["throttled_ms"])
    line("the service adds, one at a time", found["one_at_a_time_added_ms"])
    line("  a whole request", found["one_at_a_time_ms"])
    line("  a request that invokes nothing", found["get_configuration_ms"])
    line("SAM CLI start-lambda, a whole request", found["peers"]["sam"])
    line("moto server", found["peers"]["moto"])
    print(
        f"{found['requests']} requests, {found['throttled']} throttled, {found['requests_per_s']:.0f} a second, "
        f"{found['service_cpu_ms_a_request']:.1f} ms of the service's CPU time each; "
        f"threads {found['before']['threads']} before, {found['after']['threads']} after; "
        f"descriptors {found['before']['descriptors']} before, {found['after']['descriptors']} after"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="invocations under load (2000)")
    parser.add_argument("--sleep", type=float, default=0.2, help="seconds that the handler sleeps under load (0.2)")
    parser.add_argument("--no-sam", action="store_true", help="without SAM CLI")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--check", action="store_true", help=f"exit code 8 if more than {AIM_MS} ms are added")
    options = parser.parse_args()
    load_average = os.getloadavg()[0]
    if load_average > 0.5:
        print(f"warning: the load average is {load_average:.1f}: something else is running", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="lambda-harness-bench-", dir=work_base()) as folder:
        found = measure(options, Path(folder))
        found["peers"] = peers(options, Path(folder))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    added = found["added_ms"]["p50"]
    return ThresholdNotMet.exit_code if options.check and (added is None or added > AIM_MS) else 0


if __name__ == "__main__":
    sys.exit(main())
