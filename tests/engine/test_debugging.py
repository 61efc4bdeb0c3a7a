"""A debugger attaches to the runtime of a real sandbox."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import httpx
import pytest

from harness.debugger import NOTE, Debug
from harness.function import load
from harness.function.model import Overrides
from harness.invocation import Outcome
from harness.stand import Stand


@pytest.fixture
def port() -> int:
    """A free one; where the engine is in a virtual machine, one that is forwarded from here."""
    forwarded = os.environ.get("LAMBDA_HARNESS_TEST_PORT")
    if forwarded:
        return int(forwarded)
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def open_stand(folder: Path, runtime: str, port: int) -> Stand:
    function = load(str(folder), Overrides(runtime=runtime, handler="app.handler", memory_mb=512, timeout_s=1))
    return Stand(function, pull=False, debug=Debug(port=port))


def test_node_s_inspector_answers(tmp_path: Path, port: int) -> None:
    # The handler takes longer than the function's timeout: a breakpoint does so too.
    (tmp_path / "app.js").write_text("exports.handler = () => new Promise((done) => setTimeout(() => done(1), 1500))")
    with open_stand(tmp_path, "nodejs22.x", port) as stand, stand.sandbox() as sandbox:
        record = sandbox.invoke(b"{}")
        assert record.outcome is Outcome.SUCCESS
        assert NOTE in record.notes
        assert record.freeze_ms is None
        assert httpx.get(f"http://127.0.0.1:{port}/json/list").json()[0]["type"] == "node"


def test_python_s_debugger_speaks_its_protocol(tmp_path: Path, port: int) -> None:
    (tmp_path / "app.py").write_text("def handler(event, context):\n    return 1\n")
    with open_stand(tmp_path, "python3.13", port) as stand, stand.sandbox() as sandbox:
        assert sandbox.invoke(b"{}").response == 1
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            body = json.dumps({"seq": 1, "type": "request", "command": "initialize", "arguments": {"adapterID": "x"}})
            client.sendall(f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
            heard = b""
            while b"supportsConfigurationDoneRequest" not in heard:
                piece = client.recv(65536)
                assert piece, heard
                heard += piece
