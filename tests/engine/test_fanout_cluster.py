"""Sweeps over a real Dask cluster: a scheduler and two workers on this machine, real containers on both.

Both workers stand on the same engine, so to the harness they are one host: their facts and fingerprint are the same, which
it says, and it compares no hosts. The workers are pinned to different CPUs, where there are two, and so are their sandboxes.
Two engines, and hosts that differ: scripts/vm/test.sh beside. What becomes of their figures: tests/unit/test_fanout_hosts.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import PATIENCE, ROOT, Lab, end, until

pytest.importorskip("distributed")

SOURCE = """
import time

def handler(event, context):
    time.sleep(event.get("sleep_s", 0))
    begun = time.process_time()
    while time.process_time() - begun < event.get("burn_s", 0):
        pass
    return event
"""
SLOT = ("--resources", "lambda-harness=1")
START_S = 60


@dataclass
class DaskProcesses:
    """A scheduler on a free port, and the workers that a test asks for; all end with the test."""

    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    address: str = ""

    def begin(self) -> None:
        told = self.folder / "scheduler.json"
        self._start("scheduler", "--port", "0", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", told)
        until(lambda: told.exists() and self._address(told), "the scheduler's address", seconds=START_S)
        self.address = self._address(told)

    @staticmethod
    def _address(told: Path) -> str:
        with contextlib.suppress(json.JSONDecodeError):
            return str(json.loads(told.read_text())["address"])
        return ""

    def worker(self, *words: object, cpu: int | None = None, env: Mapping[str, str] | None = None) -> None:
        """A worker of one thread; it is there when this returns."""
        number = len(self.running)
        before = len(self.workers())
        self._start(
            "worker", self.address, "--nworkers", "1", "--nthreads", "1", "--name", f"w{number}",
            "--dashboard-address", "127.0.0.1:0", "--local-directory", self.folder / f"worker{number}", *words,
            cpu=cpu, env=env,
        )  # fmt: skip
        until(lambda: len(self.workers()) > before, "the worker", seconds=START_S)

    def _start(self, *words: object, cpu: int | None = None, env: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "dask", str(words[0]), "--host", "127.0.0.1", "--no-dashboard"]
        if cpu is not None:
            command = ["taskset", "-c", str(cpu), *command]
        with (self.folder / f"{len(self.running)}.log").open("wb") as log:
            self.running.append(
                subprocess.Popen(
                    [*command, *map(str, words[1:])],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
                )
            )

    def _client(self) -> Any:
        from distributed import Client

        made: Any = Client
        return made(self.address, set_as_default=False)

    def workers(self) -> dict[str, Any]:
        with self._client() as client:
            found: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
            return found

    def pids(self) -> dict[str, int]:
        """The processes that measure: name -> id."""
        with self._client() as client:
            names = {
                address: str(each["name"]) for address, each in client.scheduler_info(n_workers=-1)["workers"].items()
            }
            return {names[address]: pid for address, pid in client.run(os.getpid).items()}

    def log(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        for process in reversed(self.running):
            everybody = []
            with contextlib.suppress(psutil.NoSuchProcess):
                everybody = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            try:
                process.wait(timeout=20 * PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for each in everybody:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[DaskProcesses]:
    found = DaskProcesses(tmp_path)
    try:
        found.begin()
        yield found
    finally:
        found.end()


@pytest.fixture
def function(lab: Lab) -> Path:
    manifest = 'runtime = "python3.13"\nhandler = "app.handler"\nmemory_mb = 512\ntimeout_s = 60\n'
    return lab.function({"app.py": SOURCE, "function.toml": manifest})


@pytest.fixture
def store(tmp_path: Path) -> dict[str, str]:
    return {"LAMBDA_HARNESS_STORE": str(tmp_path / "runs.sqlite3")}


def kept(lab: Lab, store: dict[str, str]) -> list[dict[str, Any]]:
    found = lab.document("runs", "show", "latest", env=store)["invocations"]
    return list(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_workers_measure_every_size_and_the_run_is_one_of_the_history(
    lab: Lab, dask: DaskProcesses, function: Path, store: dict[str, str]
) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    for cpu in (cpus[:2] * 2)[:2]:
        dask.worker(*SLOT, cpu=cpu)
    done = lab.cli("sweep", function, "-m", "128,512", "-n", 8, "--scheduler", dask.address, "--json", env=store)
    found = json.loads(done.stdout)
    records = found["invocations"]
    assert {each["outcome"] for each in records} == {"success"}
    assert Counter((each["memory_mb"], each["cold"]) for each in records) == {
        (128, True): 4, (128, False): 8, (512, True): 4, (512, False): 8,
    }  # fmt: skip
    # The same engine twice is the same host, and that is said; there is nothing to compare.
    assert {each["host_id"] for each in records} == {found["host"]["host_id"]}
    assert len(found["host"]["workers"]) == 2
    assert "are on the same host" in done.stderr
    assert found["findings"]["hosts"] is None
    if len(cpus) > 1 and records[0]["vantage"] == "host":
        by_cpu = Counter((each["cpuset"], each["memory_mb"]) for each in records)
        assert by_cpu == {(str(cpu), size): 6 for cpu in cpus[:2] for size in (128, 512)}, "every size on each"
    assert lab.document("runs", "show", "latest", env=store) == found
    for pid in dask.pids().values():
        assert lab.containers(pid) == set()


def test_hosts_that_differ_measure_every_size_and_are_told_apart(
    lab: Lab, dask: DaskProcesses, function: Path, store: dict[str, str]
) -> None:
    other = os.environ.get("LAMBDA_HARNESS_TEST_OTHER_ENGINE")
    if not other:
        pytest.skip("needs a second engine, on another machine: scripts/vm/test.sh beside")
    dask.worker(*SLOT)
    dask.worker(*SLOT, env={"DOCKER_HOST": other})
    event = '{"burn_s": 0.05}'
    asked = ("sweep", function, "-m", "1024,1769", "-n", 8, "-e", event, "--scheduler", dask.address)
    done = lab.cli(*asked, "--json", env=store, timeout_s=1200 * PATIENCE)
    found = json.loads(done.stdout)
    records = found["invocations"]
    assert {each["outcome"] for each in records} == {"success"}
    hosts = {each["host_id"]: each for each in found["host"]["hosts"]}
    assert len(hosts) == 2
    assert len({each["kernel"] for each in hosts.values()}) == 2
    assert Counter((each["host_id"], each["memory_mb"], each["cold"]) for each in records) == {
        (host, size, cold): count for host in hosts for size in (1024, 1769) for cold, count in ((True, 2), (False, 4))
    }, "every size on each"
    vantages = {host: {each["vantage"] for each in records if each["host_id"] == host} for host in hosts}
    assert sorted(vantages.values(), key=str) == [{"agent"}, {"host"}]
    # Both grant the same CPU, and the same CPU time is asked for: what is left of a difference is the hosts' own.
    assert {each["cpu_quota_us"] for each in records} == {11577, 20000}
    compared = found["findings"]["hosts"]
    assert compared["reference_host_id"] in hosts
    assert [each["host_id"] for each in compared["ratios"]] == sorted(set(hosts) - {compared["reference_host_id"]})
    lab.cli("clean", env={"DOCKER_HOST": other})
    for pid in dask.pids().values():
        assert lab.containers(pid) == set()


def test_a_worker_that_is_killed_and_comes_back_at_its_address_measures_nothing_a_second_time(
    lab: Lab, dask: DaskProcesses, function: Path, store: dict[str, str]
) -> None:
    """Its nanny starts it anew at once, and the scheduler, which allows three failures, hands it the block again."""
    dask.worker(*SLOT, "--worker-port", free_port())
    dask.worker(*SLOT)
    pids = dask.pids()
    victim = pids["w1"]
    asked = ("sweep", function, "-m", "128,512", "-n", 8, "-e", '{"sleep_s": 1}', "--scheduler", dask.address)
    with lab.start(*asked, env=store) as going:
        until(lambda: lab.containers(victim), "a sandbox of the worker that will die", seconds=START_S)
        os.kill(victim, signal.SIGKILL)
        out, said = going.communicate(timeout=120 * PATIENCE)
    assert going.returncode == 0, said
    records = kept(lab, store)
    lost = [each for each in records if each["error_type"] == "WorkerLost"]
    # The other worker's half is whole; of this one's nothing came, since it died in its first block.
    assert Counter(each["cold"] for each in records if each not in lost) == {True: 4, False: 8}
    assert sum(int(each["error_message"].split("): ")[1].split()[0]) for each in lost) == 4 * 3
    assert "lost at" in said
    assert "Lost at" in out
    until(lambda: dask.pids().get("w1") not in (None, victim), "the worker that came back", seconds=START_S)
    assert lab.containers(dask.pids()["w1"]) == set()
    # What the dead one held is reaped by the next command, as that of any process that was killed.
    lab.cli("clean")
    assert lab.containers(victim) == set()


def test_ctrl_c_keeps_what_was_running_and_the_workers_give_their_sandboxes_back(
    lab: Lab, dask: DaskProcesses, function: Path, store: dict[str, str]
) -> None:
    for _ in range(2):
        dask.worker(*SLOT)
    pids = dask.pids().values()
    asked = ("sweep", function, "-m", "128,512", "-n", 4000, "-e", '{"sleep_s": 0.3}', "--scheduler", dask.address)
    with lab.start(*asked, env=store) as going:
        for pid in pids:
            until(lambda pid=pid: lab.containers(pid), "a sandbox of each worker", seconds=START_S)  # type: ignore[misc]
        _, said = end(going, signal.SIGINT)
    assert going.returncode == 130, said
    assert "Traceback" not in said
    listed = lab.document("runs", "list", env=store)["runs"][0]
    assert listed["state"] == "interrupted"
    records = kept(lab, store)
    assert len({each["sandbox_id"] for each in records}) == 2, "of both blocks that were running"
    assert {each["outcome"] for each in records} == {"success"}
    for pid in pids:
        assert lab.containers(pid) == set()
    again = lab.document("sweep", function, "-m", "512", "-n", 2, "--scheduler", dask.address, env=store)
    assert again["state"] == "complete", "the workers are free for the next"


def test_a_scheduler_that_goes_away_ends_the_sweep_with_a_clear_error_and_keeps_the_records(
    lab: Lab, dask: DaskProcesses, function: Path, store: dict[str, str]
) -> None:
    dask.worker(*SLOT, "--no-nanny")
    asked = ("sweep", function, "-m", "512", "-n", 40, "-e", '{"sleep_s": 0.1}', "--scheduler", dask.address)
    with lab.start(*asked, env=store) as going:
        until(
            lambda: (
                lab.document("runs", "list", env=store)["runs"][:1]
                and lab.document("runs", "list", env=store)["runs"][0]["invocations"] >= 10
            ),
            "the first block",
            seconds=START_S,
        )
        dask.running[0].kill()
        _, said = going.communicate(timeout=120 * PATIENCE)
    assert going.returncode == 4, said
    assert f"the Dask scheduler at {dask.address} went away" in said
    assert "Traceback" not in said
    assert len(kept(lab, store)) >= 10


def test_without_a_slot_without_the_harness_or_with_another_one_it_is_said_what_is_wrong(
    lab: Lab, dask: DaskProcesses, function: Path, tmp_path: Path
) -> None:
    asked = ("sweep", function, "-m", "512", "-n", 1, "--scheduler", dask.address)
    none = lab.cli(*asked, expect=4)
    assert "no workers" in none.stderr
    dask.worker()
    offers = lab.cli(*asked, expect=4)
    assert "1 workers, none of which offers the resource 'lambda-harness'" in offers.stderr
    assert f"dask worker {dask.address} --nworkers 1 --nthreads 1 --resources 'lambda-harness=1'" in offers.stderr
    other = tmp_path / "other" / "harness"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    (other / "_version.py").write_text('__version__ = "0.0.1"\n')
    dask.worker(*SLOT, env={"PYTHONPATH": str(other.parent)})
    from harness import __version__

    differs = lab.cli(*asked, expect=4)
    assert f"has lambda-harness 0.0.1; this is lambda-harness {__version__}" in differs.stderr


def test_each_worker_has_the_engine_of_its_own_environment(lab: Lab, dask: DaskProcesses, function: Path) -> None:
    dask.worker(*SLOT, env={"DOCKER_HOST": "tcp://127.0.0.1:9"})
    done = lab.cli("sweep", function, "-m", "512", "-n", 1, "--scheduler", dask.address, expect=4)
    assert "cannot measure: no Docker engine answers at tcp://127.0.0.1:9" in done.stderr
