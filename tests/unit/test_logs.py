"""CloudWatch Logs as files: what Lambda's log has, where it may be written, and how it is read back."""

from __future__ import annotations

import datetime
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from test_receivers_xray import record

from harness.context import RequestContext
from harness.errors import InvalidInput
from harness.invocation import Outcome
from harness.lifecycle import Frozen, Initialising, Invoking, ShutDown
from harness.receivers import LogFiles, logs
from harness.sandbox import Sandbox

ID = "6f1b1f4e-0000-4000-8000-000000000000"
STREAM = "2026/11/22/[$LATEST]0123456789abcdef0123456789abcdef"
REPORT = f"REPORT RequestId: {ID}\tDuration: 50.00 ms\t"


@dataclass
class FakeFunction:
    name: str = "probe"
    version: str = "$LATEST"
    runtime: str | None = "python3.13"
    environment: dict[str, str] = field(default_factory=lambda: {"TOKEN": "hush"})


@dataclass
class FakeSandbox:
    id: str = "one"
    log_stream: str = STREAM
    function: FakeFunction = field(default_factory=FakeFunction)


def sandbox(**changes: Any) -> Sandbox:
    return cast("Sandbox", FakeSandbox(**changes))


@pytest.fixture
def files(tmp_path: Path) -> Iterator[LogFiles]:
    with LogFiles(tmp_path / "logs") as found:
        yield found
        assert found.trouble is None


def invoke(files: LogFiles, box: Sandbox, *outputs: bytes, request_id: str = ID, **changes: Any) -> None:
    files.phase(box, Invoking(warm=0))
    for output in outputs:
        files.output(box, request_id, output)
    report = REPORT.replace(ID, request_id)
    files.invoked(box, record(request_id=request_id, report=report, **changes), RequestContext())
    files.phase(box, Frozen(warm=1))


def messages(files: LogFiles, function: str = "probe", **options: Any) -> list[str]:
    return [event.message for event in logs.tail(files.folder, function, **options)]


def test_a_stream_has_what_lambdas_has(files: LogFiles) -> None:
    box = sandbox()
    files.phase(box, Initialising())
    files.output(box, None, b"loading\n")
    invoke(files, box, b"one\ntwo\n", b"three\n")
    invoke(files, box, request_id=ID.replace("6", "7"))
    assert messages(files) == [
        "INIT_START Runtime Version: python:3.13",
        "loading",
        f"START RequestId: {ID} Version: $LATEST",
        "one",
        "two",
        "three",
        f"END RequestId: {ID}",
        REPORT,
        f"START RequestId: {ID.replace('6', '7')} Version: $LATEST",
        f"END RequestId: {ID.replace('6', '7')}",
        REPORT.replace(ID, ID.replace("6", "7")),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {
                "outcome": Outcome.TIMEOUT,
                "error_type": "Sandbox.Timedout",
                "error_message": f"RequestId: {ID} Error: Task timed out after 3.00 seconds",
            },
            [f"RequestId: {ID} Error: Task timed out after 3.00 seconds"],
        ),
        (
            {
                "outcome": Outcome.OUT_OF_MEMORY,
                "error_type": "Runtime.ExitError",
                "error_message": f"RequestId: {ID} Error: Runtime exited with error: signal: killed",
            },
            [f"RequestId: {ID} Error: Runtime exited with error: signal: killed", "Runtime.ExitError"],
        ),
        ({"outcome": Outcome.FUNCTION_ERROR, "error_type": "ValueError", "error_message": "boom"}, []),
    ],
)
def test_lambdas_own_words_stand_before_the_end(files: LogFiles, changes: dict[str, Any], said: list[str]) -> None:
    invoke(files, sandbox(), b"working\n", **changes)
    assert messages(files)[2:-2] == said


def test_names_of_streams_become_names_of_files_and_back(files: LogFiles) -> None:
    invoke(files, sandbox())
    invoke(files, sandbox(id="two", log_stream="2026/11/22/[7]aa", function=FakeFunction(version="7")))
    found = sorted(path.relative_to(files.folder).as_posix() for path in files.folder.rglob("*.log"))
    assert found == ["probe/2026-11-22_7_aa.log", "probe/2026-11-22_LATEST_0123456789abcdef0123456789abcdef.log"]
    assert {event.stream for event in logs.tail(files.folder, "/aws/lambda/probe")} == {STREAM, "2026/11/22/[7]aa"}
    assert logs.functions(files.folder) == ["probe"]


@pytest.mark.parametrize("stream", ["../../etc/passwd", "2026/11/22/[$LATEST]../x", "2026/11/22/[x]00", ""])
def test_names_that_would_lead_elsewhere_are_refused(tmp_path: Path, stream: str) -> None:
    with pytest.raises(InvalidInput):
        logs.file_name(stream)
    with LogFiles(tmp_path / "logs") as files:
        invoke(files, sandbox(log_stream=stream))
        assert files.trouble is not None
    with pytest.raises(InvalidInput):
        logs.tail(tmp_path, stream)


def test_only_the_owner_may_read_and_the_functions_environment_is_never_written(files: LogFiles) -> None:
    box = sandbox()
    files.phase(box, Initialising())
    invoke(files, box, b"hello\n")
    for path in files.folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0
        assert path.is_dir() or "hush" not in path.read_text()


def test_a_stream_is_turned_when_it_is_full_and_read_in_order(tmp_path: Path) -> None:
    with LogFiles(tmp_path, stream_bytes=2000) as files:
        box = sandbox()
        for at in range(300):
            files.output(box, None, f"line {at:04}\n".encode())
        size = sum(path.stat().st_size for path in tmp_path.rglob("*.log*"))
        assert size <= 4000
        found = messages(files)
        assert found == sorted(found)
        assert found[-1] == "line 0299"
        assert len(found) > 50


def test_the_oldest_streams_of_a_function_go_when_its_folder_is_full(tmp_path: Path) -> None:
    with LogFiles(tmp_path, stream_bytes=1000, group_bytes=5000) as files:
        for at in range(20):
            box = sandbox(id=str(at), log_stream=f"2026/11/22/[$LATEST]{at:02x}")
            files.output(box, None, b"x" * 900 + b"\n")
            files.phase(box, ShutDown())
        left = sorted(path.name for path in tmp_path.rglob("*.log"))
    assert 1 < len(left) <= 5
    assert left[-1] == "2026-11-22_LATEST_13.log"


def test_a_disk_that_refuses_hurts_no_invocation(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file stands where the folder should be")
    with LogFiles(tmp_path / "logs") as files:
        invoke(files, sandbox(), b"hello\n")
        assert files.trouble is not None
        assert "probe" in files.trouble


def test_events_of_all_sandboxes_are_told_in_the_order_of_time(files: LogFiles) -> None:
    one, two = sandbox(), sandbox(id="two", log_stream="2026/11/22/[$LATEST]bb")
    for at in range(10):
        files.output((one, two)[at % 2], None, f"{at}\n".encode())
    found = list(logs.tail(files.folder, "probe"))
    assert [event.timestamp for event in found] == sorted(event.timestamp for event in found)
    assert {event.message for event in found} == set("0123456789")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z 2026/11/22/\[\$LATEST\]", str(found[0]))


def test_streams_are_merged_by_time_and_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    folder = tmp_path / "probe"
    folder.mkdir()
    (folder / "2026-11-22_LATEST_aa.log").write_text("2026-11-22T01:00:00.001Z a1\n2026-11-22T01:00:00.003Z a3\n")
    other = folder / "2026-11-22_LATEST_bb.log"
    other.write_text("2026-11-22T01:00:00.002Z b2\n2026-11-22T01:00:00.004Z b")
    stop = threading.Event()
    found = logs.tail(tmp_path, "probe", follow=True, stop=stop)
    assert [next(found).message for _ in range(3)] == ["a1", "b2", "a3"]
    with other.open("a") as file:
        file.write("4\n")
    stop.set()
    assert [event.message for event in found] == ["b4"]


def test_since_and_filter_choose_events(files: LogFiles) -> None:
    files.output(sandbox(), None, b"ERROR disk full\nINFO fine\nERROR net down\nWARN disk slow\n")
    assert messages(files, filter="ERROR") == ["ERROR disk full", "ERROR net down"]
    assert messages(files, filter="ERROR -disk") == ["ERROR net down"]
    assert messages(files, filter="?INFO ?WARN") == ["INFO fine", "WARN disk slow"]
    assert messages(files, filter='"disk slow"') == ["WARN disk slow"]
    assert messages(files, filter="it's") == []
    with pytest.raises(InvalidInput, match="filter"):
        logs.tail(files.folder, "probe", filter='"open')
    now = datetime.datetime.now(datetime.UTC)
    assert messages(files, since=now + datetime.timedelta(hours=1)) == []
    assert len(messages(files, since=datetime.timedelta(hours=1))) == 4


def test_a_function_without_a_log_is_named_with_those_that_have_one(files: LogFiles) -> None:
    files.output(sandbox(), None, b"hello\n")
    with pytest.raises(InvalidInput, match="other") as raised:
        logs.tail(files.folder, "other")
    assert "probe" in raised.value.remedy


def test_following_tells_what_comes_once_through_turned_files_and_new_streams(tmp_path: Path) -> None:
    stop = threading.Event()
    with LogFiles(tmp_path, stream_bytes=300) as files:
        found = logs.tail(tmp_path, "probe", follow=True, stop=stop)
        box = sandbox()
        files.output(box, None, b"first\n")
        assert next(found).message == "first"
        for at in range(15):  # 300 bytes hold nine of them: the file is turned once
            files.output(box, None, f"{at:02}\n".encode())
        files.output(sandbox(id="two", log_stream="2026/11/22/[$LATEST]cc"), None, b"99\n")
        assert sorted(next(found).message for _ in range(16)) == [*(f"{at:02}" for at in range(15)), "99"]
        files.output(box, None, b"last\n")
        stop.set()
        assert [event.message for event in found] == ["last"]


def test_files_are_closed_with_their_sandboxes(files: LogFiles) -> None:
    box = sandbox()
    files.output(box, None, b"hello\n")
    assert files._streams
    files.phase(box, ShutDown())
    assert not files._streams
    files.phase(sandbox(id="never"), ShutDown())


def test_bytes_that_are_no_text_and_lines_without_an_end_do_no_harm(files: LogFiles) -> None:
    files.output(sandbox(), None, b"\xff\xfe\x00 a\r\n\nlast\xe2\x80\xa8line")
    assert messages(files) == ["\ufffd\ufffd\x00 a\r", "", "last\u2028line"]
