"""Sweeps in real containers, from the command line: figures from records, sandboxes given back, interruption."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, scaled

SOURCE = """
import os
import time

class Odd(Exception):
    pass

seen = 0

def handler(event, context):
    global seen
    seen += 1
    if event.get("dies_at") == seen:
        os._exit(1)
    if event.get("odd"):
        raise Odd("as asked")
    block = bytearray(event.get("mb", 0) << 20)
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(event.get("sleep_s", 0))
    number = 0
    for each in range(event.get("n", 1000)):
        number += each * each
    return [event.get("n"), os.environ.get("WHO")]
"""


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fn")
    for each in (folder, folder.parent, folder.parent.parent):
        each.chmod(0o755)
    (folder / "app.py").write_text(SOURCE)
    (folder / "function.toml").write_text(
        f'runtime = "python3.13"\nhandler = "app.handler"\nmemory_mb = 512\ntimeout_s = {scaled(20)}\n'
    )
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "LAMBDA_HARNESS_STORE": str(tmp_path / "runs.sqlite3"), "NO_COLOR": "1"}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "harness", *map(str, words)]


def cli(
    environment: dict[str, str], *words: object, timeout_s: float = 120 * PATIENCE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), capture_output=True, text=True, env=environment, timeout=timeout_s, check=False
    )


def document(environment: dict[str, str], *words: object) -> dict[str, Any]:
    done = cli(environment, *words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def sandboxes_of(pid: int) -> list[str]:
    """Containers that this process made and that are still there."""
    import docker

    with contextlib.closing(docker.from_env()) as engine:
        return [
            each["Id"]
            for each in engine.api.containers(all=True)
            if any(str(value).startswith(f"{pid}:") for value in each["Labels"].values())
        ]


def test_every_figure_of_a_real_sweep_comes_from_its_records(environment: dict[str, str], function: Path) -> None:
    found = document(environment, "sweep", function, "-m", "512,1769", "-n", 6, "-e", '{"n": 200000}')
    assert found["state"] == "complete"
    assert {each["memory_mb"] for each in found["findings"]["tiers"]} == {512, 1769}
    for tier in found["findings"]["tiers"]:
        group = [each for each in found["invocations"] if each["memory_mb"] == tier["memory_mb"]]
        warm = [each for each in group if not each["cold"]]
        assert [each["outcome"] for each in group] == ["success"] * 7
        assert len({each["sandbox_id"] for each in group}) == 1
        assert all(each["frozen_ms"] > 0 for each in warm), "frozen between"
        assert tier["n"] == len(warm) == 6
        assert tier["duration_ms"]["mean"] == pytest.approx(statistics.mean(each["duration_ms"] for each in warm))
        assert tier["duration_ms"]["p50"] == pytest.approx(statistics.median(each["duration_ms"] for each in warm))
        assert tier["cost_usd_per_invocation"] == pytest.approx(
            statistics.mean(
                each["billed_ms"] / 1000 * tier["memory_mb"] / 1024 * 0.0000166667 + 0.2e-6 for each in warm
            ),
            rel=1e-3,
        )
        assert tier["cold"]["init_ms"]["mean"] == group[0]["init_ms"] > 0


def test_weighted_events_and_variants_reach_the_function(
    environment: dict[str, str], function: Path, tmp_path: Path
) -> None:
    config = tmp_path / "input.json"
    config.write_text(
        json.dumps(
            {"powerValues": [256, 512], "num": 4, "payload": [{"payload": {"n": n}, "weight": n} for n in (1, 3)]}
        )
    )
    found = document(environment, "sweep", function, "--config", config, "--env", "a:", "--env", "b:WHO=me")
    told = Counter(
        (each["memory_mb"], each["variant"], *each["response"]) for each in found["invocations"] if not each["cold"]
    )
    assert told == {
        (size, variant, n, who): n for size in (256, 512) for variant, who in (("a", None), ("b", "me")) for n in (1, 3)
    }


def test_sizes_side_by_side_give_the_same_number_of_records(environment: dict[str, str], function: Path) -> None:
    found = document(environment, "sweep", function, "-m", "128,256,512", "-n", 4, "--parallel", "-e", '{"n": 50000}')
    assert Counter(each["memory_mb"] for each in found["invocations"]) == {128: 5, 256: 5, 512: 5}
    assert {each["outcome"] for each in found["invocations"]} == {"success"}
    assert found["findings"]["parallel"]


def test_a_runtime_that_dies_leaves_warm_figures_without_any_init(environment: dict[str, str], function: Path) -> None:
    asked = ("-m", "512", "-n", 4, "-e", '{"dies_at": 3}')
    refused = cli(environment, "sweep", function, *asked)
    assert refused.returncode == 5
    assert "512 MB: runtime_exit" in refused.stderr
    found = document(environment, "sweep", function, *asked, "--allowed-errors", "0.5")
    assert [each["outcome"] == "success" for each in found["invocations"]] == [True, True, False] * 2
    assert all(each["phase_init"] is None for each in found["invocations"] if not each["cold"])
    assert found["findings"]["tiers"][0]["cold"]["n"] == 2


def test_an_allowed_exception_is_measured(environment: dict[str, str], function: Path) -> None:
    found = document(
        environment, "sweep", function, "-m", "512", "-n", 3, "-e", '{"odd": true}', "--allowed-exception", "Odd"
    )
    assert found["findings"]["tiers"][0]["n"] == 3
    assert {each["error_type"] for each in found["invocations"]} == {"Odd"}


def test_sizes_that_all_run_out_of_memory_end_with_its_exit_code(environment: dict[str, str], function: Path) -> None:
    done = cli(environment, "sweep", function, "-m", "128,192", "-n", 2, "-e", '{"mb": 400}')
    assert done.returncode == 7
    assert "128 MB: out_of_memory" in done.stderr
    assert "No memory size can be recommended" in done.stdout


@pytest.mark.parametrize("words", [[], ["--parallel"]])
def test_ctrl_c_keeps_the_records_and_gives_every_sandbox_back(
    environment: dict[str, str], function: Path, words: list[str]
) -> None:
    asked = command("sweep", function, "-m", "128,256", "-n", 5000, "-e", '{"n": 3000}', *words)
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as going:
        wait_for_records(environment, 8)
        going.send_signal(signal.SIGINT)
        _, said = going.communicate(timeout=30 * PATIENCE)
    assert going.returncode == 130, said
    assert "Traceback" not in said
    assert sandboxes_of(going.pid) == []
    listed = document(environment, "runs", "list")["runs"][0]
    assert (listed["state"], listed["invocations"] >= 8) == ("interrupted", True)
    assert listed["run_id"] in said
    kept = document(environment, "runs", "show", listed["run_id"])
    assert len(kept["invocations"]) == listed["invocations"]
    assert kept["findings"]["tiers"]


def test_ctrl_c_before_the_first_record_is_answered_at_once(environment: dict[str, str], function: Path) -> None:
    asked = command("sweep", function, "-m", "512", "-n", 5, "-e", json.dumps({"sleep_s": 15 * PATIENCE}))
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as going:
        wait_for_records(environment, 0)
        going.send_signal(signal.SIGINT)
        going.communicate(timeout=12 * PATIENCE)
    assert going.returncode == 130
    assert sandboxes_of(going.pid) == []
    listed = document(environment, "runs", "list")["runs"]
    assert [(each["state"], each["invocations"]) for each in listed] == [("interrupted", 0)]


def test_no_room_on_the_disk_is_said_and_what_was_stored_is_kept(
    environment: dict[str, str], function: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as folder:
        environment = {**environment, "LAMBDA_HARNESS_STORE": str(folder / "runs.sqlite3")}
        done = cli(environment, "sweep", function, "-m", "512", "-n", 500)
        assert (done.returncode, done.stdout) == (3, "")
        assert "no room on the disk" in done.stderr
        listed = document(environment, "runs", "list")["runs"][0]
        assert listed["invocations"] > 0
        assert len(document(environment, "runs", "show", "latest")["invocations"]) == listed["invocations"]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def wait_for_records(environment: dict[str, str], wanted: int) -> None:
    """Until a run is in the history with so many records."""
    deadline = time.monotonic() + 60 * PATIENCE
    path = Path(environment["LAMBDA_HARNESS_STORE"])
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db,
        ):
            runs, records = db.execute(
                "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM invocations)"
            ).fetchone()
            if runs and records >= wanted:
                return
        time.sleep(0.05)
    pytest.fail(f"no {wanted} records in time")
