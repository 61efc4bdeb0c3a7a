"""The connection to the engine: who owns what, and what is said when no engine answers."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest
import requests
import requests.exceptions
from fakes import no_engine as no_engine  # noqa: PLC0414  # a fixture

from harness import checkup
from harness.engine import client, containers, relay_mount
from harness.engine.client import Engine, EngineFacts, owner, owner_is_gone, owner_labels, reap
from harness.engine.containers import Container, ContainerSpec, Listed
from harness.engine.entrypoint import command_for
from harness.errors import EngineError, SandboxGone


def test_this_process_is_not_gone_and_one_that_ended_is() -> None:
    assert not owner_is_gone(owner())
    code = "from harness.engine.client import owner; print(owner())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert owner_is_gone(ended)


@pytest.mark.parametrize(
    "text", ["", "1", "x:1.00:", f"{os.getpid()}:1.00:another-boot"], ids=["empty", "half", "word", "boot"]
)
def test_a_label_that_names_no_living_process_means_gone(text: str) -> None:
    assert owner_is_gone(text)


def test_another_process_with_the_same_id_is_not_the_owner() -> None:
    pid, _, boot, machine = owner().split(":")
    assert owner_is_gone(f"{pid}:1.00:{boot}:{machine}")


def test_an_owner_on_another_machine_lives_for_all_we_know() -> None:
    _, _, boot, _ = owner().split(":")
    assert not owner_is_gone(f"1:1.00:another-boot:{'0' * 12}")
    assert not owner_is_gone(f"1:1.00:{boot}:{'0' * 12}")


def test_an_engine_that_was_silent_once_is_not_waited_for_again_until_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Exception | None] = [
        None,
        requests.exceptions.ReadTimeout(),
        requests.exceptions.ReadTimeout(),
        None,
        None,
    ]
    waited: list[float] = []

    def send(_: object, *, timeout: float) -> str:
        waited.append(timeout)
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return "answer"

    engine, session = Engine(), requests.Session()
    monkeypatch.setattr(session, "send", send)
    engine._mind(session)

    def ask() -> None:
        with engine.asked("do something"):
            session.send(requests.PreparedRequest(), timeout=120)

    ask()
    for _ in range(2):
        with pytest.raises(
            EngineError,
            match="does not answer, as if its machine were paused or overloaded: it was asked to do something",
        ):
            ask()
    ask()
    ask()
    assert waited == [120, 120, 10, 10, 120]
    engine.presume_silent()
    answers.append(None)
    ask()
    assert waited[-1] == 10


def test_labels_name_the_owner_and_the_sandbox() -> None:
    found = owner_labels("abc")
    assert found[client.LABEL_OWNER] == owner()
    assert found[client.LABEL_SANDBOX] == "abc"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("where", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:9"])
def test_no_engine_is_said_plainly_with_the_place_and_a_remedy(
    no_engine: None, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", where)
    with pytest.raises(EngineError, match="no Docker engine answers") as found:
        Engine().facts()
    assert where in str(found.value)
    assert "DOCKER_HOST" in found.value.remedy
    assert found.value.exit_code == 4


def refused() -> docker.errors.APIError:
    return docker.errors.APIError("500 Server Error", explanation="no space left on device")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (refused(), "the engine refused to pause: no space left on device"),
        (requests.exceptions.ConnectionError("cut"), "the engine went away while asked to pause: cut"),
        (ConnectionResetError("reset"), "the engine went away while asked to pause: reset"),
    ],
)
def test_failures_of_the_engine_are_told_apart(raised: Exception, said: str) -> None:
    with pytest.raises(EngineError, match=said), Engine().asked("pause"):
        raise raised


def test_closing_without_ever_having_connected_is_fine() -> None:
    Engine().close()


# -- reaping ------------------------------------------------------------------------------------------------------------


class Item:
    def __init__(self, name: str, owner_label: str | None, *, paused: bool = False, gone: bool = False) -> None:
        self.id = self.short_id = self.name = name
        self.labels = {} if owner_label is None else {client.LABEL_OWNER: owner_label}
        self.attrs = {"Labels": self.labels}
        self.paused, self.gone = paused, gone
        self.calls: list[str] = []

    def unpause(self) -> None:
        self.calls.append("unpause")

    def remove(self, **_: object) -> None:
        if self.gone:
            raise docker.errors.NotFound("gone")
        self.calls.append("remove")


def engine_with(items: list[Item], volumes: list[Item]) -> Any:
    def inspect(name: str) -> dict[str, Any]:
        found = next(each for each in items if each.name == name)
        return {"State": {"Pid": 42, "Paused": found.paused}}

    engine = Engine()
    engine._local.client = SimpleNamespace(
        containers=SimpleNamespace(list=lambda **_: items),
        volumes=SimpleNamespace(list=lambda **_: volumes),
        api=SimpleNamespace(inspect_container=inspect),
    )
    return engine


def test_what_belongs_to_the_living_stays() -> None:
    mine, dead = Item("mine", owner()), Item("dead", "1:1.00:another-boot", paused=True)
    vanished = Item("vanished", "1:1.00:another-boot", gone=True)
    my_volume, dead_volume = Item("v1", owner()), Item("v2", None)
    released: list[tuple[str, int]] = []

    def release(name: str, pid: int) -> None:
        released.append((name, pid))
        {"dead": dead, "vanished": vanished}[name].calls.append("release")

    removed = reap(engine_with([mine, dead, vanished], [my_volume, dead_volume]), release=release)
    assert removed == ["container dead", "volume v2"]
    assert mine.calls == my_volume.calls == []
    assert dead.calls == ["unpause", "release", "remove"], "the engine undoes what the engine did, and first"
    assert released == [("dead", 42), ("vanished", 42)], "a frozen container is thawed first"


def test_what_another_command_is_removing_already_is_left_to_it() -> None:
    class Contested(Item):
        status = 409

        def remove(self, **_: object) -> None:
            response = requests.Response()
            response.status_code = self.status
            raise docker.errors.APIError("removal of container c is already in progress", response=response)

    contested = Contested("contested", "1:1.00:another-boot")
    assert reap(engine_with([contested], []), release=lambda *_: None) == []
    contested.status = 500
    with pytest.raises(EngineError, match="remove container"):
        reap(engine_with([contested], []), release=lambda *_: None)


def test_everything_means_the_living_too() -> None:
    mine, volume = Item("mine", owner()), Item("v", owner())
    removed = reap(engine_with([mine], [volume]), release=lambda *_: None, everything=True)
    assert removed == ["container mine", "volume v"]


# -- how a container is started -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "handler", "expected"),
    [
        ({"Entrypoint": ["/lambda-entrypoint.sh"]}, "app.handler", (None, ("app.handler",))),
        ({"Entrypoint": ["/lambda-entrypoint.sh"], "Cmd": ["own.handler"]}, None, (None, ("own.handler",))),
        (
            {"Entrypoint": ["/usr/bin/python3", "-m", "awslambdaric"], "Cmd": ["a.b"]},
            None,
            (("/rie",), ("/usr/bin/python3", "-m", "awslambdaric", "a.b")),
        ),
        ({"Entrypoint": None, "Cmd": ["/main"]}, None, (("/rie",), ("/main",))),
        (None, "h", (("/rie",), ("h",))),
    ],
)
def test_the_rie_is_put_in_front_where_an_image_does_not_start_it(
    config: dict[str, Any] | None, handler: str | None, expected: object
) -> None:
    engine = Engine()
    image = SimpleNamespace(attrs={"Config": config})
    engine._local.client = SimpleNamespace(images=SimpleNamespace(get=lambda _: image))
    found = command_for(engine, "image", handler, "/rie")
    assert (found.entrypoint, found.command) == expected


# -- what one container's engine answers --------------------------------------------------------------------------------


def container(**answers: Any) -> Container:
    engine = Engine()
    engine._local.client = SimpleNamespace(api=SimpleNamespace(**answers))
    engine.podman = False
    spec = ContainerSpec(
        name="probe",
        image="image",
        command=(),
        entrypoint=None,
        environment={},
        labels={},
        cpuset="0",
        memory_bytes=1,
        publish=True,
    )
    return Container(engine, spec)


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise error

    return call


def test_a_container_whose_volume_was_removed_under_it_does_not_start() -> None:
    """It would run without the function's code, and say that there is no handler."""
    removed: list[str] = []
    found = container(
        create_host_config=lambda **_: {},
        create_container=lambda *_, **__: {"Id": "1"},
        inspect_volume=lambda _: {"Labels": None},  # as the engine makes one without a word
        remove_container=lambda name, **_: removed.append(name),
    )
    found.spec = dataclasses.replace(found.spec, binds={"lambda-harness-content-12": ("/var/task", "ro")})
    with pytest.raises(EngineError, match="lambda-harness-content-12 was removed by another command"):
        found.__enter__()
    assert removed == ["1"]


@pytest.mark.parametrize(
    ("statuses", "tried"), [([500, 500, 204], 3), ([500] * 9, 3), ([404], 1), ([409], 1), ([204], 1)]
)
def test_a_container_that_takes_long_to_die_is_removed_once_more(statuses: list[int], tried: int) -> None:
    """Docker gives up after 10 s, says so, and keeps it."""
    left = list(statuses)

    def remove(*_: object, **__: object) -> None:
        if (status := left.pop(0)) >= 400:
            response = requests.Response()
            response.status_code = status
            raise docker.errors.APIError("could not kill: did not receive an exit event", response=response)

    found = container(remove_container=remove)
    found.id = "1"
    found.remove()
    assert (len(statuses) - len(left), found.id) == (tried, "")


def test_processes_are_listed_with_threads_where_ps_knows_them() -> None:
    found = container(top=lambda name, arguments: {"Processes": [["7", "26552", "9"]]}).processes()
    assert found == {7: Listed(rss_bytes=26552 * 1024, threads=9)}


def test_a_ps_that_does_not_know_threads_is_asked_without_them() -> None:
    def top(name: str, arguments: str) -> dict[str, Any]:
        if "nlwp" in arguments:
            raise refused()
        return {"Processes": [["7", "100"]]}

    assert container(top=top).processes() == {7: Listed(rss_bytes=102400, threads=None)}


@pytest.mark.parametrize("answer", [{"Processes": [["7", "1.2m", "1"]]}, {"Processes": [["7"]]}])
def test_a_list_in_another_form_is_no_list(answer: dict[str, Any]) -> None:
    assert container(top=lambda *_: answer).processes() is None
    assert container(top=raising(refused())).processes() is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (raising(docker.errors.NotFound("gone")), "was removed by someone else"),
        (raising(requests.exceptions.ConnectionError("cut")), "the engine went away while probe was running: cut"),
        (lambda _: {"State": {"Running": False, "ExitCode": 137}}, "ended with exit code 137"),
        (lambda _: {"State": {"Running": True, "ExitCode": 0}}, "does not answer"),
    ],
)
def test_why_a_container_is_gone(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any], said: str) -> None:
    monkeypatch.setattr(containers, "_NOTICE_S", 0.0)
    assert said in str(container(inspect_container=answer).why_gone())
    with pytest.raises(SandboxGone, match=said):
        container(inspect_container=answer, top=raising(docker.errors.NotFound("gone"))).processes()


def test_a_container_that_ends_at_once_is_told_with_its_exit_code() -> None:
    state = {"State": {"Running": False, "ExitCode": 142, "Error": ""}}
    with pytest.raises(EngineError, match="exit code 142"):
        container(start=lambda _: None, inspect_container=lambda _: state).start()


@pytest.mark.parametrize(
    ("network", "address"),
    [
        ({"IPAddress": "172.17.0.2"}, "172.17.0.2:8080"),
        ({"IPAddress": "", "Networks": {"podman": {"IPAddress": "10.88.0.2"}}}, "10.88.0.2:8080"),
    ],
)
def test_the_rie_is_found_on_whatever_bridge_there_is(network: dict[str, Any], address: str) -> None:
    found = container(
        start=lambda _: None,
        inspect_container=lambda _: {"State": {"Running": True, "Pid": 7}, "NetworkSettings": network},
    )
    found.spec = dataclasses.replace(found.spec, publish=False)
    found.start()
    assert (found.address, found.pid) == (address, 7)


def test_a_container_without_an_address_is_refused() -> None:
    found = container(
        start=lambda _: None,
        inspect_container=lambda _: {"State": {"Running": True, "Pid": 7}, "NetworkSettings": {}},
    )
    found.spec = dataclasses.replace(found.spec, publish=False)
    with pytest.raises(EngineError, match="no address"):
        found.start()


def test_an_image_without_a_shell_is_said_so() -> None:
    found = container(
        exec_create=lambda *_: {"Id": "1"},
        exec_start=lambda _: b"no such file",
        exec_inspect=lambda _: {"ExitCode": 127},
    )
    with pytest.raises(EngineError, match="/bin/sh cannot be run in image image: no such file"):
        found.execute(["/bin/sh"])


def test_whether_a_container_runs() -> None:
    assert container(inspect_container=lambda _: {"State": {"Running": True}}).running()
    assert not container(inspect_container=raising(docker.errors.NotFound("gone"))).running()


# -- the doctor's judgements, and the files before the RIE ---------------------------------------------------------------


def facts(**changes: Any) -> EngineFacts:
    known: dict[str, Any] = {
        "name": "Engine",
        "version": "1",
        "api_version": "1.41",
        "cgroup_version": 2,
        "cgroup_driver": "systemd",
        "kernel": "another",
        "architecture": "x86_64",
        "cpus": 8,
        "memory_bytes": 8 << 30,
        "operating_system": "Linux",
        "rootless": False,
    }
    return EngineFacts(**(known | changes))


@pytest.mark.parametrize(
    ("cpus", "mark", "said"),
    [
        (8, "ok  ", "enough for every"),
        (2, "less", "up to 3008 MB"),
        (4, "less", "up to 7076 MB"),
        (1, "less", "not boosted"),
    ],
)
def test_the_doctor_says_up_to_which_memory_size_the_cpus_suffice(cpus: int, mark: str, said: str) -> None:
    found = checkup._cpus(facts(cpus=cpus))
    assert found.mark == mark
    assert said in found.found
    assert not found.fatal


def test_the_files_before_the_rie_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rie = tmp_path / "aws-lambda-rie-1"
    rie.write_bytes(b"binary")
    monkeypatch.setattr("harness.engine.parts.rie_binary", lambda _: rie)
    found = relay_mount.directory("x86_64")
    assert {each.name for each in found.iterdir()} == {"rie", "aws-lambda-rie", "bootstrap"}
    assert all(each.stat().st_mode & 0o777 == 0o755 for each in found.iterdir())
    made_at = found.stat().st_ino
    assert relay_mount.directory("x86_64").stat().st_ino == made_at
    assert [each.name for each in tmp_path.glob("relay-new-*")] == []


class _Client:
    def __init__(self) -> None:
        self.closed = 0
        self.api = SimpleNamespace(api_version="1.41", send=None)

    def close(self) -> None:
        self.closed += 1


def test_a_thread_s_client_is_closed_when_the_thread_is_gone_and_the_others_with_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[_Client] = []

    def from_env(**_: object) -> _Client:
        made.append(_Client())
        return made[-1]

    monkeypatch.setattr("docker.from_env", from_env)
    engine = Engine()
    mine = engine.docker
    thread = threading.Thread(target=lambda: engine.docker)
    thread.start()
    thread.join()
    del thread
    gc.collect()
    assert [each.closed for each in made] == [0, 1]
    assert engine.docker is mine
    engine.close()
    assert [each.closed for each in made] == [1, 1]
    assert engine.docker is not mine
