"""Talking to the Runtime Interface Emulator (RIE) over HTTP, and reading its log stream. Must not know Docker.

The RIE writes its own log to stderr, and START, END and REPORT lines, among the function's output, to stdout. What it
says there of times is used; its REPORT line is not (its Init Duration and Max Memory Used are not Lambda's).
"""

from __future__ import annotations

import base64
import http.client
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

INVOCATION_PATH = "/2015-03-31/functions/function/invocations"
STDOUT, STDERR = 1, 2
_FRAME_HEADER = 8
_LINE_LIMIT = 256 * 1024
_CONNECT_S = 5.0


class Frames:
    """Splits the engine's multiplexed stream: 8 bytes of header (stream, 0, 0, 0, length as a big-endian u32), payload."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        kept = self._kept
        kept += data
        start = 0
        while len(kept) - start >= _FRAME_HEADER:
            length = int.from_bytes(kept[start + 4 : start + 8], "big")
            end = start + _FRAME_HEADER + length
            if len(kept) < end:
                break
            yield kept[start], bytes(kept[start + _FRAME_HEADER : end])
            start = end
        del kept[:start]


class Lines:
    """Splits bytes into lines; a line without an end is cut at 256 KiB so that output cannot fill the memory."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._kept += data
        if len(self._kept) > _LINE_LIMIT and b"\n" not in self._kept:
            found = [bytes(self._kept)]
            self._kept.clear()
            return found
        *lines, rest = bytes(self._kept).split(b"\n")
        self._kept = bytearray(rest)
        return [line + b"\n" for line in lines]

    def flush(self) -> bytes:
        """What stands after the last line end."""
        rest = bytes(self._kept)
        self._kept.clear()
        return rest


class Said(StrEnum):
    """What a line of the RIE's own log says."""

    INIT_START = "init_start"
    INIT_DONE = "init_done"
    INIT_REPORT = "init_report"
    INVOKE_START = "invoke_start"
    INVOKE_DONE = "invoke_done"
    RUNTIME_EXIT = "runtime_exit"


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One line of the RIE's log that matters: ``value`` is a time in ms, ``text`` a phase, status, id or exit reason."""

    said: Said
    text: str = ""
    value: float | None = None


_INIT_START = re.compile(r"INIT START\(type: \S+, phase: (\w+)\)")
_INIT_DONE = re.compile(r"INIT RTDONE\(status: (\w+)")
_INIT_REPORT = re.compile(r"INIT REPORT\(durationMs: ([\d.]+)")
_INVOKE_START = re.compile(r"INVOKE START\(requestId: ([0-9a-f-]{36})\)")
_INVOKE_DONE = re.compile(r"INVOKE RTDONE\(status: (\w+).*?duration: ([\d.]+)ms")
_EXIT = re.compile(r"Process runtime-\S* exited: (.+?)\s*$")


def parse_log(line: str) -> LogLine | None:
    """What a line of the RIE's stderr says, or None for those that do not matter."""
    if (found := _INIT_START.search(line)) is not None:
        return LogLine(said=Said.INIT_START, text=found[1])
    if (found := _INIT_DONE.search(line)) is not None:
        return LogLine(said=Said.INIT_DONE, text=found[1])
    if (found := _INIT_REPORT.search(line)) is not None:
        return LogLine(said=Said.INIT_REPORT, value=float(found[1]))
    if (found := _INVOKE_START.search(line)) is not None:
        return LogLine(said=Said.INVOKE_START, text=found[1])
    if (found := _INVOKE_DONE.search(line)) is not None:
        return LogLine(said=Said.INVOKE_DONE, text=found[1], value=float(found[2]))
    if (found := _EXIT.search(line)) is not None:
        return LogLine(said=Said.RUNTIME_EXIT, text=found[1])
    return None


_START = re.compile(rb"START RequestId: [0-9a-f-]{36} Version: \S+\n")
_END = re.compile(rb"END RequestId: ([0-9a-f-]{36})\n")
_REPORT = re.compile(rb"REPORT RequestId: ([0-9a-f-]{36})\t.*Max Memory Used: \d+ MB\t?\n")


class Output:
    """The function's output during one invocation, told apart from the RIE's START, END and REPORT lines.

    Keeps the last 4 KiB (what Lambda hands out as the log tail). The RIE's END and REPORT lines are a pair with one id
    and come last: a line that merely looks like one of them is the function's own and stays.
    """

    TAIL_BYTES = 4096

    def __init__(self) -> None:
        self._tail = bytearray()
        self._started = False
        self._held: tuple[bytes, bytes] | None = None
        self.ended = False
        self.total_bytes = 0

    def line(self, line: bytes) -> bytes:
        """Take a line of stdout in; returns what of it (and of lines held back before) is the function's output."""
        if not self._started and (start := _START.search(line)) is not None and start.end() == len(line):
            # What stands before it has been printed without a line end since the last invocation.
            self._started = True
            line = line[: start.start()]
            self._keep(line)
            return line
        given = b""
        held, self._held = self._held, None
        if held is not None:
            end_id, end_line = held
            report = _REPORT.fullmatch(line)
            if report is not None and report[1] == end_id:
                self.ended = True
                return b""
            given = end_line
        # The RIE's END may follow output that had no line end.
        found = _END.search(line)
        if found is not None and found.end() == len(line):
            self._held = (found[1], line[found.start() :])
            line = line[: found.start()]
        given += line
        self._keep(given)
        return given

    def rest(self, data: bytes) -> bytes:
        """Output without a line end, at the end of an invocation that has no END line."""
        held, self._held = self._held, None
        given = (held[1] if held else b"") + data
        self._keep(given)
        return given

    def _keep(self, data: bytes) -> None:
        self.total_bytes += len(data)
        self._tail += data
        if len(self._tail) > self.TAIL_BYTES:
            del self._tail[: -self.TAIL_BYTES]

    def kept(self) -> bytes:
        """The bytes of the tail."""
        return bytes(self._tail)

    def resume(self, tail: bytes, *, total_bytes: int, ended: bool) -> None:
        """Be as another one is that has kept this."""
        self._tail = bytearray(tail)
        self.total_bytes, self.ended = total_bytes, ended

    def tail(self) -> str:
        return bytes(self._tail).decode("utf-8", errors="replace")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The RIE's answer to one request."""

    status: int
    body: bytes


class RieGoneError(Exception):
    """The RIE did not answer, or hung up; the sandbox finds out what became of the container."""


class _Connection(http.client.HTTPConnection):
    open_socket: Callable[[tuple[str, int]], socket.socket] | None = None

    def connect(self) -> None:
        if self.open_socket is None:
            super().connect()
            return
        self.sock = self.open_socket((self.host, self.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class RieClient:
    """One connection to one RIE, kept open. One request at a time: a second one in flight kills the RIE.

    `http.client` and not httpx: on this connection a request takes 1 ms less, which is as much as the RIE itself takes.
    """

    def __init__(self, address: str, *, connect: Callable[[tuple[str, int]], socket.socket] | None = None) -> None:
        """``address``: host:port; ``connect`` makes the connection where the address is not this process's to reach."""
        host, _, port = address.rpartition(":")
        self._connection = _Connection(host, int(port), timeout=_CONNECT_S)
        self._connection.open_socket = connect

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return once the RIE listens; raises `RieGoneError`. It begins no init: the path is none of the RIE's."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._exchange("GET", "/", None, {})
                return
            except (http.client.HTTPException, OSError) as error:
                self._connection.close()
                if time.monotonic() >= deadline:
                    raise RieGoneError(f"the RIE does not listen after {timeout_s:.0f} s: {error!r}") from error
                time.sleep(0.003)

    def invoke(self, event: bytes, *, timeout_s: float, client_context: str | None = None) -> Answer:
        """POST an event and return the answer; raises `RieGoneError`. Never asks twice: an event may have been seen."""
        try:
            if self._connection.sock is None:  # the RIE hung up after its last answer
                self._connection.connect()
            self._connection.sock.settimeout(timeout_s)
            headers = {"Content-Type": "application/json"}
            if client_context is not None:
                headers["X-Amz-Client-Context"] = base64.b64encode(client_context.encode()).decode()
            return self._exchange("POST", INVOCATION_PATH, event, headers)
        except (http.client.HTTPException, OSError) as error:
            self._connection.close()
            raise RieGoneError(f"{type(error).__name__}: {error}") from error

    def _exchange(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        self._connection.request(method, path, body=body, headers=headers)
        response = self._connection.getresponse()
        return Answer(status=response.status, body=response.read())

    def close(self) -> None:
        self._connection.close()
