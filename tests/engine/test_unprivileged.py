"""A user who may use the engine and is not root: the same records, less where only root could know; nothing fails loudly."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PATIENCE, ROOT, checked, patient

from harness.engine import parts
from harness.engine.client import EngineFacts
from harness.kernel import is_this_machine
from harness.stand import work_base

if TYPE_CHECKING:
    from conftest import Lab

MIB = 1024 * 1024
USER = 54321
"""No account is needed: the kernel knows numbers alone."""
SOURCE = """
    import time
    kept = []
    def handler(event, context):
        begun = time.process_time()
        while time.process_time() - begun < event.get("cpu_s", 0):
            pass
        spike = bytearray(b"x") * (event.get("spike_mb", 0) << 20)
        del spike
        kept.append(bytearray(b"x") * (event.get("mb", 0) << 20))
        return time.process_time() - begun
"""


@dataclass(frozen=True, kw_only=True)
class Somebody:
    """Runs the command line as a user of no rights but those of the group that may use the engine."""

    python: str
    group: int
    home: Path

    def run(self, *arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self.python, "-m", "harness", *patient(arguments)],
            capture_output=True,
            text=True,
            timeout=120 * PATIENCE,
            check=False,
            cwd=self.home,
            env=self._environment(),
            user=USER,
            group=USER,
            extra_groups=[self.group],
        )
        assert done.returncode == expect, f"exit {done.returncode}: {done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr
        return done

    def document(self, *arguments: object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(*arguments, "--json").stdout)
        return found

    def _environment(self) -> Mapping[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "DOCKER_HOST") if name in os.environ}
        libraries = f"{ROOT}:{sysconfig.get_path('purelib')}"
        return kept | {"HOME": str(self.home), "PYTHONPATH": libraries, "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def somebody(facts: EngineFacts) -> Iterator[Somebody]:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    if not is_this_machine(facts.kernel, facts.memory_bytes):
        pytest.skip("the engine is on another machine: being root here means nothing there")
    socket = Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))
    if not socket.is_socket() or not socket.stat().st_mode & stat.S_IWGRP:
        pytest.skip(f"no group may use the engine at {socket}")
    python = _python_for_all()
    # Not below pytest's own directory: every run of pytest closes that to all others again.
    home = Path(tempfile.mkdtemp(prefix="somebody-", dir=work_base()))
    # What root has downloaded already: the RIE and the files around it.
    shutil.copytree(parts.cache_dir() / "parts", home / ".cache/lambda-harness/parts")
    for each in (home, *home.rglob("*")):
        os.chown(each, USER, USER)
    yield Somebody(python=python, group=socket.stat().st_gid, home=home)
    shutil.rmtree(home)


def _python_for_all() -> str:
    """An interpreter of this version that others may run: one in root's home directory is not."""
    major, minor = sys.version_info[:2]
    for candidate in (os.path.realpath(sys.executable), f"/usr/bin/python{major}.{minor}"):
        if Path(candidate).exists() and all(each.stat().st_mode & stat.S_IXOTH for each in Path(candidate).parents):
            return candidate
    pytest.skip(f"nobody but root may run {sys.executable}, and there is no other Python {major}.{minor}")


@pytest.fixture(scope="module")
def function(somebody: Somebody) -> list[str]:
    folder = somebody.home / "fn"
    folder.mkdir(mode=0o755)
    (folder / "app.py").write_text(textwrap.dedent(SOURCE))
    timeout_s = int(20 * PATIENCE)
    return [
        str(folder),
        "--runtime",
        "python3.13",
        "--handler",
        "app.handler",
        "-m",
        "512",
        "--timeout",
        str(timeout_s),
    ]


def event(somebody: Somebody, **found: Any) -> list[str]:
    """Options for this event; a file, as people have them."""
    file = somebody.home / "event.json"
    file.write_text(json.dumps(found))
    return ["-e", str(file)]


def test_somebody_s_records_tell_what_root_s_tell(somebody: Somebody, function: list[str], lab: Lab) -> None:
    series = [*event(somebody, cpu_s=0.1, spike_mb=40), "-n", "3"]
    ours = somebody.document("invoke", *function, *series, "--vantage", "api")["invocations"]
    checked("host", lab.engine.facts())
    roots = lab.document("invoke", *function, *series, "--vantage", "host")["invocations"]
    for mine, root in zip(ours, roots, strict=True):
        assert mine["outcome"] == root["outcome"] == "success"
        assert (mine["processes"], mine["threads"]) == (root["processes"], root["threads"])
        assert mine["cpuset"] is not None
        assert mine["throttled_periods"] > 0
        assert abs(mine["anonymous_after_bytes"] - root["anonymous_after_bytes"]) < MIB
        assert mine["open_files"] is None, "nobody may look at another user's files"
        assert "peak_rss_bytes" in root
        assert mine["peak_rss_bytes"] <= root["peak_rss_bytes"] + MIB
    cold, warm = ours[0], ours[2]
    assert (cold["peak_method"], cold["cpu_ms"]) == ("high_water", None)
    assert abs(cold["peak_rss_bytes"] - roots[0]["peak_rss_bytes"]) < MIB
    assert warm["response"] * 1000 <= warm["cpu_ms"] < warm["response"] * 1000 + 20 * PATIENCE
    assert all("lower bound" in " ".join(each["notes"]) for each in ours)


def test_an_out_of_memory_kill_is_told_by_the_kernel_s_counter(somebody: Somebody, function: list[str]) -> None:
    wanted = [*function, *event(somebody, mb=700), "--vantage", "api"]
    document = json.loads(somebody.run("invoke", *wanted, "--json", expect=7).stdout)
    assert document["invocations"][0]["outcome"] == "out_of_memory"
    assert document["invocations"][0]["max_memory_used_mb"] == 512


def test_the_agent_gives_somebody_what_root_has(somebody: Somebody, function: list[str]) -> None:
    record = somebody.document("invoke", *function, *event(somebody, spike_mb=40), "--vantage", "agent")["invocations"][
        0
    ]
    assert record["vantage"] == "agent"
    assert record["peak_method"] == "reset"
    assert record["cpu_ms"] is not None
    assert record["open_files"] is not None


def test_doctor_says_why_it_is_not_host_and_fails_at_nothing(somebody: Somebody) -> None:
    said = {each["what"]: each for each in somebody.document("doctor")["findings"]["checks"]}
    assert "not root" in said["vantage"]["found"]
    assert not any(each["mark"] == "bad" for each in said.values())


def test_what_root_has_left_behind_is_passed_over_in_silence(somebody: Somebody) -> None:
    left = work_base() / "lambda-harness-of-root"
    left.mkdir(mode=0o755)
    try:
        (left / "owner").write_text("1:0.00:another boot")
        done = somebody.run("clean")
        assert str(left) not in done.stdout
        assert left.is_dir(), "it is not somebody's to remove"
        left.chmod(0o700)
        somebody.run("clean")
    finally:
        shutil.rmtree(left)


def test_what_somebody_has_left_behind_root_removes(somebody: Somebody, lab: Lab) -> None:
    left = work_base() / "lambda-harness-of-somebody"
    left.mkdir(mode=0o700)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, left, ignore_errors=True)
        (left / "owner").write_text("1:0.00:another boot")
        os.chown(left, USER, USER)
        assert str(left) in lab.cli("clean").stdout
        assert not left.exists()


def test_images_are_listed_for_somebody_too(somebody: Somebody) -> None:
    images = {each["runtime"]: each for each in somebody.document("images", "list")["findings"]["images"]}
    assert images["python3.13"]["chosen"] is not None
