"""CloudWatch Logs as files: a folder a function, a file a sandbox; written while things happen, and read back.

    FOLDER/<function>/2026-11-22_LATEST_<hex>.log      the stream 2026/11/22/[$LATEST]<hex> of /aws/lambda/<function>

A line is a time stamp, a space and the message. The files hold what Lambda's own log has (INIT_START, START, the function's
output, END, REPORT) and nothing of the harness: no environment, no events. Functions may print secrets, so only the owner
may read them. A file is turned once when it is full, and the oldest files of a function go when its folder is full.
"""

from __future__ import annotations

import contextlib
import datetime
import heapq
import os
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import lifecycle
from harness.errors import InvalidInput
from harness.observer import Observer

if TYPE_CHECKING:
    from harness.context import RequestContext
    from harness.invocation import Invocation
    from harness.sandbox import Sandbox

GROUP_PREFIX = "/aws/lambda/"
STREAM_BYTES = 8 * 1024 * 1024
"""At which a file is turned: it is kept once, with .1 behind its name, so a stream takes twice as much at most."""
GROUP_BYTES = 256 * 1024 * 1024
"""Of all files of a function, counted when a sandbox's first line is written."""
_POLL_S = 0.2

_STREAM = re.compile(r"(\d{4})/(\d{2})/(\d{2})/\[(\$LATEST|\d+)\]([0-9a-zA-Z]{1,64})")
_FILE = re.compile(r"(\d{4})-(\d{2})-(\d{2})_(LATEST|\d+)_([0-9a-zA-Z]{1,64})\.log")
_FUNCTION = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_STAMP_LENGTH = len("2026-11-22T00:00:00.000Z")


def file_name(stream: str) -> str:
    """The file of a stream; `InvalidInput` for a name that is none of Lambda's."""
    found = _STREAM.fullmatch(stream)
    if found is None:
        raise InvalidInput(
            f"{stream!r} is no log stream of Lambda", remedy="one looks like 2026/11/22/[$LATEST]0123abcd"
        )
    year, month, day, version, unique = found.groups()
    return f"{year}-{month}-{day}_{version.lstrip('$')}_{unique}.log"


def stream_name(file: str) -> str | None:
    """The inverse of `file_name`, also of a file that was turned; None for another's file."""
    found = _FILE.fullmatch(file.removesuffix(".1"))
    if found is None:
        return None
    year, month, day, version, unique = found.groups()
    return f"{year}/{month}/{day}/[{'$LATEST' if version == 'LATEST' else version}]{unique}"


def _folder_of(folder: Path, function: str) -> Path:
    name = function.removeprefix(GROUP_PREFIX)
    if not _FUNCTION.fullmatch(name):
        raise InvalidInput(
            f"{function!r} is no function's name", remedy=f"write a function's name, or its group {GROUP_PREFIX}NAME"
        )
    return folder / name


# -- writing ------------------------------------------------------------------------------------------------------------


class _Stream:
    """The open file of one sandbox."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit = path, limit
        self._descriptor = self._opened()
        self._size = os.fstat(self._descriptor).st_size
        self.request_id: str | None = None
        """The request whose START has been written and whose END has not."""
        self.invoked_at: datetime.datetime | None = None

    def _opened(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, lines: list[str], when: datetime.datetime) -> None:
        stamp = _stamp(when)
        data = "".join(f"{stamp} {line}\n" for line in lines).encode("utf-8", errors="replace")
        if self._size and self._size + len(data) > self._limit:
            # Turned before the old file is let go: what fails here leaves a descriptor that is still ours.
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            full, self._descriptor, self._size = self._descriptor, self._opened(), 0
            os.close(full)
        self._size += os.write(self._descriptor, data)

    def close(self) -> None:
        os.close(self._descriptor)


class LogFiles(Observer):
    """Writes the log of every sandbox that it observes. A context manager; `close` closes the files that are open.

    Raises nothing while it observes: `trouble` holds what went wrong first, a full disk say, and ``say`` hears it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        stream_bytes: int = STREAM_BYTES,
        group_bytes: int = GROUP_BYTES,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder = folder
        self.trouble: str | None = None
        self._say = say
        self._stream_bytes, self._group_bytes = stream_bytes, group_bytes
        self._streams: dict[str, _Stream] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> LogFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            streams = list(self._streams.values())
            self._streams.clear()
        for stream in streams:
            stream.close()

    def phase(self, sandbox: Sandbox, phase: lifecycle.Phase) -> None:
        now = _now()
        if isinstance(phase, lifecycle.Initialising | lifecycle.Reinitialising):
            self._write(sandbox, lambda stream: stream.write([_init_start(sandbox.function.runtime)], now))
        elif isinstance(phase, lifecycle.Invoking):
            with self._lock:
                stream = self._streams.get(sandbox.id)
                if stream is not None:
                    stream.invoked_at = now
        elif isinstance(phase, lifecycle.ShutDown):
            with self._lock:
                stream = self._streams.pop(sandbox.id, None)
                if stream is not None:
                    stream.close()

    def output(self, sandbox: Sandbox, request_id: str | None, data: bytes) -> None:
        now = _now()
        lines = data.decode("utf-8", errors="replace").removesuffix("\n").split("\n")

        def write(stream: _Stream) -> None:
            if request_id is not None:
                _begin(stream, request_id, sandbox.function.version, now)
            stream.write(lines, now)

        self._write(sandbox, write)

    def invoked(self, sandbox: Sandbox, record: Invocation, context: RequestContext) -> None:  # noqa: ARG002
        now = _now()

        def write(stream: _Stream) -> None:
            _begin(stream, record.request_id, sandbox.function.version, now)
            stream.write([*_last_words(record), f"END RequestId: {record.request_id}", record.report], now)
            stream.request_id, stream.invoked_at = None, None

        if record.report:  # there is none of an invocation that never reached the function
            self._write(sandbox, write)

    def _write(self, sandbox: Sandbox, write: Callable[[_Stream], None]) -> None:
        try:
            with self._lock:
                stream = self._streams.get(sandbox.id)
                if stream is None:
                    stream = self._streams[sandbox.id] = self._begun(sandbox)
                write(stream)
        except (OSError, InvalidInput) as error:
            if self.trouble is None:
                self.trouble = f"the log of function {sandbox.function.name} cannot be written: {error}"
                self._say(f"warning: {self.trouble}")

    def _begun(self, sandbox: Sandbox) -> _Stream:
        folder = _folder_of(self.folder, sandbox.function.name)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        path = folder / file_name(sandbox.log_stream)
        self._make_room(folder)
        return _Stream(path, self._stream_bytes)

    def _make_room(self, folder: Path) -> None:
        files = []
        for path in folder.iterdir():
            if stream_name(path.name) is not None:
                found = path.stat()
                files.append((found.st_mtime, found.st_size, path))
        left = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if left <= self._group_bytes - 2 * self._stream_bytes:
                break
            path.unlink(missing_ok=True)
            left -= size


def _begin(stream: _Stream, request_id: str, version: str, now: datetime.datetime) -> None:
    if stream.request_id == request_id:
        return
    stream.write([f"START RequestId: {request_id} Version: {version}"], stream.invoked_at or now)
    stream.request_id, stream.invoked_at = request_id, None


def _init_start(runtime: str | None) -> str:
    """As Lambda begins a stream. Its runtimes have patch versions and ARNs; what is not known here is not made up."""
    found = re.fullmatch(r"([a-z]+)([\d.a-z]*)", runtime or "")
    return f"INIT_START Runtime Version: {f'{found[1]}:{found[2]}' if found else '-'}"


def _last_words(record: Invocation) -> list[str]:
    """What Lambda itself says between the output and END: of a timeout, or of a runtime that went away."""
    message = record.error_message or ""
    if record.error_type == "Sandbox.Timedout":
        return [message]
    if record.error_type == "Runtime.ExitError" and message.startswith("RequestId: "):
        return [message, "Runtime.ExitError"]
    return []


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _stamp(when: datetime.datetime) -> str:
    return when.astimezone(datetime.UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


# -- reading ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, order=True)
class LogEvent:
    """One line of a log. ``timestamp`` is in UTC; ``stream`` has Lambda's form."""

    timestamp: datetime.datetime
    stream: str
    message: str

    def __str__(self) -> str:
        return f"{_stamp(self.timestamp)} {self.stream} {self.message}"


def functions(folder: Path) -> list[str]:
    """Those that have logs."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and _FUNCTION.fullmatch(path.name))


def tail(
    folder: Path,
    function: str,
    *,
    follow: bool = False,
    since: datetime.datetime | datetime.timedelta | None = None,
    filter: str = "",  # noqa: A002  # AWS's word for it
    stop: threading.Event | None = None,
) -> Iterator[LogEvent]:
    """The events of a function's log in the order of their times; with ``follow`` also those to come, until ``stop``.

    Args:
        folder: Where `LogFiles` writes.
        function: Its name, or the name of its log group.
        follow: Wait for more; also for a function that has no log yet.
        since: From this instant on, or from so long ago; None: everything.
        filter: Words that must be in a message; ``-word`` must not be, of ``?word ?word`` one must; "several words" in
            double quotes are one. As CloudWatch's patterns for text, so letters' case counts.
        stop: Ends the following.

    Raises:
        InvalidInput: No function is called so, it has no log (without ``follow``), or the filter cannot be read.
    """
    place = _folder_of(folder, function)
    accepts = _matcher(filter)
    begin = _now() - since if isinstance(since, datetime.timedelta) else since
    if not follow and not place.is_dir():
        known = functions(folder)
        raise InvalidInput(
            f"function {function} has no log in {folder}",
            remedy=f"there are logs of {', '.join(known)}" if known else "logs are written while functions run",
        )
    return _events(_Reader(place), accepts, begin, (stop or threading.Event()) if follow else None)


def _events(
    reader: _Reader,
    accepts: Callable[[str], bool],
    begin: datetime.datetime | None,
    stop: threading.Event | None,
) -> Iterator[LogEvent]:
    while True:
        ended = stop is None or stop.is_set()  # asked before reading, so that nothing is missed
        for event in reader.more():
            if (begin is None or event.timestamp >= begin) and accepts(event.message):
                yield event
        if ended or stop is None:
            return
        stop.wait(_POLL_S)


def _matcher(text: str) -> Callable[[str], bool]:
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars="")
        lexer.whitespace_split, lexer.commenters, lexer.quotes, lexer.escape = True, "", '"', ""
        terms = list(lexer)
    except ValueError as error:
        raise InvalidInput(f"the filter {text!r} cannot be read: {error}", remedy='close every "') from error
    without = [term[1:] for term in terms if term.startswith("-") and len(term) > 1]
    any_of = [term[1:] for term in terms if term.startswith("?") and len(term) > 1]
    every = [term for term in terms if not (term[:1] in "-?" and len(term) > 1)]

    def accepts(message: str) -> bool:
        return (
            all(term in message for term in every)
            and not any(term in message for term in without)
            and (not any_of or any(term in message for term in any_of))
        )

    return accepts


class _Reader:
    """What the files of a function hold, each line once, whatever is turned or removed meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[tuple[int, int], int] = {}
        """How far each file has been read, by device and inode: a turned file keeps them."""

    def more(self) -> Iterator[LogEvent]:
        """The whole lines that were added since the last call, over all streams in the order of their times."""
        paths = []
        with contextlib.suppress(FileNotFoundError):
            # The turned file first: it holds the older lines.
            paths = sorted(
                (path for path in self._folder.iterdir() if stream_name(path.name) is not None),
                key=lambda path: (path.name.removesuffix(".1"), not path.name.endswith(".1")),
            )
        return heapq.merge(*(self._lines(path) for path in paths), key=lambda event: event.timestamp)

    def _lines(self, path: Path) -> Iterator[LogEvent]:
        stream = stream_name(path.name) or ""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return
        with file:
            found = os.fstat(file.fileno())
            identity = (found.st_dev, found.st_ino)
            if self._read.get(identity, 0) > found.st_size:
                del self._read[identity]  # another file was given the number of one that is gone
            file.seek(self._read.get(identity, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written
                self._read[identity] = self._read.get(identity, 0) + len(line)
                event = _event(line.decode("utf-8", errors="replace").removesuffix("\n"), stream)
                if event is not None:
                    yield event


def _event(line: str, stream: str) -> LogEvent | None:
    try:
        when = datetime.datetime.fromisoformat(line[:_STAMP_LENGTH])
    except ValueError:
        return None
    return LogEvent(timestamp=when, stream=stream, message=line[_STAMP_LENGTH + 1 :])
