"""An agent without a container: a thread of this process at the other end of two pipes, whose sandboxes share this network."""

from __future__ import annotations

import itertools
import os
import threading

import pytest

from harness import watch
from harness.agent.inside import Agent
from harness.agent.link import Link
from harness.vantage import Endpoints, SocketServer
from harness.vantage.agent import RemoteListening


class Pipes:
    """A stream to an agent; see `harness.agent.link.Stream`."""

    def __init__(self) -> None:
        self._there, self._ours = os.pipe()
        self._here, self._theirs = os.pipe()
        agent = Agent(lambda: os.read(self._there, 65536), self._say)
        self._thread = threading.Thread(target=agent.serve, name="agent")
        self._thread.start()
        self.gone = False

    def _say(self, data: bytes) -> None:
        if self.gone:
            raise BrokenPipeError
        _write(self._theirs, data)

    def read(self) -> bytes:
        return os.read(self._here, 65536)

    def write(self, data: bytes) -> None:
        if self.gone:
            raise BrokenPipeError
        _write(self._ours, data)

    def die(self) -> None:
        """As a killed agent: nothing more is said, nothing more is heard."""
        if not self.gone:
            self.gone = True
            os.close(self._ours)
            self._thread.join(10)
            os.close(self._theirs)

    def close(self) -> None:
        self.die()

    def last_words(self) -> str:
        return ""

    def give_back(self) -> None:
        os.close(self._there)
        os.close(self._here)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class AgentInProcess:
    """A context manager. Each call of `listen` is for a sandbox of its own."""

    def __init__(self) -> None:
        self.pipes = Pipes()
        self.link = Link(self.pipes)
        self._numbers = itertools.count()

    def __enter__(self) -> AgentInProcess:
        self.link._thread.start()  # without the hello, which needs cgroups
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()
        self.pipes.give_back()

    def listen(self, endpoints: Endpoints, server: SocketServer) -> RemoteListening:
        seat = f"seat{next(self._numbers)}"
        self.link.call("sit", seat=seat, pid=0, port=0, tmp_mb=512)
        return RemoteListening(self.link, seat, endpoints, server)


@pytest.fixture
def one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sandboxes whose network is this process's own."""
    monkeypatch.setattr(watch, "enter_network_namespace", lambda pid: None)
