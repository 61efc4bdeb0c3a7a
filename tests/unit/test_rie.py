"""What the RIE writes, told apart: its own log, the function's output, and START, END and REPORT lines."""

from __future__ import annotations

import http.server
import itertools
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.rie import (
    INVOCATION_PATH,
    Answer,
    Frames,
    Lines,
    LogLine,
    Output,
    RieClient,
    RieGoneError,
    Said,
    parse_log,
)

ID = "974c1c1e-b7bf-4c10-8535-ee9880142f93"
OTHER = "baf1c48b-252f-40c3-8862-34d8576d9fdc"
START = f"START RequestId: {ID} Version: $LATEST\n".encode()
END = f"END RequestId: {ID}\n".encode()
REPORT = (
    f"REPORT RequestId: {ID}\tInit Duration: 0.48 ms\tDuration: 88.65 ms\tBilled Duration: 89 ms\t"
    "Memory Size: 256 MB\tMax Memory Used: 256 MB\t\n"
).encode()


def chunks(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for begin, end in itertools.pairwise(places):
        yield data[begin:end]


# -- frames and lines ---------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=300)), max_size=20),
    st.lists(st.integers(0, 10_000), max_size=30),
)
def test_frames_come_out_whole_however_the_stream_was_cut(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(bytes([kind, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload for kind, payload in frames)
    splitter = Frames()
    found = [frame for chunk in chunks(stream, cuts) for frame in splitter.feed(chunk)]
    assert found == frames


def test_a_frame_of_more_than_64_kib_is_one_frame() -> None:
    payload = b"x" * 100_000
    assert list(Frames().feed(b"\x01\0\0\0" + len(payload).to_bytes(4, "big") + payload)) == [(1, payload)]


@given(st.binary(max_size=500), st.lists(st.integers(0, 500), max_size=30))
def test_lines_put_together_are_what_went_in(data: bytes, cuts: list[int]) -> None:
    splitter = Lines()
    lines = [line for chunk in chunks(data, cuts) for line in splitter.feed(chunk)]
    rest = splitter.flush()
    assert b"".join(lines) + rest == data
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert b"\n" not in rest
    assert splitter.flush() == b""


def test_output_without_a_line_end_does_not_pile_up() -> None:
    splitter = Lines()
    given_out = b"".join(line for _ in range(40) for line in splitter.feed(b"x" * 65_536))
    assert len(given_out) >= 40 * 65_536 - 300_000
    assert given_out + splitter.flush() == b"x" * 40 * 65_536


# -- the RIE's own log: lines recorded from version 1.37 ----------------------------------------------------------------

STAMP = "21 Nov 2026 22:27:25,528 [INFO] (rapid) "
RECORDED = [
    ("INIT START(type: on-demand, phase: init)", LogLine(said=Said.INIT_START, text="init")),
    ("INIT START(type: on-demand, phase: invoke)", LogLine(said=Said.INIT_START, text="invoke")),
    ("INIT RTDONE(status: success)", LogLine(said=Said.INIT_DONE, text="success")),
    ("INIT RTDONE(status: error)", LogLine(said=Said.INIT_DONE, text="error")),
    ("INIT REPORT(durationMs: 449.231000)", LogLine(said=Said.INIT_REPORT, value=449.231)),
    (f"INVOKE START(requestId: {ID})", LogLine(said=Said.INVOKE_START, text=ID)),
    (
        "INVOKE RTDONE(status: success, produced bytes: 0, duration: 57.705000ms)",
        LogLine(said=Said.INVOKE_DONE, text="success", value=57.705),
    ),
    ("Process runtime-5 exited: signal: killed\n", LogLine(said=Said.RUNTIME_EXIT, text="signal: killed")),
    ("Process runtime-1 exited: exit status 3\n", LogLine(said=Said.RUNTIME_EXIT, text="exit status 3")),
    ("exec '/run/lambda-harness/bootstrap' (cwd=/var/task, handler=)", None),
    ('The extension\'s directory "/opt/extensions" does not exist, assuming no extensions to be loaded.', None),
    ("First fatal error stored in appctx: Runtime.ExitError", None),
    ("Reset initiated: ReleaseFail", None),
    ("", None),
]


@pytest.mark.parametrize(("line", "meaning"), RECORDED, ids=[line[:30] for line, _ in RECORDED])
def test_recorded_log_lines_are_understood(line: str, meaning: LogLine | None) -> None:
    assert parse_log(STAMP + line) == meaning


@given(st.text())
def test_no_line_breaks_the_reading_of_the_log(line: str) -> None:
    parse_log(line)


# -- the function's output ----------------------------------------------------------------------------------------------


def run(*lines: bytes) -> tuple[Output, bytes]:
    output = Output()
    return output, b"".join(output.line(line) for line in lines)


def test_start_end_and_report_are_the_rie_s_and_the_rest_is_the_function_s() -> None:
    output, given_out = run(START, b"hello\n", END, REPORT)
    assert given_out == b"hello\n"
    assert output.ended
    assert output.tail() == "hello\n"
    assert output.total_bytes == 6


def test_output_without_a_line_end_is_told_apart_from_the_end_that_follows_it() -> None:
    output, given_out = run(START, b"no end" + END, REPORT)
    assert given_out == b"no end"
    assert output.ended


def test_output_without_a_line_end_between_invocations_does_not_hide_the_next_start() -> None:
    output, given_out = run(b"...ticking" + START, b"hello\n", END, REPORT)
    assert given_out == b"...tickinghello\n"
    assert output.tail() == "...tickinghello\n"
    assert output.ended


@pytest.mark.parametrize(
    "forged",
    [
        b"START RequestId: forged Version: $LATEST\n",
        b"END RequestId: forged\n",
        f"END RequestId: {OTHER}\n".encode(),
        f"END RequestId: {ID} \n".encode(),
        b"REPORT RequestId: forged\tDuration: 1.00 ms\n",
        REPORT,
        f"prefix {ID} END RequestId: x\n".encode(),
    ],
)
def test_a_line_that_only_looks_like_the_rie_s_stays_in_the_output(forged: bytes) -> None:
    output, given_out = run(START, forged, b"after\n", END, REPORT)
    assert given_out == forged + b"after\n"
    assert output.ended


def test_even_a_perfect_forgery_of_end_is_output_when_no_report_follows() -> None:
    output, given_out = run(START, END, b"still here\n", END, REPORT)
    assert given_out == END + b"still here\n"
    assert output.ended


def test_an_end_and_a_report_of_different_requests_are_no_pair() -> None:
    other = f"END RequestId: {OTHER}\n".encode()
    output, given_out = run(START, other, REPORT, b"after\n", END, REPORT)
    assert given_out == other + REPORT + b"after\n"
    assert output.ended


def test_a_second_start_is_the_function_s() -> None:
    _, given_out = run(START, START, END, REPORT)
    assert given_out == START


def test_after_a_crash_what_was_held_back_comes_out() -> None:
    output, given_out = run(START, END)
    assert given_out == b""
    assert output.rest(b"half a line") == END + b"half a line"
    assert not output.ended
    assert output.tail() == (END + b"half a line").decode()


def test_the_tail_is_the_last_4_kib_and_stays_text() -> None:
    output, _ = run(START, *(f"line {number} grüße ☃\n".encode() for number in range(1000)))
    tail = output.tail()
    assert len(tail.encode()) <= 4096 + 2, "a character that was cut is replaced"
    assert tail.endswith("line 999 grüße ☃\n")
    assert output.total_bytes > 4096


def test_output_that_is_no_utf_8_is_replaced_not_refused() -> None:
    output, given_out = run(START, b"\xff\xfe\n")
    assert given_out == b"\xff\xfe\n"
    assert output.tail() == "\ufffd\ufffd\n"


@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"") + b"\n"), max_size=20))
def test_whatever_a_function_prints_comes_out_unchanged(lines: list[bytes]) -> None:
    output, given_out = run(START, *lines, END, REPORT)
    assert given_out == b"".join(lines)
    assert output.ended


# -- requests ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rie() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    seen: list[tuple[str, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            seen.append((self.path, body))
            if body == b'"wait"':
                time.sleep(0.1)
            self.send_response(502 if body == b'"bad"' else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}", seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_request_is_posted_where_the_rie_listens(
    rie: tuple[str, list[tuple[str, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A proxy in the environment would have the request; port 9 answers to nobody.
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    client = RieClient(rie[0])
    try:
        assert client.invoke(b'{"a": 1}', timeout_s=5) == Answer(status=200, body=b'{"a": 1}')
        assert client.invoke(b'"bad"', timeout_s=5) == Answer(status=502, body=b'"bad"')
    finally:
        client.close()
    assert rie[1] == [(INVOCATION_PATH, b'{"a": 1}'), (INVOCATION_PATH, b'"bad"')]


def test_a_rie_that_is_not_there_or_hangs_up_is_gone() -> None:
    client = RieClient("127.0.0.1:9")
    with pytest.raises(RieGoneError):
        client.invoke(b"{}", timeout_s=1)
    with pytest.raises(RieGoneError, match="does not listen"):
        client.wait_until_ready(0.01)
    client.close()


def test_an_answer_may_take_longer_than_a_connection(rie: tuple[str, list[tuple[str, bytes]]]) -> None:
    client = RieClient(rie[0])
    client._connection.timeout = 0.01  # what a connection may take
    client.invoke(b'"wait"', timeout_s=10)
    client._connection.close()  # a server may hang up between requests
    assert client.invoke(b'"wait"', timeout_s=10).body == b'"wait"'
    client.close()


def test_waiting_for_the_rie_begins_no_invocation(rie: tuple[str, list[tuple[str, bytes]]]) -> None:
    client = RieClient(rie[0])
    client.wait_until_ready(5)
    client.close()
    assert rie[1] == []
