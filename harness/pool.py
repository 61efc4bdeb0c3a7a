"""Concurrent invocations over sandboxes: each takes the idle one that was used last, or a new one.

One request per sandbox, as on Lambda. Owns its sandboxes: closing the pool ends them all.
"""

from __future__ import annotations

import threading
from types import TracebackType

from harness import lifecycle
from harness.errors import HarnessError
from harness.function import Function
from harness.invocation import Invocation
from harness.sandbox import Sandbox
from harness.stand import Stand


class Pool:
    """Sandboxes of one function at one memory size. Safe to use from several threads."""

    def __init__(self, stand: Stand, function: Function | None = None) -> None:
        self._stand = stand
        self._function = function or stand.function
        self._idle: list[Sandbox] = []
        self._all: list[Sandbox] = []
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def sandboxes(self) -> tuple[Sandbox, ...]:
        with self._lock:
            return tuple(self._all)

    def invoke(self, event: bytes) -> Invocation:
        """One invocation, in the sandbox that was used last of those that are idle, or in a new one.

        A sandbox whose container went away is not used again. Raises `EngineError` when none can be started.
        """
        sandbox = self._take()
        try:
            return sandbox.invoke(event)
        finally:
            self._give_back(sandbox)

    def _take(self) -> Sandbox:
        with self._lock:
            if self._closed:
                raise HarnessError("the pool is closed")
            if self._idle:
                return self._idle.pop()
            sandbox = self._stand.sandbox(self._function)
            self._all.append(sandbox)
        try:
            sandbox.start()
        except BaseException:
            with self._lock:
                self._all.remove(sandbox)
            raise
        return sandbox

    def _give_back(self, sandbox: Sandbox) -> None:
        with self._lock:
            if isinstance(sandbox.phase, lifecycle.ShutDown):
                self._all.remove(sandbox)
            elif not self._closed:
                self._idle.append(sandbox)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            sandboxes, self._all, self._idle = self._all, [], []
        for sandbox in sandboxes:
            sandbox.shut_down()
