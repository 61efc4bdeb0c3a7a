"""The watch over one sandbox, fed by a pipe in place of a container's log and a socket in place of the RIE."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from harness import watch
from harness.errors import EngineError
from harness.watch import Exchange, Watch

ID = "974c1c1e-b7bf-4c10-8535-ee9880142f93"
STAMP = "21 Nov 2026 22:27:25,528 [INFO] (rapid) "
START = f"START RequestId: {ID} Version: $LATEST\n"
END = (
    f"END RequestId: {ID}\nREPORT RequestId: {ID}\tDuration: 1.00 ms\tBilled Duration: 1 ms\tMemory Size: 1 MB\t"
    "Max Memory Used: 1 MB\t\n"
)
INITIALISED = ("INIT START(type: on-demand, phase: init)", "INIT RTDONE(status: success)")


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.001)


@dataclass
class Bench:
    """A watch with everything around it that a sandbox would give it."""

    relay_pid: int | None = None
    on_sample: Callable[[], None] | None = None
    calls: list[str] = field(default_factory=list)
    printed: bytearray = field(default_factory=bytearray)
    trouble: Exception | None = None

    def __post_init__(self) -> None:
        self.container, self.log = socket.socketpair()
        self.watch = Watch(
            name="test",
            log=self.log,
            relay_pid=self.relay_pid,
            on_init_begun=lambda: self.calls.append("init begun"),
            on_init_done=self.init_done,
            kill_runtime=lambda: self.calls.append("killed"),
            event_headers=lambda _: {b"lambda-runtime-invoked-function-arn": b"arn:ours"},
            on_output=lambda _, data: self.printed.extend(data),
            on_sample=self.on_sample,
            sample_s=0.001,
        )

    def init_done(self) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.calls.append("init done")

    def says(self, text: str, stream: int = 2) -> None:
        data = text.encode()
        self.container.sendall(bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data)

    def logs(self, *lines: str) -> None:
        self.says("".join(f"{STAMP}{line}\n" for line in lines))

    def expect(self, timeout_s: float = 60, init_limit_s: float = 60) -> Exchange:
        return self.watch.expect(timeout_s=timeout_s, init_limit_s=init_limit_s)

    def close(self) -> None:
        self.watch.stop()
        self.container.close()
        self.log.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    found = Bench()
    found.watch.begin_watching()
    yield found
    found.close()


# -- from the log alone (vantage api) ------------------------------------------------------------------------------------


def test_a_cold_invocation_is_read_from_the_log(bench: Bench) -> None:
    exchange = bench.expect()
    bench.says(START, stream=1)
    bench.logs("INIT START(type: on-demand, phase: init)")
    bench.says("hello\n", stream=1)
    bench.logs(
        "INIT RTDONE(status: success)",
        "INIT REPORT(durationMs: 449.231000)",
        f"INVOKE START(requestId: {ID})",
        "INVOKE RTDONE(status: success, produced bytes: 0, duration: 57.705000ms)",
    )
    bench.says(END, stream=1)
    bench.watch.settle(exchange, timeout_s=10)
    until(lambda: exchange.done_ns, "the end of the invocation")
    assert exchange.inits == ["init"]
    assert exchange.init_ms == 449.231
    assert exchange.rie_duration_ms == 57.705
    assert exchange.rie_status == "success"
    assert exchange.request_id == ID
    assert exchange.boost_lag_ms is not None
    assert exchange.output.tail() == "hello\n"
    assert bytes(bench.printed) == b"hello\n"
    assert bench.calls == ["init begun", "init done"]


def test_a_suppressed_init_has_no_init_duration_of_its_own(bench: Bench) -> None:
    exchange = bench.expect()
    bench.logs(
        "INIT START(type: on-demand, phase: invoke)",
        "INIT RTDONE(status: success)",
        "INIT REPORT(durationMs: 262.5)",
        f"INVOKE START(requestId: {ID})",
    )
    until(lambda: exchange.event_ns, "the event")
    assert exchange.inits == ["invoke"]
    assert exchange.init_ms is None


def test_an_init_that_failed_does_not_count_as_done(bench: Bench) -> None:
    exchange = bench.expect()
    bench.logs(
        "INIT START(type: on-demand, phase: init)",
        "INIT RTDONE(status: error)",
        "Process runtime-1 exited: exit status 1",
    )
    until(lambda: exchange.exits, "the exit")
    assert exchange.exits == ["exit status 1"]
    assert bench.calls == ["init begun"]


def test_the_timeout_kills_the_runtime_once(bench: Bench) -> None:
    exchange = bench.expect(timeout_s=0.05)
    bench.logs(*INITIALISED, f"INVOKE START(requestId: {ID})")
    until(lambda: "killed" in bench.calls, "the kill")
    assert exchange.overrun
    assert exchange.killed_ns is not None
    bench.logs("Process runtime-1 exited: signal: killed")
    until(lambda: exchange.exits, "the exit")
    assert bench.calls == ["init begun", "init done", "killed"]


def test_a_warm_up_without_an_event_has_no_timeout(bench: Bench) -> None:
    exchange = bench.expect(timeout_s=0.01)
    bench.logs("INIT START(type: on-demand, phase: init)")
    until(lambda: exchange.inits, "the init")
    bench.logs("anything else")
    until(lambda: len(bench.watch.log_lines) == 2, "the second line")
    assert not exchange.overrun, "init is not under the function's timeout"


def test_an_init_over_its_limit_is_ended_and_the_second_try_stands_under_the_timeout(bench: Bench) -> None:
    exchange = bench.expect(timeout_s=0.05, init_limit_s=0.05)
    bench.logs("INIT START(type: on-demand, phase: init)")
    until(lambda: bench.calls == ["init begun", "killed"], "the end of the first init")
    assert exchange.init_overrun
    assert not exchange.overrun
    bench.logs("Process runtime-1 exited: signal: killed", "INIT START(type: on-demand, phase: invoke)")
    until(lambda: bench.calls.count("killed") == 2, "the end of the second")
    assert exchange.overrun


def test_what_is_printed_between_invocations_belongs_to_none(bench: Bench) -> None:
    exchange = bench.expect()
    bench.says(START + "one\n" + END, stream=1)
    bench.watch.settle(exchange, timeout_s=10)
    bench.watch.finish(exchange)
    bench.says("in between\n", stream=1)
    until(lambda: b"in between\n" in bench.printed, "the output")
    assert exchange.output.tail() == "one\n"


def test_a_log_that_goes_on_coming_is_waited_for(bench: Bench) -> None:
    """Over a slow line, much output arrives long after the response."""
    exchange = bench.expect()

    def late() -> None:
        for _ in range(20):
            time.sleep(0.05)
            bench.says("x" * 99 + "\n", stream=1)
        bench.says(END, stream=1)

    bench.says(START, stream=1)
    speaking = threading.Thread(target=late)
    speaking.start()
    bench.watch.settle(exchange, timeout_s=0.5)
    bench.watch.finish(exchange)
    speaking.join()
    assert exchange.output.ended
    assert len(bench.printed) == 20 * 100


def test_a_crash_in_the_middle_of_a_line_loses_nothing(bench: Bench) -> None:
    exchange = bench.expect()
    bench.says(START + "half a li", stream=1)
    bench.logs("Process runtime-1 exited: exit status 3")
    until(lambda: exchange.exits, "the exit")
    bench.watch.settle(exchange, timeout_s=0.01)
    bench.watch.finish(exchange)
    assert exchange.output.tail() == "half a li"
    assert bytes(bench.printed) == b"half a li"


def test_once_the_answer_is_there_no_timeout_strikes(bench: Bench) -> None:
    exchange = bench.expect(timeout_s=0.05)
    exchange.answered_ns = time.monotonic_ns()
    bench.logs(*INITIALISED, f"INVOKE START(requestId: {ID})", "Process runtime-1 exited: exit status 3")
    until(lambda: exchange.exits, "the exit")
    bench.watch.settle(exchange, timeout_s=0.1)
    assert exchange.event_ns is not None
    assert not exchange.overrun
    assert "killed" not in bench.calls


def test_the_rie_s_word_of_an_invocation_without_a_runtime_is_not_believed(bench: Bench) -> None:
    exchange = bench.expect()
    bench.logs(
        "INIT START(type: on-demand, phase: init)",
        "INIT RTDONE(status: error)",
        "INIT START(type: on-demand, phase: invoke)",
        "INIT REPORT(durationMs: 0.063000)",
        f"INVOKE START(requestId: {ID})",
    )
    until(lambda: exchange.request_id, "the start")
    assert exchange.event_ns is None


def test_durations_are_the_rie_s_own_when_the_log_had_to_wait(bench: Bench) -> None:
    exchange = bench.expect()
    bench.logs(
        "INIT START(type: on-demand, phase: invoke)",
        "INIT RTDONE(status: success)",
        "INIT REPORT(durationMs: 300.0)",
        f"INVOKE START(requestId: {ID})",
        "INVOKE RTDONE(status: success, produced bytes: 0, duration: 50.0ms)",
    )
    until(lambda: exchange.done_ns, "the end")
    assert exchange.done_ns is not None
    assert exchange.event_ns == exchange.done_ns - 50_000_000
    assert exchange.init_begun_ns == exchange.event_ns - 300_000_000


def test_a_suppressed_init_and_its_handler_share_one_timeout(bench: Bench) -> None:
    exchange = bench.expect(timeout_s=60)
    bench.logs("INIT START(type: on-demand, phase: invoke)", "INIT RTDONE(status: success)")
    bench.logs(f"INVOKE START(requestId: {ID})")
    until(lambda: exchange.event_ns, "the event")
    assert exchange.init_begun_ns is not None
    assert Watch._deadline_ns(exchange) == exchange.init_begun_ns + 60_000_000_000


def test_waiting_for_the_log_ends_when_the_container_does(bench: Bench) -> None:
    exchange = bench.expect()
    bench.container.shutdown(socket.SHUT_WR)
    bench.watch.settle(exchange, timeout_s=30)
    assert bench.watch.log_ended


def test_the_last_log_lines_are_kept_for_messages(bench: Bench) -> None:
    bench.logs(*(f"line {number}" for number in range(50)))
    until(lambda: bench.watch.log_lines and bench.watch.log_lines[-1].endswith("line 49"), "the last line")
    assert len(bench.watch.log_lines) == 20


def test_log_lines_outside_of_an_invocation_do_no_harm(bench: Bench) -> None:
    bench.logs(
        "INIT START(type: on-demand, phase: init)",
        "INIT RTDONE(status: success)",
        "INIT REPORT(durationMs: 1.0)",
        f"INVOKE START(requestId: {ID})",
        "Process runtime-1 exited: exit status 1",
    )
    until(lambda: len(bench.watch.log_lines) == 5, "the lines")
    assert bench.calls == ["init begun", "init done"]
    assert bench.watch.failure is None


def test_what_a_step_raises_is_kept_for_the_sandbox(bench: Bench) -> None:
    bench.trouble = EngineError("the quota could not be written")
    bench.expect()
    bench.logs("INIT START(type: on-demand, phase: init)", "INIT RTDONE(status: success)")
    until(lambda: bench.watch.failure, "the failure")
    assert bench.watch.failure is bench.trouble


def test_stopping_twice_is_fine_and_before_starting_too() -> None:
    found = Bench()
    found.watch.stop()
    found.close()
    again = Bench()
    again.watch.begin_watching()
    again.close()
    again.close()


def test_memory_is_sampled_during_an_invocation_alone() -> None:
    sampled = threading.Event()
    found = Bench(on_sample=sampled.set)
    found.watch.begin_watching()
    try:
        assert not sampled.is_set()
        exchange = found.expect()
        found.logs("INIT START(type: on-demand, phase: init)")
        assert sampled.wait(10)
        found.watch.finish(exchange)
    finally:
        found.close()


# -- with the relay (vantage host) ---------------------------------------------------------------------------------------


def answer(status: str, headers: dict[str, str], body: bytes) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


EVENT = answer("200 OK", {"Lambda-Runtime-Aws-Request-Id": ID, "Lambda-Runtime-Deadline-Ms": "1"}, b'{"a": 1}')


@dataclass
class Relayed:
    bench: Bench
    rie: socket.socket
    runtime: socket.socket
    port: int

    def ask_next(self) -> None:
        self.runtime.sendall(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n")
        assert self.rie.recv(65536).startswith(b"GET")

    def post(self, what: str, body: bytes, status: str = "202 Accepted") -> None:
        request = f"POST /2018-06-01/runtime/{what} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        self.runtime.sendall(request)
        found = b""
        while len(found) < len(request):
            found += self.rie.recv(65536)
        assert found == request
        self.rie.sendall(answer(status, {}, b""))
        assert self.runtime.recv(65536).startswith(b"HTTP/1.1 " + status.encode())

    def take_event(self) -> bytes:
        self.rie.sendall(EVENT)
        return self.runtime.recv(65536)


@pytest.fixture
def relayed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Relayed]:
    rie_server = socket.create_server(("127.0.0.1", 0))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setattr(watch, "enter_network_namespace", lambda pid: None)
    monkeypatch.setattr(watch, "RELAY_PORT", port)
    monkeypatch.setattr(watch, "RIE_API_PORT", rie_server.getsockname()[1])
    found = Bench(relay_pid=1)
    found.watch.begin_watching()
    runtime = socket.create_connection(("127.0.0.1", port), timeout=10)
    rie, _ = rie_server.accept()
    rie.settimeout(10)
    yield Relayed(found, rie, runtime, port)
    for each in (runtime, rie, rie_server):
        each.close()
    found.close()


def test_the_quota_is_written_while_the_runtime_waits_for_its_first_event(relayed: Relayed) -> None:
    exchange = relayed.bench.expect()
    relayed.bench.logs("INIT START(type: on-demand, phase: init)")
    until(lambda: exchange.inits, "the init")
    relayed.ask_next()
    assert relayed.bench.calls == ["init begun", "init done"], "before the request reached the RIE"
    relayed.bench.logs("INIT RTDONE(status: success)", "INIT REPORT(durationMs: 100.0)")
    until(lambda: exchange.init_ms, "the report")
    assert exchange.init_ms is not None
    assert exchange.init_ms < 100.0, "the writing of the quota is not the function's time"
    assert relayed.bench.calls.count("init done") == 1


def test_the_deadline_is_counted_from_the_hand_over_of_the_event(relayed: Relayed) -> None:
    exchange = relayed.bench.expect(timeout_s=60)
    relayed.ask_next()
    assert vars(exchange)["event_ns"] is None
    before_ms = time.time() * 1000
    event = relayed.take_event().decode()
    headers = dict(line.split(": ", 1) for line in event.partition("\r\n\r\n")[0].splitlines()[1:])
    assert before_ms + 59_000 <= int(headers["lambda-runtime-deadline-ms"]) <= time.time() * 1000 + 60_001
    assert headers["lambda-runtime-invoked-function-arn"] == "arn:ours"
    assert exchange.event_ns is not None
    assert exchange.request_id == exchange.context.request_id, "the id that the runtime is told is ours, not the RIE's"


def test_an_invocation_lasts_until_the_runtime_asks_for_the_next(relayed: Relayed) -> None:
    exchange = relayed.bench.expect()
    relayed.ask_next()
    relayed.take_event()
    relayed.post(f"invocation/{ID}/response", b"[1]")
    assert (exchange.reply, exchange.reply_status) == ("response", 202)
    assert vars(exchange)["done_ns"] is None
    relayed.ask_next()
    assert exchange.done_ns is not None
    assert relayed.bench.calls == ["init done"], "the second call for work is no init"


@pytest.mark.parametrize(
    ("what", "status", "reply", "error"),
    [
        (f"invocation/{ID}/error", "202 Accepted", "error", b'{"errorType": "x"}'),
        (f"invocation/{ID}/response", "413 Request Entity Too Large", "response", None),
    ],
)
def test_errors_and_refusals_are_seen(
    relayed: Relayed, what: str, status: str, reply: str, error: bytes | None
) -> None:
    exchange = relayed.bench.expect()
    relayed.ask_next()
    relayed.take_event()
    relayed.post(what, json.dumps({"errorType": "x"}).encode(), status)
    assert exchange.reply == reply
    assert exchange.reply_status == int(status[:3])
    assert exchange.error_body == error


def test_an_init_error_is_kept_with_its_cause(relayed: Relayed) -> None:
    exchange = relayed.bench.expect()
    relayed.post("init/error", b'{"errorType": "Runtime.ImportModuleError"}')
    assert exchange.init_error == b'{"errorType": "Runtime.ImportModuleError"}'
    assert exchange.reply == ""


def test_a_runtime_that_hangs_up_takes_its_connection_to_the_rie_along(relayed: Relayed) -> None:
    relayed.runtime.close()
    assert relayed.rie.recv(1) == b""


def test_a_runtime_that_comes_before_the_rie_listens_is_turned_away(
    relayed: Relayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "RIE_API_PORT", 9)
    with socket.create_connection(("127.0.0.1", relayed.port), timeout=10) as early:
        assert early.recv(1) == b""
    assert relayed.bench.watch.failure is None


def test_calls_outside_of_an_invocation_do_no_harm(relayed: Relayed) -> None:
    relayed.ask_next()
    assert ID.encode() in relayed.take_event()
    relayed.post(f"invocation/{ID}/response", b"1")
    assert relayed.bench.watch.failure is None


def test_a_relay_that_cannot_be_opened_is_an_error_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(watch, "enter_network_namespace", refuse)
    found = Bench(relay_pid=1)
    with pytest.raises(EngineError, match="cannot be relayed"):
        found.watch.begin_watching()
    found.close()
