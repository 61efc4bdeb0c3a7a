"""The service put together: what it writes and says, as far as no engine is needed."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from test_api_app import record

from harness.api.service import Service, Settings, _Everybody, _Lines, _Narrator
from harness.context import RequestContext
from harness.invocation import Outcome
from harness.lifecycle import Started
from harness.observer import Observer

SANDBOX = cast("Any", SimpleNamespace(id="s", function=SimpleNamespace(name="f", version="3")))


def test_what_was_received_is_kept_as_lines_that_only_the_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with _Lines(path) as lines:
        lines.write([{"a": 1}, {"b": "ü"}])
        lines.write([{"c": {1, 2}}])
    found = path.read_text().splitlines()
    assert [json.loads(line) for line in found[:2]] == [{"a": 1}, {"b": "ü"}]
    assert len(found) == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines.write([{"late": True}])
    assert "late" not in path.read_text()


def test_a_file_that_is_full_is_turned_and_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with _Lines(path, limit_bytes=20) as lines:
        for number in range(6):
            lines.write([{"number": number}])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["metrics.jsonl", "metrics.jsonl.1"]
    assert path.read_text() == '{"number": 5}\n'
    assert path.with_name("metrics.jsonl.1").read_text() == '{"number": 4}\n'


def test_a_report_is_told_and_what_functions_print_and_return_is_not() -> None:
    said: list[str] = []
    narrator = _Narrator(said.append)
    secret = record(payload=b'"secret"', response="secret", log_tail="secret", report="REPORT RequestId: r\t")
    narrator.output(SANDBOX, "r", b"secret")
    narrator.invoked(SANDBOX, secret, RequestContext())
    narrator.invoked(SANDBOX, record(outcome=Outcome.ENGINE_ERROR, error_type="SandboxGone"), RequestContext())
    assert said == ["f:3 REPORT RequestId: r", "f:3 RequestId: r\tengine_error: SandboxGone"]


def test_every_observer_hears_everything() -> None:
    heard: list[tuple[str, ...]] = []

    class Ear(Observer):
        def __init__(self, name: str) -> None:
            self.name = name

        def phase(self, sandbox: Any, phase: Any) -> None:
            heard.append((self.name, "phase"))

        def output(self, sandbox: Any, request_id: Any, data: Any) -> None:
            heard.append((self.name, "output"))

        def invoked(self, sandbox: Any, record: Any, context: Any) -> None:
            heard.append((self.name, "invoked"))

    everybody = _Everybody(Ear("a"), Ear("b"))
    everybody.phase(SANDBOX, Started())
    everybody.output(SANDBOX, None, b"")
    everybody.invoked(SANDBOX, record(), RequestContext())
    assert heard == [(name, what) for what in ("phase", "output", "invoked") for name in ("a", "b")]


def test_its_address_is_one_that_clients_can_use() -> None:
    for host, shown in (
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104  # nothing is bound
        ("::", "[::1]"),
        ("[::1]", "[::1]"),
        ("box.example", "box.example"),
    ):
        service = Service(Settings(host=host))
        service.port = 80
        assert service.url == f"http://{shown}:80"
