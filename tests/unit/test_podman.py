"""Podman behind Docker's API: its answers are those of a real one (4.3.1, rootful), and so is the SDK in between.

``podman_4_3_1.json`` holds the answers, cut to what the harness reads; ids are shortened to ``c1``.
"""

from __future__ import annotations

import json
import re
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus, urlsplit

import pytest

from harness import checkup
from harness.engine import images
from harness.engine.agent_container import AgentContainer
from harness.engine.client import LABEL_OWNER, Engine, owner
from harness.engine.containers import Container, ContainerSpec, Listed
from harness.engine.volumes import Volumes
from harness.errors import EngineError, SandboxGone
from harness.vantage.api import ApiVantage

RECORDED = json.loads(Path(__file__).with_name("podman_4_3_1.json").read_text(encoding="utf-8"))
MIB = 1024 * 1024


class Podman(socketserver.ThreadingUnixStreamServer):
    """Answers as recorded; ``now`` names answers that changed since the container ran, ``asked`` keeps the requests."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Answering)
        self.asked: list[str] = []
        self.bodies: list[Any] = []
        self.now: dict[str, str] = {}
        self.answers: dict[str, Any] = dict(RECORDED)

    def get_request(self) -> tuple[Any, Any]:
        # The handler wants an address, and a Unix socket's peer has none.
        connection, _ = super().get_request()
        return connection, ("podman", 0)


class Answering(BaseHTTPRequestHandler):
    server: Podman
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        parts = urlsplit(self.path)
        key = f"{self.command} {re.sub(r'^/v[0-9.]+/', '/', parts.path)}"
        if key.endswith("/top"):
            key += f"?{unquote_plus(parts.query)}"
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.asked.append(key)
        self.server.bodies.append(json.loads(body) if body else None)
        found = self.server.answers[self.server.now.get(key, key)]
        said = b"" if found["body"] is None else json.dumps(found["body"]).encode()
        self.send_response(found["status"])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST = answer  # noqa: N815  # the names that http.server looks for

    def log_message(self, *_: object) -> None:
        """Nothing: the tests look at ``asked``."""


@pytest.fixture
def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Podman]:
    path = tmp_path / "podman.sock"
    server = Podman(path)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def engine(podman: Podman) -> Iterator[Engine]:
    found = Engine()
    yield found
    found.close()


@pytest.fixture
def container(engine: Engine) -> Container:
    spec = ContainerSpec(
        name="probe",
        image="image",
        command=(),
        entrypoint=None,
        environment={},
        labels={},
        cpuset="0",
        memory_bytes=256 * MIB,
        publish=True,
    )
    found = Container(engine, spec)
    found.id = "c1"
    return found


def test_podman_is_told_by_its_name_and_not_taken_for_docker(engine: Engine) -> None:
    facts = engine.facts()
    assert (facts.name, facts.version, facts.podman) == ("Podman Engine", "4.3.1", True)
    assert (facts.cgroup_version, facts.cgroup_driver, facts.rootless) == (1, "cgroupfs", False)
    assert (facts.architecture, facts.cpus) == ("x86_64", 2)


def test_what_the_engine_is_is_asked_once(engine: Engine, podman: Podman) -> None:
    assert engine.podman
    before = podman.asked.count("GET /version")
    assert engine.podman
    assert podman.asked.count("GET /version") == before


def test_podman_takes_long_to_say_what_it_is_so_other_threads_do_not_ask_again(engine: Engine, podman: Podman) -> None:
    engine.facts()
    before = list(podman.asked)
    spoken: list[str] = []
    thread = threading.Thread(target=lambda: spoken.append(engine.docker.api.api_version))
    thread.start()
    thread.join()
    assert engine.podman
    assert spoken == ["1.41"]
    assert podman.asked == before


def test_rootless_podman_says_so_in_a_field_of_its_own(engine: Engine, podman: Podman) -> None:
    info = json.loads(json.dumps(RECORDED["GET /info"]))
    assert info["body"]["SecurityOptions"] == ["name=seccomp,profile=default"], "there too, when it is rootless"
    info["body"]["Rootless"] = True
    podman.answers["GET /info"] = info
    assert engine.facts().rootless


def test_a_started_container_has_an_address_on_podman_s_network_or_a_published_port(container: Container) -> None:
    container._inspect()
    assert container.address == "127.0.0.1:43365"
    assert container.pid == 2529


def test_the_agent_s_container_is_made_by_podman_s_own_api_in_the_host_s_cgroup_namespace(
    engine: Engine, podman: Podman, tmp_path: Path
) -> None:
    podman.answers["POST /libpod/containers/create"] = {"status": 201, "body": {"Id": "c1", "Warnings": []}}
    agent = AgentContainer(engine, Volumes(engine), image_id="sha256:1", code=tmp_path, module="some.module")
    assert agent._create_podman("volume") == "c1"
    assert podman.asked[-1] == "POST /libpod/containers/create"
    asked = podman.bodies[-1]
    namespaces = {name: asked[name]["nsmode"] for name in ("cgroupns", "pidns", "netns")}
    assert namespaces == {"cgroupns": "host", "pidns": "host", "netns": "none"}
    assert asked["cap_drop"] == ["ALL"]
    assert asked["cap_add"] == ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_KILL"]
    assert asked["no_new_privileges"]
    assert asked["read_only_filesystem"]
    assert asked["labels"][LABEL_OWNER] == owner(), "or nobody would remove it"
    assert asked["command"] == ["-m", "some.module"]


def test_a_sandbox_s_container_is_made_by_podman_s_own_api_without_tmpfs_over_its_tmp(
    engine: Engine, podman: Podman
) -> None:
    podman.answers["POST /libpod/containers/create"] = {"status": 201, "body": {"Id": "c1", "Warnings": []}}
    engine.pins_cpus = True
    spec = ContainerSpec(
        name="lambda-harness-1",
        image="sha256:1",
        command=("app.handler",),
        entrypoint=("/entry",),
        environment={"A": "1"},
        labels={LABEL_OWNER: owner()},
        binds={"/of/this/host": ("/var/task", "ro"), "a-volume": ("/opt", "ro,nocopy")},
        volumes=("/tmp",),
        cpuset="0,1",
        memory_bytes=256 * MIB,
        publish=True,
        ports=(5678,),
    )
    assert Container(engine, spec)._create_podman() == "c1"
    asked = podman.bodies[-1]
    assert (asked["read_only_filesystem"], asked["read_write_tmpfs"]) == (True, False)
    assert asked["mounts"] == [
        {"type": "bind", "source": "/of/this/host", "destination": "/var/task", "options": ["rbind", "ro"]}
    ]
    assert asked["volumes"] == [{"Dest": "/tmp"}, {"Name": "a-volume", "Dest": "/opt", "Options": ["ro", "nocopy"]}]
    assert asked["resource_limits"] == {
        "cpu": {"cpus": "0,1"},
        "memory": {"limit": 256 * MIB, "swap": 256 * MIB},
        "pids": {"limit": 1024},
    }
    assert {each["host_ip"] for each in asked["portmappings"]} == {"127.0.0.1"}
    assert [(each["container_port"], each.get("host_port")) for each in asked["portmappings"]] == [
        (5678, 5678),
        (8080, None),
    ]
    assert asked["r_limits"] == [{"type": "nofile", "soft": 1024, "hard": 1024}]
    assert (asked["cap_drop"], asked["no_new_privileges"]) == (["ALL"], True)
    assert (asked["entrypoint"], asked["command"], asked["user"]) == (["/entry"], ["app.handler"], "993:990")


@pytest.mark.parametrize(("handed", "limits"), [(["cpu", "cpuset"], {"cpus": "0"}), (["cpu", "memory", "pids"], {})])
def test_a_container_is_pinned_where_the_engine_was_handed_the_controller(
    engine: Engine, podman: Podman, container: Container, handed: list[str], limits: dict[str, str]
) -> None:
    podman.answers["GET /libpod/info"] = {"status": 200, "body": {"host": {"cgroupControllers": handed}}}
    podman.answers["POST /libpod/containers/create"] = {"status": 201, "body": {"Id": "c1", "Warnings": []}}
    container._create_podman()
    assert podman.bodies[-1]["resource_limits"]["cpu"] == limits, "Podman refuses what it cannot do"


@pytest.mark.parametrize(("rootless", "believed"), [(True, False), (False, True)])
def test_what_a_rootless_podman_says_that_it_can_limit_is_its_own_cgroup_s(
    engine: Engine, podman: Podman, rootless: bool, believed: bool
) -> None:
    info = json.loads(json.dumps(RECORDED["GET /info"]))
    info["body"] |= {"Rootless": rootless, "CpuCfsQuota": False, "CPUSet": False, "SwapLimit": False}
    podman.answers["GET /info"] = info
    facts = engine.facts()
    found = checkup.situation(engine, facts, ApiVantage(engine, facts))
    assert (found.can_limit.get("CPU time") is False) == believed


# -- limits -------------------------------------------------------------------------------------------------------------


def test_limits_are_changed_through_podman_s_own_api(container: Container, podman: Podman) -> None:
    container.update(mem_limit=300 * MIB, memswap_limit=300 * MIB, cpu_quota=1447, cpu_period=20_000)
    assert podman.asked[-1] == "POST /libpod/containers/c1/update"
    assert podman.bodies[-1] == {
        "memory": {"limit": 300 * MIB, "swap": 300 * MIB},
        "cpu": {"quota": 1447, "period": 20_000},
    }
    assert "POST /containers/c1/update" not in podman.asked, "it has none of Docker's"


def test_no_quota_is_one_that_no_machine_reaches(container: Container, podman: Podman) -> None:
    """Of -1 crun makes 5 % of a CPU, where systemd manages the cgroups."""
    container.update(mem_limit=300 * MIB, memswap_limit=300 * MIB)
    assert podman.bodies[-1]["cpu"] == {"quota": 1024 * 100_000, "period": 100_000}
    container.update(cpu_quota=1447, cpu_period=20_000)
    assert podman.bodies[-1]["cpu"] == {"quota": 1447, "period": 20_000}
    container.update(cpu_quota=-1, cpu_period=20_000)
    assert podman.bodies[-1]["cpu"] == {"quota": 1024 * 20_000, "period": 20_000}


def test_a_limit_that_the_runtime_refuses_is_an_error_and_counts_as_not_changed(
    container: Container, podman: Podman
) -> None:
    podman.now["POST /libpod/containers/c1/update"] = "POST /libpod/containers/c1/update refused"
    with pytest.raises(EngineError, match=r"refused to change the limits .*runc update.* failed: exit status 1"):
        container.update(mem_limit=1000, memswap_limit=1000)
    assert container.limits()["Memory"] == 256 * MIB


def test_a_limit_that_podman_tells_as_it_was_created_is_left_out(container: Container, podman: Podman) -> None:
    assert container.limits()["Memory"] == 256 * MIB
    container.update(mem_limit=300 * MIB, memswap_limit=300 * MIB)
    podman.now["GET /containers/c1/json"] = "GET /containers/c1/json updated"
    told = container.limits()
    assert "Memory" not in told
    assert "MemorySwap" not in told
    assert told["CpuQuota"] == 0, "nobody changed that one"


@pytest.mark.parametrize("told", [300 * MIB, 299 * MIB], ids=["right", "wrong"])
def test_a_limit_that_podman_does_tell_is_passed_on_right_or_wrong(
    container: Container, podman: Podman, told: int
) -> None:
    container.update(mem_limit=300 * MIB)
    changed = json.loads(json.dumps(RECORDED["GET /containers/c1/json updated"]))
    changed["body"]["HostConfig"]["Memory"] = told
    podman.answers["GET /containers/c1/json"] = changed
    assert container.limits()["Memory"] == told


# -- measuring ----------------------------------------------------------------------------------------------------------


def test_zeros_in_place_of_throttling_are_no_measurement(container: Container) -> None:
    recorded = RECORDED["GET /containers/c1/stats"]["body"]["cpu_stats"]
    assert recorded["throttling_data"] == {"periods": 0, "throttled_periods": 0, "throttled_time": 0}
    stats = container.stats()
    assert "throttling_data" not in stats["cpu_stats"]
    assert stats["cpu_stats"]["cpu_usage"]["total_usage"] == recorded["cpu_usage"]["total_usage"]
    assert "stats" not in stats["memory_stats"], "page cache is not told apart"


def test_processes_come_by_podman_s_names_of_columns_without_threads(container: Container, podman: Podman) -> None:
    assert container.processes() == {2529: Listed(rss_bytes=8336 * 1024, threads=None)}
    assert [each for each in podman.asked if "top" in each] == ["GET /containers/c1/top?ps_args=hpid,rss"]


def test_a_paused_container_s_processes_are_not_told(container: Container, podman: Podman) -> None:
    podman.now["GET /containers/c1/top?ps_args=hpid,rss"] = "GET /containers/c1/top?ps_args=hpid,rss paused"
    assert container.processes() is None


def test_podman_s_silence_about_out_of_memory_kills_is_not_their_absence(container: Container) -> None:
    with pytest.raises(EngineError, match="announces no out-of-memory kills"):
        container.oom_events(until_s=1.0)


def test_a_container_that_is_gone_is_told_as_on_docker(container: Container, podman: Podman) -> None:
    podman.now["GET /containers/c1/json"] = "GET /containers/c1/json gone"
    assert not container.running()
    gone = container.why_gone()
    assert isinstance(gone, SandboxGone)
    assert "was removed by someone else" in str(gone)


# -- images -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "registry"),
    [
        ("debian:trixie", "index.docker.io"),
        ("amazon/aws-lambda-python:3.13", "index.docker.io"),
        ("localhost/lambda-harness/python3.13:1", "localhost"),
        ("public.ecr.aws/lambda/python:3.13", "public.ecr.aws"),
    ],
)
def test_names_without_a_registry_mean_docker_s_on_podman_too(engine: Engine, reference: str, registry: str) -> None:
    assert images._registry(engine.docker, reference) == registry
