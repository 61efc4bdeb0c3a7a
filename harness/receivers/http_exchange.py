"""One HTTP request and its answer as values, between the sockets of `loop` and the protocols of AWS. Pure."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Request:
    """``headers`` by names in lower case; ``body`` as it came, perhaps compressed."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def header(self, name: str) -> str:
        return self.headers.get(name, "")


@dataclass(frozen=True, kw_only=True)
class Reply:
    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class BodyRefused(Exception):
    """A body that is too large, or not compressed as its header says; ``status`` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def new_request_id() -> str:
    """As AWS's services answer with: a random UUID."""
    return str(uuid.uuid4())


def plain_body(request: Request, *, most_bytes: int) -> bytes:
    """The body, decompressed where it was compressed with gzip; never more than ``most_bytes`` of it are made."""
    encoding = request.header("content-encoding").strip().lower()
    if encoding in ("", "identity"):
        if len(request.body) > most_bytes:
            raise BodyRefused(413, f"the body has {len(request.body)} bytes, {most_bytes} are allowed")
        return request.body
    if encoding != "gzip":
        raise BodyRefused(415, f"content encoding {encoding[:40]!r} is not understood; AWS's SDKs use gzip")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(request.body, most_bytes + 1)
    except zlib.error as error:
        raise BodyRefused(400, f"the body is no gzip data: {error}") from error
    if len(plain) > most_bytes:
        raise BodyRefused(413, f"the body has more than {most_bytes} bytes once it is decompressed")
    if not unpacker.eof:
        raise BodyRefused(400, "the gzip data of the body end too early")
    return plain
