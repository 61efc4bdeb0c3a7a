"""The service put together: engine, store, functions, dispatcher, receivers, logs, page, and the app over all of them.

Everything is opened in one order and given back in the reverse one. Must not parse options or print: what there is to
say goes to ``say``, which must not block.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.api import app, operations, pages, server
from harness.api.code_store import CodeStore
from harness.api.dispatch import Dispatcher
from harness.api.feed import Feed, card
from harness.api.registry import Listener, Registry
from harness.errors import NotMeasurable
from harness.function.model import DEFAULT_REGION
from harness.observer import Observer
from harness.receivers import LogFiles, Receivers
from harness.receivers.server import KINDS
from harness.stand import Ground
from harness.store import Store, default_path
from harness.vantage import Vantage

if TYPE_CHECKING:
    import socket

    from harness.api.model import FunctionVersion
    from harness.context import RequestContext
    from harness.debugger import Debug
    from harness.function import Function
    from harness.invocation import Invocation
    from harness.lifecycle import Phase
    from harness.sandbox import Sandbox

DEFAULT_PORT = 4577
_RECEIVED_FILE_BYTES = 64 * 1024 * 1024
"""At which metrics.jsonl and traces.jsonl are turned."""
_KEPT_SEGMENTS = 1000
"""The page and the file have had them by then."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a service is to be run. ``receivers`` None: those that the vantage can have."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    region: str = DEFAULT_REGION
    keep_alive_s: float = 300.0
    account_concurrency: int = 1000
    vantage: str = "auto"
    pull: bool = True
    store: Path | None = None
    receivers: Collection[str] | None = None
    retry_scale: float = 1.0
    debug: Debug | None = None


class Service:
    """A context manager: what is entered is ready to `run`. Raises the errors of whatever cannot be opened."""

    def __init__(self, settings: Settings, *, say: Callable[[str], None] = lambda _: None) -> None:
        self.settings = settings
        self._say = say
        self._undo = contextlib.ExitStack()
        self.registry: Registry
        self.dispatcher: Dispatcher
        self.feed: Feed
        self.data: Path
        self.port: int
        self._listening: socket.socket
        self._rooms: app.Rooms

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @property
    def url(self) -> str:
        """Where clients reach it."""
        host = self.settings.host.strip("[]")
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        return f"http://{shown}:{self.port}"

    def deploy(self, functions: Sequence[Function]) -> None:
        """Create or update functions from directories, templates and images; a change there is taken up at once."""
        for function in functions:
            version = self.registry.deploy(function)
            # Its card knows more than the registry does: the sample events of its folder.
            self.feed.function(card(function) | {"version": version.version})

    def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Serve until a signal comes; raises `Interrupted`. To be called in the main thread, once."""
        settings = self.settings
        server.run(
            app.build(self._rooms, host=settings.host),
            self._listening,
            connections=settings.account_concurrency,
            say=self._say,
            started=started,
        )

    def _tell(self, text: str) -> None:
        """Say it in the log and on the page."""
        self._say(text)
        self.feed.message(text, level="warning" if text.startswith(("warning", "refused")) else "info")

    def _throttled(self, record: Invocation) -> None:
        self.feed.recorded(record)
        self._say(f"throttled: {record.function}: {'; '.join(record.notes)}")

    def _open(self) -> None:
        settings, enter = self.settings, self._undo.enter_context
        # First what fails fast and costs nothing: nobody should wait for an engine to hear that the port is taken.
        self._listening = enter(contextlib.closing(server.bind(settings.host, settings.port)))
        self.port = self._listening.getsockname()[1]
        path = settings.store or default_path()
        self.data = path.parent
        store = enter(Store(path))
        code_store = enter(contextlib.closing(CodeStore(self.data / "code")))
        ground = enter(Ground(vantage=settings.vantage))
        self.feed = enter(Feed(region=settings.region))
        receivers = self._receivers(ground.vantage)
        log_files = enter(LogFiles(self.data / "logs", say=self._tell))
        self.registry = Registry(
            store, code_store, region=settings.region, account_concurrency=settings.account_concurrency
        )
        self.registry.port = self.port
        self.dispatcher = enter(
            Dispatcher(
                ground,
                self.registry,
                store,
                receivers=receivers,
                observer=_Everybody(self.feed, log_files, _Narrator(self._say)),
                keep_alive_s=settings.keep_alive_s,
                account_concurrency=settings.account_concurrency,
                debug=settings.debug,
                pull=settings.pull,
                retry_scale=settings.retry_scale,
                data_dir=self.data,
                progress=self._tell,
            )
        )
        # Before the dispatcher is closed: a preparation that it refused then would make a function fail for good.
        self._undo.callback(self.registry.close)
        self.registry.preparer = self.dispatcher.prepare
        self.registry.provisioned_status = self.dispatcher.provisioned_status
        self.registry.subscribe(_ToFeed(self.feed))
        for record in self.registry.functions():
            for version in record.numbered():
                self.feed.function(_card(version))
        self.registry.resume()
        self._rooms = app.Rooms(
            registry=self.registry,
            dispatcher=self.dispatcher,
            handle=lambda operation, params: operations.perform(operation, params, self.registry),
            pages=pages.routes(self.feed, store=store),
            code_of=code_store.path,
            sampled=receivers is not None and "xray" in receivers.kinds,
            say=self._tell,
            recorded=self._throttled,
            account_concurrency=settings.account_concurrency,
        )

    def _receivers(self, vantage: Vantage) -> Receivers | None:
        wanted = self.settings.receivers
        if wanted is not None and not wanted:
            return None
        if not vantage.relays:
            why = f"on vantage {vantage.name} no receivers can be opened in the containers' networks"
            if wanted is not None:
                raise NotMeasurable(why, remedy="use the vantage host or agent, or --receivers none")
            self._say(f"warning: {why}: metrics and traces of functions are not received")
            return None
        metrics = self._undo.enter_context(_Lines(self.data / "metrics.jsonl"))
        traces = self._undo.enter_context(_Lines(self.data / "traces.jsonl"))

        def on_metrics(found: list[dict[str, Any]]) -> None:
            self.feed.metrics(found)
            metrics.write(found)

        def on_segment(found: dict[str, Any]) -> None:
            self.feed.segment(found)
            traces.write([found])

        return self._undo.enter_context(
            Receivers(
                KINDS if wanted is None else wanted,
                on_metrics=on_metrics,
                on_segment=on_segment,
                most_segments=_KEPT_SEGMENTS,
                on_warning=self._tell,
            )
        )


class _Everybody(Observer):
    """One observer for several, in the order in which they are to hear."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def phase(self, sandbox: Sandbox, phase: Phase) -> None:
        for each in self._observers:
            each.phase(sandbox, phase)

    def output(self, sandbox: Sandbox, request_id: str | None, data: bytes) -> None:
        for each in self._observers:
            each.output(sandbox, request_id, data)

    def invoked(self, sandbox: Sandbox, record: Invocation, context: RequestContext) -> None:
        for each in self._observers:
            each.invoked(sandbox, record, context)


class _Narrator(Observer):
    """The REPORT line of each invocation; no output and no payload, which may hold secrets."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def invoked(self, sandbox: Sandbox, record: Invocation, context: RequestContext) -> None:  # noqa: ARG002
        name, version = sandbox.function.name, sandbox.function.version
        what = record.report.rstrip() or f"RequestId: {record.request_id}\t{record.outcome}: {record.error_type}"
        self._say(f"{name}:{version} {what}")


class _ToFeed(Listener):
    """Tells the page what changes about functions."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def version_changed(self, version: FunctionVersion) -> None:
        self._feed.function(_card(version))

    def version_deleted(self, name: str, version: str) -> None:
        self._feed.function_deleted(name, version)

    def function_deleted(self, name: str) -> None:
        self._feed.function_deleted(name)


def _card(version: FunctionVersion) -> dict[str, Any]:
    return card(version.function()) | {"state": version.state, "state_reason": version.status.reason}


class _Lines:
    """JSON documents as lines of a file of bounded size: when it is full it is turned, and kept once."""

    def __init__(self, path: Path, *, limit_bytes: int = _RECEIVED_FILE_BYTES) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._file: FileIO | None = self._opened()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def write(self, found: list[dict[str, Any]]) -> None:
        data = "".join(json.dumps(each, ensure_ascii=False, default=str) + "\n" for each in found).encode()
        # A full disk must not end a receiver; the page and the findings have what the file lacks.
        with self._lock, contextlib.suppress(OSError):
            if self._file is None:
                return
            if self._file.tell() + len(data) > self._limit_bytes:
                self._file.close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._file = self._opened()
            self._file.write(data)

    def _opened(self) -> FileIO:
        file = self._path.open("ab", buffering=0)
        self._path.chmod(0o600)
        return file
