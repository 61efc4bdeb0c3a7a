"""Hot reload: a change in a directory is told once, however it was noticed."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes_service import until

from harness.api.reload import Reloader


class Told:
    """Counts, and can be waited for."""

    def __init__(self) -> None:
        self.times = 0
        self.changed = threading.Condition()

    def __call__(self) -> None:
        with self.changed:
            self.times += 1
            self.changed.notify_all()

    def wait(self, times: int = 1) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.times >= times, timeout=10), "waited in vain for a change"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    (folder / "package").mkdir(parents=True)
    (folder / "app.py").write_text("1")
    (folder / "package" / "more.py").write_text("1")
    return folder


@pytest.fixture
def reloader() -> Iterator[Reloader]:
    said: list[str] = []
    found = Reloader(say=said.append)
    yield found
    found.close()
    assert said == []


def watched(reloader: Reloader, *paths: Path, owner: str = "probe") -> Told:
    told = Told()
    reloader.watch(owner, paths, told)
    assert reloader.wait_until_watching(10)
    return told


def test_a_change_anywhere_below_is_told(reloader: Reloader, code: Path) -> None:
    told = watched(reloader, code)
    (code / "package" / "more.py").write_text("2")
    told.wait()
    (code / "package" / "deep").mkdir()
    told.wait(2)


def test_who_looks_meets_a_change_at_the_top_at_once_and_is_told_once(reloader: Reloader, code: Path) -> None:
    told, others = watched(reloader, code), watched(reloader, code.parent, owner="other")
    assert not reloader.look("probe")
    (code / "app.py").write_text("22")
    assert reloader.look("probe")
    assert told.times == 1
    assert not reloader.look("probe")
    others.wait()  # by now the watch has heard of it too
    assert told.times == 1
    (code / "app.py").unlink()
    assert reloader.look("probe")
    others.wait(2)
    assert told.times == 2


def test_what_tools_leave_behind_is_no_change(reloader: Reloader, code: Path) -> None:
    told = watched(reloader, code)
    (code / "__pycache__").mkdir()
    (code / "__pycache__" / "app.cpython-313.pyc").write_text("")
    (code / ".app.py.swp").write_text("")
    (code / ".git").mkdir()
    (code / "node_modules").mkdir()
    told.wait()
    assert told.times == 1
    assert not reloader.look("probe")


def test_only_the_owner_of_a_directory_is_told(reloader: Reloader, code: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    told, others = watched(reloader, code), watched(reloader, other, owner="other")
    (other / "app.py").write_text("1")
    others.wait()
    assert told.times == 0


def test_a_single_file_is_watched_also_when_an_editor_replaces_it(reloader: Reloader, code: Path) -> None:
    manifest = code / "function.toml"
    manifest.write_text("1")
    told, everything = watched(reloader, manifest), watched(reloader, code, owner="code")
    (code / "app.py").write_text("2")
    everything.wait()
    assert told.times == 0
    (code / "new").write_text("2")
    (code / "new").replace(manifest)
    told.wait()


def test_a_directory_that_a_build_makes_anew_goes_on_being_watched(reloader: Reloader, code: Path) -> None:
    told = watched(reloader, code)
    shutil.rmtree(code)
    told.wait()
    until(lambda: reloader._armed == frozenset(), "its watch is over")
    code.mkdir()
    assert reloader.wait_until_watching(10)
    before = told.times
    (code / "app.py").write_text("3")
    told.wait(before + 1)


def test_a_directory_that_is_replaced_at_once_goes_on_being_watched(reloader: Reloader, code: Path) -> None:
    told = watched(reloader, code)
    shutil.rmtree(code)
    code.mkdir()  # file systems like to give it the number of the old one
    told.wait()
    assert reloader.wait_until_watching(10)
    before = told.times

    def written_until_told() -> bool:
        (code / "sub").mkdir(exist_ok=True)
        (code / "sub" / "app.py").write_text(str(told.times))
        return told.times > before

    until(written_until_told, "the new one is watched")


def test_a_directory_is_watched_no_more_when_it_is_forgotten(reloader: Reloader, code: Path) -> None:
    told, others = watched(reloader, code), watched(reloader, code.parent, owner="other")
    reloader.forget("probe")
    (code / "app.py").write_text("2")
    others.wait()
    assert told.times == 0
    assert not reloader.look("probe")


def test_there_is_one_thread_for_all_directories_and_none_without(code: Path, tmp_path: Path) -> None:
    def threads() -> list[str]:
        return [each.name for each in threading.enumerate() if each.name == "hot-reload"]

    reloader = Reloader()
    assert threads() == []
    watched(reloader, code)
    watched(reloader, tmp_path, owner="other")
    assert threads() == ["hot-reload"]
    reloader.close()
    assert threads() == []
    reloader.watch("late", [code], Told())
    assert threads() == []
