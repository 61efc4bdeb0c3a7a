"""Frozen means frozen: nothing of a sandbox runs between invocations."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from conftest import invoke

from harness.vantage.agent import RemoteReach
from harness.vantage.reach import CgroupReach

if TYPE_CHECKING:
    from conftest import Lab

    from harness.sandbox import Sandbox

TICKS = """
    import threading, time
    ticks = [0]
    def tick():
        while True:
            time.sleep(0.005)
            ticks[0] += 1
    threading.Thread(target=tick, daemon=True).start()
    def handler(event, context):
        return ticks[0]
"""
GAP_S = 2.0
UNFROZEN = GAP_S / 0.005


def standing_still(lab: Lab, sandbox: Sandbox) -> bool:
    reach = sandbox.cell.reach
    if isinstance(reach, CgroupReach | RemoteReach):
        return reach.frozen()
    paused: bool = lab.engine.docker.api.inspect_container(f"lambda-harness-{sandbox.id}")["State"]["Paused"]
    return paused


def test_a_background_thread_stands_still_in_the_freeze(lab: Lab, vantage: str) -> None:
    with lab.sandbox(TICKS, vantage=vantage) as sandbox:
        first = invoke(sandbox)
        assert standing_still(lab, sandbox)
        time.sleep(GAP_S)  # the time in which nothing may happen
        second = invoke(sandbox)
        assert standing_still(lab, sandbox)
    assert second.response - first.response < UNFROZEN / 5
    assert first.frozen_ms is None
    assert second.frozen_ms is not None
    assert second.frozen_ms >= GAP_S * 1000
    assert first.freeze_ms is not None
    assert second.thaw_ms is not None


def test_without_the_freeze_it_goes_on(lab: Lab, vantage: str) -> None:
    with lab.sandbox(TICKS, vantage=vantage, freeze=False, memory_mb=1769) as sandbox:
        first = invoke(sandbox)
        assert not standing_still(lab, sandbox)
        time.sleep(GAP_S)
        second = invoke(sandbox)
    assert second.response - first.response > UNFROZEN / 3
    assert second.frozen_ms is None
    assert second.freeze_ms is None
    assert second.thaw_ms is None


def test_a_sandbox_whose_runtime_crashed_is_frozen_and_thawed_too(lab: Lab, vantage: str) -> None:
    source = "import os\ndef handler(event, context):\n    return os._exit(1) if event.get('exit') else 'here'\n"
    with lab.sandbox(source, vantage=vantage) as sandbox:
        invoke(sandbox, exit=True)
        assert standing_still(lab, sandbox)
        assert invoke(sandbox).response == "here"


def test_a_frozen_sandbox_can_be_shut_down(lab: Lab, vantage: str) -> None:
    with lab.sandbox(TICKS, vantage=vantage) as sandbox:
        invoke(sandbox)
        assert standing_still(lab, sandbox)
        name = f"lambda-harness-{sandbox.id}"
    assert name not in lab.containers()
