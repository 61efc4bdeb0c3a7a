"""The Runtime API between the RIE and the runtime: a relay that corrects what the RIE gets wrong, and keeps the time.

The RIE counts a function's timeout from the moment a request arrives, init included; hands out a deadline that is too
early by as much; fixes the account and region of the ARN; and passes no trace id on. Lambda does none of this. So the
runtime's calls go through this relay: it rewrites those headers, and it sees the two instants that matter exactly, with
nothing of the function running meanwhile: the first ``/next`` (init is over: time to apply the tier's quota) and the
hand-over of an event (the invocation, and its timeout, begin).

The request id is put in here too (the RIE makes up its own), as are the trace id and the caller's context. And since the
RIE begins an init only when a request arrives, an init ahead of all requests (provisioned concurrency) is made by a
placeholder that the relay keeps back, until the first event takes its place.

Bytes are relayed as they are, apart from the head of the answers to ``/next`` and the id in the runtime's posts. This module
does no input or output: it is fed bytes and returns bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

_NEXT = re.compile(rb"GET /[\d-]+/runtime/invocation/next[ ?]")
_POST = re.compile(rb"POST /[\d-]+/runtime/(?:invocation/([^/ ]+)/(response|error)|init/(error))[ ?]")
_REQUEST_ID = b"lambda-runtime-aws-request-id"
_LENGTH = b"content-length"
_ENCODING = b"transfer-encoding"
_STATUS_LINE = len("HTTP/1.1 200")
_HEAD_LIMIT = 64 * 1024
_KEPT_BODY = 256 * 1024
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass(kw_only=True)
class Handlers:
    """What the relay calls, in its own thread, while the runtime waits."""

    on_next: Callable[[], None]
    """The runtime asks for work: init is over, or the last invocation is."""
    on_event: Callable[[str], dict[bytes, bytes]]
    """An event with this request id is handed to the runtime now; returns headers to set, by names in lower case."""
    on_reply: Callable[[str, int, bytes], None]
    """The runtime posted ``response``, ``error`` or ``init_error``, and got this HTTP status; the body up to 256 KiB."""
    rie_id: Callable[[str], str] = str
    """The id by which the RIE knows the invocation that the runtime names by this one."""
    holds: Callable[[], bool] = bool
    """Whether the event that the RIE hands out now is a placeholder, to be kept back until `Relay.release`."""
    on_held: Callable[[], None] = lambda: None
    """A placeholder has been kept back: the runtime waits for its first event."""


@dataclass(kw_only=True)
class Relay:
    """One connection of the runtime. Requests are never pipelined, so a change of direction starts a new one."""

    handlers: Handlers
    _answering: bool = True
    _asks_next: bool = False
    _replying: str = ""
    _request: bytearray = field(default_factory=bytearray)
    _line_open: bool = False
    _head: bytearray = field(default_factory=bytearray)
    _head_open: bool = False
    _holding: bool = False
    _held: bytes = b""
    _status: bytearray = field(default_factory=bytearray)

    # -- runtime -> RIE ---------------------------------------------------------------------------------------------

    def from_runtime(self, data: bytes) -> bytes:
        """Bytes of the runtime on their way to the RIE; b"" while the request line is incomplete."""
        if self._answering:
            self._answering = False
            self._request.clear()
            self._line_open = True
            self._asks_next = False
            self._replying = ""
        if not self._line_open:
            self._keep(data)
            return data
        self._request += data
        if self._is_incomplete():
            return b""
        self._line_open = False
        return self._recognise()

    def _is_incomplete(self) -> bool:
        """Whether the request line is not whole yet; what cannot become one of HTTP's is none of ours, and passes."""
        begun = bytes(self._request[: len(b"POST /")])
        ours = any(line.startswith(begun) or begun.startswith(line) for line in (b"GET /", b"POST /"))
        return ours and b"\r\n" not in self._request and len(self._request) <= _HEAD_LIMIT

    def _keep(self, data: bytes) -> None:
        if len(self._request) < _KEPT_BODY:
            self._request += data[: _KEPT_BODY - len(self._request)]

    def _recognise(self) -> bytes:
        """What the request is; returns its bytes so far, with the invocation's id as the RIE knows it."""
        request = bytes(self._request)
        del self._request[_KEPT_BODY:]
        if _NEXT.match(request):
            self._asks_next = True
            self._head.clear()
            self._head_open = True
            self.handlers.on_next()
        elif (found := _POST.match(request)) is not None:
            self._replying = "init_error" if found[3] else found[2].decode()
            if found[1]:
                rie_id = self.handlers.rie_id(found[1].decode("latin-1")).encode("latin-1")
                return request[: found.start(1)] + rie_id + request[found.end(1) :]
        return request

    # -- RIE -> runtime ---------------------------------------------------------------------------------------------

    def from_rie(self, data: bytes) -> bytes:
        """Bytes of the RIE on their way to the runtime; b"" while the head of an event is incomplete, or it is held."""
        if not self._answering:
            self._answering = True
            self._status.clear()
        if self._replying:
            self._status += data[:_STATUS_LINE]
            if len(self._status) >= _STATUS_LINE:
                _, _, body = bytes(self._request).partition(b"\r\n\r\n")
                status = self._status[9:12]
                self.handlers.on_reply(self._replying, int(status) if status.isdigit() else 0, body)
                self._replying = ""
        if not (self._asks_next and self._head_open):
            return data
        self._head += data
        head, separator, rest = bytes(self._head).partition(b"\r\n\r\n")
        if not separator:
            if len(self._head) <= _HEAD_LIMIT:
                return b""
            self._head_open = False
            return bytes(self._head)
        if self._holding or (_is_event(head) and self.handlers.holds()):
            self._hold(head, rest)
            return b""
        self._head_open = False
        return self._hand_over(head) + separator + rest

    def _hold(self, head: bytes, body: bytes) -> None:
        """Keep a placeholder's head; its body is dropped, all of it, as another event will stand in its place."""
        self._holding = True
        length = _header(head, _LENGTH)
        whole = body.endswith(_LAST_CHUNK) if length is None else len(body) >= int(length)
        if whole and not self._held:
            self._held = head
            self.handlers.on_held()

    def release(self, event: bytes) -> bytes:
        """The bytes that hand this event to the runtime, in place of the placeholder that is held."""
        head, self._held = self._held, b""
        self._holding = self._head_open = False
        self._head.clear()
        new = self._hand_over(head, {_LENGTH: str(len(event)).encode()}, without=_ENCODING)
        return new + b"\r\n\r\n" + event

    def _hand_over(self, head: bytes, more: dict[bytes, bytes] | None = None, without: bytes = b"") -> bytes:
        if not _is_event(head):
            return head  # an error of the RIE
        status, *lines = head.split(b"\r\n")
        new = self.handlers.on_event((_header(head, _REQUEST_ID) or b"").decode("latin-1")) | (more or {})
        kept = [line for line in lines if (name := _name(line)) not in new and name != without]
        return b"\r\n".join([status, *kept, *(name + b": " + value for name, value in new.items())])


def _name(line: bytes) -> bytes:
    return line.partition(b":")[0].strip().lower()


def _header(head: bytes, name: bytes) -> bytes | None:
    return next((line.partition(b":")[2].strip() for line in head.split(b"\r\n")[1:] if _name(line) == name), None)


def _is_event(head: bytes) -> bool:
    return bool(_header(head, _REQUEST_ID))
