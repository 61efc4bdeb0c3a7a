"""The engine goes away under a running service, and comes back: an engine of the test's own, which it may kill."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from botocore.exceptions import ClientError
from conftest import WAIT_S, scaled, until
from test_service import READY, ROLE, Service, zipped

from harness.engine.client import Engine
from harness.engine.images import resolve
from harness.stand import work_base

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Lab

BRIDGE, SUBNET = "lhtest0", "172.31.251.1/24"


class Daemon:
    """A dockerd with everything of its own: socket, data, bridge."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["dockerd", "--host", self.host, "--bridge", BRIDGE, "--iptables=false", "--ip-masq=false"]
        words += ["--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec"]
        words += ["--pidfile", f"{self.folder}/docker.pid"]
        with (self.folder / "dockerd.log").open("ab") as log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(lambda: self.docker("version", check=False) == 0, "the engine of the test to answer")

    def docker(self, *words: str, check: bool = True, stdin: int | None = None) -> int:
        environment = os.environ | {"DOCKER_HOST": self.host}
        return subprocess.run(
            ["docker", *words], env=environment, capture_output=True, check=check, stdin=stdin
        ).returncode

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(WAIT_S)
            self.process = None
        if number is signal.SIGKILL:
            # Its containerd is a child of its own accord and would stand in the next one's way.
            for process in self.processes("containerd"):
                process.kill()
            for pid_file in self.folder.rglob("*.pid"):
                pid_file.unlink()

    def processes(self, name: str = "") -> list[psutil.Process]:
        """What runs of this engine."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(self.folder) in " ".join(process.cmdline()) and name in ("", process.name()):
                    found.append(process)
        return found


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    if os.geteuid() != 0 or not all(map(shutil.which, ("dockerd", "docker", "ip"))):
        pytest.skip("an engine of its own needs root, dockerd, docker and ip on this machine")
    folder = Path(os.path.realpath(work_base())) / f"lh-engine-{os.getpid()}"
    folder.mkdir()
    found = Daemon(folder)
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "address", "add", SUBNET, "dev", BRIDGE], check=True)
        subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)
        found.start()
        yield found
    finally:
        found.stop()
        for process in found.processes():
            # What a shim that is killed leaves behind would live on: its container's processes go first.
            for inside in process.children(recursive=True):
                inside.kill()
            process.kill()
        subprocess.run(["ip", "link", "delete", BRIDGE], check=False)
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for point in sorted((each for each in mounted if each.startswith(str(folder))), reverse=True):
            subprocess.run(["umount", "--lazy", point], check=False)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def with_python(daemon: Daemon) -> Daemon:
    """Its store holds the image of python3.13."""
    engine = Engine()
    image = resolve(engine.docker, "python3.13", "x86_64", pull=False)
    engine.close()
    with subprocess.Popen(["docker", "save", image.reference], stdout=subprocess.PIPE) as saved:
        assert saved.stdout is not None
        daemon.docker("load", stdin=saved.stdout.fileno())
    return daemon


def serve(daemon: Daemon, store: Path) -> tuple[Service, threading.Thread]:
    words = [sys.executable, "-m", "harness", "serve", "--port", "0", "--store", str(store), "--no-pull"]
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"DOCKER_HOST": daemon.host},
    )
    service = Service(process=process, store=store)
    reading = threading.Thread(target=service.read, daemon=True)
    reading.start()
    until(lambda: any(READY.search(line) for line in service.said), "the service to be ready")
    service.url = next(found[1] for line in service.said if (found := READY.search(line)) is not None)
    return service, reading


def outcome(invoke: Callable[[], object]) -> str:
    """The error's code, or ok; and never longer than a caller would wait."""
    begun = time.monotonic()
    try:
        invoke()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    finally:
        assert time.monotonic() - begun < WAIT_S
    return "ok"


def test_requests_fail_while_the_engine_is_away_and_work_after(with_python: Daemon, tmp_path: Path) -> None:
    daemon = with_python
    service, reading = serve(daemon, tmp_path / "runs.sqlite3")
    try:
        aws = service.aws()
        source = "import time\ndef handler(event, context):\n    time.sleep(event.get('s', 0))\n    return 1\n"
        aws.create_function(
            FunctionName="f",
            Runtime="python3.13",
            Handler="app.handler",
            Role=ROLE,
            Code={"ZipFile": zipped(source)},
            Timeout=scaled(20),
        )
        aws.get_waiter("function_active_v2").wait(FunctionName="f")

        def call(payload: bytes = b"{}") -> str:
            return outcome(lambda: aws.invoke(FunctionName="f", Payload=payload))

        assert call() == "ok"
        with ThreadPoolExecutor(3) as threads:
            under_way = [threads.submit(call, json.dumps({"s": scaled(10)}).encode()) for _ in range(3)]
            until(
                lambda: sum(box["phase"].lower() == "invoking" for box in service.state()["sandboxes"]) == 3,
                "them to run",
            )
            daemon.stop()  # which ends the containers too
            assert [each.result() for each in under_way] == ["ServiceException"] * 3
        assert call() == "ServiceException"
        daemon.start()
        until(lambda: call() == "ok", "the service to work again")
        assert call() == "ok"
        # Killed, the engine leaves its containers running; what the service had is of no use any more, or still is.
        daemon.stop(signal.SIGKILL)
        daemon.start()
        until(lambda: call() == "ok", "the service to work after a crash of the engine")
    finally:
        service.process.terminate()
        assert service.process.wait(WAIT_S) is not None
        reading.join()
        assert service.process.stderr is not None
        service.process.stderr.close()
        assert daemon.docker("ps") == 0
        left = subprocess.run(
            ["docker", "--host", daemon.host, "ps", "--quiet", "--all"], capture_output=True, text=True, check=True
        ).stdout
        assert left == ""


@pytest.mark.parametrize(
    ("vantage", "number"),
    [("host", signal.SIGKILL), ("agent", signal.SIGKILL), ("agent", signal.SIGTERM), ("api", signal.SIGTERM)],
)
def test_a_sweep_whose_engine_is_restarted_says_so_keeps_its_records_and_leaves_nothing(
    with_python: Daemon, lab: Lab, tmp_path: Path, vantage: str, number: signal.Signals
) -> None:
    daemon = with_python
    env = {"DOCKER_HOST": daemon.host, "LAMBDA_HARNESS_STORE": str(tmp_path / "runs.sqlite3")}
    source = lab.function({"app.py": "def handler(event, context):\n    print('called')\n    return 1\n"})
    words = [source, "--runtime", "python3.13", "--handler", "app.handler", "--no-pull", "--vantage", vantage]
    process = lab.start("sweep", *words, "-m", "128,256", "-n", 400, env=env)
    reading = threading.Thread(target=lambda: said.append(process.communicate()[1]), daemon=True)
    said: list[str] = []
    reading.start()

    def kept() -> int:
        runs = lab.document("runs", "list", env=env)["runs"]
        return int(runs[0]["invocations"]) if runs else 0

    try:
        until(lambda: kept() >= 3, "some invocations to be measured")
        daemon.stop(number)
        daemon.start()
        reading.join(WAIT_S * 4)
        assert not reading.is_alive(), "it hangs"
    finally:
        process.kill()
        reading.join()
    # Where the engine is back before each size has lost three sandboxes, the sweep goes on in new ones.
    assert process.returncode in (0, 4), said[0][-2000:]
    assert "Traceback" not in said[0]
    assert "engine_error: " in said[0]
    assert kept() >= 3
    lab.cli("clean", env=env)
    left = subprocess.run(
        ["docker", "--host", daemon.host, "ps", "--quiet", "--all"], capture_output=True, text=True, check=True
    ).stdout
    assert left == ""
