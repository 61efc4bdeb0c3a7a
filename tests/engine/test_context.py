"""What travels with an event, inits ahead of requests, and what an observer hears, in real containers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import scaled

from harness import lifecycle
from harness.context import RequestContext, Trace
from harness.errors import InitFailed, NotMeasurable
from harness.function import load
from harness.function.model import Overrides
from harness.invocation import Invocation, Outcome
from harness.observer import Observer
from harness.sandbox import Sandbox
from harness.stand import Stand

PYTHON = """
import os, sys, time
print("init", flush=True)
def handler(event, context):
    print("handling", flush=True)
    if event.get("do") == "exit":
        os._exit(3)
    if event.get("do") == "sleep":
        time.sleep(3000)
    client = context.client_context
    return {
        "id": context.aws_request_id, "arn": context.invoked_function_arn, "client": client.custom if client else None,
        "trace": os.environ.get("_X_AMZN_TRACE_ID"), "type": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"],
        "version": context.function_version, "left": context.get_remaining_time_in_millis(), "event": event,
    }
"""
NODE = """
exports.handler = async (event, context) => ({
  id: context.awsRequestId, arn: context.invokedFunctionArn, client: context.clientContext?.custom ?? null,
  trace: process.env._X_AMZN_TRACE_ID, type: process.env.AWS_LAMBDA_INITIALIZATION_TYPE, event,
})
"""


class Heard(Observer):
    def __init__(self) -> None:
        self.phases: list[str] = []
        self.printed: list[tuple[bool, bytes]] = []
        self.records: list[tuple[Invocation, RequestContext]] = []

    def phase(self, sandbox: Sandbox, phase: lifecycle.Phase) -> None:
        self.phases.append(type(phase).__name__)

    def output(self, sandbox: Sandbox, request_id: str | None, data: bytes) -> None:
        self.printed.append((request_id is not None, data))

    def invoked(self, sandbox: Sandbox, record: Invocation, context: RequestContext) -> None:
        self.records.append((record, context))


@pytest.fixture(params=["python3.13", "nodejs22.x"])
def stand(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    python = request.param.startswith("python")
    (tmp_path / ("app.py" if python else "app.js")).write_text(PYTHON if python else NODE)
    function = load(
        str(tmp_path), Overrides(runtime=request.param, handler="app.handler", memory_mb=512, timeout_s=scaled(2))
    )
    with Stand(function, pull=False) as found:
        yield found


@pytest.fixture
def python_stand(tmp_path: Any) -> Any:
    (tmp_path / "app.py").write_text(PYTHON)
    function = load(
        str(tmp_path), Overrides(runtime="python3.13", handler="app.handler", memory_mb=512, timeout_s=scaled(2))
    )
    heard = Heard()
    with Stand(function, pull=False, observer=heard) as found:
        yield found, heard


def test_the_function_sees_the_caller_s_context(stand: Stand) -> None:
    trace = Trace.begin(sampled=True)
    context = RequestContext(
        client_context='{"custom":\n {"k": "v"}}', invoked_arn="arn:aws:lambda:x:1:function:f:live", trace=trace
    )
    with stand.sandbox() as sandbox:
        for _ in range(2):
            record = sandbox.invoke(b"{}", context=context)
            assert record.outcome is Outcome.SUCCESS, record.error_message
            assert record.request_id == context.request_id == record.response["id"]
            assert record.response["arn"] == context.invoked_arn
            assert record.response["client"] == {"k": "v"}
            seen = Trace.parse(record.response["trace"])
            assert seen is not None
            assert (seen.trace_id, seen.sampled) == (trace.trace_id, True)
            assert seen.parent_id != trace.parent_id, "the parent is Lambda's own segment, not the caller's"
            assert f"START RequestId: {context.request_id}" in record.log_tail


def test_an_init_ahead_of_requests_is_no_part_of_the_first_one(stand: Stand) -> None:
    sandbox = stand.sandbox(provisioned=True)
    sandbox.start()
    try:
        sandbox.initialise()
        assert isinstance(sandbox.phase, lifecycle.Frozen)
        assert sandbox.init_ms is not None
        assert sandbox.init_ms > 1
        event = json.dumps({"large": "x" * 300_000}).encode()
        for number, given in enumerate((event, b'{"small": 1}'), 1):
            record = sandbox.invoke(given)
            assert record.outcome is Outcome.SUCCESS, record.error_message
            assert record.response["event"] == json.loads(given)
            assert record.response["type"] == "provisioned-concurrency"
            assert (record.sequence, record.cold, record.phase_init, record.init_ms) == (number, False, None, None)
            assert record.frozen_ms is not None
            assert any("provisioned concurrency" in note for note in record.notes)
    finally:
        sandbox.shut_down()


def test_a_sandbox_initialised_ahead_lives_on_like_any_other(python_stand: tuple[Stand, Heard]) -> None:
    stand, _ = python_stand
    sandbox = stand.sandbox(provisioned=True)
    sandbox.start()
    try:
        sandbox.initialise()
        assert sandbox.invoke(b'{"do": "sleep"}').outcome is Outcome.TIMEOUT
        again = sandbox.invoke(b"{}")
        assert again.outcome is Outcome.SUCCESS
        assert again.phase_init == "suppressed"
        assert sandbox.invoke(b'{"do": "exit"}').outcome is Outcome.RUNTIME_EXIT
    finally:
        sandbox.shut_down()


def test_an_init_ahead_that_fails_says_why_and_leaves_nothing(tmp_path: Any) -> None:
    (tmp_path / "app.py").write_text("raise ValueError('no such thing')")
    function = load(str(tmp_path), Overrides(runtime="python3.13", handler="app.handler"))
    with Stand(function, pull=False) as stand:
        sandbox = stand.sandbox(provisioned=True)
        sandbox.start()
        with pytest.raises(InitFailed, match="no such thing"):
            sandbox.initialise()
        assert isinstance(sandbox.phase, lifecycle.ShutDown)


def test_the_vantage_api_cannot_initialise_ahead_and_says_so(tmp_path: Any) -> None:
    (tmp_path / "app.py").write_text(PYTHON)
    function = load(str(tmp_path), Overrides(runtime="python3.13", handler="app.handler"))
    with Stand(function, pull=False, vantage="api") as stand:
        with stand.sandbox() as sandbox:
            context = RequestContext(client_context='{"custom": {"k": 1}}')
            assert sandbox.invoke(b"{}", context=context).response["client"] == {"k": 1}
        sandbox = stand.sandbox(provisioned=True)
        sandbox.start()
        with pytest.raises(NotMeasurable, match="ahead"):
            sandbox.initialise()


def test_an_observer_hears_the_life_of_a_sandbox_in_order(python_stand: tuple[Stand, Heard]) -> None:
    stand, heard = python_stand
    with stand.sandbox() as sandbox:
        sandbox.invoke(b"{}")
        assert sandbox.resident_bytes()
        sandbox.invoke(b"{}")
    cold = ["Created", "Started", "Initialising", "Invoking", "Idle", "Frozen"]
    assert heard.phases == [*cold, "Idle", "Invoking", "Idle", "Frozen", "ShutDown"]
    assert sandbox.resident_bytes() is None
    assert heard.printed == [(False, b"init\n"), (True, b"handling\n"), (True, b"handling\n")]
    assert [context.request_id for _, context in heard.records] == [record.request_id for record, _ in heard.records]
