"""The Runtime API between the RIE and the runtime: a relay that corrects what the RIE gets wrong, and keeps the time.

The RIE counts a function's timeout from the moment a request arrives, init included; hands out a deadline that is too
early by as much; fixes the account and region of the ARN; and passes no trace id on. Lambda does none of this. So the
runtime's calls go through this relay: it rewrites those headers, and it sees the two instants that matter exactly, with
nothing of the function running meanwhile: the first ``/next`` (init is over: time to apply the tier's quota) and the
hand-over of an event (the invocation, and its timeout, begin).

Bytes are relayed as they are, apart from the head of the answers to ``/next``. This module does no input or output: it is
fed bytes and returns bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

_NEXT = re.compile(rb"GET /[\d-]+/runtime/invocation/next[ ?]")
_POST = re.compile(rb"POST /[\d-]+/runtime/(?:invocation/[^/ ]+/(response|error)|init/(error))[ ?]")
_REQUEST_ID = b"lambda-runtime-aws-request-id"
_STATUS_LINE = len("HTTP/1.1 200")
_HEAD_LIMIT = 64 * 1024
_KEPT_BODY = 256 * 1024


@dataclass(kw_only=True)
class Handlers:
    """What the relay calls, in its own thread, while the runtime waits."""

    on_next: Callable[[], None]
    """The runtime asks for work: init is over, or the last invocation is."""
    on_event: Callable[[str], dict[bytes, bytes]]
    """An event with this request id is handed to the runtime now; returns headers to set, by names in lower case."""
    on_reply: Callable[[str, int, bytes], None]
    """The runtime posted ``response``, ``error`` or ``init_error``, and got this HTTP status; the body up to 256 KiB."""


@dataclass(kw_only=True)
class Relay:
    """One connection of the runtime. Requests are never pipelined, so a change of direction starts a new one."""

    handlers: Handlers
    _answering: bool = True
    _asks_next: bool = False
    _replying: str = ""
    _request: bytearray = field(default_factory=bytearray)
    _head: bytearray = field(default_factory=bytearray)
    _head_open: bool = False
    _status: bytearray = field(default_factory=bytearray)

    def from_runtime(self, data: bytes) -> bytes:
        """Bytes of the runtime on their way to the RIE."""
        if self._answering:
            self._answering = False
            self._request.clear()
            self._asks_next = False
            self._replying = ""
        if len(self._request) < _KEPT_BODY:
            before = bool(self._request)
            self._request += data[: _KEPT_BODY - len(self._request)]
            if not before or not (self._asks_next or self._replying):
                self._recognise()
        return data

    def _recognise(self) -> None:
        if _NEXT.match(self._request):
            self._asks_next = True
            self._head.clear()
            self._head_open = True
            self.handlers.on_next()
        elif (found := _POST.match(self._request)) is not None:
            self._replying = "init_error" if found[2] else found[1].decode()

    def from_rie(self, data: bytes) -> bytes:
        """Bytes of the RIE on their way to the runtime; b"" while the head of an event is incomplete."""
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
        self._head_open = False
        return self._hand_over(head) + separator + rest

    def _hand_over(self, head: bytes) -> bytes:
        status, *lines = head.split(b"\r\n")
        named = [(line.partition(b":")[0].strip().lower(), line) for line in lines]
        request_id = next(
            (line.partition(b":")[2].strip().decode("latin-1") for name, line in named if name == _REQUEST_ID), ""
        )
        if not request_id:
            return head  # an error of the RIE, not an event
        new = self.handlers.on_event(request_id)
        kept = [line for name, line in named if name not in new]
        return b"\r\n".join([status, *kept, *(name + b": " + value for name, value in new.items())])
