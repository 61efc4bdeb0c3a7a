"""The smallest size that survives, and how a function dies below it, with real kills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, VANTAGES, Lab, checked

from harness.engine.client import EngineFacts
from harness.kernel import is_this_machine

MIB = 1024 * 1024
# Taking 150 MB at a tenth of a CPU may last longer than the 3 s of the default, which would be a time-out, told as one.
TIMEOUT = ("--timeout", str(min(900, int(20 * PATIENCE))))
OPTIONS = ("--runtime", "python3.13", "--handler", "app.handler", "--confirm", "1", *TIMEOUT)
HUNGRY = """
    def handler(event, context):
        print("about to take", event["mb"], flush=True)
        block = bytearray(event["mb"] << 20)
        block[::4096] = b"x" * len(block[::4096])
        return len(block)
"""
PARENT = """
    import subprocess, sys

    TAKE = "b = bytearray(150 << 20); b[::4096] = b'x' * len(b[::4096])"

    def handler(event, context):
        return subprocess.run([sys.executable, "-c", TAKE]).returncode
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"LAMBDA_HARNESS_STORE": str(tmp_path / "runs.sqlite3")}


@pytest.fixture(params=[each for each in VANTAGES if each != "api"])
def watching(request: pytest.FixtureRequest, facts: EngineFacts) -> str:
    """A vantage that shows a sandbox's memory while a request runs."""
    return checked(str(request.param), facts)


def test_the_smallest_size_is_found_and_the_kill_below_is_told(lab: Lab, watching: str, env: dict[str, str]) -> None:
    folder = lab.function({"app.py": HUNGRY})
    made = lab.document(
        "oom", folder, *OPTIONS, "-e", '{"mb": 150}', "--from", 150, "--to", 170, "--vantage", watching, env=env
    )
    found = made["findings"]
    smallest = found["smallest_memory_mb"]
    assert found["verdict"] == "found"
    assert 154 <= smallest <= 164, "150 MB and the interpreter"
    for each in made["invocations"]:
        assert (each["outcome"] == "success") == (each["memory_mb"] >= smallest)
    story = found["kill"]
    assert story["memory_mb"] == smallest - 1
    assert story["killed_process"].startswith("python3")
    assert story["killed"][0]["runtime"] is True
    assert story["killed"][0]["source"] in ({"process_list"} if watching == "agent" else {"kernel_log", "process_list"})
    assert story["killed"][0]["anon_bytes"] > 0
    assert story["last_output"] == ["about to take 150"]
    assert "signal: killed" in story["response"]["errorMessage"]
    assert "Error Type: Runtime.OutOfMemory" in story["report"]
    assert story["growth_bytes_per_s"] > 0
    peak = max(story["timeline"], key=lambda each: each["memory_bytes"])
    limit = story["memory_mb"] * MIB
    assert 0.9 * limit < peak["memory_bytes"] <= limit
    parts = sum(peak[name] for name in ("anon_bytes", "file_bytes", "kernel_bytes"))
    assert abs(parts - peak["memory_bytes"]) < 4 * MIB, "the parts are the whole, but for what a CPU has charged ahead"
    assert story["killed_at_ms"] >= peak["ms"] - 10


def test_a_child_that_is_killed_counts_though_the_function_answers(
    lab: Lab, watching: str, env: dict[str, str]
) -> None:
    folder = lab.function({"app.py": PARENT})
    made = lab.document("oom", folder, *OPTIONS, "--from", 140, "--to", 140, "--vantage", watching, env=env, expect=0)
    found = made["findings"]
    assert made["invocations"][0]["outcome"] == "success"
    assert found["verdict"] == "no_size_saves_it"
    assert found["kill"]["fate"] == "child_killed"
    assert found["kill"]["killed"][0]["runtime"] is False


def test_a_function_that_no_size_kills(lab: Lab, env: dict[str, str]) -> None:
    folder = lab.function({"app.py": "def handler(event, context): return 1\n"})
    found = lab.document("oom", folder, *OPTIONS, "--to", 256, env=env)["findings"]
    assert (found["verdict"], found["smallest_memory_mb"]) == ("no_size_kills_it", None)
    assert found["reason"]


def test_a_function_that_no_size_saves(lab: Lab, env: dict[str, str]) -> None:
    folder = lab.function({"app.py": HUNGRY})
    found = lab.document("oom", folder, *OPTIONS, "-e", '{"mb": 900}', "--to", 192, env=env, expect=7)["findings"]
    assert (found["verdict"], found["smallest_memory_mb"]) == ("no_size_saves_it", None)
    assert [each["memory_mb"] for each in found["tries"]] == [128, 192]


def test_the_engines_api_alone_finds_it_too_and_says_what_it_cannot_see(
    lab: Lab, facts: EngineFacts, env: dict[str, str]
) -> None:
    folder = lab.function({"app.py": HUNGRY})
    event = ("-e", '{"mb": 150}', "--from", 150, "--to", 166)
    found: dict[str, Any] = lab.document("oom", folder, *OPTIONS, *event, "--vantage", "api", env=env)["findings"]
    assert 154 <= found["smallest_memory_mb"] <= 165
    story = found["kill"]
    if is_this_machine(facts.kernel, facts.memory_bytes):  # whose cgroups can be read, if not written
        assert max(each["memory_bytes"] for each in story["timeline"]) > 0.9 * story["memory_mb"] * MIB
        assert story["killed_process"].startswith("python3")
        return
    assert story["timeline"] == []
    assert "vantage api" in story["timeline_reason"]
    assert story["killed"][0]["source"] == "exit_line"


def test_a_person_gets_the_story(lab: Lab, env: dict[str, str]) -> None:
    folder = lab.function({"app.py": HUNGRY})
    done = lab.cli(
        "oom", folder, *OPTIONS, "-e", '{"mb": 150}', "--from", 150, "--to", 151, "--warn-at", 0.5, env=env, expect=7
    )
    assert "memory size up to 151 MB saves it" in done.stdout
    assert "Runtime.OutOfMemory" in done.stdout
    assert "warning: invocation 1 at 150 MB: memory ran out" in done.stderr
