"""Leaks in real sandboxes, from the command line: verdicts, what the probes name, and that they touch nothing else."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import end, until

from harness.store import Store

if TYPE_CHECKING:
    from conftest import Lab

PYTHON = ("--runtime", "python3.13", "--handler", "app.handler")
NODE = ("--runtime", "nodejs22.x", "--handler", "index.handler")

KEEPS = """
    kept = {}
    def handler(event, context):
        kept[context.aws_request_id] = bytearray(b"x") * 1_000_000
        print("the handler's own line")
        return len(kept)
"""


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return tmp_path / "runs.sqlite3"


def hunt(lab: Lab, source: str, *options: object, store: Path, node: bool = False, expect: int) -> dict[str, Any]:
    folder = lab.function({"index.mjs" if node else "app.py": source})
    return lab.document("leak", folder, *(NODE if node else PYTHON), *options, "--store", store, expect=expect)


def test_a_leak_is_found_named_and_stored(lab: Lab, host: str, stored: Path) -> None:
    document = hunt(lab, KEEPS, "-m", 512, "-n", 20, "--explain", store=stored, expect=8)
    found = document["findings"]
    assert found["verdict"] == "leak"
    assert 0.9e6 < found["slope_bytes_per_invocation"] < 1.1e6
    first = found["growth"][0]
    assert (first["name"], first["kind"]) == ("app.kept", "module global")
    assert first["grew_bytes_per_invocation"] == pytest.approx(1e6, rel=0.01)
    assert first["grew_count_per_invocation"] == 1
    assert any(each["name"] == "app.py:4" for each in found["growth"])
    with Store(stored) as history:
        kept = history.document(document["run_id"])
    assert kept["findings"]["verdict"] == "leak"
    assert len([each for each in kept["invocations"] if each["variant"] is None]) == 20


def test_probes_are_seen_by_nobody(lab: Lab, host: str, stored: Path) -> None:
    document = hunt(lab, KEEPS, "-n", 20, "--explain", store=stored, expect=8)
    variants = {each["variant"] for each in document["invocations"]}
    assert variants == {None, "settled", "explained"}
    for each in document["invocations"]:
        assert each["log_tail"].count("the handler's own line") == 1
        assert "lambda-harness-probe" not in each["log_tail"]


def test_what_the_function_sees_of_a_probe_is_only_in_the_perturbed_series(lab: Lab, host: str, stored: Path) -> None:
    source = """
        import os
        kept = []
        def handler(event, context):
            kept.append(bytearray(b"x") * 300_000)
            return [name for name in os.environ if "PROBE" in name or name == "PYTHONPATH"]
    """
    document = hunt(lab, source, "-n", 12, store=stored, expect=8)
    measured = [each for each in document["invocations"] if each["variant"] is None]
    assert all(not [name for name in each["response"] if "PROBE" in name] for each in measured)


def test_garbage_that_the_collector_takes_is_no_leak(lab: Lab, host: str, stored: Path) -> None:
    source = """
        import gc
        gc.disable()
        class Node:
            pass
        def handler(event, context):
            node = Node()
            node.itself, node.body = node, bytearray(b"x") * 200_000
            return 1
    """
    found = hunt(lab, source, "-m", 512, "-n", 20, store=stored, expect=0)["findings"]
    assert found["verdict"] == "no_leak"
    assert found["settled"]["direction"] == "flat"
    plain = hunt(lab, source, "-m", 512, "-n", 20, "--no-settle", store=stored, expect=8)["findings"]
    assert plain["verdict"] == "leak", "without a collection it does look like one"


def test_a_leak_in_node_is_found_and_the_variable_that_holds_it_is_named(lab: Lab, host: str, stored: Path) -> None:
    source = """
        const arrayB = [];
        export const handler = async () => { arrayB.push(Buffer.alloc(200_000, 1)); return arrayB.length; };
    """
    found = hunt(lab, source, "-m", 512, "-n", 30, "--explain", store=stored, node=True, expect=8)["findings"]
    assert found["verdict"] == "leak"
    first = found["growth"][0]
    assert (first["name"], first["kind"]) == ("index.arrayB", "retainer")
    assert first["grew_bytes_per_invocation"] == pytest.approx(200_000, rel=0.1)


def test_a_leak_that_kills_is_a_leak(lab: Lab, host: str, stored: Path) -> None:
    source = """
        kept = []
        def handler(event, context):
            kept.append(bytearray(b"x") * (16 << 20))
            return len(kept)
    """
    document = hunt(lab, source, "-m", 128, "-n", 20, store=stored, expect=8)
    assert document["findings"]["out_of_memory_kills"] >= 2
    assert "began anew" in document["findings"]["reason"]
    assert len(document["invocations"]) == 20


def test_a_function_that_fails_every_time_is_inconclusive(lab: Lab, host: str, stored: Path) -> None:
    document = hunt(lab, "def handler(event, context): raise ValueError('never')", "-n", 30, store=stored, expect=0)
    assert document["findings"]["verdict"] == "inconclusive"
    assert "ValueError: never" in document["findings"]["reason"]
    assert len(document["invocations"]) == 10, "what has failed ten times is not asked again"


def test_a_descriptor_leak_gates_though_memory_stays(lab: Lab, host: str, stored: Path) -> None:
    source = """
        import os
        def handler(event, context):
            return os.open("/dev/null", os.O_RDONLY)
    """
    found = hunt(lab, source, "-n", 20, store=stored, expect=8)["findings"]
    assert found["verdict"] == "no_leak"
    assert [each["what"] for each in found["also"] if each["verdict"] == "leak"] == ["open_files"]


def test_an_interrupted_hunt_keeps_its_records(lab: Lab, host: str, stored: Path) -> None:
    folder = lab.function({"app.py": KEEPS})
    process = lab.start("leak", folder, *PYTHON, "-n", 5000, "-m", 10240, "--json", "--store", stored)

    def some_are_stored() -> bool:
        if not stored.exists():
            return False
        with Store(stored) as history:
            return any(each.invocations > 3 for each in history.list())

    until(some_are_stored, "records in the history")
    _, said = end(process, signal.SIGINT)
    assert process.returncode == 130
    assert "are kept as run" in said
    with Store(stored) as history:
        (run,) = history.list()
    assert run.state == "interrupted"
    until(lambda: not lab.containers(process.pid), "its containers to be gone")
