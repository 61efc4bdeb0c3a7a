"""Real containers. Where no engine answers these tests fail and say so: a suite that skips itself proves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.engine.client import LABEL_OWNER, Engine, EngineFacts
from harness.errors import EngineError
from harness.function import Overrides, load
from harness.invocation import Invocation
from harness.receivers import Receivers
from harness.sandbox import Sandbox
from harness.stand import Stand
from harness.vantage.host import HostVantage

ROOT = Path(__file__).parents[2]
AGENT = "lambda-harness-agent-"
PATIENCE = float(os.environ.get("LAMBDA_HARNESS_TEST_PATIENCE") or 1)
"""How much slower than a laptop's the engine may be: an emulated machine takes ten times as long for everything."""
WAIT_S = 30 * PATIENCE
MEASURING = ("invoke", "warm", "sweep", "leak", "oom", "load")
VANTAGES = (
    [os.environ["LAMBDA_HARNESS_VANTAGE"]] if "LAMBDA_HARNESS_VANTAGE" in os.environ else ["host", "agent", "api"]
)
"""One that is named in the environment is all that is tried: on an engine elsewhere the others are not possible, or slow."""


@pytest.fixture(scope="session", autouse=True)
def engine() -> Iterator[Engine]:
    """The engine that all tests here need."""
    found = Engine()
    try:
        found.facts()
    except EngineError as error:
        pytest.fail(f"tests/engine needs a container engine: {error}; {error.remedy}", pytrace=False)
    yield found
    found.close()


@pytest.fixture(scope="session")
def facts(engine: Engine) -> EngineFacts:
    return engine.facts()


@pytest.fixture(params=VANTAGES)
def vantage(request: pytest.FixtureRequest, facts: EngineFacts) -> str:
    return checked(str(request.param), facts)


# The agent's outcomes are compared with host's side by side in test_agent.py.
@pytest.fixture(scope="module", params=[each for each in VANTAGES if each != "agent" or len(VANTAGES) == 1])
def module_vantage(request: pytest.FixtureRequest, facts: EngineFacts) -> str:
    return checked(str(request.param), facts)


@pytest.fixture
def host(facts: EngineFacts) -> str:
    return checked("host", facts)


def checked(vantage: str, facts: EngineFacts) -> str:
    why_not = HostVantage.why_not(facts) if vantage == "host" else None
    if why_not:
        pytest.skip(f"vantage host is not possible here: {why_not}")
    return vantage


def scaled(timeout_s: float) -> int:
    """A function's timeout on an engine of this speed."""
    return min(900, int(timeout_s * PATIENCE))


def own_timeout_s(source: str | Path) -> float:
    """What a function's manifest says, or Lambda's default."""
    manifest = Path(source) / "function.toml"
    return float(tomllib.loads(manifest.read_text()).get("timeout_s", 3)) if manifest.is_file() else 3


def patient(arguments: tuple[object, ...]) -> list[str]:
    """The command's words; on a slow engine with the function's own timeout in proportion, where they name none.

    A template's stays: what is read from it is what its test is about.
    """
    words = list(map(str, arguments))
    if PATIENCE > 1 and words[0] in MEASURING and "--timeout" not in words and ".yaml:" not in words[1]:
        words += ["--timeout", str(scaled(own_timeout_s(words[1])))]
    return words


def until(condition: Callable[[], object], what: str, *, seconds: float = WAIT_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


@dataclass
class Lab:
    """Makes functions and sandboxes, in this process or through the command line."""

    folder: Path
    engine: Engine
    _made: int = 0

    def function(self, files: Mapping[str, str]) -> Path:
        """A directory with these files."""
        self._made += 1
        found = self.folder / f"fn{self._made}"
        for name, text in files.items():
            path = found / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
            path.chmod(0o755)
        return found

    @contextlib.contextmanager
    def stand(
        self,
        source: str | Path,
        *,
        vantage: str = "auto",
        freeze: bool = True,
        on_output: Callable[[bytes], None] | None = None,
        receivers: Receivers | None = None,
        **settings: Any,
    ) -> Iterator[Stand]:
        """A stand for Python source text (its handler is ``handler``), or for whatever a path names."""
        if isinstance(source, str):
            source = self.function({"app.py": source})
            settings = {"runtime": "python3.13", "handler": "app.handler", "memory_mb": 512} | settings
        if PATIENCE > 1:
            settings = {"timeout_s": scaled(own_timeout_s(source))} | settings
        function = load(str(source), Overrides(**settings))
        with Stand(
            function, vantage=vantage, freeze=freeze, pull=False, on_output=on_output, receivers=receivers
        ) as stand:
            yield stand

    @contextlib.contextmanager
    def sandbox(self, source: str | Path, **settings: Any) -> Iterator[Sandbox]:
        with self.stand(source, **settings) as stand, stand.sandbox() as sandbox:
            yield sandbox

    def containers(self, pid: int | None = None) -> set[str]:
        """The containers that a process (this one) holds: other people may use the same engine."""
        owner = f"{pid or os.getpid()}:"
        listed = self.engine.docker.containers.list(all=True, filters={"label": LABEL_OWNER}, ignore_removed=True)
        return {str(each.name) for each in listed if each.labels[LABEL_OWNER].startswith(owner)}

    def sandboxes(self, pid: int | None = None) -> set[str]:
        """The containers of a process but its agent's."""
        return {name for name in self.containers(pid) if not name.startswith(AGENT)}

    def start(self, *arguments: object, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """The command line, as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "harness", *patient(arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "NO_COLOR": "1", **(env or {})},
        )

    def cli(
        self,
        *arguments: object,
        expect: int = 0,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        timeout_s: float = 120 * PATIENCE,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "harness", *patient(arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=ROOT,
            env={**os.environ, "NO_COLOR": "1", **(env or {})},
        )
        assert done.returncode == expect, f"exit {done.returncode}: {done.stderr[-2000:]}"
        assert "/harness/" not in done.stderr, f"a traceback of the harness: {done.stderr[-2000:]}"
        return done

    def document(self, *arguments: object, expect: int = 0, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.cli(*arguments, "--json", expect=expect, **more).stdout)
        return found


def invoke(sandbox: Sandbox, **event: Any) -> Invocation:
    return sandbox.invoke(json.dumps(event).encode())


@pytest.fixture(scope="session")
def lab(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("functions")
    for each in (folder, *folder.parents):  # the sandbox's user must get through
        if each.owner() == Path.home().owner() and str(each).startswith(str(tmp_path_factory.getbasetemp().parent)):
            each.chmod(0o755)
    return Lab(folder=folder, engine=engine)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind(lab: Lab) -> Iterator[None]:
    yield
    assert lab.containers() == set(), "the tests left containers behind"


def end(process: subprocess.Popen[str], number: signal.Signals) -> tuple[str, str]:
    process.send_signal(number)
    return process.communicate(timeout=WAIT_S)
