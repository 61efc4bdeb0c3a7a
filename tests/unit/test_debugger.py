"""What a sandbox needs so that a debugger can attach, without a container."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.debugger import MOUNTED_AT, Debug
from harness.errors import UsageError


def test_node_listens_besides_what_the_function_asked_of_it() -> None:
    own = {"NODE_OPTIONS": "--enable-source-maps"}
    found = Debug(port=9229).environment("nodejs22.x", own)
    assert found == {"NODE_OPTIONS": "--enable-source-maps --inspect=0.0.0.0:9229"}
    assert Debug(port=9229, wait=True).environment("nodejs22.x", {}) == {"NODE_OPTIONS": "--inspect-brk=0.0.0.0:9229"}
    assert Debug(port=9229).binds("nodejs22.x", Path("/nowhere")) == {}


def test_python_is_started_by_a_wrapper_with_the_harness_s_own_debugger(tmp_path: Path) -> None:
    debug = Debug(port=5678, wait=True)
    assert debug.environment("python3.13", {}) == {"AWS_LAMBDA_EXEC_WRAPPER": f"{MOUNTED_AT}/wrapper"}
    binds = debug.binds("python3.13", tmp_path)
    wrapper = Path(next(source for source, target in binds.items() if target == MOUNTED_AT), "wrapper")
    ran = subprocess.run([wrapper, "echo", "/var/runtime/bootstrap.py"], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [
        "-X", "frozen_modules=off", "-m", "debugpy", "--listen", "0.0.0.0:5678", "--wait-for-client",
        "/var/runtime/bootstrap.py",
    ]  # fmt: skip
    assert any(Path(source, "__main__.py").exists() for source in binds)


@pytest.mark.parametrize("runtime", [None, "provided.al2023"])
def test_a_runtime_without_a_debugger_is_refused(runtime: str | None) -> None:
    with pytest.raises(UsageError, match="no debugger"):
        Debug(port=1).environment(runtime, {})


def test_a_missing_debugger_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="not installed"):
        Debug(port=1).binds("python3.13", tmp_path)
