"""The page's own routes: its files, its events, the reports of stored runs, and bursts of invocations.

The page is three kinds of files without a build step. Its Content-Security-Policy lets it load from, and talk to, this
origin alone, run no script but its own files, and never make HTML from text. Must not know sandboxes or the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from functools import cache
from importlib import resources
from threading import Lock
from typing import TYPE_CHECKING, Any

from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from harness.api.feed import Feed, TooManyPages, text_of
from harness.errors import HarnessError, InvalidInput

if TYPE_CHECKING:
    import jinja2
    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

    from harness.store import Store

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TYPES = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "html": "text/html"}
_SEND_TIMEOUT_S = 10.0
_PING_S = 15
_RUNS_SHOWN = 200

MAX_BURST = 10_000
MAX_CONCURRENCY = 200
_MAX_EVENT_BYTES = 6 * 1024 * 1024
_ANSWER_CHARACTERS = 2000


def routes(feed: Feed, *, store: Store | None = None) -> list[Route]:
    """``GET /`` and everything of the page below ``/_harness/``; without a store there are no reports."""
    rendering = Lock()

    async def index(request: Request) -> Response:  # noqa: ARG001
        return _file("index.html")

    async def static(request: Request) -> Response:
        return _file(request.path_params["name"])

    async def events(request: Request) -> Response:  # noqa: ARG001
        if feed.full:
            return PlainTextResponse("Too many pages are connected.\n", 503, headers=_ALWAYS | {"Retry-After": "5"})
        return _Events(
            feed.frames(), ping=_PING_S, send_timeout=_SEND_TIMEOUT_S, headers=_ALWAYS, shutdown_grace_period=0
        )

    async def state(request: Request) -> Response:  # noqa: ARG001
        return Response(text_of(feed.snapshot()), media_type="application/json", headers=_uncached())

    async def runs(request: Request) -> Response:  # noqa: ARG001
        if store is None:
            return _sorry("No history", "The service keeps no history of runs.", 404)
        found = await run_in_threadpool(store.list, _RUNS_SHOWN)
        page = _template("runs.html.j2").render(runs=[one.as_dict() for one in found], shown=_RUNS_SHOWN)
        return Response(page, media_type="text/html", headers=_uncached() | {"Content-Security-Policy": _POLICY})

    async def run(request: Request) -> Response:
        if store is None:
            return _sorry("No history", "The service keeps no history of runs.", 404)
        try:
            page = await run_in_threadpool(_report, store, request.path_params["run_id"], rendering)
        except InvalidInput as error:
            return _sorry("No such run", f"{error}.", 404)
        except HarnessError as error:
            return _sorry("No report", f"{error}. {error.remedy}", 500)
        # The report carries a policy of its own, which names its script by hash.
        headers = _uncached() | {"Content-Security-Policy": "frame-ancestors 'none'; base-uri 'none'"}
        return Response(page, media_type="text/html", headers=headers)

    return [
        Route("/", index, methods=["GET"]),
        Route("/_harness/static/{name}", static, methods=["GET"]),
        Route("/_harness/events", events, methods=["GET"]),
        Route("/_harness/state", state, methods=["GET"]),
        Route("/_harness/runs", runs, methods=["GET"]),
        Route("/_harness/runs/{run_id}", run, methods=["GET"]),
        Route("/_harness/burst", _burst, methods=["POST"]),
    ]


def _uncached() -> dict[str, str]:
    return _ALWAYS | {"Cache-Control": "no-store"}


# The page's files


@cache
def _files() -> Mapping[str, bytes]:
    folder = resources.files("harness.api") / "page"
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.name.rpartition(".")[2] in _TYPES}


def _file(name: str) -> Response:
    content = _files().get(name)
    if content is None:
        return PlainTextResponse("There is no such file.\n", 404, headers=_ALWAYS)
    headers = _ALWAYS | {"Cache-Control": "no-cache", "Content-Security-Policy": _POLICY}
    return Response(content, media_type=_TYPES[name.rpartition(".")[2]], headers=headers)


@cache
def _template(name: str) -> jinja2.Template:
    import jinja2

    from harness import format as figures

    loader = jinja2.PackageLoader("harness.api", "page")
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    made.globals["figures"] = figures
    return made.get_template(name)


def _sorry(title: str, text: str, status: int) -> Response:
    page = _template("sorry.html.j2").render(title=title, text=text)
    headers = _uncached() | {"Content-Security-Policy": _POLICY}
    return Response(page, status, media_type="text/html", headers=headers)


def _report(store: Store, run_id: str, rendering: Lock) -> str:
    from harness.reports import html

    document = store.document(run_id)
    with rendering:  # drawing charts takes a CPU for a second: the functions want the others
        return html.render(document)


# Server-sent events


class _Events(EventSourceResponse):
    """The stream to one page. One that takes nothing for a while is left: it will come back and get a new snapshot."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = complete = False

        async def noted(message: Message) -> None:
            nonlocal begun, complete
            begun = begun or message["type"] == "http.response.start"
            complete = complete or (message["type"] == "http.response.body" and not message.get("more_body", False))
            await send(message)

        with contextlib.suppress(TooManyPages):
            try:
                await super().__call__(scope, receive, noted)
            except SendTimeoutError:
                return
        if begun and not complete:  # sse-starlette (3.7) only stops when the server does: to uvicorn that is a fault
            await send({"type": "http.response.body", "body": b"", "more_body": False})


# Bursts


async def _burst(request: Request) -> Response:
    """Invoke a function many times at once, through the Lambda API of this service, and tell each answer as a line.

    A browser opens six connections to one origin and no more, too few to see a function scale out.
    """
    try:
        wanted = _wanted(json.loads(await request.body()))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return JSONResponse({"message": f"not a burst: {error}"}, 400, headers=_ALWAYS)
    host = request.headers.get("host", "127.0.0.1")
    return StreamingResponse(
        _answers(getattr(request.app.state, "lambda_api", request.app), host, **wanted),
        media_type="application/x-ndjson",
        headers=_uncached(),
    )


def _wanted(found: dict[str, Any]) -> dict[str, Any]:
    count, concurrency = int(found["count"]), int(found["concurrency"])
    if not 1 <= count <= MAX_BURST or not 1 <= concurrency <= MAX_CONCURRENCY:
        raise ValueError(f"count goes up to {MAX_BURST}, concurrency up to {MAX_CONCURRENCY}")
    path, headers = str(found["path"]), found.get("headers") or {}
    if not path.startswith("/2015-03-31/functions/") or len(path) > 2000:
        raise ValueError("path is not an invocation of the Lambda API")
    event = str(found["event"]).encode()
    if len(event) > _MAX_EVENT_BYTES:
        raise ValueError("the event is larger than 6 MB")
    return {
        "path": path,
        "headers": {
            _letters(name): _letters(value) for name, value in headers.items() if name.lower().startswith("x-amz-")
        },
        "event": event,
        "count": count,
        "concurrency": min(count, concurrency),
    }


def _letters(found: Any) -> str:
    """A header's name or value; what is none would keep an invocation from being made."""
    text = str(found)
    if not text.isascii() or not text.isprintable():
        raise ValueError("a header holds more than the printable letters of ASCII")
    return text


async def _answers(
    app: Any, host: str, *, path: str, headers: dict[str, str], event: bytes, count: int, concurrency: int
) -> AsyncIterator[bytes]:
    import httpx

    answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    numbers = iter(range(count))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:

        async def work() -> None:
            for number in numbers:
                before = time.monotonic()
                try:
                    answer = await client.post(path, content=event, headers=headers)
                except Exception as error:  # noqa: BLE001  # a number without an answer would be waited for for ever
                    await answers.put({"number": number, "status": 502, "headers": {}, "ms": 0, "text": str(error)})
                    continue
                told = {name: answer.headers.get(name) for name in _TOLD if name in answer.headers}
                took_ms = round((time.monotonic() - before) * 1000, 2)
                text = answer.text[:_ANSWER_CHARACTERS]
                await answers.put(
                    {"number": number, "status": answer.status_code, "headers": told, "ms": took_ms, "text": text}
                )

        workers = [asyncio.create_task(work()) for _ in range(concurrency)]
        try:
            for _ in range(count):
                yield text_of(await answers.get()).encode() + b"\n"
        finally:  # the page went away, or has all: what was not begun is not begun any more
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


_TOLD = ("x-amzn-requestid", "x-amz-function-error", "x-amz-executed-version", "x-amzn-errortype")
