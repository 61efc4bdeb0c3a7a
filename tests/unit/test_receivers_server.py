"""The sockets: served by one thread for all sandboxes, bounded in size, number and time, and given back."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes_agent import AgentInProcess
from fakes_agent import one_network as one_network  # noqa: PLC0414  # a fixture
from test_receivers_cloudwatch import TARGET
from test_receivers_xray import HEAD, TRACE, record, segment

from harness.context import Trace
from harness.errors import EngineError, UsageError
from harness.receivers import Attendance, Receivers
from harness.receivers.loop import Bounds
from harness.receivers.server import Network, Ports
from harness.vantage import Endpoints, Listening, SocketServer
from harness.vantage.listening import LocalListening

ANY = Ports(xray=0, cloudwatch=0)
WAIT_S = 20.0
SANDBOX = """
import fcntl, http.client, socket, struct, sys
up_and_running = struct.pack("16sh14x", b"lo", 0x41)
fcntl.ioctl(socket.socket(), 0x8914, up_and_running)  # SIOCSIFFLAGS: a new namespace's loopback is down
print("ready", flush=True)
sys.stdin.readline()
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(sys.argv[1].encode(), ("127.0.0.1", 2000))
connection = http.client.HTTPConnection("127.0.0.1", 9102)
connection.request("POST", "/", sys.argv[2], {"X-Amz-Target": "GraniteServiceVersion20100801.PutMetricData"})
print(connection.getresponse().status, flush=True)
sys.stdin.read()
"""
FRESH = json.dumps({"Namespace": "App", "MetricData": [{"MetricName": "calls", "Value": 1}]}).encode()


class Namespace:
    """The network of a process of this kernel, as the vantage host reaches it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def listen(self, endpoints: Endpoints, server: SocketServer) -> Listening:
        return LocalListening(self._pid, endpoints, server)


@pytest.fixture(params=["host", "agent"])
def network(request: pytest.FixtureRequest, one_network: None) -> Iterator[Network]:
    """The way into sandboxes whose network is this process's own."""
    if request.param == "host":
        yield Namespace(0)
        return
    with AgentInProcess() as found:
        yield found


@pytest.fixture
def receivers(network: Network) -> Iterator[Receivers]:
    with Receivers(ports=ANY) as found:
        yield found


def put(attendance: Attendance, body: bytes = FRESH, *, kind: str = "cloudwatch") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*attendance.addresses[kind], timeout=WAIT_S)
    try:
        connection.request("POST", "/", body, TARGET)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def send(attendance: Attendance, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for data in datagrams:
            sender.sendto(data, attendance.addresses["xray"])


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
    return found


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # the directory's own descriptor counts both times


def test_metrics_and_segments_of_a_sandbox_come_in(receivers: Receivers, network: Network) -> None:
    with_sandbox = receivers.attend("one", network)
    assert put(with_sandbox) == (200, b"{}")
    send(with_sandbox, HEAD + json.dumps(segment(1)).encode())
    (metric,) = receivers.cloudwatch
    assert (metric["MetricName"], metric["source"], metric["sandbox_id"]) == ("calls", "api", "one")
    assert [tree["name"] for tree in receivers.xray] == ["n1"]
    assert receivers.warnings == []


def test_what_was_sent_last_is_read_before_the_sockets_close(receivers: Receivers, network: Network) -> None:
    attendance = receivers.attend("one", network)
    send(attendance, *(HEAD + json.dumps(segment(at + 1)).encode() for at in range(300)))
    attendance.close()
    attendance.close()
    assert len(receivers.xray) == 300
    with pytest.raises(OSError, match="refused"):
        put(attendance)


def test_one_connection_carries_many_requests_and_two_services_answer_apart(
    receivers: Receivers, network: Network
) -> None:
    attendance = receivers.attend("one", network)
    connection = http.client.HTTPConnection(*attendance.addresses["cloudwatch"], timeout=WAIT_S)
    for _ in range(20):
        connection.request("POST", "/", FRESH, TARGET)
        assert connection.getresponse().read() == b"{}"
    connection.close()
    assert len(receivers.cloudwatch) == 20
    status, body = put(attendance, b"{}", kind="xray")
    assert status == 404
    assert b"X-Ray" in body


def test_two_requests_may_be_sent_before_the_first_answer(receivers: Receivers, network: Network) -> None:
    attendance = receivers.attend("one", network)
    head = "".join(f"{name}: {value}\r\n" for name, value in TARGET.items())
    request = f"POST / HTTP/1.1\r\nHost: h\r\n{head}Content-Length: {len(FRESH)}\r\n\r\n".encode() + FRESH
    with socket.create_connection(attendance.addresses["cloudwatch"], WAIT_S) as sock:
        sock.sendall(request + request)
        got = b""
        while got.count(b"HTTP/1.1 200") < 2 or not got.endswith(b"{}"):
            got += sock.recv(4096)
    assert len(receivers.cloudwatch) == 2


def test_a_client_that_asks_before_it_sends_the_body_is_told_to_go_on(receivers: Receivers, network: Network) -> None:
    attendance = receivers.attend("one", network)
    head = "".join(f"{name}: {value}\r\n" for name, value in TARGET.items())
    with socket.create_connection(attendance.addresses["cloudwatch"], WAIT_S) as sock:
        sock.sendall(
            f"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n{head}Content-Length: {len(FRESH)}\r\n\r\n".encode()
        )
        assert sock.recv(4096).startswith(b"HTTP/1.1 100")
        sock.sendall(FRESH)
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")


def test_what_is_no_http_is_refused_and_hurts_nobody_else(receivers: Receivers, network: Network) -> None:
    one, other = receivers.attend("one", network), receivers.attend("other", network)
    with socket.create_connection(one.addresses["cloudwatch"], WAIT_S) as sock:
        sock.sendall(b"\x16\x03\x01 this is TLS\r\n\r\n")
        assert b"400" in sock.recv(4096)
        assert sock.recv(4096) == b""
    send(one, b"rubbish")
    assert put(other)[0] == 200
    assert any("no HTTP request" in text for text in receivers.warnings)
    assert any("did not take a datagram of sandbox one" in text for text in receivers.warnings)


def test_a_body_that_is_too_large_is_refused_before_it_is_read_to_its_end(network: Network) -> None:
    with Receivers(ports=ANY, bounds=Bounds(body_bytes=1000)) as receivers:
        attendance = receivers.attend("one", network)
        with socket.create_connection(attendance.addresses["cloudwatch"], WAIT_S) as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 1001)
            assert b"413" in sock.recv(4096)


def test_clients_that_never_finish_are_put_out(network: Network) -> None:
    with Receivers(ports=ANY, bounds=Bounds(request_s=0.05)) as receivers:
        attendance = receivers.attend("one", network)
        with socket.create_connection(attendance.addresses["cloudwatch"], WAIT_S) as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Le")
            assert sock.recv(4096) == b""
        assert put(attendance)[0] == 200


def test_a_sandbox_holds_only_so_many_connections(network: Network) -> None:
    with Receivers(ports=ANY, bounds=Bounds(connections_a_sandbox=2)) as receivers:
        attendance, other = receivers.attend("one", network), receivers.attend("other", network)
        held = [socket.create_connection(attendance.addresses["cloudwatch"], WAIT_S) for _ in range(3)]
        assert held[2].recv(1) == b""
        assert put(other)[0] == 200
        for sock in held:
            sock.close()
        until(lambda: _answers(attendance))
        assert any("too many" in text for text in receivers.warnings)


def _answers(attendance: Attendance) -> bool:
    try:
        return put(attendance)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_where_too_many_requests_wait_the_next_is_throttled(network: Network) -> None:
    gate, entered = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        entered.set()
        assert gate.wait(WAIT_S)

    with Receivers(ports=ANY, bounds=Bounds(requests_waiting=1, workers=1), on_metrics=slow) as receivers:
        attendance = receivers.attend("one", network)
        first = threading.Thread(target=put, args=(attendance,))
        first.start()
        assert entered.wait(WAIT_S)
        status, body = put(attendance)
        gate.set()
        first.join(WAIT_S)
        assert (status, json.loads(body)["message"]) == (400, "Rate exceeded")
        assert len(receivers.cloudwatch) == 1


def test_listeners_hear_of_everything_once_and_their_failures_end_nothing(network: Network) -> None:
    heard: list[Any] = []

    def on_segment(document: dict[str, Any]) -> None:
        heard.append(document["name"])
        raise ValueError("a page is gone")

    with Receivers(ports=ANY, on_metrics=heard.extend, on_segment=on_segment) as receivers:
        attendance = receivers.attend("one", network)
        send(attendance, HEAD + json.dumps(segment(1)).encode(), HEAD + json.dumps(segment(2)).encode())
        assert len(receivers.xray) == 2
        put(attendance)
        assert [one if isinstance(one, str) else one["MetricName"] for one in heard] == ["n1", "n2", "calls"]
        assert any("a page is gone" in text and "(2 times)" in text for text in receivers.warnings)


def test_metrics_belong_to_the_request_during_which_they_came(receivers: Receivers, network: Network) -> None:
    attendance, other = receivers.attend("sandbox", network), receivers.attend("other", network)
    receivers.begin("sandbox", "probe", "first")
    put(attendance)
    put(other)
    receivers.invocation(record(request_id="first", freeze_ms=0.2), TRACE)
    put(attendance)  # sent before it was frozen, and read late
    receivers.begin("sandbox", "probe", "second")
    receivers.invocation(record(request_id="second", freeze_ms=None), TRACE)
    put(attendance)  # it was not frozen, and sends between requests
    found = [(each["request_id"], each["function"]) for each in receivers.cloudwatch]
    assert found == [("first", "probe"), (None, None), ("first", "probe"), (None, "probe")]


def test_lambdas_own_segments_stand_above_those_of_the_function(receivers: Receivers, network: Network) -> None:
    attendance = receivers.attend("sandbox", network)
    below = segment(1) | {"type": "subsegment", "parent_id": TRACE.parent_id}
    send(attendance, HEAD + json.dumps(below).encode())
    assert "not received" in receivers.xray[0]["note"]
    receivers.invocation(record(), TRACE)
    (tree,) = receivers.xray
    assert tree["origin"] == "AWS::Lambda"
    (own,) = tree["subsegments"]
    assert {one["name"] for one in own["subsegments"]} == {"Initialization", "Invocation", "n1"}


def test_embedded_metrics_are_found_in_output_and_invalid_ones_named(receivers: Receivers) -> None:
    now = int(time.time() * 1000)
    line = json.dumps(
        {
            "_aws": {
                "Timestamp": now,
                "CloudWatchMetrics": [
                    {"Namespace": "App", "Dimensions": [], "Metrics": [{"Name": "a"}, {"Name": "b"}]}
                ],
            },
            "a": 1,
        }
    )
    receivers.output("one", "id", "probe", f"hello\n{line}\nbye\n".encode())
    (metric,) = receivers.cloudwatch
    assert (metric["source"], metric["request_id"], metric["function"], metric["Value"]) == ("emf", "id", "probe", 1)
    (warning,) = receivers.warnings
    assert "function probe, request id" in warning
    assert "'b'" in warning


def test_only_the_receivers_that_are_asked_for_are_opened(network: Network) -> None:
    with Receivers(["cloudwatch"], ports=ANY) as metrics, Receivers(["xray"], ports=ANY) as traces:
        assert set(metrics.attend("one", network).addresses) == {"cloudwatch"}
        assert set(traces.attend("one", network).addresses) == {"xray"}
        assert not any("XRAY" in name for name in metrics.environment())
        assert not any("CLOUDWATCH" in name for name in traces.environment())
        metrics.invocation(record(), TRACE)
        assert metrics.xray == []
        traces.output("one", "id", "probe", b'{"_aws":{"CloudWatchMetrics":[]}}\n')
        assert traces.warnings == []
    with pytest.raises(UsageError, match="kinesis"):
        Receivers(["kinesis"])


def test_the_environment_leads_sdks_here() -> None:
    found = Receivers().environment()
    assert found["AWS_ENDPOINT_URL_CLOUDWATCH"] == found["AWS_ENDPOINT_URL_CLOUDWATCH_LOGS"] == "http://127.0.0.1:9102"
    assert found["AWS_XRAY_DAEMON_ADDRESS"] == "127.0.0.1:2000"
    assert found["AWS_ENDPOINT_URL_XRAY"] == "http://127.0.0.1:2000"


def test_nothing_is_left_of_many_sandboxes(network: Network) -> None:
    with Receivers(ports=ANY) as receivers:
        receivers.attend("warm", network).close()
        put(warm := receivers.attend("again", network))
        warm.close()
        before, threads = descriptors(), threading.active_count()
        for at in range(100):
            attendance = receivers.attend(f"s{at}", network)
            if at % 10 == 0:
                put(attendance)
                send(attendance, HEAD + json.dumps(segment(at + 1)).encode())
            attendance.close()
        assert (descriptors(), threading.active_count()) <= (before, threads + Bounds().workers)
        assert len(receivers.xray) == 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("receivers")]
    assert len(receivers.cloudwatch) == 11, "what came in stays readable"


def test_sandboxes_that_are_still_there_at_the_end_leave_nothing_either(network: Network) -> None:
    before = descriptors()
    with Receivers(ports=ANY) as receivers:
        attendance = receivers.attend("one", network)
        held = socket.create_connection(attendance.addresses["cloudwatch"], WAIT_S)
    held.close()
    attendance.close()
    receivers.close()
    assert descriptors() == before
    with pytest.raises(EngineError, match="closed already"):
        receivers.attend("two", network)
    assert descriptors() == before


def test_a_port_that_is_taken_is_named_and_nothing_stays_open(network: Network) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        Receivers(ports=Ports(xray=taken.getsockname()[1], cloudwatch=0)) as receivers,
    ):
        with pytest.raises(EngineError, match="sandbox one"):
            receivers.attend("one", network)
        before = descriptors()  # the loop's own among them
        with pytest.raises(EngineError, match="sandbox one"):
            receivers.attend("one", network)
        assert descriptors() == before


def test_a_process_that_is_gone_is_told() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    with Receivers() as receivers, pytest.raises(EngineError, match="sandbox one"):
        receivers.attend("one", Namespace(done.pid))


@pytest.mark.skipif(os.geteuid() != 0, reason="entering a network namespace takes root, as vantage host does")
def test_the_sockets_stand_in_the_sandboxs_network_alone() -> None:
    datagram = (HEAD + json.dumps(segment(1)).encode()).decode()
    sandbox = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", SANDBOX, datagram, FRESH.decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert sandbox.stdin is not None
    assert sandbox.stdout is not None
    try:
        assert sandbox.stdout.readline() == "ready\n"
        with Receivers() as receivers:
            attendance = receivers.attend("one", Namespace(sandbox.pid))
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(attendance.addresses["cloudwatch"], WAIT_S)
            sandbox.stdin.write("go\n")
            sandbox.stdin.flush()
            assert sandbox.stdout.readline() == "200\n"
            until(lambda: receivers.xray)
            assert len(receivers.cloudwatch) == 1
    finally:
        sandbox.send_signal(signal.SIGKILL)
        sandbox.communicate()


def test_output_outside_of_any_request_is_told_apart(receivers: Receivers) -> None:
    receivers.output("one", None, "probe", b'{"_aws":{"Timestamp":1,"CloudWatchMetrics":[]}}\n')
    assert any("two weeks" in text and "outside of any request" in text for text in receivers.warnings)


def test_whoever_listens_hears_whose_a_metric_is_at_once(network: Network) -> None:
    heard: list[dict[str, Any]] = []
    with Receivers(ports=ANY, on_metrics=heard.extend) as receivers:
        attendance = receivers.attend(record().sandbox_id, network)
        put(attendance)  # during init: nobody's request, and no function known yet
        receivers.begin(record().sandbox_id, "probe", "id")
        put(attendance)
        receivers.invocation(record(request_id="id"), Trace.begin(sampled=False))
        put(attendance)
        attendance.close()
        assert [(each["function"], each["request_id"]) for each in heard] == [
            (None, None),
            ("probe", "id"),
            ("probe", None),
        ]


def test_a_warning_is_heard_when_it_comes_for_the_first_time(network: Network) -> None:
    heard: list[str] = []
    with Receivers(ports=ANY, on_warning=heard.append) as receivers:
        attendance = receivers.attend("one", network)
        for _ in range(2):
            send(attendance, b"no datagram of the daemon's")
            until(lambda: receivers.warnings)
        assert heard == [heard[0]]
        assert len(receivers.warnings) == 1


@pytest.fixture
def agent(one_network: None) -> Iterator[AgentInProcess]:
    with AgentInProcess() as found:
        yield found


def test_an_agent_that_dies_holds_up_nobody_and_what_had_come_stays(agent: AgentInProcess) -> None:
    with Receivers(ports=ANY) as receivers:
        attendance = receivers.attend("one", agent)
        put(attendance)
        held = socket.create_connection(attendance.addresses["cloudwatch"], WAIT_S)
        held.sendall(b"POST / HTTP/1.1\r\n")
        until(lambda: len(_connections(receivers)) == 1)
        agent.pipes.die()
        held.close()
        receivers.begin("one", "probe", "next")
        receivers.invocation(record(sandbox_id="one", request_id="next"), TRACE)
        assert len(receivers.cloudwatch) == 1
        attendance.close()
        assert _connections(receivers) == []
        with pytest.raises(EngineError, match="agent is gone"):
            receivers.attend("two", agent)
    until(lambda: not [each for each in threading.enumerate() if each.name.startswith(("receivers", "sockets-"))])


def _connections(receivers: Receivers) -> list[Any]:
    return [] if receivers._loop is None else list(receivers._loop._connections)


def test_metrics_that_nobody_waited_for_are_of_the_request_that_sent_them(
    receivers: Receivers, network: Network
) -> None:
    attendance = receivers.attend("sandbox", network)
    head = "".join(f"{name}: {value}\r\n" for name, value in TARGET.items())
    request = f"POST / HTTP/1.1\r\nHost: h\r\n{head}Content-Length: {len(FRESH)}\r\n\r\n".encode() + FRESH
    with socket.create_connection(attendance.addresses["cloudwatch"], WAIT_S) as sock:
        for number in range(50):
            receivers.begin("sandbox", "probe", f"r{number}")
            sock.sendall(request)
            receivers.invocation(record(request_id=f"r{number}", freeze_ms=None), TRACE)
    assert [each["request_id"] for each in receivers.cloudwatch] == [f"r{number}" for number in range(50)]


def held_by(gate: threading.Event) -> None:
    assert gate.wait(WAIT_S)


def test_datagrams_that_were_lost_are_counted_and_said_once(network: Network) -> None:
    said: list[str] = []
    with Receivers(["xray"], ports=ANY, on_warning=said.append) as receivers:
        attendance = receivers.attend("one", network)
        gate = threading.Event()
        assert receivers._loop is not None
        receivers._loop._tell(lambda: held_by(gate))
        for _ in range(2):
            send(attendance, *(HEAD + json.dumps(segment(at + 1) | {"x": "y" * 60_000}).encode() for at in range(400)))
        gate.set()
        taken = sum(1 for _ in receivers.xray)
        lost = [text for text in receivers.warnings if "were lost" in text]
        assert len(lost) == 1
        assert 0 < int(lost[0].split()[0]) < 800
        assert taken > 0
        assert len([text for text in said if "were lost" in text]) == 1
