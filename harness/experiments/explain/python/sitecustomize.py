"""Runs inside a sandbox, in the function's Python, before the runtime's client: looks at what stays after each invocation.

Python imports a module of this name by itself at its start, from the directory that PYTHONPATH names first. It must not
import anything of the harness, must run on every Python that Lambda has, and must never make the function fail: what
goes wrong here is reported, or swallowed.

It stands between the response and the runtime's next request for work, by way of the client's `wait_next_invocation`.
LAMBDA_HARNESS_PROBE says what it does there: ``settle`` runs the garbage collector and hands free memory back to the
kernel; ``explain:FIRST:LAST`` notes after the invocation FIRST what there is, and says after the invocation LAST what has
become more. It says so on standard error, in lines that begin with LAMBDA_HARNESS_PROBE_TOKEN.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import sys
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_CLIENT = "awslambdaric.lambda_runtime_client"
_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  # pathlib would be one more import of ours
_CHUNK = 3000  # a line this short reaches a pipe in one piece, whatever other threads write
_MOST = 40
_WALK_LIMIT = 400_000


class Look(NamedTuple):
    """What there was at one moment: sizes and counts, by name, by type and by allocation site."""

    held: dict[str, tuple[int, int | None, str]]
    types: dict[str, tuple[int, int]]
    sites: dict[tuple[str, int], tuple[int, int]]


class _Probe:
    """Counts the invocations and does what was asked for after each."""

    def __init__(self, order: str) -> None:
        self.token = os.environ.get("LAMBDA_HARNESS_PROBE_TOKEN", "")
        self.mode, _, marks = order.partition(":")
        self.first, self.last = (int(each) for each in marks.split(":")) if marks else (0, 0)
        self.done = -1
        self.before: Look | None = None
        self.trim = _malloc_trim() if self.mode == "settle" else None
        self.error = os.dup(2)  # a function may send its standard error elsewhere
        if self.mode == "explain":
            import tracemalloc

            tracemalloc.start(12)

    def after_invocation(self) -> None:
        self.done += 1  # the first call comes before the first invocation
        if self.done < 1:
            return
        if self.mode == "settle":
            gc.collect()
            if self.trim is not None:
                self.trim(0)
        elif self.done == self.first:
            gc.collect()
            self.before = _look()
        elif self.done == self.last and self.before is not None:
            gc.collect()
            self.say({"runtime": "python", "entries": _compare(self.before, _look(), self.last - self.first)})
            self.before = None

    def say(self, found: dict[str, Any]) -> None:
        text = base64.b64encode(zlib.compress(json.dumps(found).encode())).decode()
        pieces = [text[at : at + _CHUNK] for at in range(0, len(text), _CHUNK)]
        for number, piece in enumerate(pieces, 1):
            os.write(self.error, f"{self.token} {number}/{len(pieces)} {piece}\n".encode())


def _malloc_trim() -> Callable[[int], object] | None:
    try:
        import ctypes

        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim  # glibc alone has it
        return trim
    except Exception:  # noqa: BLE001
        return None


def _look() -> Look:
    """What there is: the sizes of everything that modules hold, objects by type, memory by where it was asked for."""
    import tracemalloc

    snapshot = tracemalloc.take_snapshot()
    sites: dict[tuple[str, int], tuple[int, int]] = {}
    for statistic in snapshot.traces:
        where = _site(statistic.traceback)
        size, count = sites.get(where, (0, 0))
        sites[where] = (size + statistic.size, count + 1)
    del snapshot
    types: dict[str, tuple[int, int]] = {}
    for found in gc.get_objects():
        name = f"{type(found).__module__}.{type(found).__qualname__}"
        count, size = types.get(name, (0, 0))
        types[name] = (count + 1, size + _size(found))
    held: dict[str, tuple[int, int | None, str]] = {}
    for root, file, value, deep in _roots():
        held[root] = (*_deep(value), file) if deep else (_size(value), _length(value), file)
    return Look(held, types, sites)


def _site(traceback: Iterable[Any]) -> tuple[str, int]:
    """The innermost line of the function's own code that led to an allocation, else the innermost line at all."""
    frames = list(traceback)[::-1]
    for frame in frames:
        if _is_users(frame.filename):
            return (frame.filename, frame.lineno)
    return (frames[0].filename, frames[0].lineno)


def _is_users(path: str) -> bool:
    task = os.environ.get("LAMBDA_TASK_ROOT", "/var/task")
    return bool(path) and path.startswith((task, "/opt/", "/tmp/"))


def _roots() -> Iterator[tuple[str, str, Any, bool]]:
    """Names that hold something for as long as the process lives: (name, file, value, whether to look deep)."""
    containers = (dict, list, set, bytearray)
    for module_name, module in list(sys.modules.items()):
        where = getattr(module, "__file__", None) or ""
        if os.path.dirname(where) == _HERE or module_name == "tracemalloc":  # noqa: PTH120
            continue
        mine = _is_users(where)
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if name.startswith("__") and name.endswith("__"):
                continue
            if not mine:
                if isinstance(value, containers):
                    yield f"{module_name}.{name}", where, value, False
                continue
            if isinstance(value, type(sys)):
                continue
            if isinstance(value, type):
                if value.__module__ == module_name:
                    for key, member in list(vars(value).items()):
                        if not key.startswith("__"):
                            yield f"{module_name}.{name}.{key}", where, member, True
                continue
            if getattr(value, "__module__", module_name) == module_name or not callable(value):
                yield f"{module_name}.{name}", where, value, True


def _deep(root: object) -> tuple[int, int | None]:
    """The bytes and the number of all objects that can be reached, without leaving through modules and classes."""
    seen: set[int] = set()
    todo, size, own = [root], 0, _length(root)
    module, function = type(sys), type(_deep)
    stop = (module, type, type(sys._getframe()), type(_PROBE))  # noqa: SLF001
    while todo and len(seen) < _WALK_LIMIT:
        value = todo.pop()
        if id(value) in seen or (isinstance(value, stop) and value is not root):
            continue
        seen.add(id(value))
        size += _size(value)
        if isinstance(value, function):  # its globals are the module's, not its own
            todo += [value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__]
        elif type(value).__name__ != "code":
            todo += gc.get_referents(value)
    return size, own if own is not None else len(seen)


def _length(value: Any) -> int | None:
    try:
        if hasattr(value, "cache_info"):
            return int(value.cache_info().currsize)
        return len(value) if not isinstance(value, type) else None
    except Exception:  # noqa: BLE001  # __len__ is the function's own code
        return None


def _size(value: object) -> int:
    try:
        return sys.getsizeof(value)
    except Exception:  # noqa: BLE001  # so is __sizeof__
        return 0


def _compare(before: Look, after: Look, invocations: int) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []

    def add(kind: str, name: str, where: str | None, size: int, count: int) -> None:
        if size > 0:
            entries.append(
                {
                    "name": name,
                    "kind": kind,
                    "grew_bytes_per_invocation": size / invocations,
                    "grew_count_per_invocation": count / invocations,
                    "where": where,
                }
            )

    for name, (size, length, where) in after.held.items():
        old_size, old_length, _ = before.held.get(name, (0, 0, where))
        add("module global", name, where, size - old_size, (length or 0) - (old_length or 0))
    for name, (count, size) in after.types.items():
        old_count, old_size = before.types.get(name, (0, 0))
        add("type", name, None, size - old_size, count - old_count)
    for (path, line), (size, count) in after.sites.items():
        if path == __file__ or path.endswith("/tracemalloc.py"):
            continue
        old_size, old_count = before.sites.get((path, line), (0, 0))
        name = f"{os.path.basename(path)}:{line}"  # noqa: PTH119
        add("allocation site", name, f"{path}:{line}", size - old_size, count - old_count)
    entries.sort(key=lambda each: -each["grew_bytes_per_invocation"])
    return entries[:_MOST]


class _Finder:
    """Waits for the runtime's client to be imported, and stands between it and its loop."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        if name != _CLIENT:
            return None
        import importlib.machinery

        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            for found in list(vars(module).values()):
                if isinstance(found, type) and "wait_next_invocation" in vars(found):
                    _stand_between(found)

        setattr(spec.loader, "exec_module", exec_module)  # noqa: B010  # a loader object of this one module
        return spec


def _stand_between(client: Any) -> None:
    wait = client.wait_next_invocation

    def wait_next_invocation(self: Any) -> Any:
        if _PROBE is not None:
            try:
                _PROBE.after_invocation()
            except Exception as error:  # noqa: BLE001  # the function goes on, whatever happened here
                _PROBE.say({"runtime": "python", "error": f"{type(error).__name__}: {error}"})
        return wait(self)

    client.wait_next_invocation = wait_next_invocation


def _go_on() -> None:
    """There is one module of this name: run the one that would have been imported without this one."""
    import importlib.machinery

    rest = [each for each in sys.path if os.path.abspath(each) != _HERE]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        import importlib.util

        spec.loader.exec_module(importlib.util.module_from_spec(spec))


_PROBE: _Probe | None = None
if os.environ.get("LAMBDA_HARNESS_PROBE"):
    try:
        _PROBE = _Probe(os.environ["LAMBDA_HARNESS_PROBE"])
        sys.meta_path.insert(0, _Finder)
    except Exception:  # noqa: BLE001, S110
        pass
    _go_on()
