"""The segments that Lambda itself sends of an invocation, made from its record. Pure.

AWS::Lambda is the service: from the request until the answer. AWS::Lambda::Function is the execution environment; its id is
the ``Parent`` of the header that the runtime gets, so that what the SDKs send inside the function hangs below it. Its own
subsegments are Initialization and Invocation. Lambda's third one, Overhead (from the response until the runtime is ready
again), is not made: the record does not part that time from Duration, and nothing here is invented.

Lengths are measured, and so are the beginning of the request, the hand-over of the event and the answer. Initialization is
laid before the hand-over, as the one follows the other on Lambda. Where the hand-over was not seen, Invocation is laid
before the answer.
"""

from __future__ import annotations

import datetime
from typing import Any

from harness.context import Trace, new_segment_id
from harness.invocation import Invocation, Outcome, PhaseInit

_NOT_THE_FUNCTION = (Outcome.THROTTLED, Outcome.ENGINE_ERROR)


def segments(record: Invocation, trace: Trace, *, caller_id: str | None = None) -> tuple[dict[str, Any], ...]:
    """The documents of an invocation, none where the trace is not sampled. ``caller_id``: the segment that asked."""
    if not trace.sampled:
        return ()
    begun = datetime.datetime.fromisoformat(record.started_at).timestamp()
    ended = None if record.client_ms is None else begun + record.client_ms / 1000
    service_id = new_segment_id()
    service: dict[str, Any] = {
        "id": service_id,
        "name": record.function,
        "trace_id": trace.trace_id,
        "start_time": begun,
        **_end(ended),
        "origin": "AWS::Lambda",
        "aws": {"request_id": record.request_id, "resource_names": [record.function]},
        **_service_flags(record),
    }
    if caller_id is not None:
        service["parent_id"] = caller_id
    if record.outcome in _NOT_THE_FUNCTION:
        return (service,)
    return (service, _function(record, trace, service_id, begun, ended))


def _function(record: Invocation, trace: Trace, service_id: str, begun: float, ended: float | None) -> dict[str, Any]:
    duration_s = None if record.duration_ms is None else record.duration_ms / 1000
    if record.invoked_at is not None:
        invoked: float | None = datetime.datetime.fromisoformat(record.invoked_at).timestamp()
    else:
        invoked = None if ended is None or duration_s is None else ended - duration_s
    parts = []
    if record.init_ms is not None and record.phase_init is PhaseInit.INIT:
        init_end = invoked if invoked is not None else begun + record.init_ms / 1000
        parts.append(_part("Initialization", init_end - record.init_ms / 1000, init_end))
    if invoked is not None:
        parts.append(_part("Invocation", invoked, ended) | _failure(record))
    return {
        "id": trace.parent_id,
        "name": record.function,
        "trace_id": trace.trace_id,
        "parent_id": service_id,
        "start_time": begun if invoked is None else invoked,
        **_end(ended),
        "origin": "AWS::Lambda::Function",
        "aws": {"request_id": record.request_id, "resource_names": [record.function]},
        "metadata": {"lambda-harness": _facts(record)},
        **_failure(record),
        "subsegments": parts,
    }


def _part(name: str, start: float, end: float | None) -> dict[str, Any]:
    return {"id": new_segment_id(), "name": name, "start_time": start, **_end(end)}


def _end(ended: float | None) -> dict[str, Any]:
    """Of a segment whose end nobody measured X-Ray says that it goes on."""
    return {"in_progress": True} if ended is None else {"end_time": ended}


def _service_flags(record: Invocation) -> dict[str, Any]:
    """``error`` is what X-Ray calls a failure of the caller's, ``fault`` one of the server's own."""
    if record.outcome is Outcome.THROTTLED:
        return {"error": True, "throttle": True, "http": {"response": {"status": 429}}}
    if record.outcome is Outcome.ENGINE_ERROR:
        return {"fault": True, "http": {"response": {"status": 500}}, **_cause(record)}
    return {} if record.outcome is Outcome.SUCCESS else {"error": True}


def _failure(record: Invocation) -> dict[str, Any]:
    return {} if record.outcome is Outcome.SUCCESS else {"fault": True, **_cause(record)}


def _cause(record: Invocation) -> dict[str, Any]:
    if record.error_type is None and record.error_message is None:
        return {}
    exception = {"id": new_segment_id(), "type": record.error_type or "", "message": record.error_message or ""}
    return {"cause": {"exceptions": [exception]}}


def _facts(record: Invocation) -> dict[str, Any]:
    return {
        "outcome": record.outcome.value,
        "sandbox_id": record.sandbox_id,
        "cold": record.cold,
        "memory_mb": record.memory_mb,
        "duration_ms": record.duration_ms,
        "billed_ms": record.billed_ms,
        "init_ms": record.init_ms,
        "max_memory_used_mb": record.max_memory_used_mb,
    }
