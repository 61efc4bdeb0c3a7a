"""Content travels to the engine once, whole or not at all, and stays no longer than it is of use."""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import docker.errors
import pytest

from harness import packing
from harness.engine import volumes
from harness.engine.client import LABEL_OWNER, owner
from harness.engine.volumes import KEEP_DAYS, LABEL_CONTENT, Volumes, missing, remove_unused
from harness.errors import EngineError

IMAGE = "sha256:any"
LONG_AGO = "2020-01-01T00:00:00Z"
GONE = "1:0.00:another-boot"


def refusal(status: int, said: str) -> docker.errors.APIError:
    answer = SimpleNamespace(status_code=status, reason=said, url="http://engine")
    kind = docker.errors.NotFound if status == 404 else docker.errors.APIError
    return kind(said, response=answer, explanation=said)  # type: ignore[arg-type]


class Api:
    """An engine's volumes and containers, in memory."""

    def __init__(self) -> None:
        self.volumes: dict[str, dict[str, Any]] = {}
        self.held: dict[str, dict[str, bytes]] = {}
        self.containers: dict[str, dict[str, Any]] = {}
        self.log: list[str] = []
        self.on_put: Callable[[], None] = lambda: None
        self.taken = (409, "Conflict. The container name is already in use")
        self._numbers = iter(range(10_000))

    def inspect_volume(self, name: str) -> dict[str, Any]:
        if name not in self.volumes:
            raise refusal(404, f"no such volume {name}")
        return self.volumes[name]

    def create_volume(self, name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
        self.log.append(f"create {name}")
        now = datetime.datetime.now(datetime.UTC).isoformat()
        self.held.setdefault(name, {})
        return self.volumes.setdefault(name, {"Name": name, "Labels": labels, "CreatedAt": now})

    def remove_volume(self, name: str) -> None:
        self.inspect_volume(name)
        if name in self.used():
            raise refusal(409, "volume is in use")
        del self.volumes[name], self.held[name]

    def used(self) -> set[str]:
        return {each["volume"] for each in self.containers.values()}

    def create_host_config(self, *, binds: list[str], network_mode: str) -> dict[str, Any]:
        assert network_mode == "none"
        return {"volume": binds[0].partition(":")[0]}

    def create_container(
        self, _: str, *, name: str, labels: dict[str, str], host_config: dict[str, Any], **__: object
    ) -> dict[str, Any]:
        if any(each["name"] == name for each in self.containers.values()):
            raise refusal(*self.taken)
        identifier = f"c{next(self._numbers)}"
        self.containers[identifier] = {"name": name, "Config": {"Labels": labels}, **host_config}
        if host_config["volume"] not in self.volumes:  # as engines do, without a word
            self.create_volume(host_config["volume"])
        return {"Id": identifier}

    def inspect_container(self, name: str) -> dict[str, Any]:
        for identifier, found in self.containers.items():
            if name in (identifier, found["name"]):
                return {"Id": identifier, **found}
        raise refusal(404, f"no such container {name}")

    def put_archive(self, container: str, path: str, data: Any) -> bool:
        assert path == volumes._INSIDE
        self.log.append(f"put {self.containers[container]['volume']}")
        archive = data.read()
        self.on_put()
        held = self.held[self.containers[container]["volume"]]
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                held[member.name] = file.read() if file else member.linkname.encode()
        return True

    def remove_container(self, container: str, *, force: bool, v: bool) -> None:
        assert force
        assert v, "an image may declare volumes, and who knows their names"
        if self.containers.pop(container, None) is None:
            raise refusal(404, "no such container")

    def filled(self) -> int:
        return sum(line.startswith("put") for line in self.log)


class FakeEngine:
    def __init__(self) -> None:
        self.api = Api()
        self.docker = SimpleNamespace(api=self.api, volumes=SimpleNamespace(list=self.list))

    def list(self, *, filters: dict[str, Any]) -> list[Any]:
        return [
            SimpleNamespace(name=name, attrs=found)
            for name, found in self.api.volumes.items()
            if filters["label"] in (found["Labels"] or {}) and not (filters.get("dangling") and name in self.api.used())
        ]

    @contextlib.contextmanager
    def asked(self, what: str) -> Iterator[None]:
        try:
            yield
        except docker.errors.APIError as error:
            raise EngineError(f"the engine refused to {what}: {error.explanation}") from error


@pytest.fixture
def engine() -> Any:
    return FakeEngine()


@pytest.fixture
def api(engine: FakeEngine) -> Api:
    return engine.api


@pytest.fixture
def code(tmp_path: Path) -> Path:
    return tree(tmp_path / "code", {"app.py": b"one", "data/b.bin": b"\x00\xff", "data/a.txt": b"two"})


def tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return folder


def key(engine: Any, folder: Path) -> str:
    return Volumes(engine).place(folder, IMAGE)


# -- what the key says ---------------------------------------------------------------------------------------------------


def test_the_same_content_is_one_volume_whoever_brings_it(engine: Any, api: Api, code: Path, tmp_path: Path) -> None:
    name = key(engine, code)
    # Made the other way round, in another place, in directories that are younger.
    other = tree(tmp_path / "other", {"data/a.txt": b"two", "data/b.bin": b"\x00\xff", "app.py": b"one"})
    os.utime(other / "data", (1, 1))
    assert key(engine, other) == name
    assert api.filled() == 1
    assert api.held[name] == {
        ".": b"",
        "./app.py": b"one",
        "./data": b"",
        "./data/a.txt": b"two",
        "./data/b.bin": b"\x00\xff",
    }


def test_the_order_in_which_a_disk_lists_its_files_is_no_content(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tree(tmp_path, {f"{folder}/{file}": b"" for folder in "abc" for file in "xyz"})
    name, walk = key(engine, code), os.walk

    def the_other_way_round(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, folders, files in walk(top):
            folders.sort(reverse=True)
            yield folder, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", the_other_way_round)
    assert key(engine, code) == name


def test_whatever_the_function_could_see_makes_another_key(engine: Any, code: Path) -> None:
    seen = {key(engine, code)}

    def expect_another(what: str) -> None:
        found = key(engine, code)
        assert found not in seen, what
        seen.add(found)

    (code / "app.py").write_bytes(b"two")
    os.utime(code / "app.py", (1_700_000_000, 1_700_000_000))
    expect_another("content of the same size and time")
    (code / "app.py").chmod(0o755)
    expect_another("an executable bit")
    os.utime(code / "app.py", (1_700_000_001, 1_700_000_001))
    expect_another("a file's time, which compiled files name")
    (code / "app.py").rename(code / "application.py")
    expect_another("a name")
    (code / "empty").mkdir()
    expect_another("an empty directory")
    (code / "link").symlink_to("application.py")
    expect_another("a link")
    (code / "link").unlink()
    (code / "link").symlink_to("data/a.txt")
    expect_another("where a link leads")
    code.chmod(0o700)
    expect_another("the mode of the directory itself")


def test_fractions_of_a_second_and_the_owner_are_no_content(engine: Any, code: Path) -> None:
    name = key(engine, code)
    os.utime(code / "app.py", ns=(0, 1_700_000_000_999_999_999))
    if os.geteuid() == 0:
        os.chown(code / "app.py", 1234, 1234)
    assert key(engine, code) == name


def test_names_and_links_of_all_kinds_survive(engine: Any, api: Api, tmp_path: Path) -> None:
    long = "x" * 200
    code = tree(tmp_path / "code", {"grüße ☃.txt": b"1", f"{long}/{long}": b"2", " leading": b"3", "first": b"4"})
    (code / "away").symlink_to("/etc/passwd")
    (code / "broken").symlink_to("nowhere")
    (code / "folder").symlink_to(long, target_is_directory=True)
    (code / "second").hardlink_to(code / "first")
    held = api.held[key(engine, code)]
    assert held["./grüße ☃.txt"] == b"1"
    assert held[f"./{long}/{long}"] == b"2"
    assert held["./ leading"] == b"3"
    assert (held["./away"], held["./broken"], held["./folder"]) == (b"/etc/passwd", b"nowhere", long.encode())
    assert {held["./first"], held["./second"]} == {b"4", b"./first"}


def test_a_socket_among_the_files_is_left_out(
    engine: Any, api: Api, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(code)  # a socket's path must be short
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind("s")
        assert "./s" not in api.held[key(engine, code)]


def test_an_empty_directory_is_content_too(engine: Any, api: Api, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert api.held[key(engine, tmp_path / "empty")] == {".": b""}


def test_a_file_that_cannot_be_read_is_named(engine: Any, code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(EngineError, match=r"cannot be carried to the engine: .*Permission denied.*app\.py") as caught:
        key(engine, code)
    assert caught.value.remedy


def test_a_directory_that_is_gone_is_said_plainly(engine: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be carried to the engine"):
        key(engine, tmp_path / "nowhere")


# -- filling -----------------------------------------------------------------------------------------------------------


def test_what_was_filled_is_not_packed_again_until_a_file_changes(
    engine: Any, api: Api, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[Path] = []
    pack = packing.pack

    def counted(folder: Path, into: IO[bytes]) -> str:
        packed.append(folder)
        return pack(folder, into)

    monkeypatch.setattr(packing, "pack", counted)
    held = Volumes(engine)
    first = held.place(code, IMAGE)
    assert held.place(code, IMAGE) == first
    assert len(packed) == 1
    (code / "app.py").write_bytes(b"changed")
    assert held.place(code, IMAGE) != first
    assert (len(packed), api.filled()) == (2, 2)


def test_the_mark_comes_after_the_content_and_the_lock_goes(engine: Any, api: Api, code: Path) -> None:
    name = key(engine, code)
    assert api.log == [f"create {name}", f"put {name}", f"create {name}-filled"]
    assert api.containers == {}
    assert all(found["Labels"][LABEL_CONTENT] == name for found in api.volumes.values())
    assert all(LABEL_OWNER not in found["Labels"] for found in api.volumes.values()), "it outlives its command"


def test_a_fill_that_fails_leaves_no_mark_and_no_lock_and_the_next_one_fills(engine: Any, api: Api, code: Path) -> None:
    def full() -> None:
        raise refusal(500, "no space left on device")

    api.on_put = full
    with pytest.raises(EngineError, match=r"refused to fill volume .*: no space left on device"):
        key(engine, code)
    assert not [name for name in api.volumes if name.endswith("-filled")]
    assert api.containers == {}
    api.on_put = lambda: None
    assert api.held[key(engine, code)]["./app.py"] == b"one"
    assert api.filled() == 2


def test_a_fill_that_is_interrupted_leaves_no_mark(engine: Any, api: Api, code: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    api.on_put = interrupt
    with pytest.raises(KeyboardInterrupt):
        key(engine, code)
    assert not [name for name in api.volumes if name.endswith("-filled")]
    assert api.containers == {}


@pytest.mark.parametrize(
    "taken",
    [
        (409, "Conflict. The container name is already in use by container 12"),
        (
            500,
            'creating container storage: the container name "x" is already in use by 12: that name is already in use',
        ),
    ],
    ids=["Docker", "Podman"],
)
def test_while_another_command_fills_the_same_volume_it_is_waited_for(
    engine: Any, api: Api, code: Path, taken: tuple[int, str]
) -> None:
    api.taken = taken
    filling, go_on = threading.Event(), threading.Event()

    def put() -> None:
        filling.set()
        assert go_on.wait(60)

    api.on_put = put
    found: list[str] = []
    first = threading.Thread(target=lambda: found.append(key(engine, code)))
    first.start()
    assert filling.wait(60)
    second = threading.Thread(target=lambda: found.append(key(engine, code)))
    second.start()
    second.join(0.3)
    assert second.is_alive(), "what is not whole must not be used"
    go_on.set()
    for each in (first, second):
        each.join(60)
    assert len(found) == 2
    assert found[0] == found[1]
    assert api.filled() == 1


def test_any_other_refusal_is_no_lock(engine: Any, api: Api, code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise refusal(500, "no such image")

    monkeypatch.setattr(api, "create_container", refuse)
    with pytest.raises(EngineError, match="no such image"):
        key(engine, code)


def lock(api: Api, name: str, owned_by: str) -> None:
    host = api.create_host_config(binds=[f"{name}:/x"], network_mode="none")
    api.create_container(IMAGE, name=f"{name}-filling", labels={LABEL_OWNER: owned_by}, host_config=host)


def test_the_lock_of_a_command_that_was_killed_is_broken(engine: Any, api: Api, code: Path) -> None:
    name = key(engine, code)
    api.remove_volume(name + "-filled")
    lock(api, name, GONE)
    api.held[name] = {"./half": b""}
    assert key(engine, code) == name
    assert api.filled() == 2
    assert api.containers == {}


def test_the_lock_of_a_living_command_is_waited_for_but_not_for_ever(
    engine: Any, api: Api, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = key(engine, code)
    api.remove_volume(name + "-filled")
    lock(api, name, owner())
    monkeypatch.setattr(volumes, "_PATIENCE_S", 0.2)
    with pytest.raises(EngineError, match="another command has been filling the volume") as caught:
        key(engine, code)
    assert "clean --all" in caught.value.remedy
    assert len(api.containers) == 1


@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
def test_content_that_was_removed_meanwhile_is_brought_again(engine: Any, api: Api, code: Path, known: bool) -> None:
    held = Volumes(engine)
    name = held.place(code, IMAGE)
    api.remove_volume(name)  # and its mark stayed
    assert (held if known else Volumes(engine)).place(code, IMAGE) == name
    assert api.held[name]["./app.py"] == b"one"
    assert api.filled() == 2


def test_an_empty_volume_that_the_engine_made_under_the_name_does_not_pass_for_filled(
    engine: Any, api: Api, code: Path
) -> None:
    name = key(engine, code)
    api.remove_volume(name)
    api.create_volume(name)
    assert key(engine, code) == name
    assert api.held[name]["./app.py"] == b"one"


# -- binds -------------------------------------------------------------------------------------------------------------


def test_directories_become_volumes_that_take_nothing_from_the_image(engine: Any, code: Path, tmp_path: Path) -> None:
    layer = tree(tmp_path / "layer", {"lib.py": b"three"})
    found = Volumes(engine).carry({str(code): ("/var/task", "ro"), str(layer): ("/opt", "ro")}, IMAGE)
    assert found == {key(engine, code): ("/var/task", "ro,nocopy"), key(engine, layer): ("/opt", "ro,nocopy")}


def test_the_same_content_at_two_places_is_at_both(engine: Any, api: Api, code: Path, tmp_path: Path) -> None:
    twin = tree(tmp_path / "twin", {"data/a.txt": b"two", "data/b.bin": b"\x00\xff", "app.py": b"one"})
    third = tree(tmp_path / "third", {"data/a.txt": b"two", "data/b.bin": b"\x00\xff", "app.py": b"one"})
    binds = {str(code): ("/var/task", "ro"), str(twin): ("/opt", "ro"), str(third): ("/x", "ro")}
    found = Volumes(engine).carry(binds, IMAGE)
    assert [target for target, _ in found.values()] == ["/var/task", "/opt", "/x"]
    assert all(api.held[name]["./app.py"] == b"one" for name in found)
    assert Volumes(engine).carry(binds, IMAGE) == found


def test_a_file_cannot_be_carried_and_is_named(engine: Any, code: Path) -> None:
    with pytest.raises(EngineError, match=r"app\.py cannot be mounted at /x"):
        Volumes(engine).carry({str(code / "app.py"): ("/x", "ro")}, IMAGE)


# -- removal -----------------------------------------------------------------------------------------------------------


def aged(api: Api, name: str, created_at: str) -> None:
    for each in (name, name + "-filled"):
        api.volumes[each]["CreatedAt"] = created_at


def test_what_is_old_and_unused_goes_with_its_mark(engine: Any, api: Api, code: Path, tmp_path: Path) -> None:
    old, young = key(engine, code), key(engine, tree(tmp_path / "young", {"a": b"1"}))
    aged(api, old, LONG_AGO)
    assert remove_unused(engine) == [f"volume {old}-filled", f"volume {old}"]
    assert set(api.volumes) == {young, young + "-filled"}


@pytest.mark.parametrize(
    ("created_at", "goes"),
    [
        ("2020-01-01T00:00:00Z", True),
        ("2020-01-01T00:00:00+02:00", True),
        ("2020-01-01T00:00:00", True),
        ("2020-01-01T00:00:00.123456789Z", True),
        ("", False),
        ("yesterday", False),
    ],
)
def test_what_the_engine_says_of_the_time_is_understood(
    engine: Any, api: Api, code: Path, created_at: str, *, goes: bool
) -> None:
    aged(api, key(engine, code), created_at)
    assert bool(remove_unused(engine)) is goes


def test_a_week_is_a_week(engine: Any, api: Api, code: Path) -> None:
    name = key(engine, code)
    now = datetime.datetime.now(datetime.UTC)
    aged(api, name, (now - datetime.timedelta(days=KEEP_DAYS, minutes=-5)).isoformat())
    assert remove_unused(engine) == []
    aged(api, name, (now - datetime.timedelta(days=KEEP_DAYS, minutes=5)).isoformat())
    assert len(remove_unused(engine)) == 2


def test_what_a_container_uses_stays_with_its_mark(engine: Any, api: Api, code: Path) -> None:
    name = key(engine, code)
    aged(api, name, LONG_AGO)
    lock(api, name, owner())
    assert remove_unused(engine, everything=True) == []
    assert set(api.volumes) == {name, name + "-filled"}


def test_everything_means_the_young_ones_too_and_nobody_else_s(engine: Any, api: Api, code: Path) -> None:
    key(engine, code)
    api.create_volume("precious", labels={"of": "another"})
    assert len(remove_unused(engine, everything=True)) == 2
    assert set(api.volumes) == {"precious"}


def test_a_mark_without_its_content_goes_too(engine: Any, api: Api, code: Path) -> None:
    name = key(engine, code)
    api.remove_volume(name)
    assert remove_unused(engine, everything=True) == [f"volume {name}-filled"]
    assert api.volumes == {}


def test_content_without_its_mark_goes_too(engine: Any, api: Api, code: Path) -> None:
    name = key(engine, code)
    api.remove_volume(name + "-filled")
    assert remove_unused(engine, everything=True) == [f"volume {name}"]
    assert api.volumes == {}


def test_whoever_brings_something_new_removes_what_is_old_and_unused(
    engine: Any, api: Api, code: Path, tmp_path: Path
) -> None:
    old, used, young = (key(engine, tree(tmp_path / name, {name: b"1"})) for name in ("old", "used", "young"))
    for each in (old, used):
        aged(api, each, LONG_AGO)
    lock(api, used, owner())
    key(engine, tmp_path / "young")
    assert old in api.volumes, "nothing new came"
    new = key(engine, code)
    assert set(api.volumes) == {each + mark for each in (used, young, new) for mark in ("", "-filled")}


def test_a_volume_that_the_engine_made_in_place_of_a_removed_one_is_missed(engine: Any, api: Api, code: Path) -> None:
    name = key(engine, code)
    binds = {name: ("/var/task", "ro"), "/host/path": ("/opt", "ro")}
    assert missing(engine, binds) == []
    api.remove_volume(name)
    lock(api, name, owner())
    assert missing(engine, binds) == [name]
