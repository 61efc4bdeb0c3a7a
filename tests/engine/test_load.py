"""Loads over real containers: scale-out, throttles, kills that are counted, and an end that leaves nothing behind."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Lab, end, until

from harness.engine.client import EngineFacts
from harness.kernel import is_this_machine
from harness.store import Store

OPTIONS = ("--runtime", "python3.13", "--handler", "app.handler", "-m", 128)
SLEEPY = """
    import time

    def handler(event, context):
        time.sleep(0.15)
        return 1
"""
LEAKY = """
    kept = []

    def handler(event, context):
        block = bytearray(24 << 20)
        block[::4096] = b"x" * len(block[::4096])
        kept.append(block)
        return len(kept)
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"LAMBDA_HARNESS_STORE": str(tmp_path / "runs.sqlite3")}


def measured(lab: Lab, source: str, *arguments: object, env: dict[str, str], expect: int = 0) -> dict[str, Any]:
    made = lab.document("load", lab.function({"app.py": source}), *OPTIONS, *arguments, env=env, expect=expect)
    assert len(made["invocations"]) == made["findings"]["requests"]
    return made


def test_a_closed_loop_has_one_sandbox_and_one_cold_start_a_client(
    lab: Lab, vantage: str, facts: EngineFacts, env: dict[str, str]
) -> None:
    made = measured(lab, SLEEPY, "--concurrency", 3, "--requests", 12, "--vantage", vantage, env=env)
    found = made["findings"]
    assert (found["requests"], found["errors"], found["sandboxes"], found["cold_starts"]) == (12, 0, 3, 3)
    seen = vantage != "api" or is_this_machine(facts.kernel, facts.memory_bytes)
    assert (found["peak_memory_bytes"] is not None) == seen
    assert found["cost_usd"] == pytest.approx(sum(each["cost_usd"] for each in made["invocations"]))
    assert all(each["frozen_ms"] is not None for each in made["invocations"] if not each["cold"])


def test_an_open_loop_scales_out_when_all_are_busy(lab: Lab, env: dict[str, str]) -> None:
    found = measured(lab, SLEEPY, "--rate", 20, "--for", 1.5, env=env)["findings"]
    assert found["requests"] == 30
    assert found["errors"] == 0
    assert found["sandboxes"] >= 2


def test_beyond_max_sandboxes_requests_are_throttled(lab: Lab, env: dict[str, str]) -> None:
    made = measured(lab, SLEEPY, "--rate", 40, "--for", 1, "--max-sandboxes", 1, env=env)
    throttled = [each for each in made["invocations"] if each["outcome"] == "throttled"]
    assert made["findings"]["sandboxes"] == 1
    assert made["findings"]["throttled"] == len(throttled) > 0
    assert made["findings"]["errors"] == 0
    assert {(each["error_type"], each["error_message"]) for each in throttled} == {
        ("TooManyRequestsException", "Rate Exceeded.")
    }


def test_a_sandbox_that_runs_out_of_memory_is_reset_and_goes_on(lab: Lab, env: dict[str, str]) -> None:
    made = measured(lab, LEAKY, "--concurrency", 1, "--requests", 16, env=env, expect=7)
    found = made["findings"]
    assert set(found["outcomes"]) == {"success", "out_of_memory"}
    assert found["outcomes"]["out_of_memory"] >= 2
    assert found["sandboxes"] == found["cold_starts"] == 1
    assert found["resets"] >= 1
    ordered = sorted(made["invocations"], key=lambda each: each["sequence"])
    after_a_kill = [after for before, after in itertools.pairwise(ordered) if before["outcome"] == "out_of_memory"]
    assert {each["phase_init"] for each in after_a_kill} == {"suppressed"}
    assert all(each["response"] == 1 for each in after_a_kill if each["outcome"] == "success"), "globals were lost"


def test_an_interrupted_load_keeps_its_records_and_leaves_no_container(lab: Lab, env: dict[str, str]) -> None:
    folder = lab.function({"app.py": SLEEPY})
    process = lab.start("load", folder, *OPTIONS, "--concurrency", 2, "--for", 60, "--json", env=env)
    store = Path(env["LAMBDA_HARNESS_STORE"])

    def measured_some() -> bool:
        if not store.exists():
            return False
        with Store(store) as history:
            return any(each.invocations > 3 for each in history.list())

    until(measured_some, "some invocations are stored")
    out, _ = end(process, signal.SIGINT)
    assert process.returncode == 130
    assert out == ""
    with Store(store) as history:
        (run,) = history.list()
        kept = history.document(run.run_id)
    assert kept["state"] == "interrupted"
    assert kept["findings"]["requests"] == len(kept["invocations"]) > 3
    assert {each["outcome"] for each in kept["invocations"]} == {"success"}
    assert lab.containers(process.pid) == set()


def test_a_person_gets_the_figures(lab: Lab, env: dict[str, str]) -> None:
    folder = lab.function({"app.py": SLEEPY})
    done = lab.cli("load", folder, *OPTIONS, "--concurrency", 2, "--requests", 4, env=env)
    assert "4 requests" in done.stdout
    assert not done.stdout.startswith("{")


def test_neither_clients_nor_a_rate_is_a_usage_error(lab: Lab, env: dict[str, str]) -> None:
    folder = lab.function({"app.py": SLEEPY})
    assert "--concurrency" in lab.cli("load", folder, *OPTIONS, env=env, expect=2).stderr
