"""Serving: clients that are too slow are left, and a signal ends the service without losing what was under way."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.api import server
from harness.errors import InvalidInput

WAIT_S = 30

# Time limits are short, so that the tests need not wait for what people wait for.
PROGRAM = """
import asyncio, signal, sys
from harness.api import server
from harness.errors import Interrupted

class Quick(server.Connection):
    headers_s = body_pause_s = reader_s = 0.5
    body_s = 1.5
    check_every_s = 0.05

server.Connection = Quick

async def app(scope, receive, send):
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            print("gone", flush=True)
            return
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/slow":
        print("begun", flush=True)
        try:
            await asyncio.sleep(float(scope["query_string"] or b"0"))
        except asyncio.CancelledError:
            print("cancelled", flush=True)
            size = -1
    body = bytes(50_000_000) if scope["path"] == "/large" else str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    print("answered", flush=True)

listening = server.bind("127.0.0.1", 0)
try:
    server.run(app, listening, grace_s=1, say=lambda text: print("said", text, flush=True),
               started=lambda: print(listening.getsockname()[1], flush=True))
except Interrupted as interrupted:
    ignored = [signal.getsignal(each) is signal.SIG_IGN for each in (signal.SIGINT, signal.SIGTERM)]
    print("over", interrupted.number, ignored, flush=True)
"""


@dataclass
class Served:
    process: subprocess.Popen[str]
    port: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), WAIT_S)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def served() -> Iterator[Served]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    with process:
        try:
            yield Served(process=process, port=int(process.stdout.readline()))
        finally:
            process.kill()


def is_left(connection: socket.socket) -> bool:
    """Whether the other side ends the connection; fails after `WAIT_S` where it does not."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


def test_a_client_that_says_nothing_is_left(served: Served) -> None:
    with served.connect() as connection:
        assert is_left(connection)


def test_a_client_that_never_ends_its_head_is_left(served: Served) -> None:
    with served.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        connection.settimeout(0.1)
        while True:  # a byte now and then must not keep it alive
            connection.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                assert connection.recv(1) == b""
                break


def test_a_client_that_stops_in_the_middle_of_a_body_is_left(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        assert is_left(connection)
    assert served.line() == "gone"


def test_a_body_that_drips_is_left_too(served: Served) -> None:
    with served.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        connection.settimeout(0.1)
        while True:
            connection.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                assert connection.recv(1) == b""
                break
    assert served.line() == "gone"


def test_a_client_that_does_not_read_its_answer_is_left(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        assert served.line() == "answered"
        # It is left before the 50 MB are read: whoever reads now finds what was under way, and the end of it.
        served_process_forgets(served)
        read = 0
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(1 << 20):
                read += len(piece)
        assert read < 50_000_000


def served_process_forgets(served: Served) -> None:
    """Wait until the service holds no connection any more, as another one is told by its end."""
    with served.connect() as other:
        assert is_left(other)


def test_a_slow_function_is_nobodys_fault(served: Served) -> None:
    """The limits are for clients: an answer may take longer than any of them."""
    with served.connect() as connection:
        connection.sendall(b"POST /slow?2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_connection_may_carry_many_requests(served: Served) -> None:
    with served.connect() as connection:
        for _ in range(20):
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
            answer = b""
            while not answer.endswith(b"\r\n\r\n3"):
                answer += connection.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200")


def test_what_is_no_http_is_refused_and_told_in_one_line(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"\x16\x03\x01\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    assert served.line() == "said http: Invalid HTTP request received."


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_later_ones_are_ignored(served: Served, number: signal.Signals) -> None:
    served.process.send_signal(number)
    assert served.line() == f"over {int(number)} [True, True]"


def test_a_request_under_way_is_answered_first(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /slow?0.5 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert served.line() == "begun"
        served.process.send_signal(signal.SIGTERM)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert [served.line(), served.line()] == ["answered", f"over {int(signal.SIGTERM)} [True, True]"]


def test_a_request_that_takes_too_long_is_cut_off_with_an_answer(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /slow?600 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert served.line() == "begun"
        served.process.send_signal(signal.SIGTERM)
        assert served.line().startswith("said http: Cancel 1 running task")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert served.line() == "cancelled"
    assert served.process.wait(WAIT_S) == 0


def test_a_second_signal_does_not_wait_for_requests(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /slow?600 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert served.line() == "begun"
        served.process.send_signal(signal.SIGTERM)
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(WAIT_S) == 0
        found = served.process.stdout.read() if served.process.stdout else ""
    assert "[True, True]" in found


def test_a_port_that_is_taken_is_named_with_a_way_out() -> None:
    with contextlib.closing(server.bind("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"port {port} on 127.0.0.1 is in use") as refused:
            server.bind("127.0.0.1", port)
    assert "--port" in refused.value.remedy
    server.bind("127.0.0.1", port).close()


def test_an_address_that_is_not_this_hosts_is_refused() -> None:
    for host in ("203.0.113.1", "no.such.host.invalid"):
        with pytest.raises(InvalidInput) as refused:
            server.bind(host, 0)
        assert host in str(refused.value)
        assert "127.0.0.1" in refused.value.remedy
