"""The engine's machine stands still in the middle of an invocation: the one that scripts/vm/test.sh outside has booted.

Its monitor halts it from outside, as Docker Desktop saves resources, or a laptop's lid is closed: every process in there
stops, and so do its clocks.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PATIENCE, WAIT_S, until

if TYPE_CHECKING:
    from conftest import Lab

MONITOR = os.environ.get("LAMBDA_HARNESS_TEST_MONITOR", "")
SOURCE = """
    import time
    def handler(event, context):
        print("called", flush=True)
        time.sleep(event["s"])
        return 1
"""
SLEEP_S, PAUSE_S = 5, 8
TIMEOUT = int(5 * PATIENCE)

pytestmark = pytest.mark.skipif(not MONITOR, reason="needs a machine that can be halted: scripts/vm/test.sh outside")


class Machine:
    """QEMU's monitor."""

    def __init__(self) -> None:
        self.halted = False

    def halt(self) -> None:
        self._say("stop", "paused")
        self.halted = True

    def resume(self) -> None:
        self._say("cont", "running")
        self.halted = False

    @staticmethod
    def _say(word: str, state: str) -> None:
        with socket.socket(socket.AF_UNIX) as monitor, monitor.makefile("rw") as lines:
            monitor.settimeout(WAIT_S)
            monitor.connect(MONITOR)
            lines.write(f"{word}\ninfo status\n")
            lines.flush()
            while "VM status:" not in (said := lines.readline()):
                assert said, "the monitor hung up"
            assert state in said


@pytest.fixture
def machine() -> Iterator[Machine]:
    found = Machine()
    yield found
    if found.halted:
        found.resume()


@pytest.fixture
def called() -> threading.Event:
    return threading.Event()


def test_what_a_standstill_adds_is_in_no_duration_and_is_told(
    lab: Lab, machine: Machine, vantage: str, called: threading.Event
) -> None:
    def pause() -> None:
        assert called.wait(WAIT_S)
        machine.halt()
        time.sleep(PAUSE_S)
        machine.resume()

    settings = {"vantage": vantage, "memory_mb": 1769, "timeout_s": TIMEOUT}
    with lab.sandbox(SOURCE, on_output=lambda _: called.set(), **settings) as sandbox:
        assert sandbox.invoke(b'{"s": 0}').outcome == "success"
        called.clear()
        pausing = threading.Thread(target=pause)
        pausing.start()
        held = sandbox.invoke(json.dumps({"s": SLEEP_S}).encode())
        pausing.join()
        after = sandbox.invoke(b'{"s": 0}')
    assert held.outcome == after.outcome == "success"
    assert held.client_ms is not None
    assert held.client_ms >= (SLEEP_S + PAUSE_S) * 1000
    assert held.duration_ms is not None
    assert SLEEP_S * 1000 <= held.duration_ms < (SLEEP_S + PAUSE_S) * 1000, "by the machine's own clock"
    told = [note for note in held.notes if "stood still for" in note]
    assert len(told) == (vantage == "agent"), "only through the agent are both clocks seen"
    assert not [note for note in after.notes if "stood still" in note]


def test_a_machine_that_does_not_come_back_ends_the_run_with_a_clear_error_and_keeps_its_records(
    lab: Lab, machine: Machine, vantage: str, tmp_path: Path
) -> None:
    env = {"LAMBDA_HARNESS_STORE": str(tmp_path / "runs.sqlite3"), "LAMBDA_HARNESS_VANTAGE": vantage}
    function = lab.function({"app.py": SOURCE})
    words = (function, "--runtime", "python3.13", "--handler", "app.handler", "--no-pull", "--timeout", TIMEOUT)

    def run() -> dict[str, Any] | None:
        listed = lab.document("runs", "list", env=env)["runs"]
        return listed[0] if listed else None

    with lab.start("sweep", *words, "-m", "512", "-n", 1000, "-e", '{"s": 1}', env=env) as going:
        try:
            until(lambda: (run() or {"invocations": 0})["invocations"] >= 3, "some invocations to be measured")
            machine.halt()
            _, said = going.communicate(timeout=WAIT_S * 20)
        finally:
            going.kill()
    assert going.returncode == 4, said[-2000:]
    assert "Traceback" not in said
    assert "paused" in said, said[-2000:]
    left = run()
    assert left is not None
    assert left["invocations"] >= 3
    machine.resume()
    lab.cli("clean", env=env)
    assert lab.containers(going.pid) == set()
