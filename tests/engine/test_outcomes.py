"""What a real runtime does, and what the record calls it."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from conftest import invoke, scaled

from harness.errors import EngineError, HarnessError
from harness.invocation import Outcome, PhaseInit
from harness.lifecycle import ShutDown
from harness.sandbox import Sandbox

if TYPE_CHECKING:
    from conftest import Lab

PROBE = """
    import os, sys, time
    calls = []
    def handler(event, context):
        calls.append(1)
        op = event.get("op")
        if op == "raise":
            raise ValueError("boom")
        if op == "exit":
            os._exit(event["code"])
        if op == "sleep":
            time.sleep(60)
        if op == "touch":
            block = bytearray(event["mb"] << 20)
            block[::4096] = b"x" * len(block[::4096])
            return len(block)
        if op == "big":
            return "x" * 7_000_000
        if op == "tmp":
            before = os.path.exists("/tmp/left")
            open("/tmp/left", "w").close()
            return before
        if op == "length":
            return len(event["text"])
        return {"calls": len(calls), "id": context.aws_request_id, "left_ms": context.get_remaining_time_in_millis()}
"""


TIMEOUT_S = scaled(30)  # of what is not to run into it, however slow the machine is


@pytest.fixture(scope="module")
def sandbox(lab: Lab, module_vantage: str) -> Iterator[Sandbox]:
    with lab.sandbox(PROBE, vantage=module_vantage, memory_mb=1024, timeout_s=TIMEOUT_S) as found:
        yield found


def test_a_success_and_its_record(sandbox: Sandbox, module_vantage: str) -> None:
    first, second = invoke(sandbox), invoke(sandbox)
    assert first.outcome is second.outcome is Outcome.SUCCESS
    assert second.response["calls"] == first.response["calls"] + 1
    assert second.response["id"] == second.request_id
    assert second.sequence == first.sequence + 1
    assert second.phase_init is None
    assert second.init_ms is None
    assert second.duration_ms is not None
    assert second.client_ms is not None
    assert second.billed_ms == max(1, math.ceil(round(second.duration_ms, 2)))
    assert second.frozen_ms is not None
    assert second.vantage == module_vantage
    assert second.report.startswith(f"REPORT RequestId: {second.request_id}\tDuration: ")
    assert second.error_type is None
    if module_vantage != "api":
        assert 0 < second.response["left_ms"] <= TIMEOUT_S * 1000, (
            "the deadline is the function's own, init not counted"
        )


def test_an_exception_is_the_function_s_error_and_the_runtime_stays(sandbox: Sandbox) -> None:
    before = invoke(sandbox).response["calls"]
    raised = invoke(sandbox, op="raise")
    assert (raised.outcome, raised.error_type, raised.error_message) == (Outcome.FUNCTION_ERROR, "ValueError", "boom")
    assert raised.response["errorMessage"] == "boom"
    assert "Status" not in raised.report
    after = invoke(sandbox)
    assert after.response["calls"] == before + 2
    assert after.phase_init is None


@pytest.mark.parametrize(("code", "said"), [(3, "exit status 3"), (0, "exited without providing a reason")])
def test_a_runtime_that_exits_is_replaced_in_a_suppressed_init(sandbox: Sandbox, code: int, said: str) -> None:
    left = invoke(sandbox, op="exit", code=code)
    assert left.outcome is Outcome.RUNTIME_EXIT
    assert left.error_type == "Runtime.ExitError"
    assert said in (left.error_message or "")
    assert left.report.endswith("Status: error\tError Type: Runtime.ExitError\t")
    after = invoke(sandbox)
    assert after.phase_init is PhaseInit.SUPPRESSED
    assert after.response["calls"] == 1, "globals are lost"
    assert after.sandbox_id == left.sandbox_id
    assert after.init_ms is None
    assert "Init Duration" not in after.report


def test_a_timeout_ends_the_runtime_at_the_function_s_limit(lab: Lab, vantage: str) -> None:
    limit = f"{scaled(1)}.00 seconds"
    with lab.sandbox(PROBE, vantage=vantage, timeout_s=scaled(1)) as sandbox:
        slept = invoke(sandbox, op="sleep")
        assert slept.outcome is Outcome.TIMEOUT
        assert slept.error_type == "Sandbox.Timedout"
        assert slept.error_message == f"RequestId: {slept.request_id} Error: Task timed out after {limit}"
        assert f"Task timed out after {limit}" in slept.log_tail
        assert slept.report.endswith("Status: timeout\t")
        assert slept.duration_ms is not None
        assert slept.duration_ms >= scaled(1) * 1000
        after = invoke(sandbox)
        assert after.outcome is Outcome.SUCCESS
        assert after.phase_init is PhaseInit.SUPPRESSED


def test_an_out_of_memory_kill_is_told_apart_from_a_crash(sandbox: Sandbox) -> None:
    killed = invoke(sandbox, op="touch", mb=3000)
    assert killed.outcome is Outcome.OUT_OF_MEMORY
    assert killed.error_type == "Runtime.ExitError"
    assert killed.error_message == f"RequestId: {killed.request_id} Error: Runtime exited with error: signal: killed"
    assert killed.max_memory_used_mb == 1024
    assert killed.report.endswith("Status: error\tError Type: Runtime.OutOfMemory\t")
    after = invoke(sandbox)
    assert after.outcome is Outcome.SUCCESS
    assert after.phase_init is PhaseInit.SUPPRESSED
    assert after.max_memory_used_mb == 1024, "it never falls"
    left = invoke(sandbox, op="exit", code=9)
    assert left.outcome is Outcome.RUNTIME_EXIT, "an earlier kill is not this invocation's"


def test_tmp_outlives_a_reset_and_globals_do_not(sandbox: Sandbox) -> None:
    invoke(sandbox, op="tmp")
    invoke(sandbox, op="exit", code=1)
    assert invoke(sandbox, op="tmp").response is True
    assert invoke(sandbox).response["calls"] == 2


def test_a_response_above_6_mb_is_refused(sandbox: Sandbox) -> None:
    big = invoke(sandbox, op="big")
    assert big.outcome is Outcome.RESPONSE_TOO_LARGE
    assert big.error_type == "Function.ResponseSizeTooLarge"
    assert "6291556 bytes" in (big.error_message or "")
    assert invoke(sandbox).outcome is Outcome.SUCCESS


def test_a_request_of_6_mb_arrives_whole(sandbox: Sandbox) -> None:
    size = 6 * 1024 * 1024 - 100
    found = invoke(sandbox, op="length", text="x" * size)
    assert (found.outcome, found.response) == (Outcome.SUCCESS, size)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("import nowhere\n", "Runtime.ImportModuleError"),
        ("def other(event, context): pass\n", "Runtime.HandlerNotFound"),
        ("def broken(:\n", "Runtime.UserCodeSyntaxError"),
        ("import os\nos._exit(7)\n", "Runtime.ExitError"),
    ],
)
def test_an_init_that_fails_is_reported_with_its_cause(lab: Lab, vantage: str, source: str, kind: str) -> None:
    with lab.sandbox(source, vantage=vantage) as sandbox:
        found = invoke(sandbox)
        assert (found.outcome, found.error_type) == (Outcome.INIT_ERROR, kind)
        assert found.init_ms is None or found.init_ms > 0
        assert invoke(sandbox).outcome is Outcome.INIT_ERROR, "the next one tries again"


def test_an_init_over_ten_seconds_is_ended_and_tried_again_inside_the_invocation(lab: Lab, host: str) -> None:
    source = """
        import os, time
        if not os.path.exists("/tmp/tried"):
            open("/tmp/tried", "w").close()
            time.sleep(11)
        def handler(event, context):
            return "here"
    """
    with lab.sandbox(source, vantage=host, timeout_s=scaled(9)) as sandbox:
        found = invoke(sandbox)
        assert (found.outcome, found.response) == (Outcome.SUCCESS, "here")
        assert found.phase_init is PhaseInit.SUPPRESSED
        assert found.cold
        assert "Init Duration" not in found.report
        assert invoke(sandbox).phase_init is None


def test_an_init_that_never_ends_times_out_under_the_function_s_timeout(lab: Lab, vantage: str) -> None:
    source = """
        import os, time
        if not os.path.exists("/tmp/tried"):
            open("/tmp/tried", "w").close()
            os._exit(1)
        time.sleep(60)
        def handler(event, context): pass
    """
    with lab.sandbox(source, vantage=vantage, timeout_s=scaled(1)) as sandbox:
        found = invoke(sandbox)
        assert found.outcome is Outcome.INIT_TIMEOUT
        assert (
            found.error_message == f"RequestId: {found.request_id} Error: Task timed out after {scaled(1)}.00 seconds"
        )


def test_a_response_that_is_no_json_is_kept_as_it_is(lab: Lab, vantage: str) -> None:
    # A runtime of its own: it posts plain text, and bytes that are no text.
    source = """
        import http.client, os
        api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
        while True:
            api.request("GET", "/2018-06-01/runtime/invocation/next")
            event = api.getresponse()
            body = b"plain text" if b"text" in event.read() else b"\\xff\\x00"
            name = event.headers["Lambda-Runtime-Aws-Request-Id"]
            api.request("POST", f"/2018-06-01/runtime/invocation/{name}/response", body)
            api.getresponse().read()
    """
    with lab.sandbox(source, vantage=vantage) as sandbox:
        text, binary = invoke(sandbox, give="text"), invoke(sandbox)
    assert (text.outcome, text.response, text.response_encoding) == (Outcome.SUCCESS, "cGxhaW4gdGV4dA==", "base64")
    assert (binary.response, binary.response_bytes) == ("/wA=", 2)


def test_100_mb_of_output_pass_through_in_bounded_memory(lab: Lab, host: str) -> None:
    import resource

    source = """
        import sys
        def handler(event, context):
            for _ in range(1600):
                sys.stdout.write("x" * 65536)
            print("last words")
            return "said"
    """
    seen = 0

    def count(output: bytes) -> None:
        nonlocal seen
        seen += len(output)

    with lab.sandbox(source, vantage=host, memory_mb=1769, timeout_s=scaled(60), on_output=count) as sandbox:
        invoke(sandbox)
        seen, before_kb = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = invoke(sandbox)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 30_000
    assert (found.outcome, found.response) == (Outcome.SUCCESS, "said")
    assert seen >= 1600 * 65536
    assert "last words" in found.log_tail
    assert len(found.log_tail.encode()) <= 4096


def test_a_function_may_close_its_output(lab: Lab, vantage: str) -> None:
    source = """
        import os
        def handler(event, context):
            os.close(1)
            os.close(2)
            return "silent"
    """
    with lab.sandbox(source, vantage=vantage) as sandbox:
        assert invoke(sandbox).response == "silent"


def test_forged_log_lines_change_nothing(lab: Lab, vantage: str) -> None:
    source = """
        import sys
        def handler(event, context):
            print("INIT REPORT(durationMs: 1.0)", file=sys.stderr)
            print(f"END RequestId: {context.aws_request_id}")
            print("REPORT RequestId: forged\\tDuration: 1.00 ms", flush=True)
            sys.stdout.write("no end: gr\\u00fc\\u00dfe")
            sys.stdout.flush()
            return 1
    """
    with lab.sandbox(source, vantage=vantage) as sandbox:
        found = invoke(sandbox)
    assert found.init_ms is not None
    assert found.init_ms > 5
    lines = found.log_tail.splitlines()
    assert "REPORT RequestId: forged\tDuration: 1.00 ms" in lines
    assert "no end: grüße" in lines
    assert lines[-1] == found.report


def test_a_container_that_someone_removes_in_the_middle_is_an_engine_error_on_the_record(
    lab: Lab, vantage: str
) -> None:
    import threading

    source = """
        import time
        def handler(event, context):
            print("asleep", flush=True)
            time.sleep(60)
    """
    asleep = threading.Event()
    with lab.sandbox(source, vantage=vantage, timeout_s=scaled(60), on_output=lambda _: asleep.set()) as sandbox:

        def remove() -> None:
            assert asleep.wait(30)
            api = lab.engine.docker
            api.containers.get(f"lambda-harness-{sandbox.id}").remove(force=True)
            lab.engine.close()  # this thread's own client

        remover = threading.Thread(target=remove)
        remover.start()
        found = invoke(sandbox)
        remover.join()
        assert found.outcome is Outcome.ENGINE_ERROR
        assert found.error_type == "SandboxGone"
        assert "removed" in (found.error_message or "") or "ended" in (found.error_message or "")
        assert found.duration_ms is None
        assert found.billed_ms is None
        assert isinstance(sandbox.phase, ShutDown)
        assert f"lambda-harness-{sandbox.id}" not in lab.containers()


def test_a_container_that_is_gone_at_the_next_invocation_is_said_plainly(lab: Lab, vantage: str) -> None:
    with lab.sandbox("def handler(event, context): return 1", vantage=vantage) as sandbox:
        invoke(sandbox)
        lab.engine.docker.containers.get(f"lambda-harness-{sandbox.id}").remove(force=True)
        with contextlib.suppress(EngineError):  # either is an answer; a hang or a traceback is none
            assert invoke(sandbox).outcome is Outcome.ENGINE_ERROR


def test_a_second_request_is_refused_and_the_first_one_is_not_disturbed(lab: Lab, host: str) -> None:
    import threading

    running = threading.Event()
    source = """
        import time
        def handler(event, context):
            print("running", flush=True)
            time.sleep(1)
            return "done"
    """
    found = []
    with lab.sandbox(source, vantage=host, on_output=lambda _: running.set()) as sandbox:
        first = threading.Thread(target=lambda: found.append(invoke(sandbox)))
        first.start()
        assert running.wait(30)
        with pytest.raises(HarnessError, match="busy"):
            invoke(sandbox)
        first.join()
    assert [each.response for each in found] == ["done"]


def test_events_reach_the_function_as_they_are(lab: Lab, host: str) -> None:
    with lab.sandbox("def handler(event, context): return event", vantage=host) as sandbox:
        for event in ("grüße ☃", [1, None], {"a": {"b": [True]}}, 0):
            assert sandbox.invoke(json.dumps(event).encode()).response == event
