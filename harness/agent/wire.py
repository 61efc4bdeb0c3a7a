"""Frames between the harness and its agent, and the records that travel in them as JSON.

A frame is two lengths (big-endian u32), a JSON document, and raw bytes. The harness sends calls: ``{"id", "seat", "do",
"with"}``; the agent answers each: ``{"id", "now", "found"}`` or ``{"id", "now", "failed"}``, and tells what happens
meanwhile: ``{"seat", "tell", "with"}``. What belongs to forwarded sockets is told both ways, in the same form; from the agent
under a name of its own (`sockets_of`). Instants are the agent's ``time.monotonic_ns``. Does no input or output.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from harness import errors
from harness.invocation import PeakMethod
from harness.memory_watch import Killed, MemoryPoint, MemorySeen
from harness.rie import RieGoneError
from harness.vantage import Granted, Observation
from harness.watch import Exchange

_LENGTHS = struct.Struct("!II")
_LIMIT_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Frame:
    """One message: a JSON document and the bytes that belong to it."""

    head: dict[str, Any]
    body: bytes = b""

    def pack(self) -> bytes:
        """Its bytes; `EngineError` where they are more than the other side takes."""
        head = json.dumps(self.head, separators=(",", ":")).encode()
        if len(head) + len(self.body) > _LIMIT_BYTES:
            raise errors.EngineError(
                f"a message of {len(head) + len(self.body)} bytes is more than passes between harness and agent"
            )
        return _LENGTHS.pack(len(head), len(self.body)) + head + self.body


@dataclass
class Frames:
    """Splits a stream of bytes into frames; `ValueError` for what is none."""

    _kept: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> Iterator[Frame]:
        kept = self._kept
        kept += data
        while len(kept) >= _LENGTHS.size:
            head, body = _LENGTHS.unpack_from(kept)
            if head + body > _LIMIT_BYTES:
                raise ValueError(f"a frame of {head + body} bytes: the stream is not the agent's")
            end = _LENGTHS.size + head + body
            if len(kept) < end:
                return
            start = _LENGTHS.size + head
            found, rest = json.loads(kept[_LENGTHS.size : start]), bytes(kept[start:end])
            if not isinstance(found, dict):
                raise ValueError("a frame without a head: the stream is not the agent's")  # noqa: TRY004  # as of any other
            del kept[:end]
            yield Frame(found, rest)


def sockets_of(seat: str) -> str:
    """Under what the agent tells of a seat's forwarded sockets: they have a listener of their own."""
    return f"{seat}/sockets"


# -- errors ------------------------------------------------------------------------------------------------------------


def failed(error: BaseException) -> dict[str, str]:
    """What is told of an error; anything but the harness's own is a bug of the agent's, or the kernel's word."""
    if isinstance(error, errors.HarnessError):
        return {"type": type(error).__name__, "message": str(error), "remedy": error.remedy}
    if isinstance(error, RieGoneError):
        return {"type": "RieGoneError", "message": str(error), "remedy": ""}
    return {"type": "EngineError", "message": f"in the agent: {type(error).__name__}: {error}", "remedy": ""}


def raised(told: dict[str, str]) -> Exception:
    """The error that `failed` told of."""
    if told["type"] == "RieGoneError":
        return RieGoneError(told["message"])
    kind = getattr(errors, told["type"], errors.EngineError)
    if not (isinstance(kind, type) and issubclass(kind, errors.HarnessError)):
        kind = errors.EngineError
    return kind(told["message"], remedy=told["remedy"])


# -- records -----------------------------------------------------------------------------------------------------------


def observation(told: dict[str, Any]) -> Observation:
    method = told["peak_method"]
    return Observation(
        **told | {"notes": tuple(told["notes"]), "peak_method": None if method is None else PeakMethod(method)}
    )


def granted(told: dict[str, Any]) -> Granted:
    return Granted(**told | {"notes": tuple(told["notes"])})


_INSTANTS = ("init_begun_ns", "init_done_ns", "event_ns", "done_ns", "exit_ns", "killed_ns")
_BYTES = ("init_error", "error_body")
_PLAIN = (
    "request_id",
    "inits",
    "init_ms",
    "suppressed_ms",
    "init_overrun",
    "boost_lag_ms",
    "reply",
    "reply_status",
    "rie_duration_ms",
    "rie_status",
    "exits",
    "overrun",
)


def told_of(exchange: Exchange) -> dict[str, Any]:
    """What the agent's watch has seen of an invocation so far."""
    found: dict[str, Any] = {name: getattr(exchange, name) for name in (*_PLAIN, *_INSTANTS)}
    for name in _BYTES:
        value = getattr(exchange, name)
        found[name] = None if value is None else base64.b64encode(value).decode()
    found["output"] = base64.b64encode(exchange.output.kept()).decode()
    found["output_bytes"] = exchange.output.total_bytes
    found["output_ended"] = exchange.output.ended
    return found


def take_over(told: dict[str, Any], exchange: Exchange, here_ns: Callable[[int], int]) -> None:
    """Write into an exchange what `told_of` says; ``here_ns`` makes an instant of the agent's one of this process."""
    for name in _PLAIN:
        setattr(exchange, name, told[name])
    for name in _INSTANTS:
        setattr(exchange, name, None if told[name] is None else here_ns(told[name]))
    for name in _BYTES:
        setattr(exchange, name, None if told[name] is None else base64.b64decode(told[name]))
    exchange.output.resume(
        base64.b64decode(told["output"]), total_bytes=told["output_bytes"], ended=told["output_ended"]
    )


_POINT = tuple(each.name for each in dataclasses.fields(MemoryPoint))


def told_of_memory(seen: MemorySeen) -> dict[str, Any]:
    """A point travels as the list of its values: there may be tens of thousands."""
    return {
        "points": [[getattr(point, name) for name in _POINT] for point in seen.points],
        "oom_kills": seen.oom_kills,
        "killed_at_ms": seen.killed_at_ms,
        "killed": [dataclasses.asdict(each) for each in seen.killed],
        "ended_by": seen.ended_by,
    }


def memory_seen(told: dict[str, Any]) -> MemorySeen:
    points = tuple(MemoryPoint(**dict(zip(_POINT, each, strict=True))) for each in told["points"])
    return MemorySeen(**told | {"points": points, "killed": tuple(Killed(**each) for each in told["killed"])})


def plain(record: Observation | Granted) -> dict[str, Any]:
    return dataclasses.asdict(record)
