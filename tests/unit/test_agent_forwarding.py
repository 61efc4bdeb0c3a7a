"""What a function sends arrives as it was sent, and its answers too; a flood fills nobody's memory and holds up nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fakes_agent import one_network as one_network  # noqa: PLC0414  # a fixture

from harness.agent.forwarding import CHANNELS, DATAGRAM_WINDOW_BYTES, WINDOW_BYTES, HarnessEnd, SandboxEnd
from harness.errors import EngineError
from harness.vantage import Endpoints
from harness.vantage.listening import open_sockets

WAIT_S = 20.0
RESET = struct.pack("ii", 1, 0)


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.002)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # the directory's own descriptor counts both times


class Server:
    """Keeps what it is given; takes datagrams only as long as it is told to."""

    def __init__(self) -> None:
        self.connections: list[tuple[str, socket.socket]] = []
        self.datagrams: list[bytes] = []
        self.lost_datagrams = 0
        self.takes = True
        self._not_taken: list[Callable[[], None]] = []

    def serve(self, listeners: Mapping[str, socket.socket], datagrams: socket.socket | None) -> None:
        raise NotImplementedError

    def connected(self, name: str, connection: socket.socket) -> None:
        connection.settimeout(WAIT_S)
        self.connections.append((name, connection))

    def received(self, datagrams: Sequence[bytes], done: Callable[[], None]) -> None:
        self.datagrams += datagrams
        self._not_taken.append(done)
        if self.takes:
            self.take()

    def take(self) -> None:
        self.takes = True
        while self._not_taken:
            self._not_taken.pop()()

    def lost(self, datagrams: int) -> None:
        self.lost_datagrams += datagrams

    def connection(self, at: int = 0) -> socket.socket:
        until(lambda: len(self.connections) > at, "a connection")
        return self.connections[at][1]


class Pair:
    """Both ends, with nothing but JSON between them."""

    def __init__(self) -> None:
        self.server = Server()
        self.told: list[tuple[str, str, dict[str, Any], int]] = []
        self.gone = False
        self.meant_to_end: list[str] = []
        self.while_telling: Callable[[str], None] = lambda _: None
        self.clients: list[socket.socket] = []
        sockets = open_sockets(0, Endpoints(tcp={"xray": 0, "cloudwatch": 0}, udp="xray"))
        self.addresses = sockets.addresses
        self.inside = SandboxEnd("inside", self._sends("inside", lambda: self.outside), sockets)
        self.outside = HarnessEnd("outside", self._sends("outside", lambda: self.inside), self.server)

    def _sends(self, who: str, other: Callable[[], Any]) -> Callable[[str, dict[str, Any], bytes], None]:
        def send(what: str, about: dict[str, Any], body: bytes) -> None:
            if self.gone:
                raise EngineError("the agent is gone")
            about = json.loads(json.dumps(about))
            self.told.append((who, what, about, len(body)))
            self.while_telling(what)
            other().put(what, about, bytes(body))

        return send

    def told_bytes(self, who: str, channel: int) -> int:
        return sum(
            size
            for teller, what, about, size in self.told
            if (teller, what) == (who, "data") and about["channel"] == channel
        )

    def start(self) -> None:
        self.inside.start()
        self.outside.start()

    def settle(self) -> bool:
        return self.inside.settle(WAIT_S) and self.outside.settle(WAIT_S)

    def client(self, endpoint: str = "cloudwatch") -> socket.socket:
        found = socket.create_connection(self.addresses[endpoint], WAIT_S)
        self.clients.append(found)
        return found

    def close(self) -> None:
        self.inside.close()
        self.outside.close()
        for sock in (*self.clients, *(each for _, each in self.server.connections)):
            sock.close()


@pytest.fixture
def pair(one_network: None) -> Iterator[Pair]:
    found = Pair()
    yield found
    ended = [end.name for end in (found.inside, found.outside) if not end.is_alive()]
    assert ended == found.meant_to_end, "one end ended by itself"
    found.close()
    assert not found.inside.is_alive()
    assert not found.outside.is_alive()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as found:
        yield found


def send(pair: Pair, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for data in datagrams:
            sender.sendto(data, pair.addresses["xray"])


def read(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        data = sock.recv(size - len(found))
        assert data, f"it ended after {len(found)} bytes"
        found += data
    return found


def fill(sock: socket.socket) -> int:
    """Send until nothing more is taken, for so long that nobody is about to take it; how many bytes that were."""
    sock.settimeout(0.3)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            sent += sock.send(b"x" * 65536)
    sock.settimeout(WAIT_S)
    return sent


def fill_datagram_window(pair: Pair, datagram: bytes) -> int:
    """Send until no more is read; how many that were."""
    sent = 0

    def is_full() -> bool:
        nonlocal sent
        if pair.inside._datagram_room > 0:
            send(pair, datagram)
            sent += 1
        return pair.inside._datagram_room <= 0

    until(is_full, "the window to be full")
    return sent


def given_back(pair: Pair, channel: int) -> int:
    """How much room the harness has given back."""
    return sum(
        about["bytes"]
        for who, what, about, _ in pair.told
        if (who, what) == ("outside", "window") and about["channel"] == channel
    )


# -- connections ---------------------------------------------------------------------------------------------------------


def test_a_connection_to_each_endpoint_is_told_apart_and_bytes_pass_both_ways(pair: Pair) -> None:
    pair.start()
    clients = {name: pair.client(name) for name in ("xray", "cloudwatch")}
    until(lambda: len(pair.server.connections) == 2, "both")
    for name, connection in pair.server.connections:
        clients[name].sendall(name.encode())
        assert read(connection, len(name)) == name.encode()
        connection.sendall(b"to " + name.encode())
        assert read(clients[name], len(name) + 3) == b"to " + name.encode()


def test_5_mb_arrive_whole_in_both_directions_at_once(pair: Pair, threads: ThreadPoolExecutor) -> None:
    pair.start()
    client, data = pair.client(), os.urandom(5 << 20)
    server = pair.server.connection()
    sends = [threads.submit(each.sendall, data) for each in (client, server)]
    reads = [threads.submit(read, each, len(data)) for each in (client, server)]
    assert all(each.result(WAIT_S) == data for each in reads)
    assert [each.result(WAIT_S) for each in sends] == [None, None]


def test_a_client_that_sends_no_more_can_still_be_answered(pair: Pair) -> None:
    pair.start()
    client = pair.client()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    server = pair.server.connection()
    assert read(server, 8) == b"question"
    assert server.recv(1) == b""
    server.sendall(b"answer")
    server.close()
    assert read(client, 6) == b"answer"
    assert client.recv(1) == b""
    until(lambda: not pair.inside._channels and not pair.outside._channels, "the channel to be over")


def test_a_connection_that_the_server_closes_is_over_for_the_client_after_its_last_byte(pair: Pair) -> None:
    pair.start()
    client = pair.client()
    server = pair.server.connection()
    server.sendall(b"y" * 300_000)  # more than a window
    server.close()
    assert read(client, 300_000) == b"y" * 300_000
    assert client.recv(1) == b""
    until(lambda: not pair.inside._channels and not pair.outside._channels, "the channel to be over")


def test_a_connection_that_the_client_resets_is_over_for_the_server(pair: Pair) -> None:
    pair.start()
    client = pair.client()
    server = pair.server.connection()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    assert server.recv(1) == b""
    server.close()
    until(lambda: not pair.inside._channels and not pair.outside._channels, "the channel to be over")


def test_a_client_that_goes_away_with_its_answer_half_read_leaves_nothing(pair: Pair) -> None:
    pair.start()
    client = pair.client()
    server = pair.server.connection()
    fill(server)
    client.close()
    server.close()
    until(lambda: not pair.inside._channels and not pair.outside._channels, "the channel to be over")


def test_a_server_that_does_not_read_stops_the_client_and_nobody_else(pair: Pair) -> None:
    pair.start()
    slow, other = pair.client(), pair.client()
    until(lambda: len(pair.server.connections) == 2, "both")
    sent = fill(slow)
    assert sent > pair.told_bytes("inside", 0), "the rest waits in the kernel"
    assert pair.told_bytes("inside", 0) <= WINDOW_BYTES + given_back(pair, 0)
    assert len(pair.outside._channels[0].out) <= WINDOW_BYTES
    until(lambda: pair.inside._channels[0].room <= 0, "the window to be full")
    assert not pair.inside._channels[0].events, "it is not looked at until there is room"
    other.sendall(b"past it")
    assert read(pair.server.connection(1), 7) == b"past it"
    assert not pair.inside.settle(0.01), "not all of it has been passed on"
    read(pair.server.connection(0), sent)
    assert pair.settle()


def test_a_client_that_does_not_read_stops_the_server_and_holds_up_no_settling(pair: Pair) -> None:
    pair.start()
    client, other = pair.client(), pair.client()
    until(lambda: len(pair.server.connections) == 2, "both")
    sent = fill(pair.server.connection(0))
    assert len(pair.inside._channels[0].out) <= WINDOW_BYTES
    assert sent > pair.told_bytes("outside", 0)
    assert pair.settle()
    other.sendall(b"past it")
    assert read(pair.server.connection(1), 7) == b"past it"
    assert read(client, sent) == b"x" * sent


def test_no_more_connections_are_open_at_once_than_are_served_and_the_next_wait(pair: Pair) -> None:
    pair.start()
    for at in range(CHANNELS):
        pair.client()
        pair.server.connection(at)
    waiting = pair.client()
    waiting.sendall(b"hello")
    assert pair.settle()
    assert len(pair.server.connections) == CHANNELS
    pair.clients[0].close()
    pair.server.connection(0).close()
    assert read(pair.server.connection(CHANNELS), 5) == b"hello"


def test_what_is_told_of_a_connection_that_is_over_is_ignored(pair: Pair) -> None:
    pair.start()
    for end in (pair.inside, pair.outside):
        for what in ("data", "window", "eof", "close"):
            end.put(what, {"channel": 4711, "bytes": 5}, b"12345")
    client = pair.client()
    client.sendall(b"still there")
    assert read(pair.server.connection(), 11) == b"still there"


# -- datagrams -----------------------------------------------------------------------------------------------------------


def test_datagrams_arrive_one_by_one_in_order_the_empty_and_the_largest_too(pair: Pair) -> None:
    pair.start()
    sent = [b"", b"one", b"x" * 65_507, b"", *(b"%d" % at for at in range(100))]
    send(pair, *sent)
    assert pair.settle()
    assert pair.server.datagrams == sent
    assert pair.server.lost_datagrams == 0


def test_a_flood_of_datagrams_is_bounded_and_every_one_is_taken_or_counted_as_lost(pair: Pair) -> None:
    pair.server.takes = False
    size = 60_000
    datagrams = [at.to_bytes(4, "big") * (size // 4) for at in range(300)]
    send(pair, *datagrams)
    pair.start()  # what lay there is read in one go
    number = len(datagrams) + fill_datagram_window(pair, datagrams[-1])
    send(pair, *datagrams[-1:] * 300)  # more than the kernel keeps
    number += 300
    assert not pair.inside.settle(0.01), "not all of it has been passed on"
    assert pair.outside.settle(WAIT_S)
    assert 0 < len(pair.server.datagrams) * size <= DATAGRAM_WINDOW_BYTES + size
    assert pair.server.lost_datagrams == 0, "nobody knows yet"
    client = pair.client()
    client.sendall(b"past it")
    assert read(pair.server.connection(), 7) == b"past it"
    pair.server.take()
    assert pair.settle()
    assert pair.server.lost_datagrams > 0
    assert len(pair.server.datagrams) + pair.server.lost_datagrams == number
    order = [int.from_bytes(each[:4], "big") for each in pair.server.datagrams]
    assert order == sorted(order)
    lost = pair.server.lost_datagrams
    send(pair, b"after it")
    assert pair.settle()
    assert (pair.server.datagrams[-1], pair.server.lost_datagrams) == (b"after it", lost)


# -- settling and ends -----------------------------------------------------------------------------------------------------


def test_settling_passes_on_everything_that_was_sent_before(pair: Pair) -> None:
    body, datagrams = os.urandom(50_000), [b"%d" % at for at in range(500)]
    for _ in range(15):
        client = pair.client()
        client.sendall(body)
        client.close()
    send(pair, *datagrams)
    pair.start()  # all of it lies there by now
    assert pair.inside.settle(WAIT_S)
    told = list(pair.told)
    assert sum(size for _, what, _, size in told if what == "data") == 15 * len(body)
    assert sum(len(about["sizes"]) for _, what, about, _ in told if what == "datagrams") == len(datagrams)
    assert pair.outside.settle(WAIT_S)
    assert pair.server.datagrams == datagrams
    assert len(pair.server.connections) == 15
    for _, connection in pair.server.connections:
        assert read(connection, len(body)) == body
        assert connection.recv(1) == b""


def test_settling_does_not_wait_for_a_function_that_never_stops(pair: Pair) -> None:
    def send_more(what: str) -> None:
        if what == "datagrams":
            send(pair, b"one more")

    pair.while_telling = send_more
    send(pair, b"the first")
    pair.start()
    assert pair.inside.settle(WAIT_S)
    pair.while_telling = lambda _: None


def test_when_the_other_end_is_gone_the_thread_ends_and_its_connections_are_over(pair: Pair) -> None:
    pair.start()
    client = pair.client()
    server = pair.server.connection()
    pair.gone, pair.meant_to_end = True, ["inside", "outside"]
    client.sendall(b"nobody hears this")
    assert client.recv(1) == b""
    assert not pair.inside.settle(WAIT_S)
    server.sendall(b"nor this")
    assert server.recv(1) == b""
    assert not pair.outside.settle(WAIT_S)
    pair.inside.join(WAIT_S)
    pair.outside.join(WAIT_S)


def test_who_waits_for_settling_is_let_go_when_the_end_is_closed(pair: Pair, threads: ThreadPoolExecutor) -> None:
    pair.start()
    pair.server.takes = False
    fill_datagram_window(pair, b"x" * 60_000)
    waiting = threads.submit(pair.inside.settle, 3 * WAIT_S)
    until(lambda: pair.inside._settling, "somebody to wait")
    pair.meant_to_end = ["inside"]
    pair.inside.close()
    assert waiting.result(WAIT_S) is False


def test_nothing_stays_open_of_ends_that_were_closed_even_twice_or_never_started(one_network: None) -> None:
    before = descriptors()
    for started in (True, False):
        pair = Pair()
        if started:
            pair.start()
            pair.client().sendall(b"x")
            pair.server.connection()
        pair.close()
        pair.close()
        pair.inside.put("data", {"channel": 0}, b"late")
        assert not pair.inside.settle(WAIT_S)
        assert descriptors() == before
