"""``serve`` and ``logs`` on the command line, without an engine."""

from __future__ import annotations

import datetime
import io
import json
import socket
import sys
from pathlib import Path

import pytest
from fakes import NO_ENGINE
from fakes import no_engine as no_engine  # noqa: PLC0414  # a fixture

from harness import __main__ as entry
from harness.cli.logs import ago
from harness.cli.serve import Say
from harness.receivers.logs import file_name

# The engine's SDK leaves its socket to the garbage collector when nobody answers.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "runs.sqlite3"


def test_a_port_that_is_taken_is_told_before_the_engine_is_asked(
    store: Path, no_engine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert entry.run(["serve", "--port", str(port), "--store", str(store)]) == 3
    said = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 is in use" in said
    assert "--port" in said


def test_without_an_engine_it_says_so(store: Path, no_engine: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["serve", "--port", "0", "--store", str(store)]) == 4
    assert NO_ENGINE


@pytest.mark.parametrize(
    ("arguments", "exit_code", "needle"),
    [
        (["--region", "Mars"], 2, "us-east-1"),
        (["--port", "70000"], 2, "port"),
        (["--receivers", "sqs"], 2, "cloudwatch, xray"),
        (["--debug-wait"], 2, "--debug-port"),
        (["--account-concurrency", "0"], 2, "account-concurrency"),
        (["--host", "203.0.113.1", "--port", "0"], 3, "127.0.0.1"),
        (["/nowhere/at/all"], 3, "/nowhere/at/all"),
    ],
)
def test_a_mistake_is_named_with_a_way_out(
    arguments: list[str], exit_code: int, needle: str, store: Path, no_engine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.run(["serve", "--store", str(store), *arguments]) == exit_code
    assert needle in capsys.readouterr().err


def test_what_is_said_is_one_line_that_says_nothing_to_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say = Say()
    say("a\x1b[2Jb\r\nc\td")
    say.close()
    found = capsys.readouterr().err
    assert found.endswith("a [2Jb  c\td\n")
    assert found.count("\n") == 1


def test_a_terminal_that_stands_still_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = io.StringIO()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            released.wait(30)
            return gate.write(text)

    import threading

    released = threading.Event()
    monkeypatch.setattr(sys, "stderr", Stuck())
    say = Say()
    for number in range(20_000):
        say(str(number))
    released.set()
    say.close()
    assert "lines were left out" in gate.getvalue()


def test_the_log_of_a_function_is_printed(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime.datetime.now(datetime.UTC)
    folder = store.parent / "logs" / "greeter"
    folder.mkdir(parents=True)
    stream = f"{now:%Y/%m/%d}/[$LATEST]{'0' * 32}"
    stamps = [(now - datetime.timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S.000Z") for hours in (2, 0, 0)]
    lines = [f"{stamp} {text}\n" for stamp, text in zip(stamps, ("old", "hello", "world"), strict=True)]
    (folder / file_name(stream)).write_text("".join(lines))

    def logs(*arguments: str) -> str:
        assert entry.run(["logs", "tail", "greeter", "--store", str(store), *arguments]) == 0
        return capsys.readouterr().out

    assert [line.split()[-1] for line in logs().splitlines()] == ["hello", "world"]
    assert [line.split()[-1] for line in logs("--since", "3h").splitlines()] == ["old", "hello", "world"]
    assert [line.split()[-1] for line in logs("--filter", "wor").splitlines()] == ["world"]
    assert [each["message"] for each in json.loads(logs("--json"))["events"]] == ["hello", "world"]


def test_a_function_without_a_log_is_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["logs", "tail", "nobody", "--store", str(store)]) == 3
    assert "nobody" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "10", "m", "1y", "-1m", "1.5h"])
def test_a_span_of_time_that_is_none_is_refused(text: str, store: Path) -> None:
    assert entry.run(["logs", "tail", "f", "--store", str(store), "--since", text]) == 2


def test_spans_of_time_are_those_of_the_aws_cli() -> None:
    assert ago("10m") == datetime.timedelta(minutes=10)
    assert ago("1w") == datetime.timedelta(weeks=1)
