"""Handlers with a callback: Lambda takes them up to Node.js 22, and refuses them from Node.js 24 on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import scaled

from harness.errors import InitFailed
from harness.function import load
from harness.function.model import Overrides
from harness.invocation import Invocation, Outcome
from harness.sandbox import Sandbox
from harness.stand import Stand

HANDLER = """
const state = { late: [], waits: [] };
exports.handler = (event, context, callback) => {
  state.waits.push(context.callbackWaitsForEmptyEventLoop);
  if ("waits" in event) context.callbackWaitsForEmptyEventLoop = event.waits;
  if (event.late) setTimeout(() => state.late.push(event.late), 50);
  switch (event.do) {
    case "state": return callback(null, state);
    case "error": return setImmediate(() => callback(new RangeError("too far")));
    case "word": return callback("no error object");
    case "throw": throw new TypeError("thrown");
    case "twice": callback(null, "first"); return callback(null, "second");
    case "promise": return Promise.resolve("of a promise");
    case "value": return "of a return";
    case "succeed": return context.succeed("succeeded");
    case "fail": return context.fail(new Error("failed"));
    case "done": return context.done(null, "done");
    case "uncaught": return setImmediate(() => { throw new Error("nobody catches"); });
    case "context": return callback(null, {
      id: context.awsRequestId, arn: context.invokedFunctionArn, trace: process.env._X_AMZN_TRACE_ID });
  }
};
"""


def stand_of(folder: Path, code: str, *, runtime: str = "nodejs22.x", file: str = "app.js") -> Stand:
    (folder / file).write_text(code)
    function = load(str(folder), Overrides(runtime=runtime, handler="app.handler", memory_mb=512, timeout_s=scaled(5)))
    return Stand(function, pull=False)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand_of(tmp_path_factory.mktemp("callbacks"), HANDLER) as found:
        yield found


@pytest.fixture(scope="module")
def shared(stand: Stand) -> Iterator[Sandbox]:
    """A sandbox for handlers that leave nothing behind."""
    with stand.sandbox() as found:
        yield found


@pytest.fixture
def sandbox(stand: Stand) -> Iterator[Sandbox]:
    with stand.sandbox() as found:
        yield found


def invoke(sandbox: Sandbox, **event: Any) -> Invocation:
    return sandbox.invoke(json.dumps(event).encode())


def answer(sandbox: Sandbox, **event: Any) -> Any:
    record = invoke(sandbox, **event)
    assert record.outcome is Outcome.SUCCESS, record.error_message
    return record.response


# A response is put into JSON when it is sent: what the state holds by then tells what ran before that.


def test_the_response_waits_until_the_event_loop_is_empty(sandbox: Sandbox) -> None:
    assert answer(sandbox, do="state", late="a") == {"late": ["a"], "waits": [True]}
    assert answer(sandbox, do="state", late="b") == {"late": ["a", "b"], "waits": [True, True]}


def test_without_waiting_the_response_goes_at_once_and_the_rest_runs_after_the_thaw(sandbox: Sandbox) -> None:
    first = invoke(sandbox, do="state", late="a", waits=False)
    assert (first.outcome, first.response["late"]) == (Outcome.SUCCESS, [])
    second = invoke(sandbox, do="state")
    assert second.frozen_ms is not None, "it was frozen in between"
    assert second.response == {"late": ["a"], "waits": [True, True]}, "and each invocation waits by default"


@pytest.mark.parametrize(
    ("do", "response"),
    [
        ("twice", "first"),
        ("promise", "of a promise"),
        ("value", None),  # a handler without a callback's call and without a promise answers null
        ("nothing", None),
        ("succeed", "succeeded"),
        ("done", "done"),
    ],
)
def test_other_ways_to_answer(shared: Sandbox, do: str, response: str | None) -> None:
    assert answer(shared, do=do) == response


@pytest.mark.parametrize(
    ("do", "error_type", "message"),
    [
        ("error", "RangeError", "too far"),
        ("throw", "TypeError", "thrown"),
        ("fail", "Error", "failed"),
    ],
)
def test_an_error_given_to_the_callback_is_a_function_error_with_its_stack_trace(
    shared: Sandbox, do: str, error_type: str, message: str
) -> None:
    record = invoke(shared, do=do)
    assert (record.outcome, record.error_type, record.error_message) == (Outcome.FUNCTION_ERROR, error_type, message)
    trace = record.response["trace"]
    assert trace[0] == f"{error_type}: {message}"
    assert "(/var/task/app.js:" in trace[1]
    assert f'ERROR\tInvoke Error \t{{"errorType":"{error_type}"' in record.log_tail


def test_an_error_that_is_no_error_object_has_its_type_s_name_and_no_trace(shared: Sandbox) -> None:
    record = invoke(shared, do="word")
    assert record.outcome is Outcome.FUNCTION_ERROR
    assert record.response == {"errorType": "string", "errorMessage": "no error object", "trace": []}


def test_an_error_that_nobody_catches_ends_the_runtime_and_the_next_request_starts_it_again(sandbox: Sandbox) -> None:
    record = invoke(sandbox, do="uncaught")
    assert (record.error_type, record.error_message) == ("Error", "nobody catches")
    again = invoke(sandbox, do="state")
    assert again.response == {"late": [], "waits": [True]}, "its globals are lost"


def test_the_callers_context_reaches_a_handler_with_a_callback(shared: Sandbox) -> None:
    record = invoke(shared, do="context")
    assert record.response["id"] == record.request_id
    assert record.response["arn"].startswith("arn:aws:lambda:")
    assert re.match(r"Root=1-[0-9a-f]{8}-", record.response["trace"])


def test_an_es_module_may_have_a_callback_too(tmp_path: Path) -> None:
    code = "export const handler = (event, context, callback) => callback(null, 'esm');"
    with stand_of(tmp_path, code, file="app.mjs") as stand, stand.sandbox() as sandbox:
        assert answer(sandbox) == "esm"


def test_an_async_handler_does_not_wait_for_the_event_loop(tmp_path: Path) -> None:
    code = "let late = 0; exports.handler = async () => { setTimeout(() => { late += 1; }, 50); return { late }; };"
    with stand_of(tmp_path, code) as stand, stand.sandbox() as sandbox:
        assert answer(sandbox) == {"late": 0}


STREAMING = """
export const handler = awslambda.streamifyResponse(async (event, stream, context) => {
  stream.setContentType("application/json");
  stream.write('{"id": ');
  stream.write(JSON.stringify(context.awsRequestId));
  stream.end("}");
});
"""


@pytest.mark.parametrize("runtime", ["nodejs22.x", "nodejs24.x"])
def test_a_streaming_handler_has_three_parameters_and_no_callback(tmp_path: Path, runtime: str) -> None:
    with stand_of(tmp_path, STREAMING, runtime=runtime, file="app.mjs") as stand, stand.sandbox() as sandbox:
        for _ in range(2):
            record = invoke(sandbox)
            assert record.response == {"id": record.request_id}


def test_node_24_refuses_a_handler_with_a_callback(tmp_path: Path) -> None:
    with stand_of(tmp_path, HANDLER, runtime="nodejs24.x") as stand, stand.sandbox() as sandbox:
        record = invoke(sandbox, do="state")
        assert (record.outcome, record.error_type) == (Outcome.INIT_ERROR, "Runtime.CallbackHandlerDeprecated")
        assert "starting with Node.js 24" in (record.error_message or "")


@pytest.mark.parametrize(
    ("file", "code", "error_type"),
    [
        ("other.js", "exports.handler = () => 1;", "Runtime.ImportModuleError"),
        ("app.js", "require('nothing-of-this-name');", "Runtime.ImportModuleError"),
        ("app.js", "exports.other = () => 1;", "Runtime.HandlerNotFound"),
        ("app.js", "exports.handler = 1;", "Runtime.HandlerNotFound"),
        ("app.js", "exports.handler = (event, context, callback) => {", "Runtime.UserCodeSyntaxError"),
        ("app.mjs", "export const handler = () => {", "Runtime.UserCodeSyntaxError"),
        ("app.js", "throw new RangeError('at init');", "RangeError"),
        ("app.mjs", "await Promise.reject(new RangeError('at init'));", "RangeError"),
    ],
)
def test_an_init_that_fails_has_lambda_s_name(tmp_path: Path, file: str, code: str, error_type: str) -> None:
    with stand_of(tmp_path, code, file=file) as stand, stand.sandbox() as sandbox:
        record = invoke(sandbox)
        assert (record.outcome, record.error_type) == (Outcome.INIT_ERROR, error_type)
        assert record.response["trace"], "with its stack trace"


def test_an_init_ahead_of_requests_takes_a_handler_with_a_callback(stand: Stand, tmp_path: Path) -> None:
    sandbox = stand.sandbox(provisioned=True)
    sandbox.start()
    try:
        sandbox.initialise()
        assert answer(sandbox, do="state", late="a") == {"late": ["a"], "waits": [True]}
    finally:
        sandbox.shut_down()
    with stand_of(tmp_path, "throw new Error('no');") as broken:
        ahead = broken.sandbox(provisioned=True)
        ahead.start()
        try:
            with pytest.raises(InitFailed, match="no"):
                ahead.initialise()
        finally:
            ahead.shut_down()


def test_the_client_prints_nothing_of_its_own_at_init(sandbox: Sandbox) -> None:
    log = invoke(sandbox, do="state").log_tail
    assert [line.split(" ")[0] for line in log.splitlines() if line] == ["START", "END", "REPORT"]
