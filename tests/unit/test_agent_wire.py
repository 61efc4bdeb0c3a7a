"""What passes between the harness and its agent arrives as it was sent, however the stream is cut."""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import errors
from harness.agent import wire
from harness.agent.wire import Frame, Frames
from harness.context import RequestContext
from harness.errors import EngineError, HarnessError, InitFailed, LimitError
from harness.invocation import PeakMethod
from harness.rie import RieGoneError
from harness.vantage import Granted, Observation
from harness.watch import Exchange

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
frames = st.builds(Frame, st.dictionaries(st.text(), json_values, max_size=4), st.binary(max_size=300))
counts = st.none() | st.integers(0, 2**63)


def travelled(document: dict[str, Any]) -> dict[str, Any]:
    """What the other side reads."""
    (frame,) = Frames().feed(Frame(document).pack())
    return frame.head


@given(st.lists(frames, max_size=5), st.data())
def test_frames_arrive_whole_and_in_order_wherever_the_stream_is_cut(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(frame.pack() for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    taken = Frames()
    assert [frame for piece in pieces for frame in taken.feed(piece)] == sent


def test_a_frame_that_is_not_whole_yet_is_waited_for() -> None:
    taken, data = Frames(), Frame({"id": 1}, b"body").pack()
    assert list(taken.feed(data[:-1])) == []
    assert list(taken.feed(data[-1:])) == [Frame({"id": 1}, b"body")]


@pytest.mark.parametrize(
    "stream",
    [
        struct.pack("!II", 2, 0x7FFFFFFF) + b"{}",
        struct.pack("!II", 40 << 20, 40 << 20),
        b"Traceback (most recent call last):\n",
        struct.pack("!II", 5, 0) + b"{not}",
        struct.pack("!II", 2, 0) + b"[]",
        struct.pack("!II", 1, 0) + b"\xff",
    ],
    ids=["long body", "long together", "text", "no JSON", "no object", "no text"],
)
def test_what_is_no_frame_of_ours_is_refused_and_not_waited_for(stream: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        list(Frames().feed(stream))


def test_a_message_that_the_other_side_would_refuse_is_not_sent() -> None:
    with pytest.raises(EngineError, match="bytes is more than passes"):
        Frame({}, bytes(64 << 20)).pack()
    assert len(Frame({}, bytes((64 << 20) - 2)).pack()) == (64 << 20) + 8


# -- errors ------------------------------------------------------------------------------------------------------------

OURS = [
    each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, HarnessError)
]  # fmt: skip


@pytest.mark.parametrize("kind", OURS)
def test_an_error_of_the_harness_is_the_same_on_the_other_side(kind: type[HarnessError]) -> None:
    found = wire.raised(travelled(wire.failed(kind("what happened", remedy="what to do"))))
    assert type(found) is kind
    assert isinstance(found, HarnessError)
    assert (str(found), found.remedy) == ("what happened", "what to do")


def test_that_the_rie_is_gone_stays_told_apart() -> None:
    found = wire.raised(wire.failed(RieGoneError("hung up")))
    assert type(found) is RieGoneError
    assert str(found) == "hung up"


@pytest.mark.parametrize("error", [KeyError("x"), PermissionError(13, "denied", "/sys/x"), SystemExit(3)])
def test_any_other_error_there_is_an_engine_error_here_that_names_it(error: BaseException) -> None:
    found = wire.raised(wire.failed(error))
    assert type(found) is EngineError
    assert type(error).__name__ in str(found)
    assert str(error) in str(found)


@pytest.mark.parametrize("name", ["NobodyKnowsThis", "Interrupted", "EXIT_BUG", "annotations", "BaseException", ""])
def test_an_error_of_a_type_that_is_unknown_here_is_an_engine_error(name: str) -> None:
    found = wire.raised({"type": name, "message": "what", "remedy": ""})
    assert type(found) is EngineError
    assert str(found) == "what"


def test_subtypes_keep_their_exit_codes() -> None:
    for kind, code in ((LimitError, 4), (InitFailed, 5)):
        found = wire.raised(wire.failed(kind("x")))
        assert isinstance(found, HarnessError)
        assert found.exit_code == code


# -- records -----------------------------------------------------------------------------------------------------------

observations = st.builds(
    Observation,
    cpu_ms=st.none() | st.floats(0, 1e9),
    throttled_ms=st.none() | st.floats(0, 1e9),
    throttled_periods=counts,
    peak_rss_bytes=counts,
    peak_memory_bytes=counts,
    peak_method=st.none() | st.sampled_from(PeakMethod),
    resident_after_bytes=counts,
    processes=counts,
    oom_kills=counts,
    notes=st.lists(st.text()).map(tuple),
)
grants = st.builds(
    Granted,
    cpu_quota_us=counts,
    cpu_period_us=counts,
    cpuset=st.none() | st.text(),
    memory_limit_bytes=counts,
    cgroup_version=st.none() | st.sampled_from([1, 2]),
    cpu_capped=st.booleans(),
    notes=st.lists(st.text()).map(tuple),
)


@given(observations)
def test_an_observation_is_the_same_on_the_other_side(seen: Observation) -> None:
    assert wire.observation(travelled(wire.plain(seen))) == seen


@given(grants)
def test_granted_limits_are_the_same_on_the_other_side(granted: Granted) -> None:
    assert wire.granted(travelled(wire.plain(granted))) == granted


instants = st.none() | st.integers(0, 2**62)
times = st.none() | st.floats(0, 1e9)
bodies = st.none() | st.binary(max_size=50)
exchanges = st.fixed_dictionaries(
    {
        "request_id": st.text(),
        "inits": st.lists(st.sampled_from(["init", "invoke"]), max_size=3),
        "init_begun_ns": instants,
        "init_done_ns": instants,
        "init_ms": times,
        "suppressed_ms": times,
        "init_error": bodies,
        "init_overrun": st.booleans(),
        "boost_lag_ms": times,
        "event_ns": instants,
        "reply": st.sampled_from(["", "response", "error"]),
        "reply_status": st.integers(0, 599),
        "error_body": bodies,
        "done_ns": instants,
        "rie_duration_ms": times,
        "rie_status": st.text(),
        "exits": st.lists(st.text(), max_size=2),
        "exit_ns": instants,
        "overrun": st.booleans(),
        "killed_ns": instants,
    }
)
INSTANTS = {name for name in Exchange.__annotations__ if name.endswith("_ns")} - {"begun_ns", "answered_ns"}
OWN = {"timeout_s", "init_limit_s", "begun_ns", "context", "ahead", "held", "answered_ns", "output"}
"""What this side knows itself; the rest travels."""


def exchange() -> Exchange:
    return Exchange(timeout_s=3, init_limit_s=10, begun_ns=7, context=RequestContext(request_id="ours"))


@given(exchanges, st.integers(-(2**40), 2**40))
def test_what_was_seen_of_an_invocation_is_the_same_here_by_this_clock(seen: dict[str, Any], ahead_ns: int) -> None:
    there, here = exchange(), exchange()
    for name, value in seen.items():
        setattr(there, name, value)
    wire.take_over(travelled(wire.told_of(there)), here, lambda ns: ns - ahead_ns)
    for name, value in seen.items():
        shifted = value - ahead_ns if name in INSTANTS and value is not None else value
        assert getattr(here, name) == shifted, name
    assert (here.begun_ns, here.context.request_id) == (7, "ours")


def test_every_field_of_an_exchange_travels_or_is_known_to_be_this_side_s_own() -> None:
    fields = {each.name for each in dataclasses.fields(Exchange)}
    there = exchange()
    assert set(wire.told_of(there)) - {"output", "output_bytes", "output_ended"} == fields - OWN


@given(st.binary(max_size=9000), st.booleans())
def test_the_log_s_tail_goes_on_from_where_the_other_side_is(printed: bytes, ended: bool) -> None:
    there, here = exchange(), exchange()
    for line in printed.splitlines(keepends=True):
        there.output.line(line)
    there.output.ended = ended
    wire.take_over(travelled(wire.told_of(there)), here, lambda ns: ns)
    assert here.output.kept() == there.output.kept()
    assert here.output.total_bytes == there.output.total_bytes
    assert here.output.ended is ended
    assert len(here.output.kept()) <= 4096


def test_what_is_said_of_an_exchange_can_be_taken_over_again_and_again() -> None:
    there, here = exchange(), exchange()
    there.output.line(b"one\n")
    there.inits.append("init")
    for _ in range(2):
        wire.take_over(json.loads(json.dumps(wire.told_of(there))), here, lambda ns: ns)
    assert here.inits == ["init"]
    assert (here.output.kept(), here.output.total_bytes) == (b"one\n", 4)
