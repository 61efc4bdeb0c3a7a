"""The service's HTTP side: Lambda's API, function URLs and the page behind one guard. Must not know containers.

Handlers of requests run on the event loop and do nothing there but read, route and answer; whatever may wait (a function,
the store, the engine) runs in a worker thread, of which there are as many as invocations may run at once and no more.
Threads that have nothing to do for ten seconds end.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import datetime
import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from harness import strict_json
from harness.api import faults, protocol, urls
from harness.api.faults import Fault
from harness.api.guard import URL_PATH_PREFIX, BodyTooLarge, Guard, header, host_name, read_body, url_id
from harness.context import RequestContext, Trace
from harness.errors import HarnessError
from harness.invocation import Invocation, Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Receive, Scope, Send

    from harness.api.dispatch import Dispatcher
    from harness.api.model import Target
    from harness.api.registry import Registry

MAX_EVENT_BYTES = 6 * 1024 * 1024
MAX_ASYNC_EVENT_BYTES = 1024 * 1024
"""[AWS Lambda quotas: 6 MB each for request and response, 1 MB for asynchronous invocations since October 2025]"""
MAX_CLIENT_CONTEXT_BYTES = 3583
"""Of base64 [API reference, Invoke]."""
MAX_PAGE_BODY_BYTES = 8 * 1024 * 1024
_INVOKE, _INVOKE_STREAM, _INVOKE_ASYNC = "Invoke", "InvokeWithResponseStream", "InvokeAsync"
_NAMES = {_INVOKE: "InvokeFunction", _INVOKE_STREAM: "InvokeWithResponseStream", _INVOKE_ASYNC: "InvokeAsync"}
"""What Lambda calls these operations in messages."""
_CONTROL_THREADS = 16
_SPARE_THREADS = 64
"""Beside those of invocations: for requests that are told at once that they are too many."""

_CODE = re.compile(r"([0-9a-f]{64})\.zip")

T = TypeVar("T")
Headers = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: Headers
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """An invocation as its request's headers describe it."""

    operation: str
    name: str
    qualifier: str | None
    kind: str
    """RequestResponse, Event or DryRun."""
    tail: bool
    client_context: str | None
    trace: Trace


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """What the app works with, and what it tells to whom."""

    registry: Registry
    dispatcher: Dispatcher
    handle: Callable[[str, dict[str, Any]], dict[str, Any]]
    """Carry out an operation of the control plane; blocking."""
    pages: Sequence[BaseRoute] = ()
    code_of: Callable[[str], Path | None] = lambda _: None
    """The file of a deployment package, by its digest: what GetFunction's Code.Location points to."""
    sampled: bool = False
    """Whether somebody takes the segments of traces."""
    say: Callable[[str], None] = lambda _: None
    recorded: Callable[[Invocation], None] = lambda _: None
    """Takes the records of requests that no sandbox stands behind: those that were throttled."""
    account_concurrency: int = 1000


def build(rooms: Rooms, *, host: str) -> ASGIApp:
    """The whole application, for a service that listens on ``host``."""
    lambda_api = _LambdaApi(rooms)
    pages = Starlette(routes=[*rooms.pages, Route("/_harness/code/{name}", _code(rooms))])
    pages.state.lambda_api = lambda_api  # for the page's bursts: its own routes do not lead there
    return Guard(
        _Front(pages, lambda_api, _FunctionUrls(rooms, lambda_api)),
        host=host,
        refused=lambda why: rooms.say(f"refused: {why}"),
    )


def _code(rooms: Rooms) -> Callable[[Request], Awaitable[Response]]:
    async def code(request: Request) -> Response:
        found = _CODE.fullmatch(request.path_params["name"])
        path = await anyio.to_thread.run_sync(rooms.code_of, found[1]) if found else None
        if path is None or not await anyio.Path(path).is_file():
            return Response(status_code=404)
        return FileResponse(path, media_type="application/zip")

    return code


class _Front:
    """Parts pages, Lambda's API and function URLs, and holds the bodies that go to the pages' routes within bounds.

    Lambda's API does not go through Starlette's router and its layers of middleware: it has a router of its own, AWS's
    model, and they would double what the event loop does for an invocation.
    """

    def __init__(self, pages: ASGIApp, lambda_api: ASGIApp, function_urls: ASGIApp) -> None:
        self._pages = pages
        self._lambda_api = lambda_api
        self._function_urls = function_urls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if url_id(scope) is not None:
            await self._function_urls(scope, receive, send)
        elif scope["path"] != "/" and not scope["path"].startswith("/_harness/"):
            await self._lambda_api(scope, receive, send)
        elif scope["method"] in ("GET", "HEAD"):
            await self._pages(scope, receive, send)
        else:
            await self._bounded(scope, receive, send)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(scope, receive, limit_bytes=MAX_PAGE_BODY_BYTES)
        except BodyTooLarge as error:
            await _send(send, _too_large("this", error))
            return
        except ClientDisconnect:
            return
        given = False

        async def again() -> Any:
            nonlocal given
            if given:
                return await receive()  # what comes after the body: that the client is gone
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._pages(scope, again, send)


class _Worker:
    """Runs what blocks in a bounded number of threads."""

    def __init__(self, threads: int) -> None:
        self._limiter = anyio.CapacityLimiter(threads)

    async def __call__(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)


class _LambdaApi:
    """Lambda's own API: an ASGI application."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._invoking = _Worker(rooms.account_concurrency + _SPARE_THREADS)
        self._controlling = _Worker(_CONTROL_THREADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = str(uuid.uuid4())
        try:
            answer = await self._answer(scope, receive, request_id)
        except ClientDisconnect:
            return
        await _send(send, answer, request_id=request_id)

    async def _answer(self, scope: Scope, receive: Receive, request_id: str) -> Answer:
        operation, begun = "", time.monotonic()
        try:
            query = scope["query_string"].decode("latin-1")
            found = _matched(scope, query)
            operation = found.operation
            headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
            if operation in _NAMES:
                return await self._invoke(found, headers, query, scope, receive, request_id)
            limit = protocol.request_limit(operation) or MAX_EVENT_BYTES
            body = await read_body(scope, receive, limit_bytes=limit)
            answer = await self._controlling(lambda: self._control(found, headers, query, body))
            if scope["method"] != "GET":
                self._rooms.say(f"{operation} {_subject(found)}: {answer.status} in {_ms(begun)} ms")
        except BodyTooLarge as error:
            return _too_large(_NAMES.get(operation, operation), error)
        except Fault as fault:
            if fault.status != 404 or scope["method"] != "GET":
                self._rooms.say(f"{operation or _shown(scope)}: {fault.status} {fault.code}: {fault.message}")
            return _of_fault(fault)
        except asyncio.CancelledError:
            # The service ends, and this request's grace is over: an answer is better than a connection that breaks.
            return _of_fault(_service_exception("the service is ending"))
        except HarnessError as error:
            self._rooms.say(f"{operation}: {error}")
            return _of_fault(_service_exception(str(error)))
        except ClientDisconnect:
            raise
        except Exception as error:  # noqa: BLE001  # a bug of ours: told where it is, without what the request held
            self._rooms.say(f"{operation or _shown(scope)}: a bug of the harness: {_where(error)}")
            return _of_fault(_service_exception("a bug of the harness; its log says where"))
        return answer

    # -- the control plane ------------------------------------------------------------------------------------------

    def _control(self, found: protocol.Match, headers: Mapping[str, str], query: str, body: bytes) -> Answer:
        params = protocol.parse(found, headers=headers, query=query, body=body)
        return _serialised(found.operation, self._rooms.handle(found.operation, params))

    # -- invocations ------------------------------------------------------------------------------------------------

    async def _invoke(
        self,
        found: protocol.Match,
        headers: Mapping[str, str],
        query: str,
        scope: Scope,
        receive: Receive,
        request_id: str,
    ) -> Answer:
        ask = self._ask(found, headers, query)
        body = await read_body(scope, receive, limit_bytes=MAX_EVENT_BYTES)
        return await self._invoking(lambda: self._invoked(ask, body, request_id))

    def _ask(self, found: protocol.Match, headers: Mapping[str, str], query: str) -> Ask:
        params = protocol.parse(found, headers=headers, query=query)
        kind = "Event" if found.operation == _INVOKE_ASYNC else params.get("InvocationType") or "RequestResponse"
        return Ask(
            operation=found.operation,
            name=params["FunctionName"],
            qualifier=params.get("Qualifier"),
            kind=kind,
            tail=params.get("LogType") == "Tail",
            client_context=_client_context(params.get("ClientContext")),
            trace=self.trace(headers.get("x-amzn-trace-id")),
        )

    def trace(self, given: str | None) -> Trace:
        """The caller's trace; a new one where it has none. Where the caller leaves the decision to us, it is sampled."""
        found = Trace.parse(given) if given and _TRACE.match(given) else None
        if found is None:
            return Trace.begin(sampled=self._rooms.sampled)
        return found if "Sampled=" in (given or "") else replace(found, sampled=self._rooms.sampled)

    def _invoked(self, ask: Ask, body: bytes, request_id: str) -> Answer:
        target = self._rooms.registry.resolve(ask.name, ask.qualifier)
        traced = [("X-Amzn-Trace-Id", ask.trace.header)]
        if ask.kind == "DryRun":
            return Answer(status=204, headers=traced)
        if ask.kind == "Event" and len(body) > MAX_ASYNC_EVENT_BYTES:
            limit = f"limit {MAX_ASYNC_EVENT_BYTES} bytes"
            message = f"{len(body)} byte payload is too large for the Event invocation type ({limit})"
            raise Fault("RequestEntityTooLargeException", 413, message)
        event = _event(body)
        context = RequestContext(
            request_id=request_id,
            client_context=ask.client_context,
            invoked_arn=target.invoked_arn,
            trace=ask.trace,
        )
        if ask.kind == "Event":
            self._rooms.dispatcher.enqueue(target, event, context)
            status = json.dumps({"Status": 202}).encode() if ask.operation == _INVOKE_ASYNC else b""
            return Answer(status=202, headers=traced, body=status)
        record = self.run(target, event, context)
        if record.outcome is Outcome.THROTTLED:
            return _throttled(record)
        if record.outcome is Outcome.ENGINE_ERROR:
            raise _service_exception(record.error_message or "the engine failed")
        return _answered(ask, target, record, traced)

    def run(self, target: Target, event: bytes, context: RequestContext) -> Invocation:
        """One invocation in this thread; its record, throttled ones included."""
        record = self._rooms.dispatcher.invoke(target, event, context)
        if record.outcome is Outcome.THROTTLED:
            self._rooms.recorded(record)
        return record

    @property
    def invoking(self) -> _Worker:
        return self._invoking


class _FunctionUrls:
    """Function URLs: an ASGI application."""

    def __init__(self, rooms: Rooms, api: _LambdaApi) -> None:
        self._rooms = rooms
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = str(uuid.uuid4())
        try:
            answer = await self._answer(scope, receive, request_id)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            answer = _plain(503, b"Service Unavailable")
        except BodyTooLarge as error:
            answer = _too_large("a function URL", error)
        except Fault as fault:
            self._rooms.say(f"function URL: {fault.status} {fault.code}: {fault.message}")
            answer = _of_fault(fault) if fault.status in (403, 404, 429) else _plain(502, urls.INTERNAL_ERROR)
        except HarnessError as error:
            self._rooms.say(f"function URL: {error}")
            answer = _plain(500, urls.INTERNAL_ERROR)
        except Exception as error:  # noqa: BLE001  # as above
            self._rooms.say(f"function URL: a bug of the harness: {_where(error)}")
            answer = _plain(500, urls.INTERNAL_ERROR)
        if scope["path"].startswith(URL_PATH_PREFIX):
            # By its path it shares the origin of the API: what a function's page runs must not have that origin.
            answer.headers.append(("content-security-policy", "sandbox allow-scripts allow-forms allow-popups"))
        await _send(send, answer, request_id=request_id)

    async def _answer(self, scope: Scope, receive: Receive, request_id: str) -> Answer:
        found = url_id(scope)
        config = self._rooms.registry.function_url(found) if found else None
        if config is None:
            return Answer(
                status=403,
                headers=[("content-type", "application/json"), ("x-amzn-ErrorType", "AccessDeniedException")],
                body=b'{"Message":"Forbidden"}',
            )
        body = await read_body(scope, receive, limit_bytes=MAX_EVENT_BYTES)
        asked = _asked(scope, config.url_id, body)
        cors = urls.Cors.of(config.cors)
        if cors is not None and asked.is_preflight:
            return _of_reply(urls.preflight(cors, asked))
        trace = self._api.trace(asked.first("x-amzn-trace-id"))

        def run() -> urls.Reply:
            target = self._rooms.registry.resolve(config.function_name, config.qualifier or None)
            now = datetime.datetime.now(datetime.UTC)
            event = json.dumps(urls.event(asked, request_id=request_id, trace_header=trace.header, now=now)).encode()
            if len(event) > MAX_EVENT_BYTES:  # as base64 a body is a third larger
                raise BodyTooLarge(MAX_EVENT_BYTES, drained=True)
            context = RequestContext(request_id=request_id, invoked_arn=target.invoked_arn, trace=trace)
            record = self._api.run(target, event, context)
            return urls.reply(record, _payload(record))

        answer = urls.with_cors(await self._api.invoking(run), cors, asked.first("origin"))
        return _of_reply(answer, ("X-Amzn-Trace-Id", trace.header))


# -- requests ---------------------------------------------------------------------------------------------------------

_TRACE = re.compile(r"^[\x21-\x7e]{1,500}$")


def _matched(scope: Scope, query: str) -> protocol.Match:
    found = protocol.match(scope["method"], _raw_path(scope), query)
    if found is None:
        raise faults.unknown_operation()
    return found


def _event(body: bytes) -> bytes:
    """The payload as it came; an empty one is an empty object. Raises InvalidRequestContentException."""
    if not body:
        return b"{}"
    try:
        strict_json.loads(body)
    except ValueError as error:
        raise Fault(
            "InvalidRequestContentException",
            400,
            f"Could not parse request body into json: Could not parse payload into json: {error}",
        ) from error
    return body


def _client_context(given: str | None) -> str | None:
    """The caller's context as JSON text."""
    if not given:
        return None
    if len(given) > MAX_CLIENT_CONTEXT_BYTES:
        raise Fault(
            "InvalidRequestContentException",
            400,
            f"Client context must be at most {MAX_CLIENT_CONTEXT_BYTES} bytes of Base64.",
        )
    with contextlib.suppress(ValueError, binascii.Error, RecursionError):
        raw = base64.b64decode(given, validate=True)
        text = raw.decode()
        if isinstance(json.loads(text), dict):
            return text
    raise Fault(
        "InvalidRequestContentException",
        400,
        "Client context must be a valid Base64-encoded JSON object.",
    )


def _raw_path(scope: Scope) -> str:
    """The path as sent, percent-encoding kept: a function's name may be an ARN, with a slash in it."""
    raw = scope.get("raw_path")
    return bytes(raw).decode("ascii") if raw else str(scope["path"])


def _asked(scope: Scope, found: str, body: bytes) -> urls.Asked:
    raw = _raw_path(scope)
    if raw.startswith(URL_PATH_PREFIX):
        raw = "/" + raw[len(URL_PATH_PREFIX) :].partition("/")[2]
    headers = [(key.decode("latin-1"), value.decode("latin-1")) for key, value in scope["headers"]]
    return urls.Asked(
        url_id=found,
        domain=host_name(header(scope, b"host") or "") or "localhost",
        method=scope["method"],
        raw_path=raw,
        path=unquote(raw),
        query=scope["query_string"].decode("latin-1"),
        headers=headers,
        body=body,
        source_ip=scope["client"][0] if scope.get("client") else "127.0.0.1",
        protocol=f"HTTP/{scope['http_version']}",
    )


# -- answers ----------------------------------------------------------------------------------------------------------


async def _send(send: Send, answer: Answer, *, request_id: str | None = None) -> None:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in answer.headers]
    if request_id is not None:
        headers.append((b"x-amzn-requestid", request_id.encode()))
    if answer.status != 204:
        headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _payload(record: Invocation) -> bytes:
    """The answer's bytes as the function gave them."""
    if record.payload is not None:
        return record.payload
    if record.response_encoding == "base64":
        return base64.b64decode(record.response)
    return json.dumps(record.response).encode()


def _tail(record: Invocation) -> str:
    return base64.b64encode(record.log_tail.encode()).decode()


def _answered(ask: Ask, target: Target, record: Invocation, traced: Headers) -> Answer:
    payload, version = _payload(record), target.version.version
    error = None if record.outcome is Outcome.SUCCESS else "Unhandled"
    log = _tail(record) if ask.tail else None
    found: dict[str, Any] = {"StatusCode": 200, "ExecutedVersion": version}
    if ask.operation == _INVOKE_STREAM:
        # One chunk: the Runtime Interface Emulator hands over a response when it is complete.
        details = payload.decode("utf-8", "replace") if error else None
        last = {"ErrorCode": error, "ErrorDetails": details, "LogResult": log}
        found["EventStream"] = [{"PayloadChunk": {"Payload": payload}}, {"InvokeComplete": last}]
    else:
        found |= {"FunctionError": error, "LogResult": log, "Payload": payload}
    timing = [] if record.pool_ms is None else [("Server-Timing", f"pool;dur={record.pool_ms:.3f}")]
    return _serialised(ask.operation, found, *traced, *timing)


def _serialised(operation: str, found: Mapping[str, Any], *more: tuple[str, str]) -> Answer:
    answer = protocol.serialise(operation, found)
    return Answer(status=answer.status, headers=[*answer.headers.items(), *more], body=answer.body)


def _throttled(record: Invocation) -> Answer:
    headers = [
        ("Content-Type", "application/json"),
        ("x-amzn-ErrorType", "TooManyRequestsException"),
        ("Retry-After", "1"),
    ]
    return Answer(status=429, headers=headers, body=json.dumps(record.response).encode())


def _service_exception(why: str) -> Fault:
    return faults.service(f"Lambda encountered an internal error: {why}")


def _of_fault(fault: Fault) -> Answer:
    status, headers, body = fault.to_response()
    return Answer(status=status, headers=list(headers.items()), body=body)


def _too_large(what: str, error: BodyTooLarge) -> Answer:
    answer = _of_fault(faults.request_too_large(error.limit_bytes, what))
    if not error.drained:
        answer.headers.append(("Connection", "close"))
    return answer


def _of_reply(reply: urls.Reply, *more: tuple[str, str]) -> Answer:
    return Answer(status=reply.status, headers=[*reply.headers, *more], body=reply.body)


def _plain(status: int, body: bytes) -> Answer:
    return Answer(status=status, headers=[("content-type", "application/json")], body=body)


# -- the log ----------------------------------------------------------------------------------------------------------


def _subject(found: protocol.Match) -> str:
    return " ".join(found.places.values())


def _ms(begun: float) -> int:
    return round((time.monotonic() - begun) * 1000)


def _shown(scope: Scope) -> str:
    """A request that is no operation: its method and path, as far as they fit and can be shown."""
    path = "".join(each if each.isprintable() else "?" for each in scope["path"][:200])
    return f"{scope['method']} {path}"


def _where(error: BaseException) -> str:
    """The class of an error and the place it came from: a message may hold what a request held."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "nowhere"
    return f"{type(error).__name__} at {place}"
