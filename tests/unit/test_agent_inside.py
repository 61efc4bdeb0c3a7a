"""The agent's own process: calls in, answers and news out, and an end that leaves every sandbox removable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import cgroup, kernel
from harness.agent import inside
from harness.agent.inside import Agent
from harness.agent.wire import Frame, Frames
from harness.errors import LimitError
from harness.vantage.agent import _lay_out


class Seat:
    """One sandbox's, that only writes down what it was asked."""

    made: list[Seat]

    def __init__(self, outlet: Any, name: str, **given: Any) -> None:
        self.outlet, self.name, self.given = outlet, name, given
        self.released = 0
        self.sockets_ended = False
        self.heard: list[tuple[str, dict[str, Any], bytes]] = []
        self.heard_by: set[str] = set()
        self.go_on = threading.Event()
        self.made.append(self)

    def call(self, do: str, given: dict[str, Any], body: bytes) -> tuple[Any, bytes]:
        found: tuple[Any, bytes] = getattr(self, f"do_{do}")(body, **given)
        return found

    def hear(self, *what: Any) -> None:
        self.heard.append(what)
        self.heard_by.add(threading.current_thread().name)

    def do_echo(self, body: bytes, **given: Any) -> tuple[Any, bytes]:
        return given, body

    def do_wait(self, _: bytes) -> tuple[Any, bytes]:
        assert self.go_on.wait(10)
        return "waited", b""

    def do_go_on(self, _: bytes) -> tuple[Any, bytes]:
        self.go_on.set()
        return None, b""

    def do_refuse(self, _: bytes) -> tuple[Any, bytes]:
        raise LimitError("not this quota", remedy="look")

    def do_break(self, _: bytes) -> tuple[Any, bytes]:
        raise PermissionError(13, "denied")

    def do_exit(self, _: bytes) -> tuple[Any, bytes]:
        raise SystemExit(3)

    def do_strange(self, _: bytes) -> tuple[Any, bytes]:
        return object(), b""

    def do_large(self, _: bytes) -> tuple[Any, bytes]:
        return None, bytes(65 << 20)

    def do_print(self, _: bytes, *, lines: int) -> tuple[Any, bytes]:
        for number in range(lines):
            self.outlet.output(self.name, f"id{number // 1000}", b"%d\n" % number)
        return None, b""

    def end_sockets(self) -> None:
        self.sockets_ended = True

    def do_close(self, _: bytes) -> tuple[Any, bytes]:
        return "closed", b""

    def do_release(self, _: bytes) -> tuple[Any, bytes]:
        self.released += 1
        if self.given.get("stubborn"):
            raise OSError(16, "busy")
        return None, b""


class Line:
    """An agent at work in a thread, at the other end of two pipes."""

    def __init__(self) -> None:
        self._ours, theirs = os.pipe()[::-1]
        back, self._back = os.pipe()
        self._read_end, self._frames = back, Frames()
        self._number = 0
        self._taken: list[Frame] = []
        self.agent = Agent(lambda: os.read(theirs, 65536), self._say)
        self._thread = threading.Thread(target=self._serve, args=(theirs,))
        self.failure: BaseException | None = None
        self._thread.start()

    def _serve(self, theirs: int) -> None:
        try:
            self.agent.serve()
        except ValueError as error:
            self.failure = error
        finally:
            os.close(theirs)

    def _say(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._back, view) :]

    def raw(self, data: bytes) -> None:
        os.write(self._ours, data)

    def send(self, do: str, seat: str | None = None, body: bytes = b"", **given: Any) -> int:
        self._number += 1
        self.raw(Frame({"id": self._number, "seat": seat, "do": do, "with": given}, body).pack())
        return self._number

    def frame(self, is_it: Callable[[dict[str, Any]], bool]) -> Frame:
        """The first that is, of those that have come and will come."""
        while True:
            for frame in self._taken:
                if is_it(frame.head):
                    self._taken.remove(frame)
                    return frame
            self._taken += self._frames.feed(os.read(self._read_end, 65536))

    def ask(self, do: str, seat: str | None = None, body: bytes = b"", **given: Any) -> Frame:
        number = self.send(do, seat, body, **given)
        return self.frame(lambda head: head.get("id") == number)

    def end(self) -> None:
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1
        self._thread.join(10)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self.end()
        os.close(self._back)
        os.close(self._read_end)


@pytest.fixture
def seats(monkeypatch: pytest.MonkeyPatch) -> list[Seat]:
    monkeypatch.setattr(Seat, "made", [], raising=False)
    monkeypatch.setattr(inside, "_Seat", Seat)
    return Seat.made


@pytest.fixture
def line(seats: list[Seat]) -> Iterator[Line]:  # before the agent
    found = Line()
    yield found
    found.close()


def test_a_call_is_of_one_sandbox_and_its_answer_carries_its_number(line: Line, seats: list[Seat]) -> None:
    for name in ("s1", "s2"):
        assert line.ask("sit", name, pid=7, port=8080, tmp_mb=512).head["found"] is None
    assert [seat.name for seat in seats] == ["s1", "s2"]
    assert seats[0].given == {"pid": 7, "port": 8080, "tmp_mb": 512}
    answer = line.ask("echo", "s2", b"body", x=1)
    assert (answer.head["found"], answer.body) == ({"x": 1}, b"body")
    assert isinstance(answer.head["now"], int)


def test_what_the_agent_is_told_reaches_the_sandbox_in_order_before_the_call_that_follows(
    line: Line, seats: list[Seat]
) -> None:
    line.ask("sit", "s1")
    for number in range(200):
        line.raw(Frame({"seat": "s1", "tell": "data", "with": {"channel": number}}, b"x").pack())
        line.raw(Frame({"seat": "s9", "tell": "data", "with": {}}).pack())
    assert line.ask("echo", "s1").head["found"] == {}
    assert seats[0].heard == [("data", {"channel": number}, b"x") for number in range(200)]
    (by,) = seats[0].heard_by
    assert not by.startswith("call"), "calls run in many threads, in any order"


def test_calls_wait_for_no_other_call(line: Line) -> None:
    line.ask("sit", "s1")
    waiting = line.send("wait", "s1")
    assert line.ask("echo", "s1", b"meanwhile").body == b"meanwhile"
    line.ask("go_on", "s1")
    assert line.frame(lambda head: head.get("id") == waiting).head["found"] == "waited"


@pytest.mark.parametrize(
    ("do", "seat", "said"),
    [
        ("fly", "s1", "do_fly"),
        ("fly", None, "do_fly"),
        ("_do", None, "do__do"),
        ("echo", "s9", "the agent knows no sandbox s9"),
        ("break", "s1", "in the agent: PermissionError: [Errno 13] denied"),
        ("exit", "s1", "in the agent: SystemExit: 3"),
        ("strange", "s1", "TypeError"),
        ("large", "s1", "bytes is more than passes"),
    ],
)
def test_a_call_that_cannot_be_answered_is_answered_with_the_reason(
    line: Line, do: str, seat: str | None, said: str
) -> None:
    line.ask("sit", "s1")
    failed = line.ask(do, seat).head["failed"]
    assert failed["type"] == "EngineError"
    assert said in failed["message"]
    assert line.ask("echo", "s1", x=1).head["found"] == {"x": 1}, "the agent goes on"


def test_an_error_of_the_harness_keeps_its_type(line: Line) -> None:
    line.ask("sit", "s1")
    assert line.ask("refuse", "s1").head["failed"] == {
        "type": "LimitError",
        "message": "not this quota",
        "remedy": "look",
    }


def test_wrong_arguments_are_told_too(line: Line) -> None:
    line.ask("sit", "s1")
    assert "TypeError" in line.ask("wait", "s1", nonsense=1).head["failed"]["message"]
    assert "TypeError" in line.ask("let_go").head["failed"]["message"]


def test_a_seat_that_was_closed_is_known_no_more(line: Line, seats: list[Seat]) -> None:
    line.ask("sit", "s1")
    assert line.ask("close", "s1").head["found"] == "closed"
    assert "knows no sandbox" in line.ask("echo", "s1").head["failed"]["message"]
    line.end()
    assert seats[0].released == 0


def test_the_end_of_its_input_releases_every_sandbox_though_one_refuses(line: Line, seats: list[Seat]) -> None:
    for name, stubborn in (("s1", False), ("s2", True), ("s3", False)):
        line.ask("sit", name, stubborn=stubborn)
    line.end()
    assert [seat.released for seat in seats] == [1, 1, 1]
    assert all(seat.sockets_ended for seat in seats)


def test_an_input_that_is_none_of_ours_releases_every_sandbox_too(line: Line, seats: list[Seat]) -> None:
    line.ask("sit", "s1")
    line.raw(b"GET / HTTP/1.1\r\n\r\n")
    line.end()
    assert "the stream is not the agent's" in str(line.failure)
    assert seats[0].released == 1


def test_half_a_call_at_the_end_of_the_input_is_no_call(line: Line, seats: list[Seat]) -> None:
    line.ask("sit", "s1")
    line.raw(Frame({"id": 99, "seat": "s1", "do": "release", "with": {}}).pack()[:-3])
    line.end()
    assert seats[0].released == 1


def test_output_arrives_piece_by_piece_in_order_and_before_the_answer_that_follows(line: Line) -> None:
    line.ask("sit", "s1")
    number = line.send("print", "s1", lines=3500)
    pieces: list[tuple[str, bytes]] = []
    while True:
        frame = line.frame(lambda _: True)
        if frame.head.get("id") == number:
            break
        assert (frame.head["tell"], frame.head["seat"]) == ("output", "s1")
        start = 0
        for size in frame.head["with"]["sizes"]:
            pieces.append((frame.head["with"]["request_id"], frame.body[start : start + size]))
            start += size
        assert start == len(frame.body)
    assert pieces == [(f"id{at // 1000}", b"%d\n" % at) for at in range(3500)]


def located(folder: Path) -> Callable[[int], cgroup.Location]:
    (folder / "cgroup.procs").write_text("")
    return lambda _: cgroup.Location(version=2, directories={"": str(folder)})


def test_hello_says_what_this_kernel_is(line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cgroup, "locate", located(tmp_path))
    found = line.ask("hello").head["found"]
    assert found["boot_id"] == kernel.boot_id()
    assert found["cpus"] == sorted(os.sched_getaffinity(0))


def test_an_agent_that_cannot_see_cgroups_says_so_at_once(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise LimitError("no cgroups are mounted")

    monkeypatch.setattr(cgroup, "locate", refuse)
    assert line.ask("hello").head["failed"]["message"] == "no cgroups are mounted"


def test_an_agent_that_may_not_write_cgroups_says_so_at_once(
    line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cgroup, "locate", located(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert "may not write cgroups" in line.ask("hello").head["failed"]["message"]


# -- what travels --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("laid-out")
    _lay_out(folder)
    return folder


BARE = """
import sys
sys.path.insert(0, sys.argv[1])
import harness.agent.inside
named = {name.partition(".")[0] for name in sys.modules} - {"__main__", "harness"}
print(sorted(name for name in named if name not in sys.stdlib_module_names))
print(sorted(module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "harness"))
"""


def test_what_travels_needs_the_standard_library_alone_and_nothing_that_stays(laid_out: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", BARE, str(laid_out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    foreign, ours = done.stdout.splitlines()
    assert foreign == "[]"
    assert all(str(laid_out) in each for each in json.loads(ours.replace("'", '"')))


def test_what_travels_looks_the_same_every_time(laid_out: Path, tmp_path: Path) -> None:
    def looks(folder: Path) -> list[tuple[str, int, float, bytes]]:
        files = sorted(each for each in folder.rglob("*") if each.is_file())
        return [
            (str(each.relative_to(folder)), each.stat().st_mode, each.stat().st_mtime, each.read_bytes())
            for each in files
        ]

    _lay_out(tmp_path)
    assert looks(tmp_path) == looks(laid_out)


AGENT = [sys.executable, "-I", "-S", "-B", "-c", BARE.split("named", maxsplit=1)[0] + "\nharness.agent.inside.main()"]


@pytest.fixture
def process(laid_out: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [*AGENT, str(laid_out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as found:
        yield found
        found.kill()


def ask(process: subprocess.Popen[bytes], do: str) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(Frame({"id": 1, "seat": None, "do": do, "with": {}}).pack())
    process.stdin.flush()
    taken = Frames()
    while True:
        data = os.read(process.stdout.fileno(), 65536)
        assert data, process.stderr.read() if process.stderr else ""
        for frame in taken.feed(data):
            return frame.head


def test_the_process_answers_and_ends_with_its_input(process: subprocess.Popen[bytes]) -> None:
    assert isinstance(ask(process, "now")["found"], int)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, b"", b"")


def test_a_signal_ends_the_process_in_order_and_a_second_one_changes_nothing(process: subprocess.Popen[bytes]) -> None:
    ask(process, "now")
    process.terminate()
    process.terminate()
    assert process.wait(30) == 0
