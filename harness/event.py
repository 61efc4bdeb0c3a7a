"""Events: from what the user gives (JSON, a file, standard input) to the bytes of a request."""

from __future__ import annotations

import sys
from pathlib import Path

from harness import strict_json
from harness.errors import InvalidEvent

REQUEST_LIMIT_BYTES = 6 * 1024 * 1024
"""Lambda's limit of a synchronous request; the RIE would silently cut a larger one."""

_REMEDY = "give the event as JSON text, as a file that holds JSON, or as - for standard input"


def parse(given: str) -> bytes:
    """The event that the user means by ``given``: JSON text, the name of a file, or ``-``. Raises `InvalidEvent`."""
    if given == "-":
        return _checked(sys.stdin.buffer.read(), "standard input")
    text = given.strip()
    try:
        strict_json.loads(text)
    except ValueError as error:
        if text[:1] in '{["' or not text:
            raise InvalidEvent(f"the event is not valid JSON: {error}: {given[:80]!r}", remedy=_REMEDY) from None
        return read(Path(given))
    return _checked(text.encode(), "the event")


def read(path: Path) -> bytes:
    """The event that a file holds."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InvalidEvent(f"there is no event file {path}, and it is not JSON either", remedy=_REMEDY) from None
    except OSError as error:
        raise InvalidEvent(f"the event file {path} cannot be read: {error.strerror}", remedy=_REMEDY) from error
    return _checked(data, str(path))


def _checked(data: bytes, where: str) -> bytes:
    if len(data) > REQUEST_LIMIT_BYTES:
        raise InvalidEvent(
            f"{where}: the event has {len(data)} bytes; Lambda takes at most {REQUEST_LIMIT_BYTES}",
            remedy="pass large data through storage, as on Lambda",
        )
    try:
        strict_json.loads(data.decode())
    except ValueError as error:
        raise InvalidEvent(f"{where} does not hold valid JSON: {error}", remedy=_REMEDY) from None
    return data
