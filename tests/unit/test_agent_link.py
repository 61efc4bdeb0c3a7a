"""The harness's side of the agent, over a stream whose other end these tests play."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from harness.agent import link as module
from harness.agent import wire
from harness.agent.link import Link, Listener
from harness.agent.wire import Frame, Frames
from harness.errors import EngineError, Interrupted, LimitError

BOOT = "3f0c6e9e-boot"


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.001)


class Pipe:
    """A stream whose calls are taken from `calls`, and whose answers are whatever is said."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self.words = ""
        self.closed = False
        self.silent = False
        self.trouble: BaseException | None = None
        self.ahead_ns = 0
        self._said: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        self._frames = Frames()

    # -- the stream -----------------------------------------------------------------------------------------------------

    def read(self) -> bytes:
        found = self._said.get()
        if isinstance(found, Exception):
            raise found
        return found

    def write(self, data: bytes) -> None:
        if self.trouble is not None:
            raise self.trouble
        for frame in self._frames.feed(data):
            self.calls.put(frame)

    def close(self) -> None:
        self.closed = True
        self.say(b"")

    def last_words(self) -> str:
        return self.words

    def on_silence(self) -> None:
        self.silent = True

    # -- the agent ------------------------------------------------------------------------------------------------------

    def say(self, data: bytes | Exception) -> None:
        self._said.put(data)

    def now_ns(self) -> int:
        return time.monotonic_ns() + self.ahead_ns

    def answer(self, call: Frame, found: Any = None, body: bytes = b"", *, now_ns: int | None = None) -> None:
        now = self.now_ns() if now_ns is None else now_ns
        self.say(Frame({"id": call.head["id"], "now": now, "found": found}, body).pack())

    def fail(self, call: Frame, error: BaseException) -> None:
        self.say(Frame({"id": call.head["id"], "now": self.now_ns(), "failed": wire.failed(error)}).pack())

    def tell(self, seat: str, what: str, about: dict[str, Any] | None = None, body: bytes = b"") -> None:
        self.say(Frame({"seat": seat, "tell": what, "with": about or {}}, body).pack())

    def call(self) -> Frame:
        return self.calls.get(timeout=10)


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
def link(pipe: Pipe) -> Iterator[Link]:
    found = opened(pipe)
    yield found
    found.close()


def opened(pipe: Pipe, *, boot_id: str | None = BOOT, theirs: str | None = BOOT) -> Link:
    """A link whose agent has answered the hello, and as many questions for the time as were asked."""
    found = Link(pipe, on_silence=pipe.on_silence)
    opening: Future[None]
    with ThreadPoolExecutor(1) as threads:
        opening = threads.submit(found.open, boot_id=boot_id, patience_s=10)
        while not opening.done():
            try:
                call = pipe.calls.get(timeout=0.01)
            except queue.Empty:
                continue
            answers = {"hello": {"boot_id": theirs, "hz": 250}, "now": pipe.now_ns()}
            pipe.answer(call, answers[call.head["do"]])
    opening.result()
    return found


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as found:
        yield found


# -- calls and answers ---------------------------------------------------------------------------------------------------


def test_a_call_names_its_sandbox_and_carries_its_bytes(link: Link, pipe: Pipe, threads: ThreadPoolExecutor) -> None:
    answer = threads.submit(link.call, "request", seat="s1", body=b"event", timeout_s=3)
    call = pipe.call()
    assert {name: call.head[name] for name in ("seat", "do", "with")} == {
        "seat": "s1",
        "do": "request",
        "with": {"timeout_s": 3},
    }
    assert call.body == b"event"
    pipe.answer(call, {"status": 200}, b"response")
    assert answer.result(10) == ({"status": 200}, b"response")


def test_answers_may_come_in_any_order(link: Link, pipe: Pipe, threads: ThreadPoolExecutor) -> None:
    for order in itertools.permutations(range(3)):
        asked = [threads.submit(link.call, f"call-{number}") for number in range(3)]
        calls = {call.head["do"]: call for call in (pipe.call() for _ in asked)}
        for number in order:
            pipe.answer(calls[f"call-{number}"], number)
        assert [each.result(10)[0] for each in asked] == [0, 1, 2]


def test_an_error_of_the_agent_is_raised_where_it_was_asked(
    link: Link, pipe: Pipe, threads: ThreadPoolExecutor
) -> None:
    wrong, right = threads.submit(link.call, "prepare"), threads.submit(link.call, "freeze")
    calls = {call.head["do"]: call for call in (pipe.call(), pipe.call())}
    pipe.fail(calls["prepare"], LimitError("the quota is another", remedy="look"))
    pipe.answer(calls["freeze"])
    with pytest.raises(LimitError, match="the quota is another") as caught:
        wrong.result(10)
    assert caught.value.remedy == "look"
    assert right.result(10) == (None, b"")


def test_a_late_answer_is_ignored(link: Link, pipe: Pipe, threads: ThreadPoolExecutor) -> None:
    asked = threads.submit(link.call, "freeze", patience_s=0.01)
    late = pipe.call()
    pipe.answer(pipe.call())  # of the question whether anybody is there at all
    with pytest.raises(EngineError, match=r"the agent has not answered 'freeze' within 0\.01 s"):
        asked.result(10)
    pipe.answer(late, "late")
    pipe.answer(late, "twice")
    pipe.say(Frame({"id": 987654, "now": 0, "found": "of nobody"}).pack())
    for _ in range(20):
        answer = threads.submit(link.call, "thaw")
        once = Frame({"id": pipe.call().head["id"], "now": pipe.now_ns(), "found": "in time"}).pack()
        pipe.say(once * 2)
        assert answer.result(10)[0] == "in time"


# -- the end -----------------------------------------------------------------------------------------------------------


def test_an_agent_that_answers_nothing_any_more_is_over_for_every_call(
    link: Link, pipe: Pipe, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PING_S", 0.01)
    waiting = threads.submit(link.call, "request", patience_s=100)
    pipe.call()
    with pytest.raises(EngineError, match=r"the agent has not answered 'freeze' within 0\.01 s") as caught:
        link.call("freeze", patience_s=0.01)
    assert "paused" in str(caught.value)
    assert "does not answer any more" in str(waiting.exception(10))
    assert link.over
    assert pipe.silent
    with pytest.raises(EngineError, match="does not answer any more"):
        link.call("thaw")


def test_an_agent_that_dies_fails_every_call_with_what_it_said_last(
    link: Link, pipe: Pipe, threads: ThreadPoolExecutor
) -> None:
    asked = [threads.submit(link.call, "request", seat=f"s{number}", patience_s=100) for number in range(5)]
    for _ in asked:
        pipe.call()
    pipe.words = "MemoryError"
    pipe.say(b"")
    errors = [each.exception(10) for each in asked]
    assert all(type(error) is EngineError for error in errors)
    assert {str(error) for error in errors} == {"the agent is gone: it ended (it said: MemoryError)"}
    assert len({id(error) for error in errors}) == 5, "one exception in many threads collects all their tracebacks"
    assert all(isinstance(error, EngineError) and error.remedy for error in errors)


def test_an_agent_that_is_gone_is_said_at_once(link: Link, pipe: Pipe) -> None:
    assert not link.over
    pipe.say(b"")
    until(lambda: link.over, "the link to end")
    with pytest.raises(EngineError, match="the agent is gone"):
        link.call("freeze", patience_s=100)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"Traceback (most recent call last)", "the stream is not the agent's"),
        (ConnectionResetError(104, "reset by peer"), "reset by peer"),
        (Frame({"id": 2, "found": None}).pack(), "KeyError: 'now'"),
        (Frame({"tell": "output"}).pack(), "KeyError: 'seat'"),
    ],
    ids=["text", "reset", "an answer without its time", "told of nobody"],
)
def test_what_no_agent_of_ours_says_ends_the_link_and_hangs_nobody(
    link: Link, pipe: Pipe, threads: ThreadPoolExecutor, said: bytes | Exception, reason: str
) -> None:
    first = threads.submit(link.call, "freeze", patience_s=100)
    number = pipe.call().head["id"]
    if isinstance(said, bytes) and said.endswith(b"null}"):
        said = Frame({"id": number, "found": None}).pack()
    pipe.say(said)
    with pytest.raises(EngineError, match="the agent is gone") as caught:
        first.result(10)
    assert reason in str(caught.value)


def test_a_call_that_could_not_be_sent_is_an_engine_error(link: Link, pipe: Pipe) -> None:
    pipe.trouble = BrokenPipeError(32, "Broken pipe")
    with pytest.raises(EngineError, match=r"the agent is gone: .*Broken pipe"):
        link.call("freeze")
    assert link.over


def test_a_call_interrupted_while_it_was_sent_is_the_last_one(link: Link, pipe: Pipe) -> None:
    pipe.trouble = Interrupted(2)
    with pytest.raises(Interrupted):
        link.call("request", body=bytes(6 << 20))
    pipe.trouble = None  # what followed would be taken for the rest of that event
    with pytest.raises(EngineError, match="the agent is gone"):
        link.call("release", patience_s=100)
    assert pipe.calls.empty()


def test_a_message_that_is_too_large_is_refused_and_the_link_goes_on(
    link: Link, pipe: Pipe, threads: ThreadPoolExecutor
) -> None:
    with pytest.raises(EngineError, match="is more than passes"):
        link.call("request", body=bytes(65 << 20))
    answer = threads.submit(link.call, "thaw")
    pipe.answer(pipe.call(), "here")
    assert answer.result(10)[0] == "here"


def test_closing_ends_the_stream_and_its_thread(pipe: Pipe) -> None:
    link = opened(pipe)
    link.close()
    assert pipe.closed
    assert not [each for each in threading.enumerate() if each.name == "agent-link" and each.is_alive()]


# -- what is told --------------------------------------------------------------------------------------------------------


def test_what_is_told_of_a_sandbox_arrives_in_order_and_at_its_listener_alone(link: Link, pipe: Pipe) -> None:
    told: dict[str, list[tuple[str, dict[str, Any], bytes]]] = {"s1": [], "s2": []}
    listeners = [link.listen(name, lambda *what, name=name: told[name].append(what)) for name in told]
    for number in range(200):
        pipe.tell("s1" if number % 2 else "s2", "output", {"number": number}, b"x" * number)
        pipe.tell("s3", "output")
    until(lambda: len(told["s1"]) == len(told["s2"]) == 100, "everything to be told")
    for listener in listeners:
        listener.drain(10)
    assert told["s1"] == [("output", {"number": number}, b"x" * number) for number in range(1, 200, 2)]
    link.forget("s1")
    pipe.tell("s1", "output")
    pipe.tell("s2", "last")
    until(lambda: told["s2"][-1][0] == "last", "the last one")
    assert len(told["s1"]) == 100
    link.forget("s2")
    link.forget("s2")


def test_what_is_told_to_the_agent_arrives_in_order_and_waits_for_no_answer(link: Link, pipe: Pipe) -> None:
    for number in range(100):
        link.tell("data", seat="s1", body=b"x" * number, channel=number)
    for number in range(100):
        frame = pipe.call()
        assert frame == Frame({"seat": "s1", "tell": "data", "with": {"channel": number}}, b"x" * number)


def test_an_agent_that_is_gone_is_told_nothing_more(link: Link, pipe: Pipe) -> None:
    pipe.trouble = BrokenPipeError(32, "Broken pipe")
    for _ in range(2):
        with pytest.raises(EngineError, match="the agent is gone"):
            link.tell("data", seat="s1")
    assert link.over


def test_whoever_is_attached_is_told_at_once_and_closed_when_it_is_forgotten(link: Link, pipe: Pipe) -> None:
    heard: list[object] = []

    class Ear:
        def put(self, *what: object) -> None:
            heard.append(what)

        def close(self) -> None:
            heard.append("closed")

    link.attach("s1/sockets", Ear())
    told = link.listen("s1", lambda *what: None)
    pipe.tell("s1/sockets", "open", {"channel": 0})
    pipe.tell("s1", "output")
    until(lambda: heard, "it to be told")
    assert heard == [("open", {"channel": 0}, b"")]
    link.forget("s1/sockets")
    pipe.tell("s1/sockets", "open")
    told.drain(10)
    assert heard[1:] == ["closed"]
    link.forget("s1")


def test_one_who_listens_slowly_keeps_no_call_waiting(link: Link, pipe: Pipe, threads: ThreadPoolExecutor) -> None:
    go_on = threading.Event()

    def told(*_: object) -> None:
        go_on.wait(10)

    listener = link.listen("s1", told)
    for _ in range(3):
        pipe.tell("s1", "output")
    answer = threads.submit(link.call, "freeze")
    pipe.answer(pipe.call(), "frozen")
    assert answer.result(10)[0] == "frozen"
    assert listener.behind >= 1
    go_on.set()
    listener.drain(10)
    assert listener.behind == 0
    link.forget("s1")


def test_draining_waits_for_what_had_arrived_before() -> None:
    heard: list[str] = []
    go_on = threading.Event()

    def told(what: str, *_: object) -> None:
        go_on.wait(10)
        heard.append(what)

    listener = Listener("s1", told)
    for number in range(5):
        listener.put(str(number), {}, b"")
    listener.drain(0.001)
    assert heard == []
    go_on.set()
    listener.drain(10)
    assert heard == list("01234")
    listener.close()
    listener.drain(10)  # nobody is there any more: at once


# -- clocks ------------------------------------------------------------------------------------------------------------

DAY_NS = 86_400 * 10**9


def test_on_one_kernel_there_is_one_clock(pipe: Pipe) -> None:
    link = opened(pipe)
    assert link.here_ns(123) == 123
    link.close()


@pytest.mark.parametrize(
    ("ours", "theirs"), [(BOOT, "another"), (None, None), (None, BOOT)], ids=["another", "unknown", "only theirs"]
)
@pytest.mark.parametrize("ahead_ns", [5 * DAY_NS, -5 * DAY_NS])
def test_an_instant_of_another_kernel_is_told_by_this_clock(
    pipe: Pipe, ours: str | None, theirs: str | None, ahead_ns: int
) -> None:
    pipe.ahead_ns = ahead_ns
    before = time.monotonic_ns()
    link = opened(pipe, boot_id=ours, theirs=theirs)
    there = pipe.now_ns()
    took = time.monotonic_ns() - before
    assert abs(link.here_ns(there) - (there - ahead_ns)) <= took
    assert link.here_ns(there + 1000) - link.here_ns(there) == 1000, "differences are exact"
    link.close()


@pytest.mark.parametrize(("slept_ns", "stood_ns"), [(3600 * 10**9, 0), (-3600 * 10**9, 3600 * 10**9)])
def test_a_clock_that_stood_still_while_the_other_went_on_is_noticed_by_the_next_answer(
    pipe: Pipe, threads: ThreadPoolExecutor, slept_ns: int, stood_ns: int
) -> None:
    link = opened(pipe, theirs="another")
    pipe.ahead_ns += slept_ns
    before = time.monotonic_ns()
    answer = threads.submit(link.call, "expect")
    pipe.answer(pipe.call())
    answer.result(10)
    took = time.monotonic_ns() - before
    there = pipe.now_ns()
    assert abs(link.here_ns(there) - (there - pipe.ahead_ns)) <= took
    assert abs(link.stood_still_ns - stood_ns) <= 10**9, "the agent's clock stood, or this one's"
    link.close()


def test_an_answer_that_took_long_says_nothing_of_the_clock(pipe: Pipe, threads: ThreadPoolExecutor) -> None:
    link = opened(pipe, theirs="another")
    known = link.here_ns(0)
    answer = threads.submit(link.call, "request")
    call = pipe.call()
    then = pipe.now_ns()  # it was made at once, and came late
    until(lambda: pipe.now_ns() > then + 5_000_000, "some time to pass")
    pipe.answer(call, now_ns=then + 1_000_000)
    answer.result(10)
    assert link.here_ns(0) == known
    # One that was asked before the machine stood still, and answered after: the next one tells.
    answer = threads.submit(link.call, "request")
    call = pipe.call()
    pipe.ahead_ns -= 60 * 10**9
    pipe.answer(call)
    answer.result(10)
    answer = threads.submit(link.call, "observe")
    pipe.answer(pipe.call())
    answer.result(10)
    assert abs(link.stood_still_ns - 60 * 10**9) <= 10**9
    link.close()


def test_the_ping_that_was_answered_quickest_counts(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(pipe)
    here = iter([0, 1000, 2000, 2010, 3000, 5000])
    there = iter([(500 + 7000), (2005 + 9000), (4900 + 9000)])
    monkeypatch.setattr(module, "_PINGS", 3)
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(here))

    def call(do: str, **_: object) -> tuple[Any, bytes]:
        return ({"boot_id": "another"} if do == "hello" else next(there)), b""

    monkeypatch.setattr(link, "call", call)
    monkeypatch.setattr(link, "_thread", threading.Thread(target=lambda: None))
    link.open(boot_id=BOOT, patience_s=1)
    assert link.here_ns(9000) == 0
