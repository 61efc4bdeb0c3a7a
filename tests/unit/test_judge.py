"""How an invocation ended, from the evidence: one row a case, and Lambda's own words for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.invocation import Outcome
from harness.judge import RESPONSE_LIMIT_BYTES, Verdict, judge
from harness.rie import Answer
from harness.watch import Exchange

ID = "974c1c1e-b7bf-4c10-8535-ee9880142f93"
ERROR = b'{"errorType": "ValueError", "errorMessage": "boom", "requestId": "x", "stackTrace": []}'
TOO_LARGE = (
    b'{"errorType":"Function.ResponseSizeTooLarge","errorMessage":"Response payload size exceeded maximum allowed '
    b'payload size (6291556 bytes)."}'
)
EXIT = json.dumps(
    {
        "errorType": "Runtime.ExitError",
        "errorMessage": f"RequestId: {ID} Error: Runtime exited with error: exit status 9",
    }
).encode()


def exchange(**seen: Any) -> Exchange:
    return Exchange(**({"timeout_s": 1.0, "init_limit_s": 10.0, "begun_ns": 1} | seen))


def verdict(seen: Exchange, answer: bytes = b"", *, status: int = 502, oom_kills: int | None = 0) -> Verdict:
    return judge(seen, Answer(status=status, body=answer), oom_kills=oom_kills, request_id=ID)


EXITED = "Runtime.ExitError"
CASES = {
    "a response": (
        exchange(event_ns=2, done_ns=3, reply="response", reply_status=202),
        b"[1]",
        0,
        "success",
        None,
        None,
    ),
    "a response that looks like an error is a response": (
        exchange(event_ns=2, done_ns=3, reply="response", reply_status=202),
        ERROR,
        0,
        "success",
        None,
        None,
    ),
    "an exception": (
        exchange(event_ns=2, done_ns=3, reply="error", error_body=ERROR),
        ERROR,
        0,
        "function_error",
        "ValueError",
        "boom",
    ),
    "an error without a type": (
        exchange(event_ns=2, done_ns=3, reply="error", error_body=b"oops"),
        b"oops",
        0,
        "function_error",
        "Unknown",
        "",
    ),
    "a timeout": (
        exchange(event_ns=2, overrun=True, killed_ns=3, exits=["signal: killed"]),
        b"",
        0,
        "timeout",
        "Sandbox.Timedout",
        f"RequestId: {ID} Error: Task timed out after 1.00 seconds",
    ),
    "a timeout near the memory limit is a timeout": (
        exchange(event_ns=2, overrun=True, killed_ns=3, exits=["signal: killed"]),
        b"",
        1,
        "timeout",
        "Sandbox.Timedout",
        None,
    ),
    "an init that took all of the function's time": (
        exchange(inits=["init", "invoke"], overrun=True, timeout_s=3.0),
        b"",
        0,
        "init_timeout",
        "Sandbox.Timedout",
        f"RequestId: {ID} Error: Task timed out after 3.00 seconds",
    ),
    "an out-of-memory kill": (
        exchange(event_ns=2, exits=["signal: killed"]),
        b"",
        1,
        "out_of_memory",
        EXITED,
        f"RequestId: {ID} Error: Runtime exited with error: signal: killed",
    ),
    "an out-of-memory kill during init": (exchange(exits=["signal: killed"]), b"", 2, "out_of_memory", EXITED, None),
    "a kill that nobody can tell from a crash": (
        exchange(event_ns=2, exits=["signal: killed"]),
        b"",
        None,
        "runtime_exit",
        EXITED,
        f"RequestId: {ID} Error: Runtime exited with error: signal: killed",
    ),
    "a crash": (
        exchange(event_ns=2, exits=["exit status 3"]),
        b"",
        0,
        "runtime_exit",
        EXITED,
        f"RequestId: {ID} Error: Runtime exited with error: exit status 3",
    ),
    "an exit with status 0": (
        exchange(event_ns=2, exits=["exit status 0"]),
        b"",
        0,
        "runtime_exit",
        EXITED,
        f"RequestId: {ID} Error: Runtime exited without providing a reason",
    ),
    "an exit that only the RIE's answer tells": (
        exchange(event_ns=2),
        EXIT,
        0,
        "runtime_exit",
        EXITED,
        f"RequestId: {ID} Error: Runtime exited with error: exit status 9",
    ),
    "an exit that nobody tells": (
        exchange(event_ns=2),
        b"",
        0,
        "runtime_exit",
        EXITED,
        f"RequestId: {ID} Error: Runtime exited without providing a reason",
    ),
    "an init error that the runtime posted": (
        exchange(
            init_error=b'{"errorType": "Runtime.ImportModuleError", "errorMessage": "no module"}',
            exits=["exit status 1"],
        ),
        EXIT,
        0,
        "init_error",
        "Runtime.ImportModuleError",
        "no module",
    ),
    "an init error in the RIE's answer": (
        exchange(exits=["exit status 1"]),
        b'{"errorType": "Runtime.HandlerNotFound", "errorMessage": "no handler"}',
        0,
        "init_error",
        "Runtime.HandlerNotFound",
        "no handler",
    ),
    "an init that exits without a word": (
        exchange(exits=["exit status 127"]),
        b"",
        0,
        "init_error",
        EXITED,
        f"RequestId: {ID} Error: Runtime exited with error: exit status 127",
    ),
    "a response that was refused": (
        exchange(event_ns=2, reply="response", reply_status=413, exits=["exit status 1"]),
        TOO_LARGE,
        0,
        "response_too_large",
        "Function.ResponseSizeTooLarge",
        f"Response payload size exceeded maximum allowed payload size ({RESPONSE_LIMIT_BYTES} bytes).",
    ),
    "a response that was refused and whose runtime reported that": (
        exchange(event_ns=2, done_ns=3, reply="error", error_body=TOO_LARGE),
        TOO_LARGE,
        0,
        "response_too_large",
        "Function.ResponseSizeTooLarge",
        None,
    ),
    # Without the relay (vantage api) there are the log and the RIE's answer alone.
    "unseen: a response": (
        exchange(event_ns=2, done_ns=3, rie_status="success"),
        b'{"a": 1}',
        None,
        "success",
        None,
        None,
    ),
    "unseen: an exception in Python": (
        exchange(event_ns=2, done_ns=3, rie_status="success"),
        f'{{"errorType": "ValueError", "errorMessage": "boom", "requestId": "{ID}", "stackTrace": []}}'.encode(),
        None,
        "function_error",
        "ValueError",
        "boom",
    ),
    "unseen: an exception in Node": (
        exchange(event_ns=2, done_ns=3, rie_status="success"),
        b'{"errorType": "TypeError", "errorMessage": "bad", "trace": ["TypeError: bad"]}',
        None,
        "function_error",
        "TypeError",
        "bad",
    ),
    "unseen: a response that mentions an error": (
        exchange(event_ns=2, done_ns=3, rie_status="success"),
        b'{"errorType": "mine", "errorMessage": "from my database"}',
        None,
        "success",
        None,
        None,
    ),
    "unseen: the RIE calls it an error": (
        exchange(event_ns=2, done_ns=3, rie_status="error"),
        b'{"errorType": "E", "errorMessage": "m"}',
        None,
        "function_error",
        "E",
        "m",
    ),
    "unseen: a response that was refused": (
        exchange(event_ns=2, exits=["exit status 1"]),
        TOO_LARGE,
        None,
        "response_too_large",
        "Function.ResponseSizeTooLarge",
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_outcome_follows_from_the_evidence(case: str) -> None:
    seen, answer, oom_kills, outcome, kind, message = CASES[case]
    found = verdict(seen, answer, status=200 if seen.done_ns is not None else 502, oom_kills=oom_kills)
    assert found.outcome == outcome
    assert found.error_type == kind
    if message is not None:
        assert found.error_message == message
    if found.outcome is Outcome.SUCCESS:
        assert found.payload == answer
    elif found.outcome is Outcome.FUNCTION_ERROR:
        assert found.payload == answer, "an error of the function is handed on as it is"
    else:
        assert json.loads(found.payload) == {"errorType": found.error_type, "errorMessage": found.error_message}


def test_lambda_s_payload_of_an_out_of_memory_kill_is_that_of_a_crash() -> None:
    killed = verdict(exchange(event_ns=2, exits=["signal: killed"]), oom_kills=1)
    crashed = verdict(exchange(event_ns=2, exits=["signal: killed"]), oom_kills=0)
    assert killed.payload == crashed.payload
    assert killed.outcome is not crashed.outcome


def test_a_child_that_was_killed_while_the_runtime_lived_is_a_note_on_a_success() -> None:
    found = verdict(exchange(event_ns=2, done_ns=3, reply="response"), b"1", status=200, oom_kills=2)
    assert found.outcome is Outcome.SUCCESS
    assert found.notes == ("2 process(es) of the function were killed for lack of memory; its runtime survived",)


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        (exchange(event_ns=2, overrun=True), f"RequestId: {ID} Error: Task timed out after 1.00 seconds"),
        (
            exchange(event_ns=2, exits=["exit status 3"]),
            f"RequestId: {ID} Error: Runtime exited with error: exit status 3\nRuntime.ExitError",
        ),
        (exchange(event_ns=2, done_ns=3, reply="response"), ""),
    ],
)
def test_lambda_s_own_line_goes_into_the_log(seen: Exchange, line: str) -> None:
    assert verdict(seen, b"1").log_line == line


def test_an_error_whose_runtime_then_exits_is_still_the_function_s() -> None:
    found = verdict(exchange(event_ns=2, reply="error", error_body=ERROR, exits=["exit status 1"]), EXIT, status=502)
    assert found.outcome is Outcome.FUNCTION_ERROR
    assert found.payload == ERROR
