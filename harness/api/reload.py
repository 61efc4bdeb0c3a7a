"""Hot reload: tells when what lies in a directory has changed. One thread watches all directories.

The watch hears of a change some 50 ms after it. Somebody who saves a file and invokes at once must not meet the old code,
so `Reloader.look` compares the files at the top of a directory then and there: a few `stat` calls. What was seen so is not
told again when the watch hears of it. Must not know functions: a directory, or a file, and what to call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_DEBOUNCE_MS, _STEP_MS, _LOOK_MS = 400, 50, 150
_TOP_MOST = 256
"""Files at the top of a directory that `look` compares."""
_IGNORED = frozenset({"__pycache__", ".git", ".hg", ".svn", ".idea", ".mypy_cache", ".pytest_cache", ".hypothesis"})
_NO_MATTER = (".pyc", ".pyo", ".swp", ".swx", "~", ".DS_Store")

_DELETED = 3
"""`watchfiles.Change.deleted`."""

_Stat = tuple[int, int, int]
_Signature = dict[str, _Stat]


@dataclass(kw_only=True)
class _Watched:
    paths: tuple[Path, ...]
    roots: frozenset[Path]
    """Directories: of a file, the one it is in, since an editor may put another file in its place."""
    changed: Callable[[], None]
    seen: _Signature
    gone: set[str] = field(default_factory=set)
    """Files that `look` found missing, of which the watch may have to tell yet."""


class Reloader:
    """Thread-safe. The thread exists while there is something to watch, from the first `watch` until `close`.

    ``say`` hears what went wrong: then `look` is all there is.
    """

    def __init__(self, *, say: Callable[[str], None] = lambda _: None) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._watched: dict[Hashable, _Watched] = {}
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._armed: frozenset[str] = frozenset()
        self._arming = threading.Condition()

    def watch(self, owner: Hashable, paths: Iterable[Path], changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever something in one of these directories, or one of these files, has changed.

        It is called in the watch's thread or in that of `look`, must be quick, and raise nothing.
        """
        absolute = tuple(path.absolute() for path in paths)
        with self._lock:
            if self._closing:
                return
            roots = frozenset(path.parent if path.is_file() else path for path in absolute)
            self._watched[owner] = _Watched(paths=absolute, roots=roots, changed=changed, seen=_signature(absolute))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hot-reload", daemon=True)
                self._thread.start()
        self._wake.set()

    def forget(self, owner: Hashable) -> None:
        """Watch no more for this owner."""
        with self._lock:
            self._watched.pop(owner, None)
        self._wake.set()

    def look(self, owner: Hashable) -> bool:
        """Whether files have changed that lie openly; ``changed`` has been called then."""
        with self._lock:
            watched = self._watched.get(owner)
        if watched is None:
            return False
        now = _signature(watched.paths)
        with self._lock:
            changed = watched.seen != now
            watched.gone = (watched.gone | (watched.seen.keys() - now.keys())) - now.keys()
            watched.seen = now
        if changed:
            watched.changed()
        return changed

    def wait_until_watching(self, timeout_s: float) -> bool:
        """Wait until every directory that is there is being watched, or was found not to be watchable; whether it is so."""
        with self._arming:
            return self._arming.wait_for(lambda: self._armed == frozenset(self._roots()), timeout=timeout_s)

    def close(self) -> None:
        with self._lock:
            self._closing = True
            self._watched.clear()
            thread = self._thread
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # -- in the watch's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        watch: Any = None
        known: dict[str, tuple[int, int]] | None = {}
        remembered: dict[str, tuple[int, int]] = {}
        try:
            while not self._closing:
                self._wake.clear()
                roots = self._roots()
                if roots != known:
                    watch = self._rearm(watch, roots)
                    # A directory that has come anew under an old name (a build that empties its output) is a change.
                    renewed = {root for root, identity in roots.items() if remembered.get(root, identity) != identity}
                    if renewed:
                        self._tell(renewed)
                    known = roots
                    remembered |= roots
                    self._note(frozenset(roots))
                if watch is None:
                    self._wake.wait(_LOOK_MS / 1000)
                    continue
                # Without an event that would stop it: watchfiles (1.3) forgets what it has found when it is stopped.
                found = watch.watch(_DEBOUNCE_MS, _STEP_MS, _LOOK_MS, None)
                if isinstance(found, set):
                    if any(kind == _DELETED and path in roots for kind, path in found):
                        known = None  # its watch went with it, and another may have its name and even its inode by now
                    self._tell({path for _, path in found})
        finally:
            if watch is not None:
                watch.close()

    def _rearm(self, old: Any, roots: dict[str, tuple[int, int]]) -> Any:
        """A watch over these roots; the old one is emptied after the new one has begun, so that nothing is lost."""
        # The part of watchfiles' documented interface that can be asked for what was found so far.
        from watchfiles._rust_notify import RustNotify

        new = None
        try:
            if roots:
                new = RustNotify(
                    sorted(roots),
                    debug=False,
                    force_polling=False,
                    poll_delay_ms=300,
                    recursive=True,
                    ignore_permission_denied=True,
                )
        except Exception as error:  # noqa: BLE001  # too few inotify watches, say; the rest of the service goes on
            self._say(f"directories cannot be watched: {error}")
        if old is not None:
            late = old.watch(1, 1, 1, None)
            old.close()
            if isinstance(late, set):
                self._tell({path for _, path in late})
        return new

    def _note(self, armed: frozenset[str]) -> None:
        with self._arming:
            self._armed = armed
            self._arming.notify_all()

    def _roots(self) -> dict[str, tuple[int, int]]:
        """The directories to watch that are there, and which ones they are."""
        with self._lock:
            roots = {root for watched in self._watched.values() for root in watched.roots}
        found = {}
        for root in roots:
            try:
                status = root.stat()
            except OSError:
                continue
            found[str(root)] = (status.st_dev, status.st_ino)
        return found

    def _tell(self, changes: set[str]) -> None:
        paths = [Path(change) for change in changes]
        with self._lock:
            told = [watched for watched in self._watched.values() if _concerns(watched, paths)]
            for watched in told:
                watched.seen = _signature(watched.paths)
        for watched in told:
            watched.changed()


def _concerns(watched: _Watched, changes: list[Path]) -> bool:
    for change in changes:
        for path in watched.paths:
            if change in path.parents:
                return True  # the directory itself has been replaced
            if change == path or path in change.parents:
                inner = change.relative_to(path).parts
                if not _ignored(inner) and not _seen_already(watched, path, change):
                    return True
    return False


def _ignored(parts: tuple[str, ...]) -> bool:
    return any(part in _IGNORED for part in parts) or (bool(parts) and parts[-1].endswith(_NO_MATTER))


def _seen_already(watched: _Watched, path: Path, change: Path) -> bool:
    """Whether `look` has come across it before the watch did: it is a file at the top, and is as it was then."""
    if path not in (change, change.parent):
        return False
    try:
        now = _stat(change.stat())
    except OSError:
        return str(change) in watched.gone
    return change.is_file() and watched.seen.get(str(change)) == now


def _signature(paths: tuple[Path, ...]) -> _Signature:
    found: _Signature = {}
    for path in paths:
        try:
            if path.is_dir():
                with os.scandir(path) as entries:
                    for entry in entries:
                        if len(found) < _TOP_MOST and not _ignored((entry.name,)) and entry.is_file():
                            found[entry.path] = _stat(entry.stat())
            else:
                found[str(path)] = _stat(path.stat())
        except OSError:
            continue  # it is on its way out or in; the watch will tell
    return found


def _stat(status: os.stat_result) -> _Stat:
    return (status.st_mtime_ns, status.st_size, status.st_ino)
