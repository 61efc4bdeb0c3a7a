"""The connection to the engine: who owns what, and what is said when no engine answers."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest
import requests.exceptions

from harness.engine import client
from harness.engine.client import Engine, owner, owner_is_gone, owner_labels, reap
from harness.engine.entrypoint import command_for
from harness.errors import EngineError


def test_this_process_is_not_gone_and_one_that_ended_is() -> None:
    assert not owner_is_gone(owner())
    code = "from harness.engine.client import owner; print(owner())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert owner_is_gone(ended)


@pytest.mark.parametrize("text", ["", "1", "x:1.00:", f"{os.getpid()}:1.00:another-boot"])
def test_a_label_that_names_no_living_process_means_gone(text: str) -> None:
    assert owner_is_gone(text)


def test_another_process_with_the_same_id_is_not_the_owner() -> None:
    pid, _, boot = owner().split(":")
    assert owner_is_gone(f"{pid}:1.00:{boot}")


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


def engine_with(containers: list[Item], volumes: list[Item]) -> Any:
    def inspect(name: str) -> dict[str, Any]:
        found = next(each for each in containers if each.name == name)
        return {"State": {"Pid": 42, "Paused": found.paused}}

    engine = Engine()
    engine._local.client = SimpleNamespace(
        containers=SimpleNamespace(list=lambda **_: containers),
        volumes=SimpleNamespace(list=lambda **_: volumes),
        api=SimpleNamespace(inspect_container=inspect),
    )
    return engine


def test_what_belongs_to_the_living_stays() -> None:
    mine, dead = Item("mine", owner()), Item("dead", "1:1.00:another-boot", paused=True)
    vanished = Item("vanished", "1:1.00:another-boot", gone=True)
    my_volume, dead_volume = Item("v1", owner()), Item("v2", None)
    released: list[tuple[str, int]] = []
    removed = reap(
        engine_with([mine, dead, vanished], [my_volume, dead_volume]),
        release=lambda name, pid: released.append((name, pid)),
    )
    assert removed == ["container dead", "volume v2"]
    assert mine.calls == my_volume.calls == []
    assert dead.calls == ["unpause", "remove"]
    assert released == [("dead", 42), ("vanished", 42)], "a frozen container is thawed first"


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
    assert command_for(engine, "image", handler, "/rie") == expected
