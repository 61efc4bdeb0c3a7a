"""Whatever ends a command, nothing of it stays in the engine or on the disk."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from conftest import WAIT_S, checked, end, invoke, until

from harness.stand import _OWNER_FILE, _WORK_PREFIX, work_base

if TYPE_CHECKING:
    from conftest import Lab

    from harness.engine.client import EngineFacts

SLEEPER = """
    import time
    def handler(event, context):
        print("asleep", flush=True)
        time.sleep(event.get("s", 100))
        return "awake"
"""
ENGINE = Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))


def work_dirs(pid: int) -> list[Path]:
    owners = work_base().glob(f"{_WORK_PREFIX}*/{_OWNER_FILE}")
    return [each.parent for each in owners if each.read_text().startswith(f"{pid}:")]


def mounts(folders: list[Path]) -> list[str]:
    return [
        each.mountpoint
        for each in psutil.disk_partitions(all=True)
        if any(Path(each.mountpoint).is_relative_to(folder) for folder in folders)
    ]


def asleep(lab: Lab, *more: str, event: str = "{}", env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A command in the middle of an invocation."""
    folder = lab.function({"app.py": SLEEPER})
    function = [folder, "--runtime", "python3.13", "--handler", "app.handler", "--no-pull"]
    process = lab.start("invoke", *function, "--timeout", 200, "-m", 512, "-e", event, *more, env=env)
    assert process.stderr is not None
    for line in process.stderr:
        if "asleep" in line:
            return process
    raise AssertionError(f"it ended with {process.wait()}")


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_an_interrupted_command_gives_everything_back(
    lab: Lab, vantage: str, number: signal.Signals, exit_code: int
) -> None:
    process = asleep(lab, "--vantage", vantage)
    assert len(lab.sandboxes(process.pid)) == 1
    folders = work_dirs(process.pid)
    assert folders
    _, said = end(process, number)
    assert process.returncode == exit_code
    assert "Traceback" not in said
    assert lab.containers(process.pid) == set()
    assert not any(folder.exists() for folder in folders)
    assert mounts(folders) == []


def test_what_a_killed_command_leaves_is_reaped_by_clean(lab: Lab, vantage: str) -> None:
    process = asleep(lab, "--vantage", vantage)
    end(process, signal.SIGKILL)
    (left,) = lab.sandboxes(process.pid)
    folders = work_dirs(process.pid)
    said = lab.cli("clean").stdout
    assert f"removed container {left}" in said
    assert lab.containers(process.pid) == set()
    assert not any(folder.exists() for folder in folders)
    assert mounts(folders) == []


def test_a_command_killed_while_its_sandbox_was_frozen_is_reaped_too(lab: Lab, vantage: str) -> None:
    process = asleep(lab, "--vantage", vantage, "-n", "2", "--gap", "60", event='{"s": 0}')
    assert process.stderr is not None
    for line in process.stderr:
        if "REPORT RequestId" in line:
            break
    end(process, signal.SIGKILL)
    assert len(lab.sandboxes(process.pid)) == 1
    lab.cli("clean")
    assert lab.containers(process.pid) == set()


def test_two_commands_at_once_leave_each_other_alone(lab: Lab) -> None:
    first = asleep(lab)
    second = asleep(lab)  # it reaps what the dead left, when it starts
    try:
        lab.cli("clean")
        assert len(lab.sandboxes(first.pid)) == 1
        assert len(lab.sandboxes(second.pid)) == 1
    finally:
        for each in (first, second):
            end(each, signal.SIGINT)
    assert lab.containers(first.pid) | lab.containers(second.pid) == set()


class Proxy:
    """A socket before the engine's own that can be cut, as if the engine went away in the middle."""

    def __init__(self, path: Path) -> None:
        self.path, self.connections = path, list[socket.socket]()
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(path))
        self.server.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            engine = socket.socket(socket.AF_UNIX)
            engine.connect(str(ENGINE))
            self.connections += [client, engine]
            for source, target in ((client, engine), (engine, client)):
                threading.Thread(target=self.copy, args=(source, target), daemon=True).start()

    @staticmethod
    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def cut(self) -> None:
        self.path.unlink(missing_ok=True)
        for each in [self.server, *self.connections]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    if not ENGINE.is_socket():
        pytest.skip(f"the engine does not listen at {ENGINE}")
    found = Proxy(tmp_path / "docker.sock")
    yield found
    found.cut()


@pytest.mark.parametrize("vantage", ["agent", "api"])
def test_an_engine_that_goes_away_in_the_middle_is_said_plainly_and_nothing_hangs(
    lab: Lab, proxy: Proxy, facts: EngineFacts, vantage: str
) -> None:
    checked("host", facts)
    process = asleep(lab, "--vantage", vantage, event='{"s": 1}', env={"DOCKER_HOST": f"unix://{proxy.path}"})
    assert len(lab.sandboxes(process.pid)) == 1
    proxy.cut()
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 4, said
    assert "Traceback" not in said
    assert "engine" in said
    lab.cli("clean")
    assert lab.containers(process.pid) == set()


def test_on_vantage_host_an_invocation_outlives_its_engine(lab: Lab, proxy: Proxy, facts: EngineFacts) -> None:
    checked("host", facts)
    process = asleep(lab, "--vantage", "host", event='{"s": 1}', env={"DOCKER_HOST": f"unix://{proxy.path}"})
    proxy.cut()
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode in (0, 4), said
    assert "Traceback" not in said
    lab.cli("clean")
    assert lab.containers(process.pid) == set()


def test_a_start_that_fails_leaves_nothing(lab: Lab, vantage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.errors import EngineError
    from harness.vantage.agent import RemoteWatch
    from harness.watch import Watch

    def refuse(_: object) -> None:
        raise EngineError("refused")

    for watch in (Watch, RemoteWatch):
        monkeypatch.setattr(watch, "begin_watching", refuse)
    with pytest.raises(EngineError, match="refused"), lab.sandbox(SLEEPER, vantage=vantage):
        pytest.fail("it started")
    assert lab.containers() == set()
    assert mounts(work_dirs(os.getpid())) == []


def test_a_full_disk_for_tmp_is_no_hang(lab: Lab, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import harness.vantage.host as module

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_make_disk", full)
    with lab.sandbox(SLEEPER, vantage=host) as sandbox:
        record = invoke(sandbox, s=0)
    assert record.response == "awake"
    assert any("/tmp is not limited to 512 MB: " in note and "No space left" in note for note in record.notes)


def test_descriptors_and_threads_are_given_back(lab: Lab, vantage: str) -> None:
    with lab.sandbox(SLEEPER, vantage=vantage) as sandbox:
        invoke(sandbox, s=0)
    me = psutil.Process()
    descriptors, threads = me.num_fds(), threading.active_count()
    for _ in range(3):
        with lab.sandbox(SLEEPER, vantage=vantage) as sandbox:
            invoke(sandbox, s=0)
    until(lambda: threading.active_count() <= threads, "the watches to end")
    assert me.num_fds() <= descriptors + 2
