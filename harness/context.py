"""What travels with an event from the caller to the function: ids, the caller's context, the trace. Pure.

On Lambda these reach the runtime as headers of ``/next``, and the function as its context object.
"""

from __future__ import annotations

import secrets
import time
import uuid
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One X-Ray trace header [X-Ray developer guide, "Tracing header"]: ``Root=1-8hex-24hex;Parent=16hex;Sampled=0|1``.

    ``parent_id`` is the id of the segment that the function's own subsegments hang below.
    """

    trace_id: str
    parent_id: str
    sampled: bool

    @classmethod
    def begin(cls, *, sampled: bool) -> Trace:
        """A new trace: the time in seconds as eight hexadecimal digits, and random ids."""
        return cls(
            trace_id=f"1-{int(time.time()):08x}-{secrets.token_hex(12)}", parent_id=new_segment_id(), sampled=sampled
        )

    @property
    def header(self) -> str:
        return f"Root={self.trace_id};Parent={self.parent_id};Sampled={int(self.sampled)}"

    @classmethod
    def parse(cls, header: str) -> Trace | None:
        """The trace that a caller's ``X-Amzn-Trace-Id`` names; None where it names none."""
        found = dict(part.strip().partition("=")[::2] for part in header.split(";"))
        root = found.get("Root", "")
        if not root:
            return None
        return cls(
            trace_id=root, parent_id=found.get("Parent") or new_segment_id(), sampled=found.get("Sampled") == "1"
        )


def new_segment_id() -> str:
    """A segment's id: 16 hexadecimal digits."""
    return secrets.token_hex(8)


@dataclass(frozen=True, kw_only=True)
class RequestContext:
    """Everything about a request but its event.

    ``client_context`` is the JSON text that a caller passed in X-Amz-Client-Context, decoded. ``invoked_arn`` is the ARN
    by which the function was asked for, qualifier included; None: its own. ``trace`` is the caller's; a sandbox begins one
    where there is none.
    """

    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    client_context: str | None = None
    invoked_arn: str | None = None
    trace: Trace | None = None
