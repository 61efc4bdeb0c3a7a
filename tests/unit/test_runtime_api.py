"""The relay between RIE and runtime: bytes as they are, apart from the headers that the RIE gets wrong."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.runtime_api import Handlers, Relay

ID = "974c1c1e-b7bf-4c10-8535-ee9880142f93"
NEXT = b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: 127.0.0.1:9001\r\nUser-Agent: x\r\n\r\n"
EVENT = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    b"Lambda-Runtime-Aws-Request-Id: " + ID.encode() + b"\r\n"
    b"Lambda-Runtime-Deadline-Ms: 1\r\n"
    b"Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:us-east-1:012345678912:function:test_function\r\n"
    b"Content-Length: 2\r\n\r\n{}"
)
ACCEPTED = b'HTTP/1.1 202 Accepted\r\nContent-Length: 16\r\n\r\n{"status":"OK"}\n'
TOO_LARGE = b"HTTP/1.1 413 Request Entity Too Large\r\nContent-Length: 0\r\n\r\n"


def post(what: str, body: bytes) -> bytes:
    return f"POST /2018-06-01/runtime/{what} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Seen:
    calls: list[object] = field(default_factory=list)
    headers: dict[bytes, bytes] = field(
        default_factory=lambda: {
            b"lambda-runtime-deadline-ms": b"99",
            b"lambda-runtime-invoked-function-arn": b"arn:ours",
            b"lambda-runtime-trace-id": b"Root=1",
        }
    )

    def relay(self) -> Relay:
        return Relay(handlers=Handlers(on_next=self.on_next, on_event=self.on_event, on_reply=self.on_reply))

    def on_next(self) -> None:
        self.calls.append("next")

    def on_event(self, request_id: str) -> dict[bytes, bytes]:
        self.calls.append(("event", request_id))
        return self.headers

    def on_reply(self, kind: str, status: int, body: bytes) -> None:
        self.calls.append((kind, status, body))


def feed(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


CUTS = st.lists(st.integers(0, 2000), max_size=25)


@given(CUTS, CUTS, CUTS, CUTS, st.binary(max_size=400))
def test_a_whole_invocation_passes_through_however_it_is_cut(
    next_cuts: list[int], event_cuts: list[int], post_cuts: list[int], reply_cuts: list[int], body: bytes
) -> None:
    seen = Seen()
    relay = seen.relay()
    for _ in range(2):  # one connection serves many invocations
        seen.calls.clear()
        reply = post(f"invocation/{ID}/response", body)
        assert b"".join(map(relay.from_runtime, feed(NEXT, next_cuts))) == NEXT
        event = b"".join(map(relay.from_rie, feed(EVENT, event_cuts)))
        assert b"".join(map(relay.from_runtime, feed(reply, post_cuts))) == reply
        assert b"".join(map(relay.from_rie, feed(ACCEPTED, reply_cuts))) == ACCEPTED
        head, _, content = event.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0] == b"HTTP/1.1 200 OK"
        assert content == b"{}"
        assert b"Lambda-Runtime-Aws-Request-Id: " + ID.encode() in lines
        assert [line for line in lines if b"deadline" in line.lower()] == [b"lambda-runtime-deadline-ms: 99"]
        assert [line for line in lines if b"arn:" in line.lower()] == [b"lambda-runtime-invoked-function-arn: arn:ours"]
        assert b"lambda-runtime-trace-id: Root=1" in lines
        assert seen.calls == ["next", ("event", ID), ("response", 202, body)]


def test_nothing_of_an_event_leaves_before_its_head_is_whole() -> None:
    seen = Seen()
    relay = seen.relay()
    relay.from_runtime(NEXT)
    assert relay.from_rie(EVENT[:60]) == b""
    assert seen.calls == ["next"], "the clock starts when the runtime gets the event, not before"
    assert relay.from_rie(EVENT[60:]).endswith(b"\r\n\r\n{}")


def test_a_large_event_passes_in_pieces_after_its_head() -> None:
    seen = Seen()
    relay = seen.relay()
    relay.from_runtime(NEXT)
    relay.from_rie(EVENT)
    for piece in (b"x" * 100_000, b"Lambda-Runtime-Aws-Request-Id: forged\r\n\r\n"):
        assert relay.from_rie(piece) == piece
    assert seen.calls == ["next", ("event", ID)]


@pytest.mark.parametrize(
    ("what", "kind"),
    [(f"invocation/{ID}/response", "response"), (f"invocation/{ID}/error", "error"), ("init/error", "init_error")],
)
def test_what_the_runtime_posts_is_told_apart(what: str, kind: str) -> None:
    seen = Seen()
    relay = seen.relay()
    relay.from_runtime(post(what, b'{"errorType": "x"}'))
    assert seen.calls == [], "it counts once the RIE has taken it"
    relay.from_rie(ACCEPTED)
    assert seen.calls == [(kind, 202, b'{"errorType": "x"}')]


def test_a_refused_response_is_seen_by_its_status() -> None:
    seen = Seen()
    relay = seen.relay()
    body = b"x" * 7_000_000
    for piece in feed(post(f"invocation/{ID}/response", body), list(range(0, 2000, 500))):
        assert relay.from_runtime(piece) == piece
    assert relay.from_rie(TOO_LARGE) == TOO_LARGE
    ((kind, status, kept),) = [call for call in seen.calls if isinstance(call, tuple)]
    assert (kind, status) == ("response", 413)
    assert 0 < len(kept) <= 256 * 1024, "a response of any size is not kept whole"


def test_an_error_of_the_rie_in_place_of_an_event_is_passed_on_and_starts_no_clock() -> None:
    seen = Seen()
    relay = seen.relay()
    relay.from_runtime(NEXT)
    answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
    assert relay.from_rie(answer) == answer
    assert seen.calls == ["next"]


def test_a_head_without_an_end_is_not_kept_for_ever() -> None:
    relay = Seen().relay()
    relay.from_runtime(NEXT)
    given_out = b"".join(relay.from_rie(b"x" * 1000) for _ in range(100))
    assert given_out == b"x" * 100_000


@pytest.mark.parametrize(
    "request_", [b"GET /2018-06-01/runtime/other HTTP/1.1\r\n\r\n", b"POST /x HTTP/1.1\r\n\r\n", b"\0\0\0"]
)
def test_requests_that_mean_nothing_to_us_pass_unchanged(request_: bytes) -> None:
    seen = Seen()
    relay = seen.relay()
    assert relay.from_runtime(request_) == request_
    assert relay.from_rie(ACCEPTED) == ACCEPTED
    assert seen.calls == []


def test_the_runtime_s_id_is_ours_and_the_rie_s_is_put_back() -> None:
    seen = Seen()
    given = "00000000-0000-4000-8000-000000000001"
    seen.headers = {b"lambda-runtime-aws-request-id": given.encode()}
    relay = seen.relay()
    relay.handlers.rie_id = lambda named: ID if named == given else named
    relay.from_runtime(NEXT)
    event = relay.from_rie(EVENT)
    assert given.encode() in event
    assert ID.encode() not in event
    assert relay.from_runtime(post(f"invocation/{given}/response", b"1")) == post(f"invocation/{ID}/response", b"1")


@given(CUTS, st.binary(max_size=300))
def test_an_event_takes_the_place_of_a_placeholder(cuts: list[int], body: bytes) -> None:
    seen = Seen()
    relay = seen.relay()
    held: list[str] = []
    relay.handlers.holds = lambda: True
    relay.handlers.on_held = lambda: held.append("held")
    relay.from_runtime(NEXT)
    for piece in feed(EVENT, cuts):
        assert not held
        assert relay.from_rie(piece) == b"", "nothing of the placeholder reaches the runtime"
    assert held == ["held"]
    assert seen.calls == ["next"], "nothing has been handed over yet"
    head, _, content = relay.release(body).partition(b"\r\n\r\n")
    assert content == body
    assert [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")] == [
        f"content-length: {len(body)}".encode()
    ]
    assert seen.calls == ["next", ("event", ID)]
    relay.handlers.holds = lambda: False
    reply = post(f"invocation/{ID}/response", b"1")
    assert relay.from_runtime(reply) == reply
    assert relay.from_rie(ACCEPTED) == ACCEPTED
    relay.from_runtime(NEXT)
    assert relay.from_rie(EVENT).endswith(b"{}"), "the next event is an ordinary one"


def test_a_placeholder_that_comes_in_chunks_is_dropped_whole() -> None:
    seen = Seen()
    relay = seen.relay()
    held: list[str] = []
    relay.handlers.holds = lambda: True
    relay.handlers.on_held = lambda: held.append("held")
    relay.from_runtime(NEXT)
    chunked = EVENT.replace(b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n")
    relay.from_rie(chunked)
    assert not held
    relay.from_rie(b"0\r\n\r\n")
    assert held == ["held"]
    assert b"chunked" not in relay.release(b"12345")
