"""How an invocation ended, from the evidence: what the runtime posted, how it exited, the kernel's out-of-memory counter.

Pure. The RIE's HTTP status alone does not tell these cases apart; its bodies are not Lambda's in all of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from harness import strict_json
from harness.invocation import Outcome
from harness.rie import Answer
from harness.watch import Exchange

RESPONSE_LIMIT_BYTES = 6_291_556
"""Lambda's limit of a synchronous response: 6 MiB and 100 bytes."""

_STACK_TRACES = ("stackTrace", "trace")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """An outcome with Lambda's error type and message, and the payload that Lambda would return."""

    outcome: Outcome
    payload: bytes
    error_type: str | None = None
    error_message: str | None = None
    log_line: str = ""
    notes: tuple[str, ...] = ()


def judge(exchange: Exchange, answer: Answer, *, oom_kills: int | None, request_id: str) -> Verdict:
    """The verdict on a finished exchange. ``oom_kills``: processes killed meanwhile; None where nobody can tell."""
    if exchange.overrun:
        return _timeout(exchange, request_id)
    if exchange.reply == "response" and exchange.reply_status == 413:
        return _too_large()
    if exchange.reply == "error":
        # What the relay kept of a body is cut, and may be chunked; the RIE hands out the whole, unless the runtime exited.
        return _function_error(answer.body if answer.status == 200 else exchange.error_body or answer.body)
    if not exchange.reply:
        # Nobody saw what the runtime posted. Of a refused response the RIE's answer tells; of an error only its shape.
        if answer.status != 200 and _read_error(answer.body)[0] == "Function.ResponseSizeTooLarge":
            return _function_error(answer.body)
        if exchange.done_ns is not None and (exchange.rie_status == "error" or _is_error(answer.body, request_id)):
            return _function_error(answer.body)
    if exchange.done_ns is not None and exchange.reply in ("response", ""):
        notes: tuple[str, ...] = ()
        if oom_kills:
            notes = (f"{oom_kills} process(es) of the function were killed for lack of memory; its runtime survived",)
        return Verdict(outcome=Outcome.SUCCESS, payload=answer.body, notes=notes)
    if oom_kills:
        return _exit(Outcome.OUT_OF_MEMORY, "signal: killed", request_id)
    if exchange.event_ns is None:
        return _init_error(exchange, answer, request_id)
    return _exit(Outcome.RUNTIME_EXIT, _exit_reason(exchange, answer), request_id)


def _error(outcome: Outcome, error_type: str, message: str, *, log_line: str = "") -> Verdict:
    payload = json.dumps({"errorType": error_type, "errorMessage": message}).encode()
    return Verdict(outcome=outcome, payload=payload, error_type=error_type, error_message=message, log_line=log_line)


def _timeout(exchange: Exchange, request_id: str) -> Verdict:
    outcome = Outcome.TIMEOUT if exchange.event_ns is not None else Outcome.INIT_TIMEOUT
    message = f"RequestId: {request_id} Error: Task timed out after {exchange.timeout_s:.2f} seconds"
    return _error(outcome, "Sandbox.Timedout", message, log_line=message)


def _too_large() -> Verdict:
    message = f"Response payload size exceeded maximum allowed payload size ({RESPONSE_LIMIT_BYTES} bytes)."
    return _error(Outcome.RESPONSE_TOO_LARGE, "Function.ResponseSizeTooLarge", message)


def _function_error(body: bytes) -> Verdict:
    kind, message = _read_error(body)
    if kind == "Function.ResponseSizeTooLarge":
        return Verdict(outcome=Outcome.RESPONSE_TOO_LARGE, payload=body, error_type=kind, error_message=message)
    return Verdict(
        outcome=Outcome.FUNCTION_ERROR, payload=body, error_type=kind or "Unknown", error_message=message or ""
    )


def _init_error(exchange: Exchange, answer: Answer, request_id: str) -> Verdict:
    kind, message = _read_error(exchange.init_error or b"")
    body = exchange.init_error
    if kind is None:
        kind, message = _read_error(answer.body)
        body = answer.body
    if kind is None or body is None:
        return _exit(Outcome.INIT_ERROR, _exit_reason(exchange, answer), request_id)
    return Verdict(outcome=Outcome.INIT_ERROR, payload=body, error_type=kind, error_message=message)


def _exit_reason(exchange: Exchange, answer: Answer) -> str:
    if exchange.exits:
        return exchange.exits[-1]
    _, message = _read_error(answer.body)
    _, separator, reason = (message or "").partition("Runtime exited with error: ")
    return reason if separator else ""


def _exit(outcome: Outcome, reason: str, request_id: str) -> Verdict:
    """A runtime that went away. Lambda's payload is the same for a crash and for an out-of-memory kill."""
    if reason and reason != "exit status 0":
        message = f"RequestId: {request_id} Error: Runtime exited with error: {reason}"
    else:
        message = f"RequestId: {request_id} Error: Runtime exited without providing a reason"
    return _error(outcome, "Runtime.ExitError", message, log_line=f"{message}\nRuntime.ExitError")


def _is_error(body: bytes, request_id: str) -> bool:
    """Whether a body is what AWS's runtimes post as an error: with this request's id (Python) or a stack trace."""
    kind, message = _read_error(body)
    if kind is None or message is None:
        return False
    found = json.loads(body)
    return found.get("requestId") == request_id or any(isinstance(found.get(name), list) for name in _STACK_TRACES)


def _read_error(body: bytes) -> tuple[str | None, str | None]:
    """The errorType and errorMessage of an error body, None where it has none."""
    try:
        found = strict_json.loads(body)
    except ValueError:
        return None, None
    if not isinstance(found, dict) or "errorType" not in found:
        return None, None
    message = found.get("errorMessage")
    return str(found["errorType"]), None if message is None else str(message)
