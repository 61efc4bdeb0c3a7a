"""The service over HTTP, with functions that are Python callables in place of sandboxes."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import botocore.session
import httpx
import pytest
from botocore.eventstream import EventStreamBuffer
from botocore.parsers import create_parser

from harness.api import app as service
from harness.api import pages
from harness.api.faults import conflict, function_not_found
from harness.api.feed import Feed
from harness.api.model import Configuration, FunctionVersion, Package, Target, UrlConfig
from harness.context import RequestContext
from harness.errors import EngineError
from harness.invocation import Invocation, Outcome

MIB = 1024 * 1024
URL_ID = "c" * 32
BASE = "http://127.0.0.1:4577"


def record(
    *, request_id: str = "r", outcome: Outcome = Outcome.SUCCESS, payload: bytes = b"null", **more: Any
) -> Invocation:
    """A record of an invocation that gave ``payload``."""
    found: dict[str, Any] = {
        "request_id": request_id,
        "function": "f",
        "runtime": "python3.13",
        "memory_mb": 128,
        "architecture": "x86_64",
        "image": "i",
        "rie_version": None,
        "sandbox_id": "s",
        "sequence": 1,
        "cold": True,
        "phase_init": None,
        "started_at": "2026-01-01T00:00:00+00:00",
        "outcome": outcome,
        "payload": payload,
    }
    return Invocation(**found | more)


def version(number: str) -> FunctionVersion:
    return FunctionVersion(
        function_name="f",
        version=number,
        arn="arn:aws:lambda:us-east-1:000000000000:function:f",
        region="us-east-1",
        configuration=Configuration(runtime="python3.13", handler="app.handler"),
        package=Package(kind="directory", path=Path("/nowhere")),
    )


class Functions:
    """A registry and a dispatcher in one: function ``f``, in alias ``live`` as version 3, gives what ``answer`` gives."""

    def __init__(self) -> None:
        self.answer: Callable[[bytes, RequestContext], Invocation] = lambda event, context: record(
            request_id=context.request_id, payload=event, log_tail=f"START {context.request_id}\nREPORT\n"
        )
        self.queued: list[tuple[bytes, RequestContext]] = []
        self.seen: list[RequestContext] = []
        self.pending = False
        self.cors: dict[str, Any] | None = None
        self.handled: list[tuple[str, dict[str, Any]]] = []

    def resolve(self, name: str, qualifier: str | None = None) -> Target:
        if name != "f":
            raise function_not_found(name)
        arn = "arn:aws:lambda:us-east-1:000000000000:function:f" + (f":{qualifier}" if qualifier else "")
        if self.pending:
            raise conflict("The operation cannot be performed at this time. The function is Pending")
        found = version("3" if qualifier == "live" else "$LATEST")
        return Target(version=found, alias=qualifier, invoked_arn=arn)

    def function_url(self, url_id: str) -> UrlConfig | None:
        return (
            None
            if url_id != URL_ID
            else UrlConfig(
                url_id=URL_ID,
                function_name="f",
                qualifier="",
                auth_type="NONE",
                invoke_mode="BUFFERED",
                cors=self.cors,
                created_at="",
                modified_at="",
            )
        )

    def invoke(self, target: Target, event: bytes, context: RequestContext) -> Invocation:
        self.seen.append(context)
        return self.answer(event, context)

    def enqueue(self, target: Target, event: bytes, context: RequestContext) -> None:
        self.queued.append((event, context))

    def handle(self, operation: str, params: dict[str, Any]) -> dict[str, Any]:
        self.handled.append((operation, params))
        if operation == "GetFunction":
            raise function_not_found("f")
        if operation == "DeleteFunction":
            raise KeyError("secret of a request")
        return {"Concurrency": {}} if operation == "GetFunction" else {}


class Service:
    """The app in this process, asked without sockets."""

    def __init__(self, functions: Functions, **rooms: Any) -> None:
        self.said: list[str] = []
        self.throttled: list[Invocation] = []
        self.app = service.build(
            service.Rooms(
                registry=cast("Any", functions),
                dispatcher=cast("Any", functions),
                handle=functions.handle,
                say=self.said.append,
                recorded=self.throttled.append,
                **rooms,
            ),
            host="127.0.0.1",
        )

    async def ask_now(self, method: str, path: str, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            return await client.request(method, path, **more)

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        return asyncio.run(self.ask_now(method, path, **more))

    def invoke(self, content: bytes = b"{}", *, query: str = "", name: str = "f", **headers: str) -> httpx.Response:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.ask("POST", f"/2015-03-31/functions/{name}/invocations{query}", content=content, headers=named)


@pytest.fixture
def functions() -> Functions:
    return Functions()


@pytest.fixture
def lambda_service(functions: Functions) -> Service:
    return Service(functions)


def parsed(operation: str, answer: httpx.Response) -> dict[str, Any]:
    """What boto3 would hand to its caller, the body of a stream excepted."""
    model = botocore.session.get_session().get_service_model("lambda").operation_model(operation)
    found = {"status_code": answer.status_code, "headers": answer.headers, "body": answer.content}
    return cast("dict[str, Any]", create_parser("rest-json").parse(found, model.output_shape))


def error_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, parsed("Invoke", answer)["Error"]["Code"]


def test_an_answer_is_handed_over_byte_for_byte(lambda_service: Service) -> None:
    payload = b'{ "a" : 1.0, "b":"\\u00e9",  "a": 2 }'
    answer = lambda_service.invoke(payload)
    assert answer.status_code == 200
    assert answer.content == payload
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-amz-executed-version"] == "$LATEST"
    assert "x-amz-function-error" not in answer.headers
    assert "x-amz-log-result" not in answer.headers


def test_the_caller_and_the_function_see_one_request_id(lambda_service: Service, functions: Functions) -> None:
    answer = lambda_service.invoke(x_amz_log_type="Tail")
    assert functions.seen[0].request_id == answer.headers["x-amzn-requestid"]
    assert answer.headers["x-amzn-requestid"] in base64.b64decode(answer.headers["x-amz-log-result"]).decode()


def test_no_payload_is_an_empty_object(lambda_service: Service) -> None:
    assert lambda_service.invoke(b"").content == b"{}"


def test_the_version_that_an_alias_chose_is_named(lambda_service: Service, functions: Functions) -> None:
    answer = lambda_service.invoke(query="?Qualifier=live")
    assert answer.headers["x-amz-executed-version"] == "3"
    assert functions.seen[0].invoked_arn == "arn:aws:lambda:us-east-1:000000000000:function:f:live"


def test_a_burst_of_the_page_reaches_the_function(functions: Functions) -> None:
    with Feed() as feed:
        wanted = {"path": "/2015-03-31/functions/f/invocations", "event": '{"a":1}', "count": 3, "concurrency": 2}
        answer = Service(functions, pages=pages.routes(feed)).ask("POST", "/_harness/burst", json=wanted)
    found = [json.loads(line) for line in answer.text.splitlines()]
    assert [(one["status"], one["text"]) for one in found] == [(200, '{"a":1}')] * 3


def test_a_function_that_failed_is_a_200_with_the_error_header(lambda_service: Service, functions: Functions) -> None:
    functions.answer = lambda _, __: record(outcome=Outcome.TIMEOUT, payload=b'{"errorType":"Sandbox.Timedout"}')
    answer = lambda_service.invoke()
    assert (answer.status_code, answer.headers["x-amz-function-error"]) == (200, "Unhandled")
    assert answer.content == b'{"errorType":"Sandbox.Timedout"}'


def test_a_dry_run_invokes_nothing(lambda_service: Service, functions: Functions) -> None:
    answer = lambda_service.invoke(x_amz_invocation_type="DryRun")
    assert (answer.status_code, answer.content) == (204, b"")
    assert not functions.seen


def test_an_event_is_queued_and_accepted(lambda_service: Service, functions: Functions) -> None:
    answer = lambda_service.invoke(b'{"a":1}', x_amz_invocation_type="Event")
    assert (answer.status_code, answer.content) == (202, b"")
    assert functions.queued[0][0] == b'{"a":1}'
    assert functions.queued[0][1].request_id == answer.headers["x-amzn-requestid"]


def test_the_old_asynchronous_operation_does_the_same(lambda_service: Service, functions: Functions) -> None:
    answer = lambda_service.ask("POST", "/2014-11-13/functions/f/invoke-async/", content=b"[1]")
    assert answer.status_code == 202
    assert functions.queued[0][0] == b"[1]"


@pytest.mark.parametrize("payload", [b"{not json", b"\xff", b"NaN", b"[" * 100_000, b"{} {}"], ids=range(5))
def test_a_payload_that_is_no_json_is_refused(lambda_service: Service, functions: Functions, payload: bytes) -> None:
    answer = lambda_service.invoke(payload)
    assert error_of(answer) == (400, "InvalidRequestContentException")
    assert answer.json()["message"].startswith("Could not parse request body into json: ")
    assert not functions.seen


def test_a_payload_may_have_six_megabytes_and_no_byte_more(lambda_service: Service) -> None:
    fits = b'"' + b"x" * (6 * MIB - 2) + b'"'
    assert lambda_service.invoke(fits).status_code == 200
    answer = lambda_service.invoke(fits + b" ")
    assert answer.status_code == 413
    assert "Request must be smaller than 6291456 bytes for the InvokeFunction operation" in answer.text


def test_an_event_may_have_one_megabyte(lambda_service: Service, functions: Functions) -> None:
    fits = b'"' + b"x" * (MIB - 2) + b'"'
    assert lambda_service.invoke(fits, x_amz_invocation_type="Event").status_code == 202
    answer = lambda_service.invoke(fits + b" ", x_amz_invocation_type="Event")
    assert answer.status_code == 413
    assert "1048577 byte payload is too large for the Event invocation type (limit 1048576 bytes)" in answer.text
    assert len(functions.queued) == 1


def test_an_uploaded_zip_may_be_larger_and_other_requests_may_not(
    lambda_service: Service, functions: Functions
) -> None:
    body = json.dumps({"ZipFile": base64.b64encode(bytes(8 * MIB)).decode()}).encode()
    assert lambda_service.ask("PUT", "/2015-03-31/functions/f/code", content=body).status_code == 200
    assert functions.handled[0][1]["ZipFile"] == bytes(8 * MIB)
    assert lambda_service.ask("PUT", "/2015-03-31/functions/f/configuration", content=body).status_code == 413


def test_the_callers_context_reaches_the_function(lambda_service: Service, functions: Functions) -> None:
    given = json.dumps({"custom": {"k": "ü"}})
    lambda_service.invoke(x_amz_client_context=base64.b64encode(given.encode()).decode())
    assert functions.seen[0].client_context == given


@pytest.mark.parametrize("given", ["%%%", base64.b64encode(b"{").decode(), base64.b64encode(b"[1]").decode()])
def test_a_context_that_is_no_object_is_refused(lambda_service: Service, given: str) -> None:
    assert error_of(lambda_service.invoke(x_amz_client_context=given)) == (400, "InvalidRequestContentException")


def test_a_trace_goes_on_and_a_missing_one_begins(functions: Functions) -> None:
    lambda_service = Service(functions, sampled=True)
    given = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=0"
    assert lambda_service.invoke(x_amzn_trace_id=given).headers["x-amzn-trace-id"] == given
    undecided = lambda_service.invoke(x_amzn_trace_id=given.removesuffix(";Sampled=0")).headers["x-amzn-trace-id"]
    assert undecided == given.replace("Sampled=0", "Sampled=1")
    fresh = lambda_service.invoke().headers["x-amzn-trace-id"]
    assert fresh.startswith("Root=1-")
    assert fresh.endswith("Sampled=1")
    assert functions.seen[2].trace is not None
    assert functions.seen[2].trace.header == fresh


def test_a_function_that_does_not_exist_is_a_404(lambda_service: Service) -> None:
    assert error_of(lambda_service.invoke(name="nope")) == (404, "ResourceNotFoundException")


@pytest.mark.parametrize("kind", ["RequestResponse", "Event"])
def test_a_function_that_is_not_active_is_a_conflict(lambda_service: Service, functions: Functions, kind: str) -> None:
    functions.pending = True
    answer = lambda_service.invoke(x_amz_invocation_type=kind)
    assert error_of(answer) == (409, "ResourceConflictException")
    assert not functions.seen
    assert not functions.queued


def test_a_throttled_request_is_told_why_and_when_to_come_again(lambda_service: Service, functions: Functions) -> None:
    told = {"Reason": "ConcurrentInvocationLimitExceeded", "Type": "User", "message": "Rate Exceeded."}
    functions.answer = lambda _, __: record(
        outcome=Outcome.THROTTLED, response=told, notes=("all are busy",), payload=b""
    )
    answer = lambda_service.invoke()
    assert error_of(answer) == (429, "TooManyRequestsException")
    assert answer.headers["retry-after"] == "1"
    assert answer.json() == told
    assert [each.outcome for each in lambda_service.throttled] == [Outcome.THROTTLED]
    assert lambda_service.throttled[0].notes == ("all are busy",)


def test_a_failing_engine_is_a_service_exception(lambda_service: Service, functions: Functions) -> None:
    functions.answer = lambda _, __: record(outcome=Outcome.ENGINE_ERROR, error_message="the engine went away")
    answer = lambda_service.invoke()
    assert error_of(answer) == (500, "ServiceException")
    assert "the engine went away" in answer.text

    def gone(_event: bytes, _context: RequestContext) -> Invocation:
        raise EngineError("no engine here")

    functions.answer = gone
    answer = lambda_service.invoke()
    assert error_of(answer) == (500, "ServiceException")
    assert "no engine here" in answer.text


def test_a_bug_is_told_by_its_place_and_shows_nothing_of_the_request(lambda_service: Service) -> None:
    answer = lambda_service.ask("DELETE", "/2015-03-31/functions/f")
    assert error_of(answer) == (500, "ServiceException")
    assert "secret" not in answer.text
    assert any("KeyError at " in line and "test_api_app.py" in line for line in lambda_service.said)
    assert not any("secret" in line for line in lambda_service.said)


def test_an_unknown_operation_is_refused_and_named_in_the_log(lambda_service: Service) -> None:
    answer = lambda_service.ask("GET", "/2099-01-01/things")
    assert answer.status_code == 403
    assert any("GET /2099-01-01/things" in line for line in lambda_service.said)


def test_every_answer_has_a_request_id(lambda_service: Service) -> None:
    for method, path in (
        ("GET", "/2015-03-31/functions/f"),
        ("GET", "/nothing"),
        ("POST", "/2015-03-31/functions/nope/invocations"),
    ):
        assert len(lambda_service.ask(method, path).headers["x-amzn-requestid"]) == 36


def test_a_path_that_climbs_is_no_function(lambda_service: Service, functions: Functions) -> None:
    for name in ("..", "%2e%2e%2f%2e%2e", "../../etc/passwd"):
        answer = lambda_service.ask("POST", f"/2015-03-31/functions/{name}/invocations")
        assert 400 <= answer.status_code < 500
    assert not functions.seen


def events_of(answer: httpx.Response) -> list[tuple[str, Any]]:
    """The events of a stream, read and their checksums compared by botocore."""
    buffer = EventStreamBuffer()
    buffer.add_data(answer.content)
    return [
        (
            each.headers[":event-type"],
            each.payload if each.headers[":event-type"] == "PayloadChunk" else json.loads(each.payload),
        )
        for each in buffer
    ]


STREAM = "/2021-11-15/functions/f/response-streaming-invocations"


def test_a_streamed_response_comes_in_one_chunk(lambda_service: Service) -> None:
    answer = lambda_service.ask("POST", STREAM, content=b'{"a": 1}', headers={"X-Amz-Log-Type": "Tail"})
    assert answer.headers["content-type"] == "application/vnd.amazon.eventstream"
    chunk, complete = events_of(answer)
    assert chunk == ("PayloadChunk", b'{"a": 1}')
    assert complete[0] == "InvokeComplete"
    assert b"REPORT" in base64.b64decode(complete[1]["LogResult"])
    assert "ErrorCode" not in complete[1]


def test_a_streamed_failure_is_told_at_the_end(lambda_service: Service, functions: Functions) -> None:
    functions.answer = lambda _, __: record(outcome=Outcome.FUNCTION_ERROR, payload=b'{"errorType":"E"}')
    _, complete = events_of(lambda_service.ask("POST", STREAM, content=b"{}"))
    assert complete == ("InvokeComplete", {"ErrorCode": "Unhandled", "ErrorDetails": '{"errorType":"E"}'})


URL = f"http://{URL_ID}.lambda-url.us-east-1.localhost:4577"


def test_a_function_url_is_reached_by_its_name_and_by_its_path(lambda_service: Service) -> None:
    by_name = lambda_service.ask("GET", f"{URL}/a%20b?x=1")
    by_path = lambda_service.ask("GET", f"/_harness/url/{URL_ID}/a%20b?x=1")
    for answer in (by_name, by_path):
        assert answer.status_code == 200
        found = answer.json()
        assert (found["rawPath"], found["requestContext"]["http"]["path"]) == ("/a%20b", "/a b")
        assert found["queryStringParameters"] == {"x": "1"}
        assert found["requestContext"]["requestId"] == answer.headers["x-amzn-requestid"]
    assert "content-security-policy" not in by_name.headers
    assert by_path.headers["content-security-policy"].startswith("sandbox")


def test_a_body_that_is_too_large_as_base64_is_told_so(lambda_service: Service, functions: Functions) -> None:
    binary = {"content-type": "application/octet-stream"}
    assert lambda_service.ask("POST", f"{URL}/", content=bytes(4 * MIB), headers=binary).status_code == 200
    answer = lambda_service.ask("POST", f"{URL}/", content=bytes(5 * MIB), headers=binary)
    assert answer.status_code == 413
    assert len(functions.seen) == 1


def test_a_function_url_that_does_not_exist_is_forbidden(lambda_service: Service, functions: Functions) -> None:
    answer = lambda_service.ask("GET", f"/_harness/url/{'d' * 32}/")
    assert (answer.status_code, answer.json()) == (403, {"Message": "Forbidden"})
    assert not functions.seen


def test_a_function_url_shows_no_errors_of_the_function_or_the_harness(
    lambda_service: Service, functions: Functions
) -> None:
    functions.answer = lambda _, __: record(outcome=Outcome.FUNCTION_ERROR, payload=b'{"errorMessage":"secret"}')
    answer = lambda_service.ask("GET", URL)
    assert (answer.status_code, answer.text) == (502, "Internal Server Error")
    functions.pending = True
    assert lambda_service.ask("GET", URL).status_code == 502


def test_a_browsers_question_to_a_function_url_invokes_nothing(lambda_service: Service, functions: Functions) -> None:
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "GET"}
    functions.cors = {"AllowOrigins": ["https://shop.example"], "AllowMethods": ["GET"]}
    answer = lambda_service.ask("OPTIONS", URL, headers=asked)
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert not functions.seen
    functions.cors = None
    lambda_service.ask("OPTIONS", URL, headers=asked)
    assert len(functions.seen) == 1, "without a configuration the question is the function's to answer"


def test_the_api_itself_answers_no_page_of_another_origin(lambda_service: Service, functions: Functions) -> None:
    answer = lambda_service.invoke(origin="https://shop.example")
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert not functions.seen


def test_bodies_for_the_pages_own_routes_are_bounded(lambda_service: Service) -> None:
    assert lambda_service.ask("POST", "/_harness/burst", content=bytes(9 * MIB)).status_code == 413


def test_requests_wait_for_no_other_and_threads_are_bounded(functions: Functions) -> None:
    lambda_service = Service(functions, account_concurrency=8)
    together = threading.Barrier(8, timeout=30)

    def meet(event: bytes, context: RequestContext) -> Invocation:
        together.wait()
        return record(request_id=context.request_id)

    functions.answer = meet
    before = threading.active_count()

    async def burst(number: int) -> list[int]:
        path = "/2015-03-31/functions/f/invocations"
        answers = await asyncio.gather(*(lambda_service.ask_now("POST", path, content=b"{}") for _ in range(number)))
        assert threading.active_count() - before <= 8 + service._SPARE_THREADS
        return [each.status_code for each in answers]

    assert asyncio.run(burst(8)) == [200] * 8
    functions.answer = lambda _, __: record()
    assert asyncio.run(burst(300)) == [200] * 300


def test_a_request_that_outlives_the_service_is_answered(functions: Functions) -> None:
    lambda_service = Service(functions)
    begun, over = threading.Event(), threading.Event()

    def hang(event: bytes, context: RequestContext) -> Invocation:
        begun.set()
        over.wait(30)
        return record()

    functions.answer = hang

    async def cut_off() -> httpx.Response:
        asking = asyncio.create_task(
            lambda_service.ask_now("POST", "/2015-03-31/functions/f/invocations", content=b"{}")
        )
        await asyncio.to_thread(begun.wait, 30)
        asking.cancel()
        try:
            return await asking
        finally:
            over.set()

    answer = asyncio.run(cut_off())
    assert error_of(answer) == (500, "ServiceException")
    assert "the service is ending" in answer.text
